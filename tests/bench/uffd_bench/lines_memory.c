/* SPDX-License-Identifier: MIT */
/* The lines about memory: what the pager has beside decoded pages, and what many clones of one image cost. */
#include <errno.h>

#include "common/ids.h"
#include "tests/bench/uffd_bench/lines.h"
#include "tests/bench/uffd_bench/proc.h"

#define MIB 1048576.0
#define N_IMAGES 4u
#define IMAGE_MIB 512u
#define IMAGE_QUICK_MIB 64u
#define CLONES_MIB 256u
#define CLONES_QUICK_MIB 64u
#define OWN_BYTES (32u << 20)
#define OWN_SHARE 100u /* one in so many bytes of images open */

static void one(struct bench_samples *s, double v) {
        *s = (struct bench_samples){ 0 };
        bench_samples_add(s, v);
}

/** Images of @n_pages, all decoded, in one pager: its own memory. */
static int own_memory(const struct bench_config *cfg, uint64_t n_pages, struct bench_report *report, struct err *e) {
        struct bench_image image[N_IMAGES];
        struct bench_memory_use m = { 0 };
        struct bench_pager p = { .pidfd = -1 };
        struct bench_samples s;
        struct bench_line *l;
        double present = 0, open_bytes = (double) (N_IMAGES * n_pages * BENCH_PAGE), own;
        unsigned n = 0;
        int r = bench_lab_pager(cfg, cfg->workers, 86400, &p, e);

        while (r == 0 && n < N_IMAGES) {
                const struct bench_content content = { cfg->seed + 300 + n, cfg->zero_percent };

                r = bench_image_make(cfg->dir, n_pages, &content, cfg->codec, cfg->level, &image[n], e);
                if (r < 0)
                        break;
                n++;
                r = bench_lab_fill(&p, &image[n - 1], e);
        }
        if (r == 0)
                r = bench_memory_of(p.pid, &m, e);
        if (r == 0)
                r = bench_pager_number(&p, "totals", NULL, "present_bytes", &present, e);
        bench_pager_stop(&p);
        while (n > 0)
                bench_image_clear(&image[--n]);
        if (r < 0)
                return r;
        own = (double) (m.pss - m.pss_shmem + m.page_tables);
        one(&s, own / ((double) OWN_BYTES + open_bytes / OWN_SHARE));
        l = bench_report_line(report, "memory-own", &s, "x", 1, false,
                              "memory of the pager beside decoded pages, against 32 MiB + 1 %% of images open");
        one(&s, own / MIB);
        bench_line_part(l, &s, "MiB", "the pager's own: Pss without shared pages, page tables");
        one(&s, (double) m.page_tables / MIB);
        bench_line_part(l, &s, "MiB", "of it page tables");
        one(&s, ((double) OWN_BYTES + open_bytes / OWN_SHARE) / MIB);
        bench_line_part(l, &s, "MiB", "allowed");
        one(&s, present / MIB);
        bench_line_part(l, &s, "MiB", "decoded pages, %u images", N_IMAGES);
        return 0;
}

struct crowd {
        struct bench_guest guest[BENCH_MAX_CLONES];
        uint64_t base[BENCH_MAX_CLONES];
        unsigned n;
};

static int start_crowd(struct bench_pager *p, const struct bench_image *img, const struct bench_touch *touch, struct crowd *c,
                       struct err *e) {
        const struct bench_setup setup = { BENCH_MEM_MEMFD, 1, img->n_pages, img->content };
        const struct bench_watch watch = { bench_pager_check, p };
        struct bench_result res;
        int r = 0;

        while (r == 0 && c->n < BENCH_MAX_CLONES) {
                struct bench_session s = BENCH_SESSION_NONE;

                c->guest[c->n] = BENCH_GUEST_NONE;
                r = bench_guest_start(&setup, &c->guest[c->n], e);
                if (r == 0)
                        r = bench_guest_prepare(&c->guest[c->n], touch, -1, e);
                if (r == 0)
                        r = bench_session_open(p, img, -1, false, &s, e);
                if (r == 0)
                        r = bench_guest_connect(&c->guest[c->n], s.memfd, s.sock, e);
                bench_session_clear(&s);
                if (r == 0)
                        r = bench_guest_go(&c->guest[c->n], e);
                c->n++;
        }
        for (unsigned i = 0; r == 0 && i < c->n; i++) {
                r = bench_guest_result(&c->guest[i], &watch, &res, e);
                c->base[i] = res.base;
        }
        return r;
}

/** 64 clones that have all touched all of one image. */
static int clones_memory(const struct bench_config *cfg, uint64_t n_pages, struct bench_report *report, struct err *e) {
        const struct bench_content content = { cfg->seed + 310, cfg->zero_percent };
        const struct bench_touch touch = { .order = { .pattern = BENCH_RANDOM, .seed = cfg->seed }, .verify = cfg->verify };
        struct bench_image img = { .fd = -1 };
        struct bench_memory_use m = { 0 };
        struct bench_pager p = { .pidfd = -1 };
        struct crowd c = { .n = 0 };
        struct bench_samples s;
        struct bench_line *l;
        uint64_t sum_pss = 0, sum_anon = 0;
        double present = 0;
        int r = bench_image_make(cfg->dir, n_pages, &content, cfg->codec, cfg->level, &img, e);

        if (r == 0)
                r = bench_lab_pager(cfg, cfg->workers, 86400, &p, e);
        if (r == 0)
                r = start_crowd(&p, &img, &touch, &c, e);
        for (unsigned i = 0; r == 0 && i < c.n; i++) {
                uint64_t pss, anon;

                r = bench_mapping_of(c.guest[i].pid, c.base[i], &pss, &anon, e);
                if (r == 0) {
                        sum_pss += pss;
                        sum_anon += anon;
                }
        }
        if (r == 0)
                r = bench_memory_of(p.pid, &m, e);
        if (r == 0)
                r = bench_pager_number(&p, "totals", NULL, "present_bytes", &present, e);
        for (unsigned i = 0; i < c.n; i++)
                bench_guest_end(&c.guest[i]);
        bench_pager_stop(&p);
        bench_image_clear(&img);
        if (r < 0)
                return r;
        one(&s, ((double) sum_pss + (double) m.pss_shmem) / present);
        l = bench_report_line(report, "memory-clones", &s, "x", 1.02, false,
                              "%u clones that touched all of one image: memory of all (sum of Pss) against its pages once",
                              BENCH_MAX_CLONES);
        one(&s, (double) sum_pss / MIB);
        bench_line_part(l, &s, "MiB", "guest RAM of all clones, sum of Pss");
        one(&s, (double) sum_anon / MIB);
        bench_line_part(l, &s, "MiB", "of it private");
        one(&s, (double) m.pss_shmem / MIB);
        bench_line_part(l, &s, "MiB", "the pager's share of the pages");
        one(&s, present / MIB);
        bench_line_part(l, &s, "MiB", "the image's pages, once");
        one(&s, (double) (BENCH_MAX_CLONES * n_pages * BENCH_PAGE) / MIB);
        bench_line_part(l, &s, "MiB", "RAM of %u separate guests", BENCH_MAX_CLONES);
        return 0;
}

int bench_line_memory(const struct bench_config *cfg, struct bench_report *report, struct err *e) {
        uint64_t images = (uint64_t) (cfg->quick ? IMAGE_QUICK_MIB : IMAGE_MIB) * BENCH_PAGES_PER_MIB;
        uint64_t clones = (uint64_t) (cfg->quick ? CLONES_QUICK_MIB : CLONES_MIB) * BENCH_PAGES_PER_MIB;
        int r;

        if (cfg->n_pages)
                images = clones = cfg->n_pages;
        r = bench_need_memory(2 * N_IMAGES * images * BENCH_PAGE, "memory", e);
        if (r == 0)
                r = own_memory(cfg, images, report, e);
        return r < 0 ? r : clones_memory(cfg, clones, report, e);
}
