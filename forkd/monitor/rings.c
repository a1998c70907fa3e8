/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/internal.h"

#include <string.h>

#include "common/io.h"

void monitor_ring_clear(struct monitor_ring *r) {
        r->n = 0;
}

void monitor_ring_mark(struct monitor_ring *r, uint64_t now, const struct probes_sample *sum) {
        struct monitor_mark *m;

        r->newest = (r->newest + 1) % ARRAY_LEN(r->mark);
        r->n = MIN_OF(r->n + 1, (unsigned) ARRAY_LEN(r->mark));
        m = &r->mark[r->newest];
        m->at_ns = now;
        m->halts = sum->halts;
        memcpy(m->ns, sum->ns, sizeof(m->ns));
}

/* The one before @back others: 0 is the newest. */
static const struct monitor_mark *at(const struct monitor_ring *r, unsigned back) {
        return &r->mark[(r->newest + ARRAY_LEN(r->mark) - back) % ARRAY_LEN(r->mark)];
}

static void between(const struct monitor_mark *old, const struct monitor_mark *new, struct monitor_mark *ret) {
        ret->at_ns = new->at_ns - old->at_ns;
        ret->halts = new->halts - old->halts;
        for (unsigned i = 0; i < PROBES_N_STATES; i++)
                ret->ns[i] = new->ns[i] - old->ns[i];
}

bool monitor_ring_span(const struct monitor_ring *r, uint64_t since_ns, struct monitor_mark *ret) {
        for (unsigned back = r->n; back-- > 1;)
                if (at(r, back)->at_ns >= since_ns) {
                        between(at(r, back), at(r, 0), ret);
                        return ret->at_ns > 0;
                }
        return false;
}

void monitor_ring_shares(const struct monitor_ring *r, struct monitor_shares *ret) {
        struct monitor_mark span;

        *ret = (struct monitor_shares){ 0 };
        if (r->n < ARRAY_LEN(r->mark) || !monitor_ring_span(r, 0, &span))
                return;
        ret->known = true;
        /* What is read of a thread is of a moment later than the mark: never more than all. */
        for (unsigned i = 0; i < PROBES_N_STATES; i++)
                ret->part[i] = MIN_OF((double) span.ns[i] / (double) span.at_ns, 1.0);
}

static uint64_t since(uint64_t now, uint64_t before) {
        return now > before ? now - before : 0;
}

void monitor_sample_since(const struct probes_sample *now, const struct probes_sample *before, struct probes_sample *ret) {
        for (unsigned i = 0; i < PROBES_N_STATES; i++)
                ret->ns[i] = since(now->ns[i], before->ns[i]);
        for (unsigned i = 0; i < PROBES_BUCKETS; i++)
                ret->wait[i] = since(now->wait[i], before->wait[i]);
        ret->preempted = since(now->preempted, before->preempted);
        ret->slept = since(now->slept, before->slept);
        ret->exits = since(now->exits, before->exits);
        ret->halts = since(now->halts, before->halts);
        ret->waits = since(now->waits, before->waits);
        ret->wait_ns = since(now->wait_ns, before->wait_ns);
        ret->longest_ns = now->longest_ns;
}
