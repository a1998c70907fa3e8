/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/ids.h"
#include "common/log.h"
#include "pager/pager.h"

#ifndef FORKD_VERSION
#error "the build says which version this is"
#endif

#define MAX_FD 65536u
#define MAX_SECONDS 604800u /* a week: anything longer is a mistake */

static void usage(FILE *out) {
        (void) fprintf(out,
                       "uffd-pager --control PATH [OPTION]...\n"
                       "Serves guests' page faults from compressed snapshot images. Started by forkd.\n"
                       "\n"
                       "  --control PATH          listen for forkd on the unix socket PATH\n"
                       "  --control-fd N          descriptor N listens at PATH already\n"
                       "  --workers N             fault threads, 1 to %u (default: one per CPU)\n"
                       "  --idle-image-seconds S  keep an image's decoded pages so long after its last\n"
                       "                          session (default 300; 0: give them back at once)\n"
                       "  --memory-budget SIZE    keep at most so much decoded memory, of all images, e.g. 512M\n"
                       "                          (default: a quarter of RAM, or of the cgroup's limit)\n"
                       "  --record-seconds S      how long a session records which pages are needed first (default %u)\n"
                       "  --handshake-seconds S   how long a VMM may take to attach (default %u)\n"
                       "  --log-level LEVEL       error, warning, info or debug (default info)\n"
                       "  --help, --version\n"
                       "\n"
                       "SIGTERM and SIGINT: take no new sessions, end with the last one. Killing the pager\n"
                       "leaves its guests waiting for their pages; they never see wrong ones.\n",
                       PAGER_MAX_WORKERS, PAGER_RECORD_SECONDS, PAGER_HANDSHAKE_SECONDS);
}

static int bad_usage(const char *what) {
        (void) fprintf(stderr, "uffd-pager: %s (see uffd-pager --help)\n", what);
        return 2;
}

static bool parse_number(const char *s, unsigned min, unsigned max, unsigned *ret) {
        unsigned long v;
        char *end;

        errno = 0;
        v = strtoul(s, &end, 10);
        if (errno || end == s || *end || *s == '-' || *s == '+' || *s == ' ' || v < min || v > max)
                return false;
        *ret = (unsigned) v;
        return true;
}

/** -1: go on; else the exit code. */
static int parse_args(int argc, char **argv, struct pager_config *cfg, enum log_level *level) {
        enum {
                OPT_CONTROL = 256,
                OPT_CONTROL_FD,
                OPT_WORKERS,
                OPT_IDLE,
                OPT_BUDGET,
                OPT_HANDSHAKE,
                OPT_RECORD,
                OPT_LEVEL,
                OPT_HELP,
                OPT_VERSION
        };
        static const struct option options[] = {
                { "control", required_argument, NULL, OPT_CONTROL },
                { "control-fd", required_argument, NULL, OPT_CONTROL_FD },
                { "workers", required_argument, NULL, OPT_WORKERS },
                { "idle-image-seconds", required_argument, NULL, OPT_IDLE },
                { "memory-budget", required_argument, NULL, OPT_BUDGET },
                { "handshake-seconds", required_argument, NULL, OPT_HANDSHAKE },
                { "record-seconds", required_argument, NULL, OPT_RECORD },
                { "log-level", required_argument, NULL, OPT_LEVEL },
                { "help", no_argument, NULL, OPT_HELP },
                { "version", no_argument, NULL, OPT_VERSION },
                { 0 },
        };
        unsigned fd;

        for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
                switch (c) {
                case OPT_CONTROL:
                        cfg->control_path = optarg;
                        break;
                case OPT_CONTROL_FD:
                        if (!parse_number(optarg, 3, MAX_FD, &fd))
                                return bad_usage("--control-fd wants the number of a descriptor from 3 on");
                        cfg->control_fd = (int) fd;
                        break;
                case OPT_WORKERS:
                        if (!parse_number(optarg, 1, PAGER_MAX_WORKERS, &cfg->workers))
                                return bad_usage("--workers wants a number from 1 to 16");
                        break;
                case OPT_IDLE:
                        if (!parse_number(optarg, 0, MAX_SECONDS, &cfg->idle_seconds))
                                return bad_usage("--idle-image-seconds wants a number from 0 to 604800");
                        break;
                case OPT_BUDGET:
                        if (size_parse(optarg, &cfg->memory_budget) < 0 || cfg->memory_budget < PAGER_MIN_BUDGET)
                                return bad_usage("--memory-budget wants a size of 4M or more");
                        break;
                case OPT_HANDSHAKE:
                        if (!parse_number(optarg, 1, MAX_SECONDS, &cfg->handshake_seconds))
                                return bad_usage("--handshake-seconds wants a number from 1 to 604800");
                        break;
                case OPT_RECORD:
                        if (!parse_number(optarg, 1, MAX_SECONDS, &cfg->record_seconds))
                                return bad_usage("--record-seconds wants a number from 1 to 604800");
                        break;
                case OPT_LEVEL:
                        if (log_level_parse(optarg, level) < 0)
                                return bad_usage("--log-level wants error, warning, info or debug");
                        break;
                case OPT_HELP:
                        usage(stdout);
                        return 0;
                case OPT_VERSION:
                        (void) printf("uffd-pager %s\n", FORKD_VERSION);
                        return 0;
                default:
                        return 2;
                }
        }
        if (optind < argc)
                return bad_usage("unexpected argument");
        if (!cfg->control_path)
                return bad_usage("--control is missing");
        return -1;
}

static void on_term(evutil_socket_t sig, short what, void *arg) {
        pager_drain(arg);
}

static int run(const struct pager_config *cfg) {
        struct event_base *base = event_base_new();
        struct event *term = NULL, *intr = NULL;
        struct pager *p = NULL;
        struct err e = { 0 };
        int r = 1;

        if (!base) {
                log_error("out of memory");
                return 1;
        }
        if (pager_new(base, cfg, &p, &e) < 0) {
                log_error("%s", e.message);
                goto out;
        }
        term = evsignal_new(base, SIGTERM, on_term, p);
        intr = evsignal_new(base, SIGINT, on_term, p);
        if (!term || !intr || event_add(term, NULL) < 0 || event_add(intr, NULL) < 0) {
                log_error("out of memory");
                goto out;
        }
        log_info("uffd-pager %s serves at %s", FORKD_VERSION, cfg->control_path);
        r = event_base_dispatch(base) < 0 ? 1 : 0;
out:
        if (term)
                event_free(term);
        if (intr)
                event_free(intr);
        pager_free(p);
        event_base_free(base);
        return r;
}

int main(int argc, char **argv) {
        struct pager_config cfg = { .idle_seconds = 300, .version = FORKD_VERSION };
        enum log_level level = LOG_LVL_INFO;
        int r = parse_args(argc, argv, &cfg, &level);

        if (r >= 0)
                return r;
        log_init("uffd-pager", level);
        (void) signal(SIGPIPE, SIG_IGN);
        (void) signal(SIGHUP, SIG_IGN); /* the terminal of whoever started forkd is none of our concern */
        return run(&cfg);
}
