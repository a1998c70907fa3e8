/* SPDX-License-Identifier: MIT */
/* uffd-bench: how fast guests get their pages, and what it is measured against. docs/benchmarks.md explains the method
 * and each line. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/log.h"
#include "tests/bench/uffd_bench/options.h"

#define EXIT_SKIPPED 77

static void describe_host(char *buf, size_t size) {
        struct utsname u = { 0 };

        (void) uname(&u);
        (void) snprintf(buf, size, "%ld CPUs, Linux %.40s", sysconf(_SC_NPROCESSORS_ONLN), u.release);
}

/* ---- commands ---- */

static int run_modes(const struct bench_args *a, struct bench_report *report, FILE *out) {
        struct err e = { 0 };
        int r = bench_compare(&a->cfg, a->modes, a->n_modes, report, &e);

        if (r < 0)
                (void) fprintf(stderr, "uffd-bench: %s\n", e.message);
        for (unsigned i = 0; r == 0 && i < report->n; i++)
                bench_line_print(&report->line[i], out);
        return r;
}

/** Every line is measured, also when an earlier one could not be. */
static int run_lines(const struct bench_args *a, struct bench_report *report, FILE *out) {
        int failed = 0;

        for (unsigned k = 0; k < a->n_lines; k++) {
                unsigned before = report->n;
                struct err e = { 0 };

                if (a->lines[k]->run(&a->cfg, report, &e) < 0) {
                        (void) fprintf(stderr, "uffd-bench: %s: %s\n", a->lines[k]->name, e.message);
                        failed = -EIO;
                }
                for (; before < report->n; before++)
                        bench_line_print(&report->line[before], out);
        }
        return failed;
}

static int finish(const struct bench_args *a, const struct bench_report *report, const char *host) {
        struct err e = { 0 };
        int r = a->json ? bench_report_json(report, a->json, host, &e) : 0;

        if (r == 0 && a->svg)
                r = bench_report_svg(report, a->svg, host, &e);
        if (r < 0)
                (void) fprintf(stderr, "uffd-bench: %s\n", e.message);
        return r;
}

/** NULL, or why this host cannot run it. */
static const char *why_not(const struct bench_args *a) {
        if (access("/dev/userfaultfd", R_OK | W_OK) < 0)
                return "/dev/userfaultfd cannot be opened";
        if (access(a->cfg.pager, X_OK) < 0)
                return "uffd-pager is not there: build it, or pass --pager";
        return NULL;
}

int main(int argc, char **argv) {
        static struct bench_report report;
        struct bench_args a;
        char host[128];
        FILE *out;
        int r;

        if (argc == 2 && !strcmp(argv[1], BENCH_GUEST_ARG))
                return bench_guest_main();
        (void) signal(SIGPIPE, SIG_IGN);
        log_init("uffd-bench", LOG_LVL_WARNING);
        r = bench_args_parse(argc, argv, &a);
        if (r >= 0)
                return r;
        const char *reason = why_not(&a);
        if (reason) {
                (void) printf("SKIPPED: %s\n", reason);
                return getenv("FORKD_TEST_NO_SKIP") ? 1 : EXIT_SKIPPED;
        }
        describe_host(host, sizeof(host));
        out = a.json && !strcmp(a.json, "-") ? stderr : stdout;
        (void) fprintf(out, "%s\n\n", host);
        r = a.n_lines > 0 ? run_lines(&a, &report, out) : run_modes(&a, &report, out);
        if (finish(&a, &report, host) < 0)
                r = -EIO;
        return r < 0 ? 1 : 0;
}
