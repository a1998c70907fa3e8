/* SPDX-License-Identifier: MIT */
#include "forkd/pool/size.h"

#include <errno.h>

#include "common/err.h"

unsigned pool_min(const struct pool_sizes *s) {
        if (s->has_min)
                return s->min;
        return s->idle_timeout_seconds > 0 ? 0 : s->size;
}

unsigned pool_max(const struct pool_sizes *s) {
        return s->has_max ? s->max : s->size;
}

int pool_sizes_check(const struct pool_sizes *s, struct err *e) {
        unsigned min = pool_min(s), max = pool_max(s);

        if (s->size < 1 || s->size > POOL_MAX_SIZE) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "a pool cannot have a size of %u", s->size);
                return err_hint(e, "--size is from 1 to %d", POOL_MAX_SIZE);
        }
        if (max > POOL_MAX_SIZE)
                return err_set(e, ERR_INVALID, -EINVAL, "a pool has at most %d clones, not %u", POOL_MAX_SIZE, max);
        if (min > s->size || max < s->size) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "a size of %u is not between the least, %u, and the most, %u", s->size,
                               min, max);
                return err_hint(e, "--min is at most --size, and --max at least");
        }
        if (s->idle_timeout_seconds > POOL_MAX_IDLE_SECONDS)
                return err_set(e, ERR_INVALID, -EINVAL, "a pool becomes idle within %u s", POOL_MAX_IDLE_SECONDS);
        if (s->idle_timeout_seconds > 0 && min == s->size) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "a pool of at least %u cannot become smaller when it is idle", min);
                return err_hint(e, "--idle-timeout needs a --min below --size");
        }
        return 0;
}

/* ---- demand ---- */

void pool_demand_take(struct pool_demand *t, uint64_t now_ns) {
        uint64_t interval = now_ns / POOL_BURST_NS;
        unsigned i = (unsigned) (interval % POOL_BURSTS);

        if (t->taken[i].interval != interval) {
                t->taken[i].interval = interval;
                t->taken[i].n = 0;
        }
        t->taken[i].n++;
        t->since_ns = now_ns;
}

unsigned pool_demand_burst(const struct pool_demand *t, uint64_t now_ns) {
        uint64_t interval = now_ns / POOL_BURST_NS;
        unsigned most = 0;

        for (unsigned i = 0; i < POOL_BURSTS; i++)
                if (t->taken[i].n > most && t->taken[i].interval + POOL_BURSTS > interval)
                        most = t->taken[i].n;
        return most;
}

unsigned pool_wanted(const struct pool_sizes *s, const struct pool_demand *t, uint64_t now_ns) {
        uint64_t idle_ns = (uint64_t) s->idle_timeout_seconds * 1000000000u;
        unsigned burst = pool_demand_burst(t, now_ns), wanted;

        if (idle_ns > 0 && now_ns - t->since_ns >= idle_ns)
                return pool_min(s);
        wanted = burst > POOL_MAX_SIZE ? POOL_MAX_SIZE : burst + (burst + 3) / 4;
        wanted = MAX_OF(wanted, s->size);
        return MIN_OF(wanted, pool_max(s));
}

/* ---- steps ---- */

enum pool_step pool_next_step(unsigned wanted, const struct pool_counts *c) {
        unsigned warm = c->fresh + c->old;

        if (warm > wanted)
                return c->old > 0 ? POOL_DROP_OLD : POOL_DROP_FRESH;
        /* One place more while there are old ones: a new one is warm before an old one goes. */
        if (c->fresh + c->making < wanted && warm + c->making < wanted + (c->old > 0))
                return POOL_MAKE;
        return POOL_REST;
}
