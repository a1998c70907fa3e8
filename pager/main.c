/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/ids.h"
#include "common/log.h"
#include "pager/confine.h"
#include "pager/pack.h"
#include "pager/pager.h"
#include "pager/serve.h"

#ifndef FORKD_VERSION
#error "the build says which version this is"
#endif

#define MAX_FD 65536u
#define MAX_SECONDS 604800u /* a week: anything longer is a mistake */

struct options {
        struct pager_config cfg;
        struct pager_serve_config serve; /* path NULL: forkd's pager */
        unsigned user;                   /* 0: it stays who it is */
        bool is_serve;
        enum log_level level;
};

static void usage(FILE *out) {
        (void) fprintf(out,
                       "uffd-pager --control PATH [OPTION]...\n"
                       "Serves guests' page faults from compressed snapshot images. Started by forkd.\n"
                       "\n"
                       "uffd-pager serve --snapshot DIR --socket PATH [OPTION]...\n"
                       "Serves one snapshot, without forkd, to every VMM that connects to PATH and speaks\n"
                       "Firecracker's userfaultfd handshake (\"backend_type\": \"Uffd\"). A VMM whose memory\n"
                       "cannot be served (a corrupt frame, an I/O error) is killed, with the reason in the log.\n"
                       "\n"
                       "uffd-pager pack --memory FILE --snapshot DIR [--compression lz4|zstd[:1-19]|none]\n"
                       "Makes DIR/memory.img, for serve, out of a raw memory file, as Firecracker's full\n"
                       "snapshots have it.\n"
                       "\n"
                       "  --snapshot DIR          serve: the snapshot; its memory is DIR/memory.img\n"
                       "  --socket PATH           serve: the unix socket for VMMs, mode 0600\n"
                       "  --peer-uid UID          serve: VMMs of this user may connect, too, not only those of\n"
                       "                          root and of the pager's own user; the socket becomes theirs\n"
                       "  --record                serve: learn which pages VMMs need first, into DIR/workingset;\n"
                       "                          they are fetched ahead for the next ones\n"
                       "  --control PATH          listen for forkd on the unix socket PATH\n"
                       "  --control-fd N          descriptor N listens at PATH already\n"
                       "  --user UID              become this user when everything is open, without capabilities and\n"
                       "                          with nothing in sight but itself; wants root\n"
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
                       "SIGTERM and SIGINT: take no new sessions, end with the last one. With serve, a second\n"
                       "one kills the VMMs that are left and ends at once. Killing the pager leaves its guests\n"
                       "waiting for their pages; they never see wrong ones.\n",
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

static int check_options(const struct options *o) {
        if (!o->is_serve && (o->serve.snapshot || o->serve.path || o->serve.peer_uid >= 0 || o->serve.record))
                return bad_usage("--snapshot, --socket, --peer-uid and --record belong to 'uffd-pager serve'");
        if (o->is_serve && (!o->serve.snapshot || !o->serve.path))
                return bad_usage("serve wants --snapshot and --socket");
        if (!o->is_serve && !o->cfg.control_path)
                return bad_usage("--control is missing");
        if (o->cfg.control_fd > 0 && !o->cfg.control_path)
                return bad_usage("--control-fd wants --control, too");
        if (o->is_serve && o->user)
                return bad_usage("--user is for forkd's pager: serve opens files by their names as long as it runs");
        if (o->user && geteuid() != 0)
                return bad_usage("--user wants root");
        return -1;
}

/** -1: go on; else the exit code. */
static int parse_args(int argc, char **argv, struct options *o) {
        enum {
                OPT_CONTROL = 256,
                OPT_CONTROL_FD,
                OPT_USER,
                OPT_WORKERS,
                OPT_IDLE,
                OPT_BUDGET,
                OPT_HANDSHAKE,
                OPT_RECORD,
                OPT_LEVEL,
                OPT_HELP,
                OPT_VERSION,
                OPT_SNAPSHOT,
                OPT_SOCKET,
                OPT_PEER_UID,
                OPT_LEARN
        };
        static const struct option options[] = {
                { "control", required_argument, NULL, OPT_CONTROL },
                { "control-fd", required_argument, NULL, OPT_CONTROL_FD },
                { "user", required_argument, NULL, OPT_USER },
                { "workers", required_argument, NULL, OPT_WORKERS },
                { "idle-image-seconds", required_argument, NULL, OPT_IDLE },
                { "memory-budget", required_argument, NULL, OPT_BUDGET },
                { "handshake-seconds", required_argument, NULL, OPT_HANDSHAKE },
                { "record-seconds", required_argument, NULL, OPT_RECORD },
                { "log-level", required_argument, NULL, OPT_LEVEL },
                { "snapshot", required_argument, NULL, OPT_SNAPSHOT },
                { "socket", required_argument, NULL, OPT_SOCKET },
                { "peer-uid", required_argument, NULL, OPT_PEER_UID },
                { "record", no_argument, NULL, OPT_LEARN },
                { "help", no_argument, NULL, OPT_HELP },
                { "version", no_argument, NULL, OPT_VERSION },
                { 0 },
        };
        unsigned n;

        if (argc > 1 && !strcmp(argv[1], "serve")) {
                o->is_serve = true;
                optind = 2;
        }
        for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
                switch (c) {
                case OPT_CONTROL:
                        o->cfg.control_path = optarg;
                        break;
                case OPT_CONTROL_FD:
                        if (!parse_number(optarg, 3, MAX_FD, &n))
                                return bad_usage("--control-fd wants the number of a descriptor from 3 on");
                        o->cfg.control_fd = (int) n;
                        break;
                case OPT_USER:
                        if (!parse_number(optarg, 1, UINT32_MAX - 1, &o->user))
                                return bad_usage("--user wants the number of a user that is not root");
                        break;
                case OPT_WORKERS:
                        if (!parse_number(optarg, 1, PAGER_MAX_WORKERS, &o->cfg.workers))
                                return bad_usage("--workers wants a number from 1 to 16");
                        break;
                case OPT_IDLE:
                        if (!parse_number(optarg, 0, MAX_SECONDS, &o->cfg.idle_seconds))
                                return bad_usage("--idle-image-seconds wants a number from 0 to 604800");
                        break;
                case OPT_BUDGET:
                        if (size_parse(optarg, &o->cfg.memory_budget) < 0 || o->cfg.memory_budget < PAGER_MIN_BUDGET)
                                return bad_usage("--memory-budget wants a size of 4M or more");
                        break;
                case OPT_HANDSHAKE:
                        if (!parse_number(optarg, 1, MAX_SECONDS, &o->cfg.handshake_seconds))
                                return bad_usage("--handshake-seconds wants a number from 1 to 604800");
                        break;
                case OPT_RECORD:
                        if (!parse_number(optarg, 1, MAX_SECONDS, &o->cfg.record_seconds))
                                return bad_usage("--record-seconds wants a number from 1 to 604800");
                        break;
                case OPT_LEVEL:
                        if (log_level_parse(optarg, &o->level) < 0)
                                return bad_usage("--log-level wants error, warning, info or debug");
                        break;
                case OPT_SNAPSHOT:
                        o->serve.snapshot = optarg;
                        break;
                case OPT_SOCKET:
                        o->serve.path = optarg;
                        break;
                case OPT_PEER_UID:
                        if (!parse_number(optarg, 0, UINT32_MAX - 1, &n))
                                return bad_usage("--peer-uid wants the number of a user");
                        o->serve.peer_uid = n;
                        break;
                case OPT_LEARN:
                        o->serve.record = true;
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
        return check_options(o);
}

/** `uffd-pager pack`: the exit code. */
static int pack(int argc, char **argv) {
        enum { OPT_MEMORY = 256, OPT_SNAPSHOT, OPT_COMPRESSION, OPT_HELP };
        static const struct option options[] = {
                { "memory", required_argument, NULL, OPT_MEMORY },
                { "snapshot", required_argument, NULL, OPT_SNAPSHOT },
                { "compression", required_argument, NULL, OPT_COMPRESSION },
                { "help", no_argument, NULL, OPT_HELP },
                { 0 },
        };
        struct pager_pack_config cfg = { .codec = SNAP_CODEC_LZ4 };
        uint64_t ram, stored;
        struct err e = { 0 };

        optind = 2;
        for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
                if (c == OPT_MEMORY) {
                        cfg.memory = optarg;
                } else if (c == OPT_SNAPSHOT) {
                        cfg.snapshot = optarg;
                } else if (c == OPT_COMPRESSION) {
                        if (snap_codec_parse(optarg, &cfg.codec, &cfg.level) < 0)
                                return bad_usage("--compression wants lz4, zstd, zstd:1 to zstd:19, or none");
                } else if (c == OPT_HELP) {
                        usage(stdout);
                        return 0;
                } else {
                        return 2;
                }
        }
        if (optind < argc || !cfg.memory || !cfg.snapshot)
                return bad_usage("pack wants --memory and --snapshot, and nothing else");
        if (pager_pack(&cfg, &ram, &stored, &e) < 0) {
                log_error("%s", e.message);
                return 1;
        }
        (void) printf("%llu MiB of memory, %llu MiB stored\n", (unsigned long long) (ram >> 20),
                      (unsigned long long) (stored >> 20));
        return 0;
}

struct running {
        struct pager *pager;
        struct pager_serve *serve; /* NULL: forkd's pager */
        bool draining;
};

static void on_term(evutil_socket_t sig, short what, void *arg) {
        struct running *run = arg;

        if (run->serve && run->draining) {
                pager_end(run->pager);
                return;
        }
        run->draining = true;
        pager_serve_close(run->serve);
        pager_drain(run->pager);
}

static int run(const struct options *o) {
        struct event_base *base = event_base_new();
        struct event *term = NULL, *intr = NULL;
        struct running now = { 0 };
        struct err e = { 0 };
        int r = 1;

        if (!base) {
                log_error("out of memory");
                return 1;
        }
        if ((o->user && pager_confine_prepare(&e) < 0) || pager_new(base, &o->cfg, &now.pager, &e) < 0 ||
            (o->is_serve && pager_serve_new(base, now.pager, &o->serve, &now.serve, &e) < 0)) {
                log_error("%s%s%s", e.message, e.hint[0] ? ": " : "", e.hint);
                goto out;
        }
        term = evsignal_new(base, SIGTERM, on_term, &now);
        intr = evsignal_new(base, SIGINT, on_term, &now);
        if (!term || !intr || event_add(term, NULL) < 0 || event_add(intr, NULL) < 0) {
                log_error("out of memory");
                goto out;
        }
        if (o->user && pager_confine(o->user, &e) < 0) {
                log_error("%s", e.message);
                goto out;
        }
        if (o->is_serve)
                log_info("uffd-pager %s serves %s at %s", FORKD_VERSION, o->serve.snapshot, o->serve.path);
        else
                log_info("uffd-pager %s serves at %s", FORKD_VERSION, o->cfg.control_path);
        r = event_base_dispatch(base) < 0 ? 1 : 0;
        if (now.serve)
                pager_serve_kill(now.serve);
out:
        if (term)
                event_free(term);
        if (intr)
                event_free(intr);
        pager_free(now.pager);
        pager_serve_free(now.serve);
        event_base_free(base);
        return r;
}

int main(int argc, char **argv) {
        struct options o = { .cfg = { .idle_seconds = 300, .version = FORKD_VERSION },
                             .serve = { .peer_uid = -1 },
                             .level = LOG_LVL_INFO };
        int r;

        if (argc > 1 && !strcmp(argv[1], "pack")) {
                log_init("uffd-pager", o.level);
                return pack(argc, argv);
        }
        r = parse_args(argc, argv, &o);

        if (r >= 0)
                return r;
        log_init("uffd-pager", o.level);
        (void) signal(SIGPIPE, SIG_IGN);
        (void) signal(SIGXFSZ, SIG_IGN); /* an image too large for a limit is an error, not our end */
        (void) signal(SIGHUP, SIG_IGN);  /* the terminal of whoever started forkd is none of our concern */
        return run(&o);
}
