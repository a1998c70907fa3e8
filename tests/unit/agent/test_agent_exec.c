/* SPDX-License-Identifier: MIT */
/* Commands in a guest: how they end, their streams, terminals, limits. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "common/co.h"
#include "common/ids.h"
#include "common/io.h"
#include "harness.h"

static void ping(struct guest *g) {
        struct err e = { 0 };
        double ms;

        assert_int_equal(guest_link_ping(g->link, 10000, &ms, &e), 0);
}

static void expect_exit(struct guest *g, const char *script, int code, const char *out, const char *err) {
        cleanup_run struct run r = { 0 };

        run_sh(g, &r, script);
        assert_int_equal(r.res.r, 0);
        assert_false(r.res.signaled);
        assert_false(r.res.timed_out);
        assert_int_equal(r.res.code, code);
        assert_string_equal(run_text(&r, WIRE_STDOUT), out);
        assert_string_equal(run_text(&r, WIRE_STDERR), err);
        assert_true(r.eof[WIRE_STDOUT] && r.eof[WIRE_STDERR]);
}

static void body_exit_codes(struct guest *g) {
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        expect_exit(g, "true", 0, "", "");
        expect_exit(g, "false", 1, "", "");
        expect_exit(g, "exit 255", 255, "", "");
        expect_exit(g, "echo out; echo err >&2; exit 3", 3, "out\n", "err\n");
        /* no stdin: the end of the file at once */
        expect_exit(g, "cat", 0, "", "");
        expect_exit(g, "cat /proc/self/oom_score_adj", 0, "0\n", "");
        /* nothing of the agent's is inherited; 3 is the directory that ls reads */
        expect_exit(g, "ls /proc/self/fd | wc -l", 0, "4\n", "");
}

static void test_exit_codes(void **state) {
        with_guest(body_exit_codes, 30);
}

static void body_signals(struct guest *g) {
        static const int signals[] = { SIGTERM, SIGKILL, SIGSEGV };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
                cleanup_run struct run r = { 0 };
                char script[32];

                (void) snprintf(script, sizeof(script), "kill -%d $$", signals[i]);
                run_sh(g, &r, script);
                assert_true(r.res.signaled);
                assert_int_equal(r.res.code, signals[i]);
        }
}

static void test_signals(void **state) {
        with_guest(body_signals, 30);
}

static void body_send_signal(struct guest *g) {
        const char *argv[] = { "sh", "-c", "trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 0.01; done", NULL };
        cleanup_run struct run r = { 0 };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        run_start(g, &r, &(struct guest_exec_params){ .argv = argv });
        while (!strstr(run_text(&r, WIRE_STDOUT), "ready"))
                run_wait_event(&r);
        assert_int_equal(guest_call_signal(r.call, 0), -EINVAL);
        assert_int_equal(guest_call_signal(r.call, SIGUSR1), 0);
        run_wait(&r);
        /* the group gets it: the sleep dies of it, the shell handles it */
        assert_int_equal(r.res.code, 7);
        assert_string_equal(run_text(&r, WIRE_STDOUT), "ready\ngot\n");
}

static void test_send_signal(void **state) {
        with_guest(body_send_signal, 30);
}

static void expect_not_run(struct guest *g, const char *program, const char *cwd, int error, const char *code) {
        const char *argv[] = { program, NULL };
        cleanup_run struct run r = { 0 };

        run_start(g, &r, &(struct guest_exec_params){ .argv = argv, .cwd = cwd });
        run_wait(&r);
        assert_int_equal(r.res.r, -error);
        assert_true(r.res.could_not_run);
        assert_string_equal(r.res.e.code, code);
        assert_non_null(strstr(r.res.e.message, program));
        assert_non_null(strstr(r.res.e.message, strerror(error)));
}

static void body_not_run(struct guest *g) {
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        expect_not_run(g, "no-such-command", NULL, ENOENT, ERR_NOT_FOUND);
        expect_not_run(g, "/", NULL, EACCES, ERR_INVALID);
        expect_not_run(g, "true", "/no/such/directory", ENOENT, ERR_NOT_FOUND);
        expect_not_run(g, "true", "/etc/passwd", ENOTDIR, ERR_INVALID);
}

static void test_not_run(void **state) {
        with_guest(body_not_run, 30);
}

static void body_bad_params(struct guest *g) {
        const char *empty[] = { NULL }, *argv[] = { "true", NULL }, *env[] = { "=x", NULL };
        char *big = malloc(WIRE_ARG_BYTES_MAX + 1);
        const char *big_argv[] = { "true", big, NULL };
        struct guest_exec_params bad[] = {
                { .argv = empty },
                { .argv = argv, .env = env },
                { .argv = argv, .cwd = "x" },
                { .argv = argv, .timeout_s = -1 },
                { .argv = argv, .timeout_s = 1e12 },
                { .argv = big_argv },
        };
        struct guest_call *call;
        struct err e;

        memset(big, 'x', WIRE_ARG_BYTES_MAX);
        big[WIRE_ARG_BYTES_MAX] = '\0';
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                assert_true(guest_exec(g->link, &bad[i], &run_handlers, NULL, &call, &e) < 0);
                assert_string_equal(e.code, ERR_INVALID);
        }
        free(big);
        expect_exit(g, "echo still here", 0, "still here\n", "");
}

static void test_bad_params(void **state) {
        with_guest(body_bad_params, 30);
}

static void body_environment(struct guest *g) {
        const char *argv[] = { "sh", "-c", "pwd; echo $A; echo $HOME; echo ${TERM-none}; echo $PATH", NULL };
        const char *env[] = { "A=b c", "HOME=/elsewhere", NULL };
        cleanup_run struct run r = { 0 };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        run_start(g, &r, &(struct guest_exec_params){ .argv = argv, .env = env, .cwd = "/usr" });
        run_wait(&r);
        assert_string_equal(run_text(&r, WIRE_STDOUT), "/usr\nb c\n/elsewhere\nnone\n"
                                                       "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n");
}

static void test_environment(void **state) {
        with_guest(body_environment, 30);
}

static void body_timeout(struct guest *g) {
        const char *soft[] = { "sh", "-c", "sleep 1000 & wait", NULL };
        const char *hard[] = { "sh", "-c", "trap '' TERM; echo armed; while :; do sleep 0.02; done", NULL };
        cleanup_run struct run r = { 0 }, s = { 0 };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        run_start(g, &r, &(struct guest_exec_params){ .argv = soft, .timeout_s = 0.2 });
        run_start(g, &s, &(struct guest_exec_params){ .argv = hard, .timeout_s = 0.5 });
        run_wait(&r);
        assert_true(r.res.timed_out && r.res.signaled);
        assert_int_equal(r.res.code, SIGTERM);
        run_wait(&s);
        assert_true(s.res.timed_out && s.res.signaled);
        assert_int_equal(s.res.code, SIGKILL);
}

static void test_timeout(void **state) {
        with_guest(body_timeout, 30);
}

#define FLOOD_BYTES (50u << 20)

/* 50 MiB to a reader that stops: exactly one window arrives, and the guest waits with the rest. */
static void body_slow_reader(struct guest *g) {
        const char *argv[] = { "sh", "-c", "head -c 52428800 /dev/zero", NULL };
        cleanup_run struct run r = { .hold = true, .discard = true };
        long before;

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        expect_exit(g, "true", 0, "", "");
        before = guest_agent_kib(g, "VmHWM");
        run_start(g, &r, &(struct guest_exec_params){ .argv = argv });
        while (r.total[WIRE_STDOUT] < WIRE_CREDIT_INITIAL)
                run_wait_event(&r);
        /* what was under way has arrived when the pong has */
        for (int i = 0; i < 3; i++)
                ping(g);
        assert_int_equal(r.total[WIRE_STDOUT], WIRE_CREDIT_INITIAL);
        assert_false(r.done);
        assert_int_equal(guest_call_credit(r.call, WIRE_STDOUT, WIRE_CREDIT_INITIAL + 1), -EINVAL);
        r.hold = false;
        assert_int_equal(guest_call_credit(r.call, WIRE_STDOUT, WIRE_CREDIT_INITIAL), 0);
        run_wait(&r);
        assert_int_equal(r.res.code, 0);
        assert_int_equal(r.total[WIRE_STDOUT], FLOOD_BYTES);
        if (!AGENT_SANITIZED)
                assert_true(guest_agent_kib(g, "VmHWM") - before < 2048);
}

static void test_slow_reader(void **state) {
        with_guest(body_slow_reader, 60);
}

#define ECHO_BYTES (10u << 20)

static void body_stdin_echo(struct guest *g) {
        const char *argv[] = { "cat", NULL };
        cleanup_run struct run r = { 0 };
        uint8_t *data = malloc(ECHO_BYTES);

        random_bytes(data, ECHO_BYTES);
        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        run_start(g, &r, &(struct guest_exec_params){ .argv = argv, .has_stdin = true });
        run_send_all(&r, data, ECHO_BYTES);
        assert_int_equal(run_send(&r, data, 1), -EPIPE);
        run_wait(&r);
        assert_int_equal(r.res.code, 0);
        assert_int_equal(r.len[WIRE_STDOUT], ECHO_BYTES);
        assert_memory_equal(r.out[WIRE_STDOUT], data, ECHO_BYTES);
        free(data);
}

static void test_stdin_echo(void **state) {
        with_guest(body_stdin_echo, 60);
}

/* A command that never reads: the credit is all that can be sent. One that closes its stdin: all can. */
static void body_stdin_unread(struct guest *g) {
        const char *sleeper[] = { "sleep", "1000", NULL },
                   *closer[] = { "sh", "-c", "exec <&-; echo closed; read x <&1; sleep 0.3", NULL };
        static uint8_t data[2u << 20];
        cleanup_run struct run r = { 0 }, s = { 0 };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        run_start(g, &r, &(struct guest_exec_params){ .argv = sleeper, .has_stdin = true });
        assert_int_equal(run_send(&r, data, WIRE_CREDIT_INITIAL + 1), -EDQUOT);
        assert_int_equal(run_send(&r, data, WIRE_CREDIT_INITIAL), 0);
        assert_int_equal(run_send(&r, data, WIRE_CREDIT_INITIAL), -EDQUOT);
        for (int i = 0; i < 3; i++)
                ping(g);
        /* the pipe took its 64 KiB, and that much comes back */
        assert_true(r.send_credit <= (64u << 10));

        run_start(g, &s, &(struct guest_exec_params){ .argv = closer, .has_stdin = true });
        while (!strstr(run_text(&s, WIRE_STDOUT), "closed"))
                run_wait_event(&s);
        run_send_all(&s, data, sizeof(data));
        run_wait(&s);
        guest_call_cancel(r.call);
}

static void test_stdin_unread(void **state) {
        with_guest(body_stdin_unread, 60);
}

static void body_terminal(struct guest *g) {
        const char *argv[] = { "sh", "-c",
                               "tty -s && stty size; echo $TERM; echo err >&2; trap 'stty size; exit 5' WINCH;"
                               "echo ready; while :; do sleep 0.01; done",
                               NULL };
        cleanup_run struct run r = { 0 };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        run_start(g, &r, &(struct guest_exec_params){ .argv = argv, .tty = true, .rows = 33, .cols = 101 });
        while (!strstr(run_text(&r, WIRE_STDOUT), "ready"))
                run_wait_event(&r);
        assert_int_equal(guest_call_resize(r.call, 44, 122), 0);
        run_wait(&r);
        assert_int_equal(r.res.code, 5);
        assert_string_equal(run_text(&r, WIRE_STDOUT), "33 101\r\nxterm\r\nerr\r\nready\r\n44 122\r\n");
        assert_int_equal(r.len[WIRE_STDERR], 0);
}

static void test_terminal(void **state) {
        with_guest(body_terminal, 30);
}

/* Keys: a line, an interrupt for the foreground group, the end of the input. */
static void body_terminal_keys(struct guest *g) {
        const char *reader[] = { "sh", "-c", "stty -echo; echo ready; read a; echo \"<$a>\"; cat; echo end", NULL };
        const char *cat[] = { "cat", NULL }; /* no shell: dash loses an interrupt that meets its vfork */
        cleanup_run struct run r = { 0 }, s = { 0 };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        run_start(g, &r, &(struct guest_exec_params){ .argv = reader, .tty = true, .has_stdin = true });
        while (!strstr(run_text(&r, WIRE_STDOUT), "ready"))
                run_wait_event(&r);
        assert_int_equal(run_send(&r, "hello\n", 6), 0);
        while (!strstr(run_text(&r, WIRE_STDOUT), "<hello>"))
                run_wait_event(&r);
        assert_int_equal(guest_call_eof(r.call), 0);
        run_wait(&r);
        assert_int_equal(r.res.code, 0);
        assert_non_null(strstr(run_text(&r, WIRE_STDOUT), "end"));

        run_start(g, &s, &(struct guest_exec_params){ .argv = cat, .tty = true, .has_stdin = true });
        assert_int_equal(run_send(&s, "x\n", 2), 0);
        while (!strstr(run_text(&s, WIRE_STDOUT), "x\r\nx\r\n")) /* the terminal's echo, and cat's */
                run_wait_event(&s);
        assert_int_equal(run_send(&s, "\003", 1), 0);
        run_wait(&s);
        assert_true(s.res.signaled);
        assert_int_equal(s.res.code, SIGINT);
}

static void test_terminal_keys(void **state) {
        with_guest(body_terminal_keys, 30);
}

/* All of what the command wrote arrives although a child of it keeps the pipe; and the child lives on. */
static void body_background(struct guest *g) {
        cleanup_run struct run r = { 0 }, check = { 0 };
        char script[256];
        uint64_t start;

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        start = now_ns();
        (void) snprintf(script, sizeof(script),
                        "(sleep 0.7; echo late; exec sleep 1000) & echo $! > %s/pid; head -c 60000 /dev/zero; exit 4", g->dir);
        run_sh(g, &r, script);
        assert_int_equal(r.res.code, 4);
        assert_int_equal(r.len[WIRE_STDOUT], 60000);
        assert_true(r.eof[WIRE_STDOUT] && r.eof[WIRE_STDERR]);
        assert_true(ms_since(start) < 10000);
        /* it is not killed with its parent, nor by its write to the pipe that nobody reads: it comes to its exec */
        (void) snprintf(script, sizeof(script),
                        "read pid < %s/pid; until [ \"$(cat /proc/$pid/comm)\" = sleep ] &&"
                        " ! grep -q 0.7 /proc/$pid/cmdline; do sleep 0.02; done; kill $pid",
                        g->dir);
        run_sh(g, &check, script);
        assert_int_equal(check.res.code, 0);
}

static void test_background(void **state) {
        with_guest(body_background, 30);
}

/* The reader gives no credit until long after the command has exited: nothing is lost all the same. */
static void body_late_reader(struct guest *g) {
        const char *argv[] = { "sh", "-c", "sleep 1000 & head -c 300000 /dev/zero; kill $!", NULL };
        cleanup_run struct run r = { .hold = true };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        run_start(g, &r, &(struct guest_exec_params){ .argv = argv });
        while (r.total[WIRE_STDOUT] < WIRE_CREDIT_INITIAL)
                run_wait_event(&r);
        co_sleep(800); /* longer than any grace after the exit */
        assert_false(r.done);
        r.hold = false;
        assert_int_equal(guest_call_credit(r.call, WIRE_STDOUT, WIRE_CREDIT_INITIAL), 0);
        run_wait(&r);
        assert_int_equal(r.len[WIRE_STDOUT], 300000);
}

static void test_late_reader(void **state) {
        with_guest(body_late_reader, 30);
}

static void body_many(struct guest *g) {
        static struct run runs[WIRE_MAX_CALLS];
        const char *argv[] = { "sh", "-c", "read x; echo $x", NULL };
        struct guest_call *call;
        struct err e = { 0 };

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        for (size_t i = 0; i < WIRE_MAX_CALLS; i++)
                run_start(g, &runs[i], &(struct guest_exec_params){ .argv = argv, .has_stdin = true });
        assert_int_equal(guest_exec(g->link, &(struct guest_exec_params){ .argv = argv }, &run_handlers, NULL, &call, &e),
                         -EBUSY);
        for (size_t i = 0; i < WIRE_MAX_CALLS; i++) {
                char line[16];
                int n = snprintf(line, sizeof(line), "%zu\n", i);

                assert_int_equal(run_send(&runs[i], line, (size_t) n), 0);
        }
        for (size_t i = 0; i < WIRE_MAX_CALLS; i++) {
                char line[16];

                (void) snprintf(line, sizeof(line), "%zu\n", i);
                run_wait(&runs[i]);
                assert_int_equal(runs[i].res.code, 0);
                assert_string_equal(run_text(&runs[i], WIRE_STDOUT), line);
                run_clear(&runs[i]);
        }
        expect_exit(g, "echo one more", 0, "one more\n", "");
}

static void test_many(void **state) {
        with_guest(body_many, 60);
}

/* Cancel: SIGHUP at once, SIGKILL for who ignores it. */
static void body_cancel(struct guest *g) {
        const char *polite[] = { "sh", "-c", "echo $$; trap 'exit 0' HUP; while :; do sleep 0.02; done", NULL };
        const char *deaf[] = { "sh", "-c", "echo $$; trap '' HUP; while :; do sleep 0.02; done", NULL };
        const char *const *commands[] = { polite, deaf };
        struct run r[2] = { 0 };
        char script[128];

        assert_int_equal(guest_wake(g, WIRE_WAKE_BOOT, NULL), 0);
        for (size_t i = 0; i < 2; i++) {
                run_start(g, &r[i], &(struct guest_exec_params){ .argv = commands[i] });
                while (!strchr(run_text(&r[i], WIRE_STDOUT), '\n'))
                        run_wait_event(&r[i]);
                guest_call_cancel(r[i].call);
        }
        for (size_t i = 0; i < 2; i++) {
                cleanup_run struct run check = { 0 };
                uint64_t start = now_ns();

                (void) snprintf(script, sizeof(script), "while kill -0 %d 2>/dev/null; do sleep 0.05; done",
                                atoi(run_text(&r[i], WIRE_STDOUT)));
                run_sh(g, &check, script);
                assert_true(ms_since(start) < (i == 0 ? 3000 : 9000));
                assert_false(r[i].done);
                run_clear(&r[i]);
        }
}

static void test_cancel(void **state) {
        with_guest(body_cancel, 40);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_exit_codes),   cmocka_unit_test(test_signals),     cmocka_unit_test(test_send_signal),
                cmocka_unit_test(test_not_run),      cmocka_unit_test(test_bad_params),  cmocka_unit_test(test_environment),
                cmocka_unit_test(test_timeout),      cmocka_unit_test(test_slow_reader), cmocka_unit_test(test_stdin_echo),
                cmocka_unit_test(test_stdin_unread), cmocka_unit_test(test_terminal),    cmocka_unit_test(test_terminal_keys),
                cmocka_unit_test(test_background),   cmocka_unit_test(test_late_reader), cmocka_unit_test(test_many),
                cmocka_unit_test(test_cancel),
        };

        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
