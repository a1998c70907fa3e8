/* SPDX-License-Identifier: MIT */
/* Theory of operation. A session goes to the worker with the fewest when its VMM attaches: what it will do is
 * not known then. Every PAGER_BALANCE_MS the control thread sums up how long each worker was at work for each
 * session, and moves one session from the busiest to the idlest worker if that evens them out by enough to be
 * worth it. One at a time: the next look sees what it did. With less than two sessions nobody looks.
 *
 * A move is a hand-over by way of the control thread, as at the end of a session: the old worker lets go and
 * posts MOVED, then the new one gets it, with the faults that were read and not answered. */
#include <errno.h>

#include "common/io.h"
#include "pager/pager_internal.h"

/** What its faults took of the time since the last look: 0 … 1. */
static double take_share(struct pager_session *s, uint64_t interval_ns) {
        uint64_t busy = atomic_load_explicit(&s->busy_ns, memory_order_relaxed);
        double share = (double) (busy - s->busy_seen_ns) / (double) interval_ns;

        s->busy_seen_ns = busy;
        return share;
}

static void balance(struct pager *p, uint64_t interval_ns) {
        double load[PAGER_MAX_WORKERS] = { 0 }, best = PAGER_BALANCE_SHARE;
        struct pager_session *s, *pick = NULL;
        unsigned hi = 0, lo = 0;

        for (s = p->sessions; s; s = s->next) {
                s->share = take_share(s, interval_ns);
                if (s->worker)
                        load[pager_worker_index(s->worker)] += s->share;
        }
        for (unsigned i = 1; i < p->n_workers; i++) {
                hi = load[i] > load[hi] ? i : hi;
                lo = load[i] < load[lo] ? i : lo;
        }
        for (s = p->sessions; s; s = s->next) {
                /* So much less has the busier of the two to do afterwards. */
                double gain = MIN_OF(s->share, load[hi] - load[lo] - s->share);

                if (s->worker == p->workers[hi] && !s->failed && !s->ending && !s->moving && !s->live && !s->rebase &&
                    gain > best) {
                        best = gain;
                        pick = s;
                }
        }
        if (pick) {
                pick->moving = true;
                pick->moves++;
                pager_worker_move(pick->worker, pick, p->workers[lo]);
        }
}

static void on_time(evutil_socket_t fd, short what, void *arg) {
        struct pager *p = arg;
        uint64_t now = now_ns();

        balance(p, now - p->balanced_ns);
        p->balanced_ns = now;
        if (p->n_sessions < 2)
                (void) event_del(p->balance_ev);
}

int pager_balance_init(struct pager *p) {
        p->balance_ev = event_new(p->base, -1, EV_PERSIST, on_time, p);
        return p->balance_ev ? 0 : -ENOMEM;
}

void pager_balance_start(struct pager *p) {
        static const struct timeval interval = { .tv_usec = PAGER_BALANCE_MS * 1000 };

        if (p->n_workers < 2 || p->n_sessions < 2 || event_pending(p->balance_ev, EV_TIMEOUT, NULL))
                return;
        p->balanced_ns = now_ns();
        (void) event_add(p->balance_ev, &interval); /* fails for want of memory only: nothing is evened out then */
}

void pager_on_moved(struct pager *p, struct pager_session *s) {
        s->moving = false;
        if (s->ending) {
                pager_release_session(p, s);
                return;
        }
        if (s->releasing) {
                pager_on_released(p, s);
                if (s->sync_deferred)
                        pager_answer_removed(s);
        } else if (s->failed) {
                s->worker = NULL; /* stays unanswered, with its descriptor open, until it is ended */
                if (s->sync_deferred)
                        pager_answer_removed(s);
        } else {
                pager_worker_add(s->worker, s);
                if (s->sync_deferred)
                        pager_worker_sync(s->worker, s);
        }
        s->sync_deferred = false;
        if (s->live_deferred)
                pager_live_sync(s);
}
