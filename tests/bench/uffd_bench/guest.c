/* SPDX-License-Identifier: MIT */
#include "tests/bench/uffd_bench/guest.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "common/io.h"
#include "common/spawn.h"

#define CHECK_MS 100

static int send_command(struct bench_guest *g, const struct bench_command *c, const int *fds, size_t n_fds, struct err *e) {
        ssize_t n = io_send_fds(g->ctl, c, sizeof(*c), fds, n_fds);

        if (n < 0)
                return err_errno(e, (int) n, "telling a synthetic guest what to do");
        return 0;
}

/** The next answer. */
static int await(struct bench_guest *g, const struct bench_watch *watch, struct bench_result *ret, struct err *e) {
        uint64_t start = now_ns();

        for (;;) {
                struct pollfd p = { .fd = g->ctl, .events = POLLIN };
                int r = poll(&p, 1, CHECK_MS);

                if (r < 0 && errno != EINTR)
                        return err_errno(e, -errno, "waiting for a synthetic guest");
                if (r > 0)
                        break;
                if (watch) {
                        r = watch->check(watch->arg, e);
                        if (r < 0)
                                return r;
                }
                if (ms_since(start) > BENCH_DEADLINE_MS)
                        return err_set(e, ERR_TIMEOUT, -ETIMEDOUT, "a synthetic guest did not end within %d s",
                                       BENCH_DEADLINE_MS / 1000);
        }
        ssize_t n = recv(g->ctl, ret, sizeof(*ret), 0);
        if (n != sizeof(*ret)) {
                /* It died; if the pager has failed its session, that is the better reason. */
                int r = watch ? watch->check(watch->arg, e) : 0;

                return r < 0 ? r : err_set(e, ERR_INTERNAL, -EPIPE, "a synthetic guest died");
        }
        if (ret->r < 0)
                return err_set(e, err_code_of(ret->r), ret->r, "%s", ret->why);
        return 0;
}

static int spawn_guest(struct bench_guest *ret) {
        const char *const argv[] = { "/proc/self/exe", BENCH_GUEST_ARG, NULL };
        int sv[2], r;

        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
                return -errno;
        const struct spawn_fd passed[] = { { STDERR_FILENO, STDERR_FILENO }, { sv[1], BENCH_GUEST_FD } };
        const struct spawn_params params = {
                .argv = argv,
                .fds = passed,
                .n_fds = ARRAY_LEN(passed),
                .cgroup_fd = -1,
                .death_signal = SIGKILL,
        };
        r = spawn_process(&params, &ret->pid, &ret->pidfd);
        (void) close(sv[1]);
        if (r < 0)
                (void) close(sv[0]);
        else
                ret->ctl = sv[0];
        return r;
}

int bench_guest_start(const struct bench_setup *setup, struct bench_guest *ret, struct err *e) {
        const struct bench_command c = { .op = BENCH_OP_SETUP, .setup = *setup };
        struct bench_guest g = BENCH_GUEST_NONE;
        struct bench_result res;
        int r = spawn_guest(&g);

        if (r < 0)
                return err_errno(e, r, "starting a synthetic guest");
        r = send_command(&g, &c, NULL, 0, e);
        if (r == 0)
                r = await(&g, NULL, &res, e);
        if (r < 0) {
                bench_guest_end(&g);
                return r;
        }
        *ret = g;
        return 0;
}

int bench_guest_connect(struct bench_guest *g, int file_fd, int sock_fd, struct err *e) {
        const struct bench_command c = { .op = BENCH_OP_CONNECT, .has_file = file_fd >= 0, .has_sock = sock_fd >= 0 };
        struct bench_result res;
        size_t n_fds = 0;
        int fds[2], r;

        if (file_fd >= 0)
                fds[n_fds++] = file_fd;
        if (sock_fd >= 0)
                fds[n_fds++] = sock_fd;
        r = send_command(g, &c, fds, n_fds, e);
        return r < 0 ? r : await(g, NULL, &res, e);
}

int bench_guest_prepare(struct bench_guest *g, const struct bench_touch *t, int list_fd, struct err *e) {
        const struct bench_command c = { .op = BENCH_OP_PREPARE, .touch = *t, .has_file = list_fd >= 0 };
        struct bench_result res;
        int r = send_command(g, &c, &list_fd, list_fd >= 0, e);

        return r < 0 ? r : await(g, NULL, &res, e);
}

int bench_guest_go(struct bench_guest *g, struct err *e) {
        const struct bench_command c = { .op = BENCH_OP_GO };

        return send_command(g, &c, NULL, 0, e);
}

int bench_guest_result(struct bench_guest *g, const struct bench_watch *watch, struct bench_result *ret, struct err *e) {
        int r = await(g, watch, ret, e);

        if (r == 0 && ret->bad_page != UINT64_MAX)
                return err_set(e, ERR_CORRUPT, -EUCLEAN, "page %llu was not what it should be",
                               (unsigned long long) ret->bad_page);
        return r;
}

bool bench_guest_done(const struct bench_guest *g) {
        struct pollfd p = { .fd = g->ctl, .events = POLLIN };

        return poll(&p, 1, 0) > 0;
}

void bench_guest_end(struct bench_guest *g) {
        if (g->pid > 0) {
                best_effort(spawn_kill(g->pidfd, SIGKILL));
                best_effort(spawn_wait(g->pidfd, BENCH_DEADLINE_MS, NULL));
        }
        g->ctl = close_fd(g->ctl);
        g->pidfd = close_fd(g->pidfd);
        g->pid = 0;
}
