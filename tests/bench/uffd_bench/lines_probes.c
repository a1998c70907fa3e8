/* SPDX-License-Identifier: MIT */
/* What it costs to be watched (bpf/probes.h), where it must hurt most: every touch is a fault of its own, so that guest and pager
 * sleep and wake all the time. Rounds with and without take turns, and turns in going first; without means that nothing
 * is attached. What the probes count is compared with what the pager says it has served. */
#include "tests/bench/uffd_bench/lines.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <string.h>
#include <sys/pidfd.h>

#include "bpf/probes.h"
#include "tests/bench/uffd_bench/proc.h"

#define PROBES_MIB 256u /* 2700 faults: a tenth of a second */
#define PROBES_QUICK_MIB 128u
#define RUNS 8u /* a round: 20,000 faults */

struct watching {
        struct bench_lab *lab;
        struct probes *p;
        struct probes_watch *guest;
        struct probes_sample seen;    /* of the guest */
        struct bench_samples off_by;  /* one a round, in percent */
        struct bench_samples on, off; /* us per page */
        double waits, faults;         /* of all rounds */
        const char *method;
};

static void see(void *arg, struct probes_watch *w, const struct probes_thread *t, const struct probes_sample *ended) {
        struct watching *v = arg;

        if (w == v->guest)
                probes_add(&v->seen, t ? &t->sum : ended);
}

static int begin(void *arg, const struct bench_guest *g, const char *session, struct err *e) {
        const struct probes_options opt = { .method = -1 };
        struct watching *v = arg;
        const struct bench_pager *pager = &v->lab->cold;
        struct probes_status st;
        struct probes_watch *w;
        int r = probes_open(&opt, &v->p, e);

        if (r < 0)
                return r;
        probes_get_status(v->p, &st);
        v->method = probes_method_name(st.method);
        r = probes_watch(v->p, g->pidfd, g->pid, NULL, &v->guest);
        if (r == 0)
                r = probes_watch(v->p, pager->pidfd, pager->pid, NULL, &w);
        return r < 0 ? err_errno(e, r, "watching a guest and its pager") : 0;
}

static int end(void *arg, const struct bench_guest *g, const char *session, struct err *e) {
        static const char *const kinds[] = { "faults.missing", "faults.zero", "faults.present", "faults.removed" };
        struct watching *v = arg;
        double faults = 0;
        int r;

        v->seen = (struct probes_sample){ 0 };
        r = probes_read(v->p, see, v);
        if (r < 0)
                return err_errno(e, r, "reading the probes");
        for (unsigned i = 0; i < ARRAY_LEN(kinds); i++) {
                double n;

                r = bench_pager_number(&v->lab->cold, "sessions", session, kinds[i], &n, e);
                if (r < 0)
                        return r;
                faults += n;
        }
        v->waits += (double) v->seen.waits;
        v->faults += faults;
        bench_samples_add(&v->off_by, fabs((double) v->seen.waits / faults - 1) * 100);
        return 0;
}

static int one(struct watching *v, bool watched, double *us, struct err *e) {
        const struct bench_observer observer = { begin, end, v };
        struct bench_touch touch = bench_config_touch(v->lab->cfg);
        struct bench_run run;
        int r;

        touch.order.stored_only = true;
        v->lab->observer = watched ? &observer : NULL;
        r = bench_lab_run(v->lab, BENCH_FIRST, &touch, &run, e);
        v->lab->observer = NULL;
        probes_close(TAKE_PTR(v->p));
        if (r == 0)
                *us = MIN_OF(*us, run.us_per_page);
        return r;
}

/** Of each side the fastest of some: whatever else the host does only adds to it. */
static int run_round(struct watching *v, unsigned round, struct err *e) {
        double us[2] = { DBL_MAX, DBL_MAX };
        int r = 0;

        for (unsigned i = 0; r == 0 && i < (v->lab->cfg->quick ? 2 : RUNS); i++) {
                bool first = (round + i) % 2;

                r = one(v, first, &us[first], e);
                if (r == 0)
                        r = one(v, !first, &us[!first], e);
        }
        if (r == 0 && round > 0) {
                bench_samples_add(&v->on, us[true]);
                bench_samples_add(&v->off, us[false]);
        }
        return r;
}

static void report_probes(const struct watching *v, struct bench_report *report) {
        struct bench_samples ratio = bench_ratios(&v->on, &v->off);
        struct bench_line *l = bench_report_line(report, "probes", &ratio, "x", 1.03, false,
                                                 "a first clone whose every touch is a fault, watched against unwatched");

        bench_line_part(l, &v->on, "us/page", "guest and pager watched, by %s", v->method);
        bench_line_part(l, &v->off, "us/page", "nothing attached");
        l = bench_report_line(report, "probes-agreement", &v->off_by, "%", 5, false,
                              "waits that the probes count against faults that the pager has served, off by");
        bench_line_note(l, "%.0f waits, %.0f faults", v->waits, v->faults);
}

int bench_line_probes(const struct bench_config *base, struct bench_report *report, struct err *e) {
        const struct probes_options opt = { .method = -1 };
        struct bench_config cfg = *base;
        cleanup_bench_lab struct bench_lab lab = { 0 };
        struct watching v = { .lab = &lab };
        int r = probes_open(&opt, &v.p, e);

        if (r < 0) {
                (void) printf("SKIPPED: probes: %s\n", e->message);
                *e = (struct err){ 0 };
                return 0;
        }
        probes_close(TAKE_PTR(v.p));
        cfg.clones = cfg.threads = 1;
        cfg.pattern = BENCH_FRAMES;
        cfg.n_touches = 0;
        cfg.lead_ms = 0;
        if (!cfg.n_pages)
                cfg.n_pages = (uint64_t) (cfg.quick ? PROBES_QUICK_MIB : PROBES_MIB) * BENCH_PAGES_PER_MIB;
        r = bench_lab_open(&cfg, cfg.n_pages, cfg.seed + 400, &lab, e);
        if (r == 0)
                r = bench_warm_memory(2 * cfg.n_pages * BENCH_PAGE, e);
        for (unsigned round = cfg.quick ? 1 : 0; r == 0 && round <= cfg.rounds; round++)
                r = run_round(&v, round, e);
        if (r == 0)
                report_probes(&v, report);
        return r;
}
