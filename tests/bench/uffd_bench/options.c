/* SPDX-License-Identifier: MIT */
#include "tests/bench/uffd_bench/options.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/ids.h"
#include "pager/limits.h"

#define MAX_MIB (16u << 10)
#define DEFAULT_MIB 256u
#define MAX_ROUNDS 100u

static void usage(FILE *out) {
        (void) fputs("uffd-bench run [OPTION]...            measures modes in turn and compares them\n"
                     "uffd-bench line NAME... [OPTION]...   measures what is promised: value, bound, met or MISSED\n"
                     "\n"
                     "Synthetic guests are processes that attach to a real uffd-pager and touch their pages.\n"
                     "\n"
                     "  --size SIZE        of guest RAM, 1M to 16G (default 256M; lines have their own)\n"
                     "  --workers N        fault threads of the pager (default: its own; scaling tries some)\n"
                     "  --codec NAME       of the image: lz4, zstd, zstd:N or none (default lz4)\n"
                     "  --zero PERCENT     pages that are zero (default 28)\n"
                     "  --rounds N         of each comparison, 1 to 100 (default 5)\n"
                     "  --seed N           of contents and orders (default 1)\n"
                     "  --lead-ms MS       between attaching and the first touch (run: 0; workingset: 22)\n"
                     "  --verify           afterwards each guest compares all pages that it touched\n"
                     "  --quick            small and once: does it run at all? Implies --verify\n"
                     "  --pager PATH       the program (default: uffd-pager in ../bin beside this one)\n"
                     "  --dir DIR          for images and sockets (default $TMPDIR or /tmp)\n"
                     "  --json FILE        write all figures there too ('-': to stdout, and no table)\n"
                     "  --svg FILE         draw them\n"
                     "\n"
                     "of run alone:\n"
                     "  --modes LIST       some of the modes below, with commas (default: all)\n"
                     "  --threads N        of each guest, 1 to 64 (default 1)\n"
                     "  --clones N         guests at the same time, 1 to 64 (default 1)\n"
                     "  --pattern NAME     sequential, random, zipf, frames: one page of each 64 KiB, or\n"
                     "                     recorded: runs from all over, a 32nd of the pages (default random)\n"
                     "  --touches N        touches at most (default: each page once)\n"
                     "  --theta T          skew of zipf, 0.01 to 0.999 (default 0.99)\n"
                     "\n"
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

static bool parse_modes(const char *list, struct bench_args *a) {
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
static int parse_options(int argc, char **argv, struct bench_args *a) {
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

                if (o == OPT_MODES || o == OPT_THREADS || o == OPT_CLONES || o == OPT_PATTERN || o == OPT_TOUCHES ||
                    o == OPT_THETA)
                        a->of_run_alone = true;
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

static const struct bench_preset *find_preset(const char *name) {
        for (unsigned i = 0; i < bench_n_presets; i++)
                if (!strcmp(bench_presets[i].name, name))
                        return &bench_presets[i];
        return NULL;
}

/** What is to be done: the words that are no options. */
static int parse_command(int n, char **words, struct bench_args *a) {
        if (n < 1 || (strcmp(words[0], "run") != 0 && strcmp(words[0], "line") != 0))
                return bad_usage("say run or line", NULL);
        if (!strcmp(words[0], "run"))
                return n > 1 ? bad_usage("unexpected argument", words[1]) : -1;
        if (n < 2)
                return bad_usage("which line?", NULL);
        if (a->of_run_alone)
                return bad_usage("a line has its own modes, threads, clones, pattern and touches", NULL);
        for (int i = 1; i < n; i++)
                if (strcmp(words[i], "all") != 0 && !find_preset(words[i]))
                        return bad_usage("no such line", words[i]);
        /* In their own order, each once. */
        for (unsigned k = 0; k < bench_n_presets && a->n_lines < BENCH_MAX_PRESETS; k++)
                for (int i = 1; i < n; i++)
                        if (!strcmp(words[i], "all") || !strcmp(words[i], bench_presets[k].name)) {
                                a->lines[a->n_lines++] = &bench_presets[k];
                                break;
                        }
        return -1;
}

int bench_args_parse(int argc, char **argv, struct bench_args *ret) {
        int r;

        *ret = (struct bench_args){ .cfg = { .seed = 1,
                                             .threads = 1,
                                             .clones = 1,
                                             .rounds = 5,
                                             .zero_percent = 28,
                                             .codec = SNAP_CODEC_LZ4,
                                             .pattern = BENCH_RANDOM,
                                             .theta = 0.99 } };
        default_pager(ret->pager, sizeof(ret->pager));
        ret->cfg.pager = ret->pager;
        ret->cfg.dir = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
        for (unsigned i = 0; i < BENCH_N_MODES; i++)
                ret->modes[ret->n_modes++] = i;
        r = parse_options(argc, argv, ret);
        if (r < 0)
                r = parse_command(argc - optind, argv + optind, ret);
        if (r < 0 && ret->n_lines == 0 && !ret->cfg.n_pages)
                ret->cfg.n_pages = DEFAULT_MIB * BENCH_PAGES_PER_MIB;
        return r;
}
