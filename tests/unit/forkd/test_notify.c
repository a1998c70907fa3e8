/* SPDX-License-Identifier: MIT */
/* The service manager's side is a datagram socket of ours. */
#include "common_test.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/notify.h"

static struct event_base *base;
static char dir[64], path[96];
static int sock;

static int bind_to(const char *name, socklen_t extra) {
        struct sockaddr_un sa = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        memcpy(sa.sun_path + (name[0] == '@'), name + (name[0] == '@'), strlen(name) - (name[0] == '@'));
        assert_ok(bind(fd, (struct sockaddr *) &sa, (socklen_t) (offsetof(struct sockaddr_un, sun_path) + strlen(name)) + extra));
        return fd;
}

static int setup(void **state) {
        base = event_base_new();
        assert_non_null(base);
        temp_dir(dir, sizeof(dir));
        (void) snprintf(path, sizeof(path), "%s/notify", dir);
        sock = bind_to(path, 1);
        (void) setenv("NOTIFY_SOCKET", path, 1);
        (void) unsetenv("WATCHDOG_USEC");
        (void) unsetenv("WATCHDOG_PID");
        return 0;
}

static int teardown(void **state) {
        (void) close(sock);
        temp_dir_remove(dir);
        event_base_free(base);
        return 0;
}

/* What came, or "" when there is nothing. */
static const char *heard(int fd) {
        static char text[512];
        ssize_t n = recv(fd, text, sizeof(text) - 1, 0);

        text[n > 0 ? n : 0] = '\0';
        return text;
}

/* Turns the loop until something has come, or for @ms. */
static const char *turn_until_heard(int ms) {
        uint64_t start = now_ns();
        struct pollfd p = { .fd = sock, .events = POLLIN };

        while (ms_since(start) < ms && poll(&p, 1, 1) == 0)
                assert_true(event_base_loop(base, EVLOOP_NONBLOCK) >= 0);
        return heard(sock);
}

static void test_ready_status_stopping(void **state) {
        struct notify *n;

        assert_ok(notify_new(base, &n));
        assert_null(getenv("NOTIFY_SOCKET")); /* children do not speak for us */
        assert_string_equal(heard(sock), "");
        notify_status(n, "%d VMs", 3);
        assert_string_equal(heard(sock), "STATUS=3 VMs");
        notify_status(n, "%d VMs", 3);
        assert_string_equal(heard(sock), ""); /* said already */
        notify_ready(n);
        assert_string_equal(heard(sock), "READY=1");
        notify_stopping(n);
        assert_string_equal(heard(sock), "STOPPING=1");
        notify_free(n);
}

static void test_a_loop_that_turns_pings(void **state) {
        struct notify *n;

        (void) setenv("WATCHDOG_USEC", "100000", 1);
        assert_ok(notify_new(base, &n));
        assert_null(getenv("WATCHDOG_USEC"));
        assert_string_equal(turn_until_heard(10000), "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=60000000\n");
        notify_ready(n);
        assert_string_equal(heard(sock), "READY=1");
        for (int i = 0; i < 3; i++)
                assert_string_equal(turn_until_heard(10000), "WATCHDOG=1\n");
        notify_stopping(n);
        (void) heard(sock);
        assert_string_equal(turn_until_heard(10000), "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=60000000\n");
        notify_free(n);
}

static void test_somebody_elses_watchdog(void **state) {
        struct notify *n;
        char pid[16];

        (void) setenv("WATCHDOG_USEC", "2000", 1);
        (void) setenv("WATCHDOG_PID", "1", 1);
        assert_ok(notify_new(base, &n));
        notify_ready(n);
        assert_string_equal(heard(sock), "READY=1");
        assert_string_equal(turn_until_heard(100), ""); /* fifty times its period */
        notify_free(n);

        (void) snprintf(pid, sizeof(pid), "%d", (int) getpid());
        (void) setenv("NOTIFY_SOCKET", path, 1);
        (void) setenv("WATCHDOG_USEC", "2000", 1);
        (void) setenv("WATCHDOG_PID", pid, 1);
        assert_ok(notify_new(base, &n));
        notify_ready(n);
        (void) heard(sock);
        assert_string_equal(turn_until_heard(10000), "WATCHDOG=1\n");
        notify_free(n);
}

static void test_abstract_name(void **state) {
        struct notify *n;
        char name[64];
        int fd;

        (void) snprintf(name, sizeof(name), "@forkd-test-%d", (int) getpid());
        fd = bind_to(name, 0);
        (void) setenv("NOTIFY_SOCKET", name, 1);
        assert_ok(notify_new(base, &n));
        notify_ready(n);
        assert_string_equal(heard(fd), "READY=1");
        notify_free(n);
        (void) close(fd);
}

static void test_no_manager(void **state) {
        struct notify *n;

        (void) unsetenv("NOTIFY_SOCKET");
        (void) setenv("WATCHDOG_USEC", "1000", 1);
        assert_ok(notify_new(base, &n));
        notify_ready(n);
        notify_status(n, "nobody hears %s", "this");
        notify_stopping(n);
        notify_free(n);
        notify_ready(NULL);
        notify_stopping(NULL);
        notify_status(NULL, "x");
        assert_string_equal(heard(sock), "");
}

static void test_a_manager_that_does_not_read(void **state) {
        struct notify *n;

        assert_ok(notify_new(base, &n));
        for (int i = 0; i < 2000; i++) /* beyond any queue: dropped, not waited for */
                notify_status(n, "status %d", i);
        notify_free(n);
        assert_string_equal(heard(sock), "STATUS=status 0");
}

static void test_variables_that_make_no_sense(void **state) {
        static const char *const bad[][2] = { { "NOTIFY_SOCKET", "relative" }, { "NOTIFY_SOCKET", "/" },
                                              { "WATCHDOG_USEC", "soon" },     { "WATCHDOG_USEC", "0" },
                                              { "WATCHDOG_USEC", "-5" },       { "WATCHDOG_USEC", "99999999999999999999" },
                                              { "WATCHDOG_PID", "me" } };
        struct notify *n;

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                (void) setenv("NOTIFY_SOCKET", path, 1);
                (void) setenv(bad[i][0], bad[i][1], 1);
                assert_fails(notify_new(base, &n), EINVAL);
                assert_null(getenv(bad[i][0]));
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_ready_status_stopping, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_loop_that_turns_pings, setup, teardown),
                cmocka_unit_test_setup_teardown(test_somebody_elses_watchdog, setup, teardown),
                cmocka_unit_test_setup_teardown(test_abstract_name, setup, teardown),
                cmocka_unit_test_setup_teardown(test_no_manager, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_manager_that_does_not_read, setup, teardown),
                cmocka_unit_test_setup_teardown(test_variables_that_make_no_sense, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
