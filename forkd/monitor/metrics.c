/* SPDX-License-Identifier: MIT */
/* Theory of operation. A scrape looks at everything there is and writes it in one go: nothing is kept between two scrapes, so what is
 * told is of one moment, and costs nothing while nobody asks. */
#include "forkd/monitor/metrics.h"

#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/monitor/http.h"
#include "forkd/monitor/metrics_internal.h"
#include "forkd/vm.h"

struct metrics {
        struct daemon *d;
};

/* ---- /healthz ---- */

const char *metrics_unhealthy(const struct daemon *d, char *buf, size_t size) {
        const struct vm *vm;
        unsigned n = 0;

        if (d->stopping)
                return "forkd is about to end";
        if (!d->api)
                return "forkd is starting: it looks at what the one before has left";
        if (pager_is_up(d->pager))
                return NULL;
        TAILQ_FOREACH (vm, &d->vms, entry)
                n += vm->session;
        if (n == 0) /* nobody needs one */
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
                        if ((mv->vm == NULL) != ended)
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

static void scrape(struct daemon *d, struct http_request *rq) {
        struct scrape s = { .d = d, .now_ns = now_ns() };

        monitor_look(d->monitor);
        if (list_vms(&s) == 0) {
                families_vms(&s);
                families_self(&s);
                expo_one_seconds(&s.x, "forkd_scrape_seconds", "gauge", "How long this answer kept forkd busy.",
                                 now_ns() - s.now_ns);
        } else {
                s.x.failed = true;
        }
        free(s.vms);
        if (s.x.failed)
                http_fail(rq, 503, "out of memory");
        else
                http_reply_take(rq, 200, EXPO_TYPE, NULL, TAKE_PTR(s.x.text), s.x.len);
        expo_clear(&s.x);
}

static void on_metrics(struct http_request *rq, void *arg) {
        const struct metrics *m = arg;

        scrape(m->d, rq);
}

/* ---- the object ---- */

int metrics_new(struct daemon *d, struct metrics **ret) {
        struct metrics *m = calloc(1, sizeof(*m));
        int r;

        if (!m)
                return -ENOMEM;
        m->d = d;
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
