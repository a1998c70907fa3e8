/* SPDX-License-Identifier: MIT */
/* `exec`: streams in both directions, credits, exit codes, signals, terminals. */
#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "fake_forkd.h"
#include "common/json.h"
#include "forkctl/stream.h"

/* What the fake does with an exec: writes pieces as credit allows, takes stdin, then answers. */
struct guest {
        const char *answer; /* result; NULL: none until told */
        struct rpc_conn *conn;
        uint32_t call;
        bool started;

        uint64_t to_send; /* bytes of stdout to come, of a known pattern */
        uint64_t sent;
        uint64_t credit; /* that the client gave for stdout */
        bool careless;   /* sends more than the credit */

        char *input; /* stdin as it came */
        size_t n_input;
        bool input_eof, echo, grant_input;
        uint64_t input_owed;
        bool input_overrun; /* the client broke its credit */

        int signals[8];
        size_t n_signals;
        unsigned rows, cols;
        const char *answer_on_signal;
};

static char pattern(uint64_t i) {
        return (char) (i * 31 + (i >> 8) * 7 + (i >> 16));
}

static void answer(struct guest *g) {
        if (g->answer && g->conn)
                fake_reply_on(g->conn, g->call, g->answer);
        g->answer = NULL;
}

static void note(struct guest *g, const char *method, const char *extra, const void *data, size_t len) {
        char json[128];

        (void) snprintf(json, sizeof(json), "{\"call\":%u,%s}", g->call, extra);
        fake_notify(g->conn, method, json, data, len);
}

static void send_pattern(struct guest *g) {
        char buf[STREAM_MAX_CHUNK];

        while (g->sent < g->to_send && (g->credit > 0 || g->careless)) {
                size_t n = (size_t) MIN_OF(g->to_send - g->sent, (uint64_t) sizeof(buf));

                if (!g->careless)
                        n = (size_t) MIN_OF((uint64_t) n, g->credit);
                for (size_t i = 0; i < n; i++)
                        buf[i] = pattern(g->sent + i);
                note(g, "stream.data", "\"stream\":1", buf, n);
                g->sent += n;
                g->credit -= MIN_OF((uint64_t) n, g->credit);
        }
        if (g->sent == g->to_send && !g->echo) {
                note(g, "stream.eof", "\"stream\":1", NULL, 0);
                answer(g);
        }
}

static void take_input(struct guest *g, const struct rpc_msg *m) {
        const void *data;
        size_t len;

        assert_int_equal(mp_get_bin(m->params, "data", &data, &len), 0);
        assert_true(len <= STREAM_MAX_CHUNK);
        g->input_owed += len;
        g->input_overrun |= g->input_owed > STREAM_WINDOW;
        g->input = realloc(g->input, g->n_input + len);
        assert_non_null(g->input);
        memcpy(g->input + g->n_input, data, len);
        g->n_input += len;
        if (g->grant_input && g->input_owed >= STREAM_WINDOW / 2) {
                char extra[64];

                (void) snprintf(extra, sizeof(extra), "\"stream\":0,\"bytes\":%llu", (unsigned long long) g->input_owed);
                note(g, "stream.credit", extra, NULL, 0);
                g->input_owed = 0;
        }
}

static void take_note(struct guest *g, const struct rpc_msg *m) {
        uint64_t call = 0, v = 0, w = 0;

        assert_int_equal(mp_get_u64(m->params, "call", &call), 0);
        assert_int_equal(call, g->call);
        if (strcmp(m->method, "stream.data") == 0) {
                take_input(g, m);
        } else if (strcmp(m->method, "stream.eof") == 0) {
                g->input_eof = true;
                if (g->echo) {
                        g->echo = false;
                        answer(g);
                }
        } else if (strcmp(m->method, "stream.credit") == 0) {
                assert_int_equal(mp_get_u64(m->params, "bytes", &v), 0);
                g->credit += v;
                /* What a careless guest sent too much may be taken, and given back, before it is noticed. */
                assert_true(g->careless || g->credit <= STREAM_WINDOW);
                send_pattern(g);
        } else if (strcmp(m->method, "stream.resize") == 0) {
                assert_int_equal(mp_get_u64(m->params, "rows", &v), 0);
                assert_int_equal(mp_get_u64(m->params, "cols", &w), 0);
                g->rows = (unsigned) v;
                g->cols = (unsigned) w;
        } else if (strcmp(m->method, "stream.signal") == 0) {
                assert_int_equal(mp_get_u64(m->params, "signal", &v), 0);
                assert_true(g->n_signals < ARRAY_LEN(g->signals));
                g->signals[g->n_signals++] = (int) v;
                if (g->answer_on_signal) {
                        g->answer = g->answer_on_signal;
                        answer(g);
                }
        } else {
                fail_msg("unexpected %s", m->method);
        }
}

static void on_exec(struct fake *f, struct rpc_msg *m) {
        struct guest *g = f->arg;

        if (!m->is_request) {
                take_note(g, m);
                return;
        }
        assert_string_equal(m->method, "vm.exec");
        g->conn = m->conn;
        g->call = m->msgid;
        g->credit = STREAM_WINDOW;
        g->started = true;
        if (!g->echo)
                send_pattern(g);
}

/* Runs exec with @g as the guest. */
static void run_exec(struct guest *g, struct run *r, const char *const *argv, char **ret_log) {
        struct fake *f = fake_new();

        f->handler = on_exec;
        f->arg = g;
        run_ctl(f, r, argv);
        if (ret_log) {
                *ret_log = f->log;
                f->log = NULL;
        }
        fake_free(f);
}
#define EXEC(g, r, ret_log, ...) run_exec(g, r, (const char *const[]){ "exec", __VA_ARGS__, NULL }, ret_log)

static void test_exit_codes(void **state) {
        static const struct {
                const char *answer;
                int status;
        } cases[] = {
                { "{\"exit_code\":0}", 0 },
                { "{\"exit_code\":1}", 1 },
                { "{\"exit_code\":255}", 255 },
                { "{\"signal\":9}", 128 + 9 },
                { "{\"signal\":15,\"timed_out\":true}", 128 + 15 },
                { "{\"exit_code\":256}", 125 },
                { "{\"exit_code\":-1}", 125 },
                { "{}", 125 },
        };

        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                struct guest g = { .answer = cases[i].answer };
                struct run r = { 0 };

                EXEC(&g, &r, NULL, "web", "--", "true");
                assert_int_equal(r.status, cases[i].status);
                assert_string_equal(r.out, "");
                assert_true(!strstr(cases[i].answer, "timed_out") == !strstr(r.err, "--timeout"));
                run_clear(&r);
        }
}

static void test_request(void **state) {
        static const char *const env[] = { "HERE=from us", "TERM=vt220", NULL };
        struct guest g = { .answer = "{\"exit_code\":0}" };
        struct run r = { .env = env };
        char *log;

        EXEC(&g, &r, &log, "--env", "A=b=c", "-e", "HERE", "-e", "EMPTY=", "--cwd", "/tmp", "--timeout", "30", "web", "--", "ls",
             "-l", "--json");
        assert_string_equal(log, "vm.exec {\"argv\": [\"ls\", \"-l\", \"--json\"], \"cwd\": \"/tmp\", "
                                 "\"env\": {\"A\": \"b=c\", \"EMPTY\": \"\", \"HERE\": \"from us\"}, \"name\": \"web\", "
                                 "\"timeout_s\": 30}\n");
        assert_int_equal(r.status, 0);
        free(log);
        run_clear(&r);

        /* a terminal knows its kind; no size without a terminal of ours */
        g = (struct guest){ .answer = "{\"exit_code\":0}" };
        r = (struct run){ .env = env };
        EXEC(&g, &r, &log, "-t", "--timeout", "0.5", "web", "sh");
        assert_string_equal(log, "vm.exec {\"argv\": [\"sh\"], \"env\": {\"TERM\": \"vt220\"}, \"name\": \"web\", \"timeout_s\": "
                                 "0.5, \"tty\": true}\n");
        free(log);
        run_clear(&r);
}

static void check_pattern(const char *data, size_t len) {
        for (size_t i = 0; i < len; i++)
                if (data[i] != pattern(i))
                        fail_msg("byte %zu differs", i);
}

/* 8 MiB of binary data arrive whole, in order, and before the exit code. */
static void test_output(void **state) {
        struct guest g = { .answer = "{\"exit_code\":7}", .to_send = (8u << 20) + 13 };
        struct run r = { 0 };

        EXEC(&g, &r, NULL, "web", "--", "cat");
        assert_int_equal(r.status, 7);
        assert_int_equal(r.out_len, g.to_send);
        check_pattern(r.out, r.out_len);
        assert_string_equal(r.err, "");
        run_clear(&r);
}

static void on_stderr(struct fake *f, struct rpc_msg *m) {
        struct guest *g = f->arg;

        if (!m->is_request)
                return;
        g->conn = m->conn;
        g->call = m->msgid;
        note(g, "stream.data", "\"stream\":1", "out", 3);
        note(g, "stream.data", "\"stream\":2", "err", 3);
        note(g, "stream.data", "\"stream\":1", "put", 3);
        note(g, "stream.data", "\"stream\":2", "or", 2);
        fake_notify(m->conn, "stream.data", "{\"call\":999,\"stream\":1}", "not ours", 8);
        answer(g);
        note(g, "stream.data", "\"stream\":1", "too late", 8);
}

static void test_stderr(void **state) {
        struct guest g = { .answer = "{\"exit_code\":0}" };
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->handler = on_stderr;
        f->arg = &g;
        RUN(f, &r, "exec", "web", "x");
        assert_string_equal(r.out, "output");
        assert_string_equal(r.err, "error");
        assert_int_equal(r.status, 0);
        run_clear(&r);
        fake_free(f);
}

/* While nobody reads our stdout, forkd is not asked for more than a window and what we hold; then all comes. */
static void test_slow_reader(void **state) {
        struct guest g = { .answer = "{\"exit_code\":0}", .to_send = 4u << 20 };
        static const char *const argv[] = { "exec", "web", "--", "cat", NULL };
        struct fake *f = fake_new();
        struct run r = { .no_reading = true };
        uint64_t before;

        f->handler = on_exec;
        f->arg = &g;
        run_start(f, &r, argv);
        /* Until it stands still: the pipe is full, the credit used up. Each turn waits for an event at most
         * that long; a client without bounds would go on to the end. */
        do {
                const struct timeval quiet = { .tv_usec = 300000 };

                before = g.sent;
                assert_int_equal(event_base_loopexit(f->base, &quiet), 0);
                assert_int_equal(event_base_dispatch(f->base), 0);
        } while (!g.started || g.sent != before);
        assert_true(g.sent < (1u << 20));
        assert_false(r.exited);
        run_read_on(&r);
        run_finish(&r);
        assert_int_equal(r.status, 0);
        assert_int_equal(r.out_len, g.to_send);
        check_pattern(r.out, r.out_len);
        run_clear(&r);
        fake_free(f);
}

/* Nobody reads what comes: else a client that is fast enough gives credit for all of it in time. */
static void test_overrun(void **state) {
        static const char *const argv[] = { "exec", "web", "cat", NULL };
        struct guest g = { .to_send = 1u << 20, .careless = true };
        struct run r = { .no_reading = true };
        struct fake *f = fake_new();

        f->handler = on_exec;
        f->arg = &g;
        run_start(f, &r, argv);
        while (!r.exited)
                assert_int_equal(event_base_loop(f->base, EVLOOP_ONCE), 0);
        run_read_on(&r);
        run_finish(&r);
        fake_free(f);
        assert_int_equal(r.status, 125);
        assert_non_null(strstr(r.err, "more data than was allowed"));
        run_clear(&r);
}

static void test_input(void **state) {
        enum { N = 3 << 20 };
        struct guest g = { .answer = "{\"exit_code\":0}", .echo = true, .grant_input = true };
        cleanup_free char *data = malloc(N);
        struct run r = { .input = data, .input_len = N };
        char *log;

        for (size_t i = 0; i < N; i++)
                data[i] = pattern(i);
        EXEC(&g, &r, &log, "-i", "web", "cat");
        assert_int_equal(r.status, 0);
        assert_non_null(strstr(log, "\"stdin\": true"));
        assert_true(g.input_eof);
        assert_false(g.input_overrun);
        assert_int_equal(g.n_input, N);
        check_pattern(g.input, g.n_input);
        free(g.input);
        free(log);
        run_clear(&r);
}

/* A file on stdin, which poll() and epoll treat each in its own way; and /dev/null. */
static void test_input_file(void **state) {
        struct guest g = { .answer = "{\"exit_code\":0}", .echo = true };
        struct run r = { 0 };

        EXEC(&g, &r, NULL, "-i", "web", "cat"); /* stdin is /dev/null */
        assert_int_equal(r.status, 0);
        assert_true(g.input_eof);
        assert_int_equal(g.n_input, 0);
        run_clear(&r);

        g = (struct guest){ .answer = "{\"exit_code\":0}", .echo = true };
        r.stdin_fd = open(FORKCTL_BIN, O_RDONLY | O_CLOEXEC);
        assert_true(r.stdin_fd >= 0 && lseek(r.stdin_fd, -1000, SEEK_END) > 0);
        EXEC(&g, &r, NULL, "-i", "web", "cat");
        assert_int_equal(r.status, 0);
        assert_true(g.input_eof);
        assert_int_equal(g.n_input, 1000);
        free(g.input);
        (void) close(r.stdin_fd);
        run_clear(&r);
}

/* Without -i nothing of stdin is read: a shell script's own input stays its own. */
static void test_no_input(void **state) {
        struct guest g = { .answer = "{\"exit_code\":0}" };
        struct run r = { .input = "keep this", .input_len = 9 };

        EXEC(&g, &r, NULL, "web", "cat");
        assert_int_equal(r.status, 0);
        assert_int_equal(g.n_input, 0);
        assert_false(g.input_eof);
        run_clear(&r);
}

/* The command ends while stdin is still open: so do we. */
static void test_input_left_open(void **state) {
        struct guest g = { .answer = "{\"exit_code\":3}" };
        struct run r = { .input = "x", .input_len = 1, .keep_stdin_open = true };

        EXEC(&g, &r, NULL, "-i", "web", "true");
        assert_int_equal(r.status, 3);
        free(g.input);
        run_clear(&r);
}

static void test_refused(void **state) {
        static const struct answer refusal[] = { { "vm.exec", NULL, "not-found", "no VM 'web'", "see 'forkctl ps'" }, { 0 } };
        cleanup_json json_t *got = NULL;
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->answers = refusal;
        RUN(f, &r, "exec", "web", "true");
        assert_int_equal(r.status, 125);
        assert_non_null(strstr(r.err, "no VM 'web'"));
        run_clear(&r);
        RUN(f, &r, "--json", "exec", "web", "true");
        assert_int_equal(r.status, 125);
        got = one_document(r.out);
        assert_string_equal(json_str(json_object_get(got, "error"), "code", ""), "not-found");
        run_clear(&r);
        RUN(f, &r, "--socket", "/nonexistent", "exec", "web", "true");
        assert_int_equal(r.status, 3);
        run_clear(&r);
        fake_free(f);
}

static void vanish(struct fake *f, struct rpc_msg *m) {
        struct guest *g = f->arg;

        g->conn = m->conn;
        g->call = m->msgid;
        note(g, "stream.data", "\"stream\":1", "half of it", 10);
        /* what was queued still goes out, then the connection ends */
        rpc_conn_close(m->conn);
}

static void test_forkd_dies(void **state) {
        struct guest g = { 0 };
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->handler = vanish;
        f->arg = &g;
        RUN(f, &r, "exec", "web", "true");
        assert_int_equal(r.status, 3);
        assert_string_equal(r.out, "half of it");
        assert_non_null(strstr(r.err, "forkd went away"));
        run_clear(&r);
        fake_free(f);
}

/* ---- signals ---- */

static void started_then_signal(struct guest *g, struct run *r, struct fake *f, int sig, size_t times) {
        static const char *const argv[] = { "exec", "web", "--", "sleep", "inf", NULL };

        f->handler = on_exec;
        f->arg = g;
        g->echo = true; /* nothing happens by itself */
        run_start(f, r, argv);
        for (size_t i = 0; i < times; i++) {
                while (!g->started || g->n_signals < i)
                        assert_int_equal(event_base_loop(f->base, EVLOOP_ONCE), 0);
                assert_int_equal(kill(r->pid, sig), 0);
        }
        run_finish(r);
}

static void test_signal(void **state) {
        static const int forwarded[] = { SIGINT, SIGTERM, SIGQUIT, SIGUSR1, SIGUSR2 };

        for (size_t i = 0; i < ARRAY_LEN(forwarded); i++) {
                struct guest g = { .answer_on_signal = "{\"exit_code\":42}" };
                struct fake *f = fake_new();
                struct run r = { 0 };

                started_then_signal(&g, &r, f, forwarded[i], 1);
                assert_int_equal(g.n_signals, 1);
                assert_int_equal(g.signals[0], forwarded[i]);
                assert_int_equal(r.status, 42); /* the command's own, it handled the signal */
                run_clear(&r);
                fake_free(f);
        }
}

/* Nobody answers: the third one is for us. */
static void test_stubborn(void **state) {
        struct guest g = { 0 };
        struct fake *f = fake_new();
        struct run r = { 0 };

        started_then_signal(&g, &r, f, SIGINT, 3);
        assert_int_equal(r.status, 128 + SIGINT);
        assert_non_null(strstr(r.err, "does not end"));
        assert_true(f->closed);
        run_clear(&r);
        fake_free(f);
}

/* `exec … | head`: without a reader there is no point in going on. */
static void test_reader_gone(void **state) {
        struct guest g = { .to_send = UINT64_MAX };
        struct run r = { 0 };
        int p[2];

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        (void) close(p[0]);
        r.stdout_fd = p[1];
        EXEC(&g, &r, NULL, "web", "yes");
        (void) close(p[1]);
        assert_int_equal(r.status, 128 + SIGPIPE);
        assert_string_equal(r.err, "");
        run_clear(&r);
}

static void test_full_disk(void **state) {
        struct guest g = { .answer = "{\"exit_code\":0}", .to_send = 100 };
        struct run r = { 0 };

        r.stdout_fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
        EXEC(&g, &r, NULL, "web", "yes");
        (void) close(r.stdout_fd);
        assert_int_equal(r.status, 125);
        assert_non_null(strstr(r.err, "No space left"));
        run_clear(&r);
}

/* ---- --json ---- */

static void on_json(struct fake *f, struct rpc_msg *m) {
        struct guest *g = f->arg;

        if (!m->is_request)
                return;
        g->conn = m->conn;
        g->call = m->msgid;
        note(g, "stream.data", "\"stream\":1", "price: \xe2\x82", 9); /* a euro sign in two pieces */
        note(g, "stream.data", "\"stream\":2", "w\xc3", 2);           /* an umlaut that never comes */
        note(g, "stream.data", "\"stream\":1", "\xac\n", 2);
        note(g, "stream.data", "\"stream\":1", "\xff\0", 2);
        answer(g);
}

static void line_is(const char *out, size_t n, const char *want) {
        cleanup_json json_t *got = json_line(out, n), *expected = one_document(want);

        if (!json_equal(got, expected))
                fail_msg("line %zu is not %s in\n%s", n, want, out);
}

static void test_json(void **state) {
        struct guest g = { .answer = "{\"signal\":2,\"timed_out\":true}" };
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->handler = on_json;
        f->arg = &g;
        RUN(f, &r, "--json", "exec", "web", "x");
        line_is(r.out, 0, "{\"stream\":\"stdout\",\"data\":\"price: \"}");
        line_is(r.out, 1, "{\"stream\":\"stderr\",\"data\":\"w\"}");
        line_is(r.out, 2, "{\"stream\":\"stdout\",\"data\":\"€\\n\"}");
        line_is(r.out, 3, "{\"stream\":\"stdout\",\"data_base64\":\"/wA=\"}");
        line_is(r.out, 4, "{\"stream\":\"stderr\",\"data_base64\":\"ww==\"}");
        line_is(r.out, 5, "{\"exit_code\":130,\"signal\":2,\"timed_out\":true}");
        assert_null(json_line(r.out, 6));
        assert_string_equal(r.err, "");
        assert_int_equal(r.status, 130);
        run_clear(&r);
        fake_free(f);
}

/* ---- a terminal ---- */

static bool is_raw(int fd) {
        struct termios t;

        assert_int_equal(tcgetattr(fd, &t), 0);
        return !(t.c_lflag & (ICANON | ECHO | ISIG));
}

static void test_tty(void **state) {
        static const char *const argv[] = { "exec", "-it", "web", "sh", NULL };
        struct winsize ws = { .ws_row = 33, .ws_col = 101 };
        struct guest g = { .echo = true };
        struct fake *f = fake_new();
        struct run r = { 0 };
        char buf[64] = "";
        int master, slave;

        assert_int_equal(openpty(&master, &slave, NULL, NULL, &ws), 0);
        f->handler = on_exec;
        f->arg = &g;
        r.tty = slave;
        run_start(f, &r, argv);
        while (!g.started)
                assert_int_equal(event_base_loop(f->base, EVLOOP_ONCE), 0);
        assert_true(is_raw(slave));
        assert_non_null(strstr(f->log, "\"cols\": 101"));
        assert_non_null(strstr(f->log, "\"rows\": 33"));

        assert_int_equal(write(master, "\x03x", 2), 2); /* ^C is a byte */
        while (g.n_input < 2)
                assert_int_equal(event_base_loop(f->base, EVLOOP_ONCE), 0);
        assert_memory_equal(g.input, "\x03x", 2);
        assert_int_equal(g.n_signals, 0);

        ws.ws_row = 50;
        assert_int_equal(ioctl(master, TIOCSWINSZ, &ws), 0);
        assert_int_equal(kill(r.pid, SIGWINCH), 0);
        while (g.rows != 50)
                assert_int_equal(event_base_loop(f->base, EVLOOP_ONCE), 0);
        assert_int_equal(g.cols, 101);

        note(&g, "stream.data", "\"stream\":1", "hi\r\n", 4);
        g.answer = "{\"exit_code\":4}";
        answer(&g);
        run_finish(&r);
        assert_int_equal(r.status, 4);
        assert_int_equal(read(master, buf, sizeof(buf)), 4);
        assert_memory_equal(buf, "hi\r\n", 4);
        assert_false(is_raw(slave)); /* as it was */
        free(g.input);
        (void) close(master);
        (void) close(slave);
        run_clear(&r);
        fake_free(f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_exit_codes),      cmocka_unit_test(test_request),     cmocka_unit_test(test_output),
                cmocka_unit_test(test_stderr),          cmocka_unit_test(test_slow_reader), cmocka_unit_test(test_overrun),
                cmocka_unit_test(test_input),           cmocka_unit_test(test_input_file),  cmocka_unit_test(test_no_input),
                cmocka_unit_test(test_input_left_open), cmocka_unit_test(test_refused),     cmocka_unit_test(test_forkd_dies),
                cmocka_unit_test(test_signal),          cmocka_unit_test(test_stubborn),    cmocka_unit_test(test_reader_gone),
                cmocka_unit_test(test_full_disk),       cmocka_unit_test(test_json),        cmocka_unit_test(test_tty),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
