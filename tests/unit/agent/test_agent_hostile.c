/* SPDX-License-Identifier: MIT */
/* A guest that lies: the test is the agent, and says what an agent may not. Each lie costs the link, ends
 * every call with an error, and reaches no client. */
#include <errno.h>
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/msg.h"
#include "common/co.h"
#include "common/io.h"
#include "forkd/guest/guest_link.h"

#define N_CALLS 3 /* an exec, a put, a get: call ids 1, 2, 3 */

struct liar {
        struct event_base *base;
        char path[64];
        int listen_fd, fd;
        struct guest_link *link;
        struct guest_call *calls[N_CALLS];
        unsigned n_done, n_lost;
        int done_r, lost_r;
        size_t data;
        uint64_t epoch;
        uint32_t seq;
        bool free_in_data, cancel_in_data;
        struct co_wait event;
        void (*body)(struct liar *x);
        bool ended;
};

static void on_data(unsigned stream, const void *data, size_t len, void *arg) {
        struct liar *x = arg;

        x->data += len;
        if (x->free_in_data)
                guest_link_free(TAKE_PTR(x->link));
        if (x->cancel_in_data)
                guest_call_cancel(TAKE_PTR(x->calls[0]));
        co_wake(&x->event, 0);
}

static void on_eof(unsigned stream, void *arg) {
}

static void on_credit(unsigned stream, uint32_t bytes, void *arg) {
        fail_msg("credit for nothing was passed on");
}

static void on_done(const struct guest_result *res, void *arg) {
        struct liar *x = arg;

        x->n_done++;
        x->done_r = res->r;
        co_wake(&x->event, 0);
}

static void on_lost(int r, void *arg) {
        struct liar *x = arg;

        x->n_lost++;
        x->lost_r = r;
        co_wake(&x->event, 0);
}

static const struct guest_call_handlers handlers = {
        .on_data = on_data,
        .on_eof = on_eof,
        .on_credit = on_credit,
        .on_done = on_done,
};

static void say_frame(struct liar *x, enum wire_type type, const void *payload, size_t len) {
        struct wire_frame f = { .type = type, .epoch = type == WIRE_HELLO ? 0 : x->epoch, .payload = payload, .len = len };
        uint8_t *out = malloc(WIRE_FRAME_LEN(len));
        size_t n, off = 0;

        if (type != WIRE_HELLO)
                f.seq = x->seq++;
        n = wire_encode(&f, out);
        while (off < n) {
                ssize_t w = send(x->fd, out + off, n - off, MSG_NOSIGNAL);

                if (w < 0 && errno == EAGAIN)
                        assert_int_equal(co_wait_fd(x->fd, EV_WRITE, 5000), 0);
                else if (w < 0)
                        break; /* hung up on already */
                else
                        off += (size_t) w;
        }
        free(out);
}

static void say(struct liar *x, const struct wire_msg *m) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        wire_msg_encode(m, &b);
        say_frame(x, m->type, b.sb.data, b.sb.size);
}

static void say_data(struct liar *x, uint32_t call, unsigned stream, size_t len) {
        static uint8_t zeros[WIRE_DATA_MAX + 1];

        say(x, &(struct wire_msg){ .type = WIRE_DATA, .call = call, .data = { .stream = stream, .data = zeros, .len = len } });
}

static void say_number(struct liar *x, enum wire_type type, uint32_t call, unsigned stream) {
        struct wire_msg m = { .type = type, .call = call };

        if (type == WIRE_EOF)
                m.eof_stream = stream;
        else
                m.credit = (struct wire_credit){ .stream = stream, .bytes = 1 };
        say(x, &m);
}

/* Reads the WAKE and answers it. */
static void acknowledge(struct liar *x) {
        struct wire_parser p = { 0 };
        struct wire_frame f;
        uint8_t buf[4096];

        x->epoch = 0;
        while (x->epoch == 0) {
                const uint8_t *q = buf;
                ssize_t n = read(x->fd, buf, sizeof(buf));
                size_t len = (size_t) n;

                assert_true(n > 0);
                if (wire_parser_feed(&p, &q, &len, &f) == 1)
                        x->epoch = f.epoch;
        }
        wire_parser_clear(&p);
        say(x, &(struct wire_msg){ .type = WIRE_ACK });
}

static void begin(struct liar *x) {
        struct guest_identity id = { .kind = WIRE_WAKE_RECONNECT };
        const char *argv[] = { "x", NULL };
        struct err e;

        guest_link_free(TAKE_PTR(x->link));
        x->fd = close_fd(x->fd);
        x->n_done = x->n_lost = 0;
        x->seq = 0;
        x->data = 0;
        assert_int_equal(guest_link_new(x->base, x->path, &x->link), 0);
        guest_link_set_on_lost(x->link, on_lost, x);
        assert_int_equal(guest_link_connect(x->link, 5000, &e), 0);
        assert_int_equal(guest_link_queue_wake(x->link, &id), 0);
        x->fd = accept(x->listen_fd, NULL, NULL);
        assert_true(x->fd >= 0);
        acknowledge(x);
        assert_int_equal(guest_link_wait_ack(x->link, 5000, NULL, &e), 0);
        assert_int_equal(guest_exec(x->link, &(struct guest_exec_params){ .argv = argv, .has_stdin = true }, &handlers, x,
                                    &x->calls[0], &e),
                         0);
        assert_int_equal(guest_put(x->link, "/x", 0600, 1, &handlers, x, &x->calls[1], &e), 0);
        assert_int_equal(guest_get(x->link, "/x", &handlers, x, &x->calls[2], &e), 0);
        assert_int_equal(io_set_nonblock(x->fd, true), 0);
}

static void wait_event(struct liar *x) {
        int r;

        x->event = CO_WAIT_INIT;
        r = co_wait(&x->event, 5000);
        assert_int_equal(r, 0);
}

static void expect_caught(struct liar *x, int reason) {
        while (x->n_lost == 0)
                wait_event(x);
        assert_int_equal(x->n_done, N_CALLS);
        assert_int_equal(x->done_r, reason);
        assert_int_equal(x->lost_r, reason);
        assert_int_equal(x->n_lost, 1);
}

static void body_main(void *arg) {
        struct liar *x = arg;

        x->body(x);
        x->ended = true;
        (void) event_base_loopbreak(x->base);
}

static void with_liar(void (*body)(struct liar *x)) {
        struct liar x = { .fd = -1, .listen_fd = -1, .body = body };

        (void) snprintf(x.path, sizeof(x.path), "/tmp/forkd-liar-%d.sock", (int) getpid());
        x.base = event_base_new();
        assert_int_equal(io_listen_unix(x.path, 0600, &x.listen_fd), 0);
        assert_int_equal(io_set_nonblock(x.listen_fd, false), 0);
        assert_int_equal(co_start(x.base, body_main, &x), 0);
        if (!x.ended)
                (void) event_base_dispatch(x.base);
        assert_true(x.ended);
        (void) event_base_loop(x.base, EVLOOP_NONBLOCK);
        guest_link_free(x.link);
        event_base_free(x.base);
        (void) close_fd(x.fd);
        (void) close_fd(x.listen_fd);
        (void) unlink(x.path);
}

/* ---- lies ---- */

static void body_credit(struct liar *x) {
        begin(x);
        /* exactly the credit is fine, one byte more is not; and no byte more is handed on */
        for (size_t i = 0; i < WIRE_CREDIT_INITIAL / WIRE_DATA_MAX; i++)
                say_data(x, 1, WIRE_STDOUT, WIRE_DATA_MAX);
        while (x->data < WIRE_CREDIT_INITIAL)
                wait_event(x);
        assert_int_equal(x->n_lost, 0);
        say_data(x, 1, WIRE_STDOUT, 1);
        expect_caught(x, -EPROTO);
        assert_int_equal(x->data, WIRE_CREDIT_INITIAL);
}

static void test_beyond_credit(void **state) {
        with_liar(body_credit);
}

static void lie_stdin(struct liar *x) {
        say_data(x, 1, WIRE_STDIN, 1);
}
static void lie_after_eof(struct liar *x) {
        say_number(x, WIRE_EOF, 1, WIRE_STDOUT);
        say_data(x, 1, WIRE_STDOUT, 1);
}
static void lie_eof_twice(struct liar *x) {
        say_number(x, WIRE_EOF, 1, WIRE_STDERR);
        say_number(x, WIRE_EOF, 1, WIRE_STDERR);
}
static void lie_put_data(struct liar *x) {
        say_data(x, 2, WIRE_STDOUT, 1);
}
static void lie_get_unannounced(struct liar *x) {
        say_data(x, 3, WIRE_STDOUT, 1);
}
static void lie_get_stderr(struct liar *x) {
        say(x, &(struct wire_msg){ .type = WIRE_FILE, .call = 3 });
        say_data(x, 3, WIRE_STDERR, 1);
}
static void lie_get_short(struct liar *x) {
        say(x, &(struct wire_msg){ .type = WIRE_FILE, .call = 3, .file.size = 5 });
        say_number(x, WIRE_EOF, 3, WIRE_STDOUT);
        say(x, &(struct wire_msg){ .type = WIRE_DONE, .call = 3, .done.bytes = 5 });
}
static void lie_file_for_exec(struct liar *x) {
        say(x, &(struct wire_msg){ .type = WIRE_FILE, .call = 1 });
}
static void lie_credit(struct liar *x) {
        say_number(x, WIRE_CREDIT, 1, WIRE_STDIN); /* it has taken nothing */
}
static void lie_not_run_put(struct liar *x) {
        say(x, &(struct wire_msg){ .type = WIRE_DONE, .call = 2, .done = { .error = ENOENT, .not_run = true } });
}
static void lie_wake(struct liar *x) {
        say(x, &(struct wire_msg){ .type = WIRE_WAKE, .wake.kind = WIRE_WAKE_RECONNECT });
}
static void lie_exec(struct liar *x) {
        const char *argv[] = { "x", NULL };

        say(x, &(struct wire_msg){ .type = WIRE_EXEC, .call = 1, .exec = { .argv = argv, .cwd = "/" } });
}
static void lie_gap(struct liar *x) {
        x->seq++;
        say(x, &(struct wire_msg){ .type = WIRE_PONG, .ping = 1 });
}
static void lie_replay(struct liar *x) {
        x->seq--;
        say(x, &(struct wire_msg){ .type = WIRE_PONG, .ping = 1 });
}
static void lie_no_message(struct liar *x) {
        say_frame(x, WIRE_DONE, "\xc1", 1);
}
static void lie_nested(struct liar *x) {
        uint8_t deep[1000];

        memset(deep, 0x91, sizeof(deep)); /* arrays in arrays */
        say_frame(x, WIRE_ACK, deep, sizeof(deep));
}
static void lie_huge_array(struct liar *x) {
        say_frame(x, WIRE_ACK, "\xdd\xff\xff\xff\xff", 5);
}

static void body_lies(struct liar *x) {
        static void (*const lies[])(struct liar * x) = {
                lie_stdin,      lie_after_eof,     lie_eof_twice, lie_put_data,    lie_get_unannounced,
                lie_get_stderr, lie_file_for_exec, lie_credit,    lie_not_run_put, lie_wake,
                lie_exec,       lie_gap,           lie_replay,    lie_no_message,  lie_nested,
                lie_huge_array, lie_get_short,
        };

        for (size_t i = 0; i < ARRAY_LEN(lies); i++) {
                begin(x);
                lies[i](x);
                expect_caught(x, -EPROTO);
        }
}

static void test_lies(void **state) {
        with_liar(body_lies);
}

static void body_hello(struct liar *x) {
        begin(x);
        say(x, &(struct wire_msg){ .type = WIRE_HELLO });
        expect_caught(x, -ECONNRESET);
}

static void test_hello_again(void **state) {
        with_liar(body_hello);
}

/* Allowed: other epochs, calls that are over, a second ACK, nonsense between frames. Not passed on. */
static void body_leftovers(struct liar *x) {
        uint64_t epoch;
        double ms;
        struct err e;

        begin(x);
        epoch = x->epoch;
        x->epoch ^= 1;
        say_data(x, 1, WIRE_STDIN, 1);
        x->epoch = epoch;
        x->seq--;
        say_data(x, 77, WIRE_STDOUT, 5);
        say(x, &(struct wire_msg){ .type = WIRE_ACK });
        assert_int_equal(send(x->fd, "\0\0junk\0\0", 8, MSG_NOSIGNAL), 8);
        say(x, &(struct wire_msg){ .type = WIRE_PONG, .ping = 12345 });
        assert_int_equal(guest_link_ping(x->link, 50, &ms, &e), -ETIMEDOUT); /* nobody answers it here */
        assert_true(guest_link_ready(x->link));
        assert_int_equal(x->data, 0);
        assert_int_equal(x->n_done, 0);
}

static void test_leftovers(void **state) {
        with_liar(body_leftovers);
}

/* A callback may end what it was called for. */
static void body_free_in_callback(struct liar *x) {
        begin(x);
        x->cancel_in_data = true;
        say_data(x, 1, WIRE_STDOUT, 10);
        say_data(x, 1, WIRE_STDOUT, 10); /* for nobody now */
        while (x->data == 0)
                wait_event(x);
        x->cancel_in_data = false;
        assert_true(guest_link_ready(x->link));
        assert_int_equal(x->n_done, 0);

        begin(x);
        x->free_in_data = true;
        say_data(x, 1, WIRE_STDOUT, 10);
        say_data(x, 1, WIRE_STDOUT, 10);
        while (x->data == 0)
                wait_event(x);
        assert_null(x->link);
        assert_int_equal(x->data, 10);
        assert_int_equal(x->n_done, 0);
        assert_int_equal(x->n_lost, 0);
}

static void test_free_in_callback(void **state) {
        with_liar(body_free_in_callback);
}

/* A guest that reads nothing: what clients can ask for again and again is refused in the end. */
static void body_deaf(struct liar *x) {
        static uint8_t data[WIRE_CREDIT_INITIAL];
        const char *argv[] = { "x", NULL };
        struct guest_call *call;
        struct err e;
        int r = 0, n = 0;

        begin(x);
        for (; r == 0 && n < 1000; n++) {
                r = guest_exec(x->link, &(struct guest_exec_params){ .argv = argv, .has_stdin = true }, &handlers, x, &call, &e);
                if (r == 0) {
                        assert_int_equal(guest_call_send(call, data, sizeof(data)), 0);
                        guest_call_cancel(call);
                }
        }
        assert_int_equal(r, -ENOBUFS);
        assert_true(n > 10 && n < 40);
        assert_int_equal(guest_call_resize(x->calls[0], 1, 1), -ENOBUFS);
        assert_int_equal(guest_call_signal(x->calls[0], 1), -ENOBUFS);
        assert_int_equal(guest_call_eof(x->calls[0]), 0); /* bounded by itself: always possible */
}

static void test_deaf(void **state) {
        with_liar(body_deaf);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_beyond_credit),    cmocka_unit_test(test_lies),
                cmocka_unit_test(test_hello_again),      cmocka_unit_test(test_leftovers),
                cmocka_unit_test(test_free_in_callback), cmocka_unit_test(test_deaf),
        };

        if (argc > 1)
                cmocka_set_test_filter(argv[1]);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
