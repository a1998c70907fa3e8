/* SPDX-License-Identifier: MIT */
/* Keeps pools as they shall be, in the background.
 *
 * Theory of operation. Whatever happens to a member, a take, a change, a second that has passed, kicks the keeper, which runs from
 * the loop and waits for nothing: it looks at what there is and begins the steps that lead to what is wanted (size.c). Each step is
 * a coroutine of its own, at whose end the keeper is kicked again. So there is no order of events to get wrong, and nothing to
 * remember over a restart.
 *
 * A take goes before a refill. Members are made with the places for starts that nobody else wants (turns_take_spare), one for each
 * core at most, and only one at a time while somebody takes; their VMMs have a low priority. What cannot be made is tried again
 * after a pause that doubles, and the pool says why. Takes that follow each other closely are let through before a refill begins.
 *
 * A host that is short of memory gets it back from the pools, one member a second: clones can be made again, guests cannot. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/events.h"
#include "forkd/host/host.h"
#include "forkd/pool/internal.h"

/* A refill begins when nobody has taken for so long, for whoever took is about to use what he has got; or so long after the first. */
#define QUIET_MS 20
#define PATIENT_MS 200
#define PAUSE_MIN_MS 1000
#define PAUSE_MAX_MS 60000

struct snap_entry *pool_snapshot(const struct pool *p) {
        return catalog_by_id(p->d->catalog, p->from);
}

/* ---- problems ---- */

/* Told once, until all is well again. */
static void have_problem(struct pool *p, const char *what) {
        bool told = strcmp(p->problem, what) == 0;

        (void) snprintf(p->problem, sizeof(p->problem), "%s", what);
        if (told)
                return;
        log_warning("pool '%s': %s", p->name, what);
        events_add(p->d->events, "pool.short", NULL, "%s: %s", p->name, what);
}

static void failed(struct pool *p, const struct err *e) {
        p->pause_ms = p->pause_ms > 0 ? MIN_OF(2 * p->pause_ms, (unsigned) PAUSE_MAX_MS) : PAUSE_MIN_MS;
        p->retry_ns = now_ns() + p->pause_ms * 1000000ull;
        if (e->r != -ECANCELED)
                have_problem(p, e->message);
}

static void all_is_well(struct pool *p) {
        p->problem[0] = '\0';
        p->pause_ms = 0;
        p->retry_ns = 0;
}

/* ---- memory ---- */

static uint64_t spare_memory(const struct daemon *d) {
        uint64_t there = host_memory(d->host);

        return there > d->cfg.pool_memory_reserve ? there - d->cfg.pool_memory_reserve : 0;
}

/* Without the figure of the moment, which would be another problem each second. */
static void short_of_memory(struct pool *p) {
        char reserve[32], what[160];

        (void) snprintf(what, sizeof(what), "memory is short: of what is available %s stay free of pools",
                        size_format(p->d->cfg.pool_memory_reserve, reserve, sizeof(reserve)));
        have_problem(p, what);
}

/* ---- making ---- */

static void make(void *arg) {
        struct pool *p = arg; /* it is not freed before p->making is 0 */
        struct pools *ps = p->d->pools;
        struct err e = { 0 };
        int r = pool_member_make(p, &e);

        ps->making--;
        p->making--;
        if (r < 0)
                failed(p, &e);
        else
                all_is_well(p);
        pool_tell(p, 0);
        pools_kick(p->d);
}

static bool is_quiet(struct pools *ps) {
        static const struct timeval quiet = { .tv_usec = QUIET_MS * 1000 };

        if (ps->first_take_ns == 0 || ms_since(ps->last_take_ns) >= QUIET_MS || ms_since(ps->first_take_ns) >= PATIENT_MS)
                return true;
        return event_add(ps->later, &quiet) < 0;
}

static bool may_make(struct pools *ps, struct pool *p) {
        const struct snap_entry *s = pool_snapshot(p);
        char what[96];

        if (!s) {
                (void) snprintf(what, sizeof(what), "its snapshot %s is not there any more", p->from);
                have_problem(p, what);
                return false;
        }
        if (now_ns() < p->retry_ns || ps->making >= (ps->taking > 0 ? 1u : ps->cores) || !is_quiet(ps))
                return false;
        if (admission_vm_need(s->m.mem_bytes, s->m.vcpus, false).memory > spare_memory(p->d)) {
                short_of_memory(p);
                return false;
        }
        return true;
}

/* False: not now. */
static bool begin_making(struct pools *ps, struct pool *p) {
        struct err e;

        if (!may_make(ps, p))
                return false;
        ps->making++;
        p->making++;
        ps->first_take_ns = 0;
        if (co_start(ps->d->base, make, p) == 0)
                return true;
        ps->making--;
        p->making--;
        (void) err_errno(&e, -ENOMEM, "making a clone");
        failed(p, &e);
        return false;
}

/* ---- removing ---- */

static bool is_idle(const struct vm *vm) {
        return !vm->busy && !vm_lingers(vm);
}

/* Dead, failed, or left from a removal that could not begin. */
static bool is_sick(const struct vm *vm) {
        return is_idle(vm) && (vm->removing || vm->state != VM_PAUSED);
}

static void tell_replaced(const struct pool *p, const struct vm *vm) {
        if (vm->removing)
                return;
        log_warning("pool '%s': %s goes: %s", p->name, vm->name, vm->reason[0] ? vm->reason : vm_state_name(vm->state));
        events_add(p->d->events, "pool.replaced", vm, "%s: %s", p->name, vm->reason[0] ? vm->reason : vm_state_name(vm->state));
}

static void drop_sick(struct pool *p) {
        /* A member may go at once, and others with it: the table is read anew for each. */
        for (unsigned n = p->d->n_vms; n > 0; n--) {
                struct vm *vm;

                TAILQ_FOREACH (vm, &p->d->vms, entry)
                        if (pool_has_member(p, vm) && is_sick(vm))
                                break;
                if (!vm)
                        return;
                tell_replaced(p, vm);
                pool_member_drop(vm);
        }
}

/* The one that has waited longest. */
static bool drop_one(struct pool *p, bool old) {
        struct vm *vm;

        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (pool_has_member(p, vm) && pool_member_is_warm(vm) && is_idle(vm) &&
                    (strcmp(vm->snapshot, p->from) != 0) == old)
                        break;
        if (vm)
                pool_member_drop(vm);
        return vm != NULL;
}

static void end_pool(struct pool *p) {
        struct err e;
        int r = pool_record_remove(p, &e);

        if (r < 0)
                log_error("%s: it goes with the next start", e.message);
        log_info("pool '%s' is removed", p->name);
        events_add(p->d->events, "pool.removed", NULL, "%s", p->name);
        pool_free(p);
}

/* A VM that lingers goes by itself. */
static bool has_members(const struct pool *p) {
        const struct vm *vm;

        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (pool_has_member(p, vm) && !vm_lingers(vm))
                        return true;
        return p->making > 0 || p->taking > 0;
}

static void drain(struct pool *p) {
        while (drop_one(p, true) || drop_one(p, false))
                ;
        if (!has_members(p))
                end_pool(p);
}

/* ---- all of it ---- */

/* True: it may want more. */
static bool step(struct pools *ps, struct pool *p) {
        struct pool_counts c;

        pool_count(p, &c);
        switch (pool_next_step(pool_wanted(&p->sizes, &p->demand, now_ns()), &c)) {
        case POOL_MAKE:
                return begin_making(ps, p);
        case POOL_DROP_OLD:
                return drop_one(p, true);
        case POOL_DROP_FRESH:
                return drop_one(p, false);
        case POOL_REST:
                if (c.making == 0 && p->problem[0])
                        all_is_well(p);
                break;
        }
        return false;
}

void pools_keep(struct pools *ps) {
        bool more = true;

        if (!ps->open || ps->d->stopping)
                return;
        for (struct pool *next, *p = TAILQ_FIRST(&ps->list); p; p = next) {
                next = TAILQ_NEXT(p, entry);
                drop_sick(p);
                pool_tell(p, 0);
                if (p->removing)
                        drain(p);
        }
        /* In turns: a large pool does not keep a small one empty. */
        while (more) {
                struct pool *p;

                more = false;
                TAILQ_FOREACH (p, &ps->list, entry)
                        more |= !p->removing && step(ps, p);
        }
}

/* ---- every second ---- */

/* The largest pool gives. */
static void give_memory_back(struct pools *ps) {
        struct pool *p, *largest = NULL;
        unsigned most = 0;

        TAILQ_FOREACH (p, &ps->list, entry) {
                struct pool_counts c;

                pool_count(p, &c);
                if (c.fresh + c.old > most) {
                        most = c.fresh + c.old;
                        largest = p;
                }
        }
        if (!largest)
                return;
        short_of_memory(largest);
        if (drop_one(largest, true) || drop_one(largest, false))
                events_add(ps->d->events, "pool.shrunk", NULL, "%s: to %u clones: memory is short", largest->name, most - 1);
}

static void check_members(struct pools *ps) {
        uint64_t every = (uint64_t) ps->d->cfg.pool_check_seconds * 1000000000u, now = now_ns();

        if (every == 0)
                return;
        for (unsigned n = ps->d->n_vms; n > 0; n--) {
                struct vm *vm;

                TAILQ_FOREACH (vm, &ps->d->vms, entry)
                        if (pool_member_is_warm(vm) && is_idle(vm) && now - vm->checked_ns >= every && vm->checked_ns < now)
                                break;
                if (!vm)
                        return;
                vm->checked_ns = now;
                pool_member_check(vm);
        }
}

void pools_tick(struct pools *ps) {
        if (ps->d->stopping)
                return;
        if (spare_memory(ps->d) == 0)
                give_memory_back(ps);
        check_members(ps);
        pools_keep(ps);
}
