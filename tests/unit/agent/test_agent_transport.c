/* SPDX-License-Identifier: MIT */
/* A transport that listens (unix here, vsock in a guest: the same code but for the address), and the program's
 * own options. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "common/co.h"
#include "common/io.h"
#include "common/spawn.h"
#include "harness.h"

static int agent_spawn(const char *const *args, pid_t *ret_pid, int *ret_pidfd) {
        const char *argv[12] = { AGENT_BINARY };

        for (size_t i = 0; args[i]; i++)
                argv[i + 1] = args[i];
        return spawn_process(&(struct spawn_params){ .argv = argv, .cgroup_fd = -1, .death_signal = SIGKILL }, ret_pid,
                             ret_pidfd);
}

static void expect_exit_code(const char *const *args, int code) {
        cleanup_fd int pidfd = -1;
        pid_t pid;
        int status;

        assert_int_equal(agent_spawn(args, &pid, &pidfd), 0);
        assert_int_equal(spawn_wait(pidfd, 10000, &status), 0);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), code);
}

static void test_options(void **state) {
        expect_exit_code((const char *[]){ "--help", NULL }, 0);
        expect_exit_code((const char *[]){ "--version", NULL }, 0);
        expect_exit_code((const char *[]){ "--no-such-option", NULL }, 2);
        expect_exit_code((const char *[]){ "extra", NULL }, 2);
        expect_exit_code((const char *[]){ "--hooks-timeout", "0", NULL }, 2);
        expect_exit_code((const char *[]){ "--hooks-timeout", "5x", NULL }, 2);
        expect_exit_code((const char *[]){ "--transport", "carrier-pigeon", NULL }, 1);
        expect_exit_code((const char *[]){ "--transport", "unix:", NULL }, 1);
        expect_exit_code((const char *[]){ "--transport", "unix:/nonexistent/x", NULL }, 1);
        expect_exit_code((const char *[]){ "--transport", "fd:999", NULL }, 1);
        expect_exit_code((const char *[]){ "--transport", "fd:-1", NULL }, 1);
        expect_exit_code((const char *[]){ "--transport", "vsock:99999999999", NULL }, 1);
        expect_exit_code((const char *[]){ "--transport", "virtio-serial:/nonexistent", NULL }, 1);
}

struct body {
        struct guest g;
        bool done;
};

static void one_agent(struct guest *g) {
        char transport[128];
        const char *args[] = { "--transport", transport, "--root", g->dir, "--no-clock", NULL };
        struct guest_identity id;
        struct err e = { 0 };
        cleanup_fd int pidfd = -1;

        (void) snprintf(transport, sizeof(transport), "unix:%s", g->socket_path);
        assert_int_equal(agent_spawn(args, &g->agent, &pidfd), 0);
        for (int i = 0; i < 3; i++) {
                cleanup_run struct run r = { 0 };

                /* the second and third while the one before is still open: the newest counts */
                struct guest_link *before = g->link;

                assert_int_equal(guest_link_new(g->base, g->socket_path, &g->link), 0);
                assert_int_equal(guest_link_connect(g->link, 5000, &e), 0);
                if (i == 0)
                        assert_int_equal(guest_link_wait_hello(g->link, 5000, &e), 0);
                guest_identity_fill(&id, WIRE_WAKE_RECONNECT);
                assert_int_equal(guest_link_queue_wake(g->link, &id), 0);
                assert_int_equal(guest_link_wait_ack(g->link, 5000, NULL, &e), 0);
                if (before)
                        assert_false(guest_link_ready(before));
                guest_link_free(before);
                run_sh(g, &r, "echo works");
                assert_string_equal(run_text(&r, WIRE_STDOUT), "works\n");
        }
        guest_link_free(TAKE_PTR(g->link));
        assert_int_equal(spawn_kill(pidfd, SIGKILL), 0);
        assert_int_equal(spawn_wait(pidfd, 5000, NULL), 0);
}

static void body_main(void *arg) {
        struct body *b = arg;

        one_agent(&b->g);
        one_agent(&b->g); /* started again, as init does: the socket's file of the first is in its way */
        b->done = true;
        (void) event_base_loopbreak(b->g.base);
}

static void test_listening(void **state) {
        struct body b = { 0 };

        b.g.base = event_base_new();
        (void) snprintf(b.g.dir, sizeof(b.g.dir), "/tmp/forkd-agent-XXXXXX");
        assert_non_null(mkdtemp(b.g.dir));
        (void) snprintf(b.g.socket_path, sizeof(b.g.socket_path), "%s/agent.sock", b.g.dir);
        assert_int_equal(co_start(b.g.base, body_main, &b), 0);
        if (!b.done)
                (void) event_base_dispatch(b.g.base);
        assert_true(b.done);
        event_base_free(b.g.base);
        assert_int_equal(io_remove_tree(AT_FDCWD, b.g.dir), 0);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_options), cmocka_unit_test(test_listening) };

        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
