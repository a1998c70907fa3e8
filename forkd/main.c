/* SPDX-License-Identifier: MIT */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/host/orphans.h"
#include "forkd/worker/worker.h"

static const char usage[] = "Usage: forkd [--state-dir DIR] [--run-dir DIR] [--config FILE] [--log-level LEVEL]\n"
                            "\n"
                            "Snapshots, restores and forks virtual machines. Runs in the foreground and logs to stderr.\n"
                            "\n"
                            "  --state-dir DIR    snapshots and VM records (default /var/lib/forkd)\n"
                            "  --run-dir DIR      sockets, forkd.sock among them (default /run/forkd)\n"
                            "  --config FILE      settings (default /etc/forkd/forkd.conf, if it exists)\n"
                            "  --log-level LEVEL  error, warning, info (default) or debug\n"
                            "  --orphans [--fix]  look for what a forkd that is gone has left, in JSON, and remove it:\n"
                            "                     use 'forkctl doctor --orphans'\n"
                            "  --version, --help\n"
                            "\n"
                            "SIGTERM ends forkd and leaves its VMs running: the next forkd takes them back.\n"
                            "'forkctl shutdown --all' stops them first. See forkd(8).\n";

static int run_worker(const char *log_level) {
        enum log_level level = LOG_LVL_INFO;

        if (log_level && log_level_parse(log_level, &level) < 0)
                return 2;
        log_init("forkd-worker", level);
        (void) signal(SIGPIPE, SIG_IGN);
        return worker_main(WORKER_FD);
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                { "state-dir", required_argument, NULL, 's' },
                { "run-dir", required_argument, NULL, 'r' },
                { "config", required_argument, NULL, 'c' },
                { "log-level", required_argument, NULL, 'l' },
                { "version", no_argument, NULL, 'v' },
                { "help", no_argument, NULL, 'h' },
                { "orphans", no_argument, NULL, 'o' }, /* forkctl doctor's helper, where no forkd runs */
                { "fix", no_argument, NULL, 'f' },
                { "worker", no_argument, NULL, 'w' }, /* forkd's own children; see worker.h */
                { 0 },
        };
        struct daemon_options opt = { 0 };
        bool worker = false, orphans = false, fix = false;
        int c;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
                switch (c) {
                case 's':
                        opt.state_dir = optarg;
                        break;
                case 'r':
                        opt.run_dir = optarg;
                        break;
                case 'c':
                        opt.config = optarg;
                        break;
                case 'l':
                        opt.log_level = optarg;
                        break;
                case 'o':
                        orphans = true;
                        break;
                case 'f':
                        fix = true;
                        break;
                case 'w':
                        worker = true;
                        break;
                case 'v':
                        (void) printf("forkd %s\n", FORKD_VERSION);
                        return 0;
                case 'h':
                        (void) fputs(usage, stdout);
                        return 0;
                default:
                        (void) fputs("Try 'forkd --help'.\n", stderr);
                        return 2;
                }
        }
        if (optind < argc) {
                (void) fprintf(stderr, "forkd: unexpected argument '%s'\nTry 'forkd --help'.\n", argv[optind]);
                return 2;
        }
        if (fix && !orphans) {
                (void) fputs("forkd: --fix belongs to --orphans\nTry 'forkd --help'.\n", stderr);
                return 2;
        }
        if (orphans)
                return orphans_main(&opt, fix);
        return worker ? run_worker(opt.log_level) : daemon_run(&opt);
}
