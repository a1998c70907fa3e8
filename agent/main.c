/* SPDX-License-Identifier: MIT */
/* forkd-agent: options, the few settings a guest's only important process needs, then the loop. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/agent.h"

#define PORT_WAIT_MS 5000
#define HOOKS_TIMEOUT_MS 10000
#define HOOKS_TIMEOUT_MAX_MS 600000

static const char usage_text[] =
        "Usage: forkd-agent [OPTION]...\n"
        "Runs commands in this guest for forkd, and gives it an identity of its own when it wakes up as a copy.\n"
        "\n"
        "  --transport SPEC    virtio-serial[:PATH], vsock[:PORT], unix:PATH (listens) or fd:N; by default the\n"
        "                      virtio-serial port named " TRANSPORT_PORT_NAME ", or vsock if there is none\n"
        "  --root DIR          the identity's files (/etc/hostname, /etc/machine-id, /etc/forkd/resume.d) are\n"
        "                      those below DIR: for containers and tests\n"
        "  --no-clock          leave the clock alone: for containers, which share their host's\n"
        "  --hooks-timeout MS  for all programs in resume.d together (10000)\n"
        "  --help, --version\n";

enum { OPT_TRANSPORT = 256, OPT_ROOT, OPT_NO_CLOCK, OPT_HOOKS_TIMEOUT, OPT_HELP, OPT_VERSION };

static const struct option long_options[] = {
        { "transport", required_argument, NULL, OPT_TRANSPORT },
        { "root", required_argument, NULL, OPT_ROOT },
        { "no-clock", no_argument, NULL, OPT_NO_CLOCK },
        { "hooks-timeout", required_argument, NULL, OPT_HOOKS_TIMEOUT },
        { "help", no_argument, NULL, OPT_HELP },
        { "version", no_argument, NULL, OPT_VERSION },
        { 0 },
};

static int parse_ms(const char *s, unsigned *ret) {
        char *end;
        unsigned long v;

        errno = 0;
        v = strtoul(s, &end, 10);
        if (errno || end == s || *end || v == 0 || v > HOOKS_TIMEOUT_MAX_MS)
                return -EINVAL;
        *ret = (unsigned) v;
        return 0;
}

/* 0: run; 1: done; 2: wrong usage */
static int parse_options(int argc, char **argv, struct agent_options *opt) {
        int c;

        while ((c = getopt_long(argc, argv, "", long_options, NULL)) >= 0)
                switch (c) {
                case OPT_TRANSPORT:
                        opt->transport = optarg;
                        break;
                case OPT_ROOT:
                        opt->root = optarg;
                        break;
                case OPT_NO_CLOCK:
                        opt->set_clock = false;
                        break;
                case OPT_HOOKS_TIMEOUT:
                        if (parse_ms(optarg, &opt->hooks_timeout_ms) < 0) {
                                (void) fprintf(stderr, "forkd-agent: --hooks-timeout: 1 to %d\n", HOOKS_TIMEOUT_MAX_MS);
                                return 2;
                        }
                        break;
                case OPT_HELP:
                        (void) fputs(usage_text, stdout);
                        return 1;
                case OPT_VERSION:
                        (void) puts("forkd-agent " FORKD_VERSION);
                        return 1;
                default:
                        return 2;
                }
        if (optind < argc) {
                (void) fprintf(stderr, "forkd-agent: unexpected '%s'\n", argv[optind]);
                return 2;
        }
        return 0;
}

/* Low descriptors may be closed when init starts us; a pipe must not become somebody's stdin by accident. */
static void open_standard_streams(void) {
        int fd;

        do
                fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        while (fd >= 0 && fd <= 2);
        (void) close_fd(fd);
}

/* The agent is how a guest out of memory can still be looked at. Its children are not spared (child.c). */
static void survive_oom(void) {
        cleanup_fd int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

        if (fd >= 0 && write(fd, "-1000", 5) < 0)
                return; /* without the privilege we are as mortal as anybody */
}

int main(int argc, char **argv) {
        static struct agent agent; /* zeroed pages that are not touched cost nothing */
        struct agent_options opt = { .root = "", .set_clock = true, .hooks_timeout_ms = HOOKS_TIMEOUT_MS };
        struct transport tr;
        int r;

        open_standard_streams();
        r = parse_options(argc, argv, &opt);
        if (r != 0)
                return r == 1 ? EXIT_SUCCESS : 2;
        (void) signal(SIGPIPE, SIG_IGN);
        (void) umask(022);
        survive_oom();

        r = transport_open(opt.transport, PORT_WAIT_MS, &tr);
        if (r < 0) {
                (void) fprintf(stderr, "forkd-agent: cannot open %s: %s\n",
                               opt.transport ? opt.transport : "a virtio-serial port or vsock", strerror(-r));
                return EXIT_FAILURE;
        }
        (void) fprintf(stderr, "forkd-agent: ready on %s (" FORKD_VERSION ")\n", tr.name);
        r = agent_init(&agent, &opt, &tr);
        if (r == 0) {
                r = agent_run(&agent);
                agent_clear(&agent);
        }
        if (r < 0)
                (void) fprintf(stderr, "forkd-agent: %s\n", strerror(-r));
        return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
