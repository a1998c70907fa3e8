/* SPDX-License-Identifier: MIT */
/* The lines that compare modes on one image. Each round measures every mode once, in turn, so that what the host does
 * meanwhile meets all of them; the first round is not counted, and memory is warmed before it. */
#include "tests/bench/uffd_bench/lines.h"

#include <errno.h>
#include <string.h>

#include "common/ids.h"
#include "tests/bench/uffd_bench/proc.h"
#include "tests/bench/uffd_bench/rival.h"

#define FIRST_MIB 1024u
#define QUICK_MIB 256u
#define CLASSIC_SHARE 4u

/** Measured in one round. */
struct step {
        enum bench_mode mode;
        struct bench_touch touch;
        unsigned repeat; /* times a round: short ones more often */
        bool skipped;    /* memory is short */
        char why[200];
        struct bench_samples us_per_page, cpu_us;
};

static int run_step(struct bench_lab *lab, struct step *s, bool count, struct err *e) {
        for (unsigned i = 0; i < MAX_OF(s->repeat, 1u) && !s->skipped; i++) {
                struct bench_run run;
                int r = bench_lab_run(lab, s->mode, &s->touch, &run, e);

                if (r == -ENOSPC) {
                        s->skipped = true;
                        (void) snprintf(s->why, sizeof(s->why), "%.199s", e->message);
                        return 0;
                }
                if (r < 0)
                        return err_prefix(e, "%s", bench_mode_name(s->mode));
                if (!count)
                        return 0;
                bench_samples_add(&s->us_per_page, run.us_per_page);
                bench_samples_add(&s->cpu_us, run.server_cpu_us);
        }
        return 0;
}

/** All rounds. */
static int run_steps(struct bench_lab *lab, struct step *steps, unsigned n, struct err *e) {
        unsigned rounds = lab->cfg->rounds;
        int r = bench_warm_memory(MIN_OF(3 * lab->image.n_pages * BENCH_PAGE, 4ull << 30), e);

        for (unsigned round = lab->cfg->quick ? 1 : 0; r == 0 && round <= rounds; round++)
                for (unsigned i = 0; r == 0 && i < n; i++)
                        r = run_step(lab, &steps[i], round > 0, e);
        return r;
}

static void add_parts(struct bench_line *l, const struct step *steps, unsigned n) {
        for (unsigned i = 0; i < n; i++)
                if (steps[i].us_per_page.n > 0)
                        bench_line_part(l, &steps[i].us_per_page, "us/page", "%s", bench_mode_explain(steps[i].mode));
}

static uint64_t line_pages(const struct bench_config *cfg) {
        return cfg->n_pages ? cfg->n_pages : (uint64_t) (cfg->quick ? QUICK_MIB : FIRST_MIB) * BENCH_PAGES_PER_MIB;
}

/** What all lines that compare on one image have in common. */
static int open_for_line(struct bench_config *cfg, struct bench_lab *lab, struct err *e) {
        cfg->clones = 1;
        cfg->threads = 1;
        cfg->pattern = BENCH_RANDOM;
        cfg->n_touches = 0;
        cfg->lead_ms = 0;
        cfg->n_pages = line_pages(cfg);
        return bench_lab_open(cfg, cfg->n_pages, cfg->seed, lab, e);
}

static void note_image(struct bench_line *l, const struct bench_lab *lab) {
        char ram[32], file[32];

        bench_line_note(l, "image of %s, %s, %s; %llu %% of its pages are zero",
                        size_format(lab->image.n_pages * BENCH_PAGE, ram, sizeof(ram)), snap_codec_name(lab->cfg->codec),
                        size_format(lab->image.file_bytes, file, sizeof(file)),
                        (unsigned long long) (100 - lab->image.n_stored * 100 / lab->image.n_pages));
}

static int line_first(const struct bench_config *base, struct bench_report *report, struct err *e) {
        struct bench_config cfg = *base;
        cleanup_bench_lab struct bench_lab lab = { 0 };
        /* The last three touch stored pages alone: of zero pages we know, and the floor does not. */
        struct step s[] = { { .mode = BENCH_FIRST },     { .mode = BENCH_FLOOR }, { .mode = BENCH_CLASSIC },
                            { .mode = BENCH_EAGER },     { .mode = BENCH_FIRST }, { .mode = BENCH_FLOOR },
                            { .mode = BENCH_FLOOR_LONE } };
        struct bench_samples ratio;
        struct bench_line *l;
        int r = open_for_line(&cfg, &lab, e);

        for (unsigned i = 0; i < ARRAY_LEN(s); i++)
                s[i].touch = bench_config_touch(&cfg);
        s[4].touch.order.stored_only = s[5].touch.order.stored_only = s[6].touch.order.stored_only = true;
        s[2].touch.order.n = cfg.n_pages / CLASSIC_SHARE; /* each is a fault of its own: a part tells as much as all */
        if (r == 0)
                r = run_steps(&lab, s, ARRAY_LEN(s), e);
        if (r < 0)
                return r;
        ratio = bench_ratios(&s[0].us_per_page, &s[1].us_per_page);
        l = bench_report_line(report, "first-clone", &ratio, "x", 1.25, false,
                              "first clone, every page in random order, against the floor");
        add_parts(l, s, 4);
        note_image(l, &lab);
        ratio = bench_ratios(&s[4].us_per_page, &s[5].us_per_page);
        l = bench_report_line(report, "first-clone-stored", &ratio, "x", 0, false, "the same, stored pages alone");
        add_parts(l, s + 4, 3);
        ratio = bench_ratios(&s[4].us_per_page, &s[6].us_per_page);
        bench_line_part(l, &ratio, "x", "against the one that answers one page first");
        bench_line_note(l, "the floor does not know of zero pages; this is what is left without that help");
        ratio = bench_ratios(&s[2].us_per_page, &s[0].us_per_page);
        l = bench_report_line(report, "first-clone-classic", &ratio, "x", 6, true,
                              "classic 4 KiB copies against the first clone");
        bench_line_note(l, "classic touches a random quarter of the pages");
        return 0;
}

static int line_next(const struct bench_config *base, struct bench_report *report, struct err *e) {
        struct bench_config cfg = *base;
        cleanup_bench_lab struct bench_lab lab = { 0 };
        struct step s[] = { { .mode = BENCH_NEXT, .repeat = 3 }, { .mode = BENCH_PRIVATE, .repeat = 3 } };
        struct bench_samples ratio;
        struct bench_line *l;
        int r = open_for_line(&cfg, &lab, e);

        for (unsigned i = 0; i < ARRAY_LEN(s); i++)
                s[i].touch = bench_config_touch(&cfg);
        if (r == 0)
                r = run_steps(&lab, s, ARRAY_LEN(s), e);
        if (r < 0)
                return r;
        ratio = bench_ratios(&s[0].us_per_page, &s[1].us_per_page);
        l = bench_report_line(report, "next-clone", &ratio, "x", 1.3, false,
                              "next clone against a plain private mapping of a RAM file");
        add_parts(l, s, ARRAY_LEN(s));
        note_image(l, &lab);
        return 0;
}

/** Only stored pages are touched: a zero page costs the pager time, but is no page that it installs. */
static int line_cpu(const struct bench_config *base, struct bench_report *report, struct err *e) {
        struct bench_config cfg = *base;
        cleanup_bench_lab struct bench_lab lab = { 0 };
        struct step s = { .mode = BENCH_FIRST };
        struct bench_samples alone = { 0 }, ratio;
        struct bench_line *l;
        int r = open_for_line(&cfg, &lab, e);

        s.touch = bench_config_touch(&cfg);
        s.touch.order.stored_only = true;
        if (r == 0)
                r = bench_warm_memory(2 * cfg.n_pages * BENCH_PAGE, e);
        for (unsigned round = cfg.quick ? 1 : 0; r == 0 && round <= cfg.rounds; round++) {
                double us;

                r = run_step(&lab, &s, round > 0, e);
                if (r == 0)
                        r = bench_decode_and_copy(&lab.image, cfg.seed, &us, e);
                if (r == 0 && round > 0)
                        bench_samples_add(&alone, us);
        }
        if (r < 0)
                return r;
        ratio = bench_ratios(&s.cpu_us, &alone);
        l = bench_report_line(report, "cpu", &ratio, "x", 1.5, false,
                              "CPU of the pager by installed page, against decode and kernel copy alone");
        bench_line_part(l, &s.cpu_us, "us/page", "uffd-pager, all threads, first clone");
        bench_line_part(l, &alone, "us/page", "decode and UFFDIO_COPY, one thread, no faults");
        note_image(l, &lab);
        return 0;
}

/** Three comparisons of all that was measured: time, against the first, CPU. */
static void report_modes(const struct bench_config *cfg, const struct step *s, unsigned n, struct bench_report *report) {
        struct bench_line *l = bench_report_line(report, "time", &s[0].us_per_page, "us/page", 0, false,
                                                 "time by page: %s, %u thread%s, %u clone%s; %s",
                                                 bench_pattern_name(cfg->pattern), cfg->threads, cfg->threads > 1 ? "s" : "",
                                                 cfg->clones, cfg->clones > 1 ? "s" : "", bench_mode_name(s[0].mode));

        add_parts(l, s, n);
        for (unsigned i = 0; i < n; i++) {
                size_t len = strlen(l->note);

                if (s[i].skipped)
                        (void) snprintf(l->note + len, sizeof(l->note) - len, "%sskipped: %s", len ? "; " : "", s[i].why);
        }
        if (n > 1 && s[0].us_per_page.n > 0) {
                const struct bench_samples one = bench_ratios(&s[0].us_per_page, &s[0].us_per_page);

                l = bench_report_line(report, "ratio", &one, "x", 0, false, "each against %s, by rounds",
                                      bench_mode_name(s[0].mode));
                for (unsigned i = 1; i < n; i++) {
                        struct bench_samples ratio = bench_ratios(&s[i].us_per_page, &s[0].us_per_page);

                        if (ratio.n > 0)
                                bench_line_part(l, &ratio, "x", "%s", bench_mode_name(s[i].mode));
                }
        }
        l = bench_report_line(report, "cpu", &s[0].cpu_us, "us/page", 0, false, "CPU of who serves the pages, by page; %s",
                              bench_mode_name(s[0].mode));
        for (unsigned i = 0; i < n; i++)
                if (bench_median(&s[i].cpu_us) > 0)
                        bench_line_part(l, &s[i].cpu_us, "us/page", "%s", bench_mode_name(s[i].mode));
}

int bench_compare(const struct bench_config *cfg, const enum bench_mode *modes, unsigned n_modes, struct bench_report *report,
                  struct err *e) {
        cleanup_bench_lab struct bench_lab lab = { 0 };
        cleanup_free struct step *s = calloc(n_modes, sizeof(*s));
        int r = s ? bench_lab_open(cfg, cfg->n_pages, cfg->seed, &lab, e) : err_errno(e, -ENOMEM, "measuring");

        if (r < 0)
                return r;
        for (unsigned i = 0; i < n_modes; i++) {
                s[i].mode = modes[i];
                s[i].touch = bench_config_touch(cfg);
        }
        r = run_steps(&lab, s, n_modes, e);
        if (r == 0)
                report_modes(cfg, s, n_modes, report);
        return r;
}

const struct bench_preset bench_presets[] = {
        { "first-clone", "first clone against the floor and against classic copies", line_first },
        { "next-clone", "next clone against a plain private mapping", line_next },
        { "workingset", "a recorded working set, with and without the lead of a VMM's start", bench_line_workingset },
        { "scaling", "8 clones of 8 images, workers from 1 to the cores; service times", bench_line_scaling },
        { "fairness", "a quiet guest beside one that faults with 64 threads", bench_line_fairness },
        { "memory", "the pager's own memory, and 64 clones of one image", bench_line_memory },
        { "probes", "what being watched by BPF programs costs, and whether they count right", bench_line_probes },
        { "cpu", "CPU of the pager by page, against decode and kernel copy alone", line_cpu },
};
const unsigned bench_n_presets = ARRAY_LEN(bench_presets);
