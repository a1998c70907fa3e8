/* SPDX-License-Identifier: MIT */
/* Theory of operation. A scrape looks at everything there is and writes it in one go: nothing is kept between two scrapes, so what is
 * told is of one moment, and costs nothing while nobody asks. Before that the pager is asked what it has counted, which may take
 * a moment, so each scrape is a coroutine; many at a time share the pager's answer. A client that leaves meanwhile is answered all
 * the same, into nothing. */
#include "forkd/monitor/metrics.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "common/co.h"
#include "common/io.h"
#include "common/log.h"
#include "forkd/monitor/http.h"
#include "forkd/monitor/metrics_internal.h"
#include "forkd/vm/vm.h"

#define MAX_SCRAPES 16u /* at a time */

struct metrics {
        struct daemon *d;
        double started; /* forkd did, seconds since 1970 */
        unsigned n_under_way;
        struct co_wait *idle; /* somebody waits until there is none */
};

/* One that is under way. */
struct asked {
        struct metrics *m;
        struct http_request *rq; /* NULL: its client is gone */
};

/* ---- /healthz ---- */

unsigned metrics_need_pager(const struct daemon *d) {
        const struct vm *vm;
        unsigned n = 0;

        TAILQ_FOREACH (vm, &d->vms, entry)
                n += vm->session && !vm->lost[0];
        return n;
}

const char *metrics_unhealthy(const struct daemon *d, char *buf, size_t size) {
        unsigned n;

        if (d->stopping)
                return "forkd is about to end";
        if (!d->api)
                return "forkd is starting: it looks at what the one before has left";
        n = pager_is_up(d->pager) ? 0 : metrics_need_pager(d);
        if (n == 0)
                return NULL;
        (void) snprintf(buf, size, "the pager is gone, and %u guests wait for another", n);
        return buf;
}

static void on_healthz(struct http_request *rq, void *arg) {
        const struct metrics *m = arg;
        char buf[120];
        const char *why = metrics_unhealthy(m->d, buf, sizeof(buf));

        http_fail(rq, why ? 503 : 200, why ? why : "ok");
}

/* ---- /metrics ---- */

/* Those that live before those that have ended. */
static int list_vms(struct scrape *s) {
        const struct monitor_vm *mv;
        unsigned n = 0;

        for (mv = monitor_first_vm(s->d->monitor); mv; mv = monitor_next_vm(mv))
                n++;
        s->vms = calloc(MIN_OF(n, s->d->cfg.metrics_max_vms) + 1u, sizeof(*s->vms));
        if (!s->vms)
                return -ENOMEM;
        for (int ended = 0; ended <= 1; ended++)
                for (mv = monitor_first_vm(s->d->monitor); mv; mv = monitor_next_vm(mv)) {
                        if ((mv->vm == NULL) != ended || (mv->vm && mv->vm->pool[0]))
                                continue;
                        if (s->n_vms == s->d->cfg.metrics_max_vms) {
                                s->unlisted++;
                                continue;
                        }
                        s->vms[s->n_vms].mv = mv;
                        expo_label(&s->vms[s->n_vms++].labels, "vm", mv->name);
                }
        return 0;
}

static void write_all(struct scrape *s) {
        uint64_t busy = now_ns();

        s->now_ns = busy;
        monitor_look(s->d->monitor);
        s->blind = monitor_is_blind(s->d->monitor);
        if (list_vms(s) < 0) {
                s->x.failed = true;
                return;
        }
        families_vms(s);
        families_pager(s);
        families_ops(s);
        families_self(s);
        expo_one_seconds(&s->x, "forkd_scrape_seconds", "gauge", "How long this answer kept forkd busy.", now_ns() - busy);
}

static void scrape_main(void *arg) {
        struct asked *a = arg;
        struct metrics *m = a->m;
        struct scrape s = { .d = m->d, .started = m->started };

        pager_totals_refresh(m->d->pager);
        if (a->rq) {
                write_all(&s);
                http_on_gone(a->rq, NULL, NULL);
                if (s.x.failed)
                        http_fail(a->rq, 503, "out of memory");
                else
                        http_reply_take(a->rq, 200, EXPO_TYPE, NULL, TAKE_PTR(s.x.text), s.x.len);
        }
        expo_clear(&s.x);
        free(s.vms);
        free(a);
        if (--m->n_under_way == 0 && m->idle)
                co_wake(TAKE_PTR(m->idle), 0);
}

static void on_gone(void *arg) {
        struct asked *a = arg;

        a->rq = NULL;
}

static void on_metrics(struct http_request *rq, void *arg) {
        struct metrics *m = arg;
        struct asked *a;

        if (m->n_under_way >= MAX_SCRAPES) {
                http_fail(rq, 503, "too many scrapes are under way");
                return;
        }
        a = calloc(1, sizeof(*a));
        if (!a) {
                http_fail(rq, 503, "out of memory");
                return;
        }
        *a = (struct asked){ m, rq };
        http_on_gone(rq, on_gone, a);
        m->n_under_way++;
        if (co_start(m->d->base, scrape_main, a) == 0)
                return;
        m->n_under_way--;
        free(a);
        http_fail(rq, 503, "out of memory");
}

/* ---- the object ---- */

/* Seconds since 1970; the moment at which forkd came to this. */
static double wall_clock(void) {
        struct timespec now;

        return clock_gettime(CLOCK_REALTIME, &now) < 0 ? 0 : (double) now.tv_sec + (double) now.tv_nsec / 1e9;
}

int metrics_new(struct daemon *d, struct metrics **ret) {
        struct metrics *m = calloc(1, sizeof(*m));
        int r;

        if (!m)
                return -ENOMEM;
        m->d = d;
        m->started = wall_clock();
        r = http_handle(d->http, "/metrics", on_metrics, m);
        if (r == 0)
                r = http_handle(d->http, "/healthz", on_healthz, m);
        if (r < 0)
                metrics_free(m);
        else
                *ret = m;
        return r;
}

void metrics_free(struct metrics *m) {
        free(m);
}

void metrics_settle(struct metrics *m, int timeout_ms) {
        struct co_wait idle = CO_WAIT_INIT;

        if (!m || m->n_under_way == 0)
                return;
        m->idle = &idle;
        (void) co_wait(&idle, timeout_ms);
        m->idle = NULL;
}
