/* SPDX-License-Identifier: MIT */
/* The lines about many guests at once: throughput by workers, and fairness. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "common/ids.h"
#include "common/io.h"
#include "pager/limits.h"
#include "tests/bench/uffd_bench/lines.h"
#include "tests/bench/uffd_bench/proc.h"

#define SCALING_CLONES 8u
#define SCALING_MIB 256u
#define SCALING_QUICK_MIB 64u
#define MAX_STEPS 8u /* numbers of workers that are tried */

#define QUIET_MIB 256u
#define QUIET_TOUCHES 600u
#define QUIET_QUICK_TOUCHES 60u
#define QUIET_PAUSE_NS 100000u
#define GREEDY_MIB 1024u
#define GREEDY_QUICK_MIB 256u

/** A guest and its session, of any pager. */
struct member {
        struct bench_session session;
        struct bench_guest guest;
};

static int member_start(struct bench_pager *p, const struct bench_image *img, unsigned threads, const struct bench_touch *touch,
                        struct member *ret, struct err *e) {
        const struct bench_setup setup = { BENCH_MEM_MEMFD, threads, img->n_pages, img->content };
        int r;

        *ret = (struct member){ BENCH_SESSION_NONE, BENCH_GUEST_NONE };
        r = bench_guest_start(&setup, &ret->guest, e);
        if (r == 0)
                r = bench_guest_prepare(&ret->guest, touch, -1, e);
        if (r == 0)
                r = bench_session_open(p, img, -1, false, &ret->session, e);
        if (r == 0)
                r = bench_guest_connect(&ret->guest, ret->session.memfd, ret->session.sock, e);
        bench_session_clear(&ret->session);
        return r;
}

/* ---- scaling ---- */

struct scaling {
        struct bench_image image[SCALING_CLONES];
        unsigned n_images;
        unsigned workers[MAX_STEPS], n_steps;
        struct bench_samples throughput[MAX_STEPS], p50[MAX_STEPS], p99[MAX_STEPS], tail[MAX_STEPS];
};

static void scaling_clear(struct scaling *s) {
        for (unsigned i = 0; i < s->n_images; i++)
                bench_image_clear(&s->image[i]);
}

/** 1, 2, 4 … and as many as there are CPUs. */
static void choose_workers(struct scaling *s) {
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);
        unsigned max = (unsigned) MAX_OF(1, MIN_OF(cpus, (long) PAGER_MAX_WORKERS));

        for (unsigned w = 1; w < max && s->n_steps < MAX_STEPS - 1; w *= 2)
                s->workers[s->n_steps++] = w;
        s->workers[s->n_steps++] = max;
}

/** All guests touch all their pages at once: pages per second, and what the pager says of its service. */
static int run_load(struct scaling *s, struct bench_pager *p, uint64_t seed, bool verify, double *ret_throughput,
                    struct bench_times_us *ret_service, struct err *e) {
        const struct bench_watch watch = { bench_pager_check, p };
        struct member m[SCALING_CLONES];
        uint64_t first = UINT64_MAX, last = 0, touched = 0;
        unsigned n = 0;
        int r = 0;

        while (r == 0 && n < s->n_images) {
                const struct bench_touch touch = { .order = { .pattern = BENCH_RANDOM, .seed = seed + n }, .verify = verify };

                r = member_start(p, &s->image[n], 1, &touch, &m[n], e);
                n++;
        }
        for (unsigned i = 0; r == 0 && i < n; i++)
                r = bench_guest_go(&m[i].guest, e);
        for (unsigned i = 0; r == 0 && i < n; i++) {
                struct bench_result res;

                r = bench_guest_result(&m[i].guest, &watch, &res, e);
                if (r < 0)
                        break;
                first = MIN_OF(first, res.start_ns);
                last = MAX_OF(last, res.end_ns);
                touched += res.touched;
        }
        if (r == 0) {
                *ret_throughput = (double) touched / ((double) (last - first) / 1e9);
                r = bench_pager_service(p, ret_service, e);
        }
        for (unsigned i = 0; i < n; i++)
                bench_guest_end(&m[i].guest);
        return r;
}

static int scaling_round(const struct bench_config *cfg, struct scaling *s, unsigned round, struct err *e) {
        for (unsigned i = 0; i < s->n_steps; i++) {
                struct bench_pager p;
                struct bench_times_us service = { 0 };
                double throughput = 0;
                int r = bench_lab_pager(cfg, s->workers[i], 0, &p, e);

                if (r == 0) {
                        r = run_load(s, &p, cfg->seed + round, cfg->verify, &throughput, &service, e);
                        bench_pager_stop(&p);
                }
                if (r < 0)
                        return r;
                if (round == 0)
                        continue;
                bench_samples_add(&s->throughput[i], throughput / 1e3);
                bench_samples_add(&s->p50[i], service.p50);
                bench_samples_add(&s->p99[i], service.p99);
                bench_samples_add(&s->tail[i], service.p50 > 0 ? service.p99 / service.p50 : 0);
        }
        return 0;
}

static void report_scaling(const struct scaling *s, struct bench_report *report) {
        unsigned last = s->n_steps - 1;
        struct bench_samples growth = { .n = s->throughput[0].n };
        struct bench_line *l;

        /* The least that a step brought, so that a fall anywhere shows. */
        for (unsigned k = 0; k < growth.n; k++) {
                growth.v[k] = last == 0 ? 1 : INFINITY;
                for (unsigned i = 0; i < last; i++)
                        growth.v[k] = MIN_OF(growth.v[k], s->throughput[i + 1].v[k] / s->throughput[i].v[k]);
        }
        l = bench_report_line(report, "scaling", &growth, "x", last == 0 ? 0 : 1.05, true,
                              "8 clones of 8 images: throughput with more workers against fewer, the least step");
        for (unsigned i = 0; i < s->n_steps; i++)
                bench_line_part(l, &s->throughput[i], "kpages/s", "%u worker%s", s->workers[i], s->workers[i] > 1 ? "s" : "");
        bench_line_note(l, "%s",
                        last == 0 ? "one CPU: nothing to compare" : "the guests have to share the cores with the workers");
        l = bench_report_line(report, "scaling-tail", &s->tail[last], "x", 4, false,
                              "under that load, %u workers: p99 of the service time against its p50", s->workers[last]);
        bench_line_part(l, &s->p50[last], "us", "service time, p50");
        bench_line_part(l, &s->p99[last], "us", "service time, p99");
}

int bench_line_scaling(const struct bench_config *base, struct bench_report *report, struct err *e) {
        uint64_t pages = (uint64_t) (base->quick ? SCALING_QUICK_MIB : SCALING_MIB) * BENCH_PAGES_PER_MIB;
        struct scaling s = { 0 };
        int r;

        if (base->n_pages)
                pages = base->n_pages;
        choose_workers(&s);
        r = bench_need_memory(SCALING_CLONES * pages * BENCH_PAGE * 2, "scaling", e);
        while (r == 0 && s.n_images < SCALING_CLONES) {
                const struct bench_content content = { base->seed + 100 + s.n_images, base->zero_percent };

                r = bench_image_make(base->dir, pages, &content, base->codec, base->level, &s.image[s.n_images], e);
                s.n_images += r == 0;
        }
        if (r == 0)
                r = bench_warm_memory(SCALING_CLONES * pages * BENCH_PAGE, e);
        for (unsigned round = base->quick ? 1 : 0; r == 0 && round <= base->rounds; round++)
                r = scaling_round(base, &s, round, e);
        if (r == 0)
                report_scaling(&s, report);
        scaling_clear(&s);
        return r;
}

/* ---- fairness ---- */

#define N_NEIGHBOURS 3u
static const unsigned neighbour_threads[N_NEIGHBOURS] = { 0, 1, BENCH_MAX_THREADS };

struct fairness {
        struct bench_image quiet, greedy;
        uint64_t n_touches; /* of the quiet one */
        struct bench_samples p50[N_NEIGHBOURS], p99[N_NEIGHBOURS];
};

/** One quiet guest, and beside it one that faults with @threads (0: none). *ret_valid: it did so to the end. */
static int run_pair(struct fairness *f, struct bench_pager *p, unsigned threads, uint64_t seed, struct hist_copy *ret,
                    bool *ret_valid, struct err *e) {
        const struct bench_watch watch = { bench_pager_check, p };
        const struct bench_touch busy = { .order = { .pattern = BENCH_RANDOM, .seed = seed } };
        const struct bench_touch calm = {
                .order = { .pattern = BENCH_FRAMES, .seed = seed, .n = f->n_touches, .stored_only = true },
                .latency = true,
                .pause_ns = QUIET_PAUSE_NS,
        };
        struct member quiet, greedy = { BENCH_SESSION_NONE, BENCH_GUEST_NONE };
        struct bench_result res;
        int r = member_start(p, &f->quiet, 1, &calm, &quiet, e);

        if (r == 0 && threads > 0)
                r = member_start(p, &f->greedy, threads, &busy, &greedy, e);
        if (r == 0 && threads > 0)
                r = bench_guest_go(&greedy.guest, e);
        if (r == 0)
                r = bench_guest_go(&quiet.guest, e);
        if (r == 0)
                r = bench_guest_result(&quiet.guest, &watch, &res, e);
        if (r == 0) {
                *ret = res.latency;
                *ret_valid = threads == 0 || !bench_guest_done(&greedy.guest);
        }
        bench_guest_end(&greedy.guest);
        bench_guest_end(&quiet.guest);
        return r;
}

static int fairness_round(const struct bench_config *cfg, struct fairness *f, unsigned round, struct err *e) {
        for (unsigned i = 0; i < N_NEIGHBOURS; i++) {
                struct hist_copy latency = { 0 };
                struct bench_pager p;
                bool valid = false;
                int r = bench_lab_pager(cfg, cfg->workers, 0, &p, e);

                if (r == 0) {
                        r = run_pair(f, &p, neighbour_threads[i], cfg->seed + round, &latency, &valid, e);
                        bench_pager_stop(&p);
                }
                if (r < 0)
                        return r;
                if (!valid)
                        return err_set(e, ERR_INTERNAL, -EAGAIN,
                                       "the greedy guest was through with its pages before the quiet one");
                if (round == 0)
                        continue;
                bench_samples_add(&f->p50[i], (double) hist_quantile_ns(&latency, 0.5) / 1e3);
                bench_samples_add(&f->p99[i], (double) hist_quantile_ns(&latency, 0.99) / 1e3);
        }
        return 0;
}

static void report_fairness(const struct fairness *f, struct bench_report *report) {
        struct bench_samples p50 = bench_ratios(&f->p50[2], &f->p50[0]), p99 = bench_ratios(&f->p99[2], &f->p99[1]);
        struct bench_line *l = bench_report_line(report, "fairness", &p50, "x", 3, false,
                                                 "a quiet guest's faults beside one of 64 threads against alone, p50");

        for (unsigned i = 0; i < N_NEIGHBOURS; i++) {
                const char *beside = i == 0 ? "alone" : i == 1 ? "beside a guest of 1 thread" : "beside a guest of 64 threads";

                bench_line_part(l, &f->p50[i], "us", "p50, %s", beside);
                bench_line_part(l, &f->p99[i], "us", "p99, %s", beside);
        }
        bench_line_note(l, "each touch is a fault that has to be decoded, and a pause of %u us; the bounds are ours",
                        QUIET_PAUSE_NS / 1000);
        (void) bench_report_line(report, "fairness-greed", &p99, "x", 2, false,
                                 "a quiet guest's faults beside one of 64 threads against one of 1 thread, p99");
}

int bench_line_fairness(const struct bench_config *base, struct bench_report *report, struct err *e) {
        const struct bench_content quiet = { base->seed + 200, base->zero_percent },
                                   greedy = { base->seed + 201, base->zero_percent };
        uint64_t quiet_pages = QUIET_MIB * BENCH_PAGES_PER_MIB;
        uint64_t greedy_pages = (uint64_t) (base->quick ? GREEDY_QUICK_MIB : GREEDY_MIB) * BENCH_PAGES_PER_MIB;
        struct fairness f = { .quiet.fd = -1, .greedy.fd = -1, .n_touches = base->quick ? QUIET_QUICK_TOUCHES : QUIET_TOUCHES };
        int r = bench_need_memory((quiet_pages + greedy_pages) * BENCH_PAGE * 2, "fairness", e);

        if (r == 0)
                r = bench_image_make(base->dir, quiet_pages, &quiet, base->codec, base->level, &f.quiet, e);
        if (r == 0)
                r = bench_image_make(base->dir, greedy_pages, &greedy, base->codec, base->level, &f.greedy, e);
        if (r == 0)
                r = bench_warm_memory((quiet_pages + greedy_pages) * BENCH_PAGE, e);
        for (unsigned round = base->quick ? 1 : 0; r == 0 && round <= base->rounds; round++)
                r = fairness_round(base, &f, round, e);
        if (r == 0)
                report_fairness(&f, report);
        bench_image_clear(&f.quiet);
        bench_image_clear(&f.greedy);
        return r;
}
