/* SPDX-License-Identifier: MIT */
/* uffd-bench: how fast guests get their pages, and what it is measured against. docs/benchmarks.md explains the method
 * and each line. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "common/ids.h"
#include "common/io.h"
#include "common/log.h"
#include "pager/limits.h"
#include "tests/bench/uffd_bench/lines.h"

#define MAX_MIB (16u << 10)
#define DEFAULT_MIB 256u
#define MAX_ROUNDS 100u
#define EXIT_SKIPPED 77

struct args {
        struct bench_config cfg;
        const char *json, *svg;
        enum bench_mode modes[BENCH_N_MODES];
        unsigned n_modes;
        char pager[PATH_MAX];
};

static void usage(FILE *out) {
        (void) fputs("uffd-bench run [OPTION]...            measures modes in turn and compares them\n"
                     "uffd-bench line NAME... [OPTION]...   measures what is promised: value, bound, met or MISSED\n"
                     "\n"
                     "Synthetic guests are processes that attach to a real uffd-pager and touch their pages.\n"
                     "\n"
                     "  --modes LIST       of run: some of the modes below, with commas (default: all)\n"
                     "  --size SIZE        of guest RAM, 1M to 16G (default 256M; lines have their own)\n"
                     "  --threads N        of each guest, 1 to 64 (default 1)\n"
                     "  --clones N         guests at the same time, 1 to 64 (default 1)\n"
                     "  --workers N        fault threads of the pager (default: its own)\n"
                     "  --pattern NAME     sequential, random, zipf, frames: one page of each 64 KiB, or\n"
                     "                     recorded: runs from all over, a 32nd of the pages (default random)\n"
                     "  --touches N        touches at most (default: each page once)\n"
                     "  --theta T          skew of zipf, more than 0 and less than 1 (default 0.99)\n"
                     "  --codec NAME       of the image: lz4, zstd, zstd:N or none (default lz4)\n"
                     "  --zero PERCENT     pages that are zero (default 28)\n"
                     "  --rounds N         of each comparison, 1 to 100 (default 5)\n"
                     "  --seed N           of contents and orders (default 1)\n"
                     "  --lead-ms MS       between attaching and the first touch (default 0)\n"
                     "  --verify           afterwards each guest compares all pages that it touched\n"
                     "  --quick            small and once: does it run at all? Implies --verify\n"
                     "  --pager PATH       the program (default: uffd-pager in ../bin beside this one)\n"
                     "  --dir DIR          for images and sockets (default $TMPDIR or /tmp)\n"
                     "  --json FILE        write all figures there too ('-': to stdout, and no table)\n"
                     "  --svg FILE         draw them\n"
                     "  --help\n"
                     "\n",
                     out);
        (void) fputs("modes:\n", out);
        for (unsigned i = 0; i < BENCH_N_MODES; i++)
                (void) fprintf(out, "  %-12s %s\n", bench_mode_name(i), bench_mode_explain(i));
        (void) fputs("\nlines:\n", out);
        for (unsigned i = 0; i < bench_n_presets; i++)
                (void) fprintf(out, "  %-12s %s\n", bench_presets[i].name, bench_presets[i].explain);
        (void) fputs("  all\n\n"
                     "Exit: 0 measured, whatever is met; 1 something could not be measured; 2 wrong usage;\n"
                     "77 this host cannot run it.\n",
                     out);
}

static int bad_usage(const char *what, const char *value) {
        (void) fprintf(stderr, "uffd-bench: %s%s%s (see uffd-bench --help)\n", what, value ? ": " : "", value ? value : "");
        return 2;
}

static bool parse_number(const char *s, uint64_t min, uint64_t max, uint64_t *ret) {
        unsigned long long v;
        char *end;

        errno = 0;
        v = strtoull(s, &end, 10);
        if (errno || end == s || *end || *s == '-' || *s == '+' || *s == ' ' || v < min || v > max)
                return false;
        *ret = v;
        return true;
}

static bool parse_unsigned(const char *s, unsigned min, unsigned max, unsigned *ret) {
        uint64_t v;

        if (!parse_number(s, min, max, &v))
                return false;
        *ret = (unsigned) v;
        return true;
}

static bool parse_real(const char *s, double min, double max, double *ret) {
        char *end;
        double v = strtod(s, &end);

        if (end == s || *end || !isfinite(v) || v < min || v > max)
                return false;
        *ret = v;
        return true;
}

static bool parse_modes(const char *list, struct args *a) {
        char copy[256], *save = NULL;

        if (snprintf(copy, sizeof(copy), "%s", list) >= (int) sizeof(copy))
                return false;
        a->n_modes = 0;
        for (char *name = strtok_r(copy, ",", &save); name; name = strtok_r(NULL, ",", &save)) {
                if (a->n_modes == BENCH_N_MODES || bench_mode_parse(name, &a->modes[a->n_modes]) < 0)
                        return false;
                a->n_modes++;
        }
        return a->n_modes > 0;
}

static bool parse_size(const char *s, uint64_t *ret_pages) {
        uint64_t bytes;

        if (size_parse(s, &bytes) < 0 || bytes < 1048576 || bytes > MAX_MIB * 1048576ull || bytes % BENCH_PAGE)
                return false;
        *ret_pages = bytes / BENCH_PAGE;
        return true;
}

/** -1: go on; else the exit code. */
static int parse_args(int argc, char **argv, struct args *a) {
        enum {
                OPT_MODES = 256,
                OPT_SIZE,
                OPT_THREADS,
                OPT_CLONES,
                OPT_WORKERS,
                OPT_PATTERN,
                OPT_TOUCHES,
                OPT_THETA,
                OPT_CODEC,
                OPT_ZERO,
                OPT_ROUNDS,
                OPT_SEED,
                OPT_LEAD,
                OPT_VERIFY,
                OPT_QUICK,
                OPT_PAGER,
                OPT_DIR,
                OPT_JSON,
                OPT_SVG,
                OPT_HELP
        };
        static const struct option options[] = {
                { "modes", required_argument, NULL, OPT_MODES },
                { "size", required_argument, NULL, OPT_SIZE },
                { "threads", required_argument, NULL, OPT_THREADS },
                { "clones", required_argument, NULL, OPT_CLONES },
                { "workers", required_argument, NULL, OPT_WORKERS },
                { "pattern", required_argument, NULL, OPT_PATTERN },
                { "touches", required_argument, NULL, OPT_TOUCHES },
                { "theta", required_argument, NULL, OPT_THETA },
                { "codec", required_argument, NULL, OPT_CODEC },
                { "zero", required_argument, NULL, OPT_ZERO },
                { "rounds", required_argument, NULL, OPT_ROUNDS },
                { "seed", required_argument, NULL, OPT_SEED },
                { "lead-ms", required_argument, NULL, OPT_LEAD },
                { "verify", no_argument, NULL, OPT_VERIFY },
                { "quick", no_argument, NULL, OPT_QUICK },
                { "pager", required_argument, NULL, OPT_PAGER },
                { "dir", required_argument, NULL, OPT_DIR },
                { "json", required_argument, NULL, OPT_JSON },
                { "svg", required_argument, NULL, OPT_SVG },
                { "help", no_argument, NULL, OPT_HELP },
                { 0 },
        };
        struct bench_config *c = &a->cfg;

        for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
                bool good = true;

                switch (o) {
                case OPT_MODES:
                        good = parse_modes(optarg, a);
                        break;
                case OPT_SIZE:
                        good = parse_size(optarg, &c->n_pages);
                        break;
                case OPT_THREADS:
                        good = parse_unsigned(optarg, 1, BENCH_MAX_THREADS, &c->threads);
                        break;
                case OPT_CLONES:
                        good = parse_unsigned(optarg, 1, BENCH_MAX_CLONES, &c->clones);
                        break;
                case OPT_WORKERS:
                        good = parse_unsigned(optarg, 1, PAGER_MAX_WORKERS, &c->workers);
                        break;
                case OPT_PATTERN:
                        good = bench_pattern_parse(optarg, &c->pattern) == 0;
                        break;
                case OPT_TOUCHES:
                        good = parse_number(optarg, 1, UINT32_MAX, &c->n_touches);
                        break;
                case OPT_THETA:
                        good = parse_real(optarg, 0.01, 0.999, &c->theta);
                        break;
                case OPT_CODEC:
                        good = snap_codec_parse(optarg, &c->codec, &c->level) == 0;
                        break;
                case OPT_ZERO:
                        good = parse_unsigned(optarg, 0, 99, &c->zero_percent);
                        break;
                case OPT_ROUNDS:
                        good = parse_unsigned(optarg, 1, MAX_ROUNDS, &c->rounds);
                        break;
                case OPT_SEED:
                        good = parse_number(optarg, 0, UINT64_MAX, &c->seed);
                        break;
                case OPT_LEAD:
                        good = parse_real(optarg, 0, 10000, &c->lead_ms);
                        break;
                case OPT_VERIFY:
                        c->verify = true;
                        break;
                case OPT_QUICK:
                        c->quick = true;
                        break;
                case OPT_PAGER:
                        good = snprintf(a->pager, sizeof(a->pager), "%s", optarg) < (int) sizeof(a->pager);
                        break;
                case OPT_DIR:
                        c->dir = optarg;
                        break;
                case OPT_JSON:
                        a->json = optarg;
                        break;
                case OPT_SVG:
                        a->svg = optarg;
                        break;
                case OPT_HELP:
                        usage(stdout);
                        return 0;
                default:
                        return 2;
                }
                if (!good)
                        return bad_usage("not a value for this option", optarg);
        }
        if (c->quick) {
                c->rounds = 1;
                c->verify = true;
        }
        return -1;
}

/** The pager of the same build. */
static void default_pager(char *path, size_t size) {
        char self[PATH_MAX - 64];
        ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
        char *slash;

        self[MAX_OF(n, 0)] = '\0';
        slash = strrchr(self, '/');
        (void) snprintf(path, size, "%.*s/../bin/uffd-pager", slash ? (int) (slash - self) : 0, self);
}

static void describe_host(char *buf, size_t size) {
        struct utsname u = { 0 };

        (void) uname(&u);
        (void) snprintf(buf, size, "%ld CPUs, Linux %.40s", sysconf(_SC_NPROCESSORS_ONLN), u.release);
}

/* ---- commands ---- */

static int run_modes(const struct args *a, struct bench_report *report, FILE *out, struct err *e) {
        int r = bench_compare(&a->cfg, a->modes, a->n_modes, report, e);

        for (unsigned i = 0; r == 0 && i < report->n; i++)
                bench_line_print(&report->line[i], out);
        return r;
}

static const struct bench_preset *find_preset(const char *name) {
        for (unsigned i = 0; i < bench_n_presets; i++)
                if (!strcmp(bench_presets[i].name, name))
                        return &bench_presets[i];
        return NULL;
}

/** Every line is measured, also when an earlier one could not be. */
static int run_lines(const struct args *a, char **names, int n, struct bench_report *report, FILE *out) {
        bool all = false;
        int failed = 0;

        for (int i = 0; i < n; i++)
                all = all || !strcmp(names[i], "all");
        for (unsigned k = 0; k < bench_n_presets; k++) {
                unsigned before = report->n;
                bool wanted = all;
                struct err e = { 0 };

                for (int i = 0; i < n; i++)
                        wanted = wanted || !strcmp(names[i], bench_presets[k].name);
                if (!wanted)
                        continue;
                if (bench_presets[k].run(&a->cfg, report, &e) < 0) {
                        (void) fprintf(stderr, "uffd-bench: %s: %s\n", bench_presets[k].name, e.message);
                        failed = -EIO;
                }
                for (; before < report->n; before++)
                        bench_line_print(&report->line[before], out);
        }
        return failed;
}

static int finish(const struct args *a, const struct bench_report *report, const char *host) {
        struct err e = { 0 };
        int r = a->json ? bench_report_json(report, a->json, host, &e) : 0;

        if (r == 0 && a->svg)
                r = bench_report_svg(report, a->svg, host, &e);
        if (r < 0)
                (void) fprintf(stderr, "uffd-bench: %s\n", e.message);
        return r;
}

/** NULL, or why this host cannot run it. */
static const char *why_not(const struct args *a) {
        if (access("/dev/userfaultfd", R_OK | W_OK) < 0)
                return "/dev/userfaultfd cannot be opened";
        if (access(a->cfg.pager, X_OK) < 0)
                return "uffd-pager is not there: build it, or pass --pager";
        return NULL;
}

int main(int argc, char **argv) {
        struct args a = { .cfg = { .seed = 1,
                                   .threads = 1,
                                   .clones = 1,
                                   .rounds = 5,
                                   .zero_percent = 28,
                                   .codec = SNAP_CODEC_LZ4,
                                   .pattern = BENCH_RANDOM,
                                   .theta = 0.99 } };
        static struct bench_report report;
        const char *reason;
        char host[128];
        FILE *out;
        int r;

        if (argc == 2 && !strcmp(argv[1], BENCH_GUEST_ARG))
                return bench_guest_main();
        (void) signal(SIGPIPE, SIG_IGN);
        log_init("uffd-bench", LOG_LVL_WARNING);
        default_pager(a.pager, sizeof(a.pager));
        a.cfg.pager = a.pager;
        a.cfg.dir = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
        for (unsigned i = 0; i < BENCH_N_MODES; i++)
                a.modes[a.n_modes++] = i;
        r = parse_args(argc, argv, &a);
        if (r >= 0)
                return r;
        argc -= optind;
        argv += optind;
        if (argc < 1 || (strcmp(argv[0], "run") != 0 && strcmp(argv[0], "line") != 0))
                return bad_usage("say run or line", NULL);
        if (!strcmp(argv[0], "run") ? argc > 1 : argc < 2)
                return bad_usage(argc > 1 ? "unexpected argument" : "which line?", argc > 1 ? argv[1] : NULL);
        for (int i = 1; i < argc; i++)
                if (strcmp(argv[i], "all") != 0 && !find_preset(argv[i]))
                        return bad_usage("no such line", argv[i]);
        reason = why_not(&a);
        if (reason) {
                (void) printf("SKIPPED: %s\n", reason);
                return getenv("FORKD_TEST_NO_SKIP") ? 1 : EXIT_SKIPPED;
        }
        describe_host(host, sizeof(host));
        out = a.json && !strcmp(a.json, "-") ? stderr : stdout;
        (void) fprintf(out, "%s\n\n", host);
        if (!strcmp(argv[0], "line")) {
                r = run_lines(&a, argv + 1, argc - 1, &report, out);
        } else {
                struct err e = { 0 };

                if (!a.cfg.n_pages)
                        a.cfg.n_pages = DEFAULT_MIB * BENCH_PAGES_PER_MIB;
                r = run_modes(&a, &report, out, &e);
                if (r < 0)
                        (void) fprintf(stderr, "uffd-bench: %s\n", e.message);
        }
        if (finish(&a, &report, host) < 0)
                r = -EIO;
        return r < 0 ? 1 : 0;
}
