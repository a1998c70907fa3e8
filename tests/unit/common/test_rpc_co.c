/* SPDX-License-Identifier: MIT */
/* Calls made by coroutines: answers, errors, timeouts, and connections that end meanwhile. */
#include "rpc_test.h"

#include <errno.h>
#include <unistd.h>

static void answer_with_error(struct rpc_msg *m, struct peer *p) {
        struct err e;

        (void) err_set(&e, ERR_BUSY, -EBUSY, "it is %s", "busy");
        (void) err_hint(&e, "wait");
        assert_ok(rpc_reply_err(m->conn, m->msgid, &e));
}

struct co_test {
        struct peer *p;
        unsigned done;
        int timeout_ms, r, r2;
        struct err e;
        size_t n_fds;
};

static void co_call(void *arg) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        struct co_test *t = arg;

        t->r = rpc_call_co(t->p->c, "x", NULL, NULL, 0, t->timeout_ms, &a, &t->e);
        t->n_fds = a.n_fds;
        t->done = 1;
}

static void test_co_call(void **state) {
        struct pair p = { 0 };
        struct co_test t = { .p = &p.a, .timeout_ms = -1 };

        pair_start(&p);
        assert_ok(co_start(p.a.base, co_call, &t));
        assert_int_equal(t.done, 0);
        loop_until(p.a.base, &t.done, 1);
        assert_int_equal(t.r, 0);
        p.b.on_message = answer_with_error;
        t.done = 0;
        assert_ok(co_start(p.a.base, co_call, &t));
        loop_until(p.a.base, &t.done, 1);
        assert_int_equal(t.r, -EREMOTEIO);
        assert_string_equal(t.e.code, ERR_BUSY);
        assert_int_equal(co_alive(), 0);
        pair_end(&p);
}

static void do_nothing(struct rpc_msg *m, struct peer *p) {
}

static void test_co_timeout_and_late_answer(void **state) {
        struct peer p = { .on_message = do_nothing };
        struct co_test t = { .p = &p, .timeout_ms = 20 };
        unsigned before;

        peer_start(&p);
        assert_ok(co_start(p.base, co_call, &t));
        loop_until(p.base, &t.done, 1);
        assert_int_equal(t.r, -ETIMEDOUT);
        assert_string_equal(t.e.code, ERR_TIMEOUT);
        /* Nobody waits any more: the answer and its descriptor are dropped. */
        before = count_fds();
        peer_write(&p,
                   "\x94\x01\x01\xc0\x81\xa3"
                   "fds\x01",
                   10, (int[]){ p.fd }, 1);
        peer_request(&p, 7, "still there?");
        loop_until(p.base, &p.n_messages, 1);
        assert_int_equal(count_fds(), before);
        peer_end(&p);
}

static void test_co_connection_ends(void **state) {
        struct peer p = { 0 };
        struct co_test t = { .p = &p, .timeout_ms = -1 };

        peer_start(&p);
        assert_ok(co_start(p.base, co_call, &t));
        p.fd = close_fd(p.fd);
        loop_until(p.base, &t.done, 1);
        assert_int_equal(t.r, -ECANCELED);
        assert_string_equal(t.e.code, ERR_UNREACHABLE);
        t.done = 0;
        assert_ok(co_start(p.base, co_call, &t));
        assert_int_equal(t.done, 1); /* at once: there is nothing to wait for */
        assert_int_equal(t.r, -ENOTCONN);
        peer_end(&p);
}

/* The owner drops the connection while a coroutine waits for an answer on it. */
static void test_co_owner_drops(void **state) {
        struct peer p = { 0 };
        struct co_test t = { .p = &p, .timeout_ms = 30 };

        peer_start(&p);
        assert_ok(co_start(p.base, co_call, &t));
        rpc_conn_unref(TAKE_PTR(p.c));
        loop_until(p.base, &t.done, 1);
        assert_int_equal(t.r, -ETIMEDOUT);
        peer_end(&p);
}

static void co_two_calls(void *arg) {
        struct co_test *t = arg;
        struct rpc_co first, second;
        struct rpc_answer a = { 0 };

        assert_ok(rpc_co_begin(&first, t->p->c, "first", NULL, NULL, 0, &t->e));
        assert_ok(rpc_co_begin(&second, t->p->c, "second", NULL, NULL, 0, &t->e));
        t->r = rpc_co_end(&second, -1, NULL, &t->e);
        co_sleep(1);
        t->r2 = rpc_co_end(&first, 0, &a, &t->e); /* long answered: no time is needed */
        rpc_answer_clear(&a);
        t->done = 1;
}

static void test_co_two_calls(void **state) {
        struct pair p = { 0 };
        struct co_test t = { .p = &p.a };

        pair_start(&p);
        assert_ok(co_start(p.a.base, co_two_calls, &t));
        loop_until(p.a.base, &t.done, 1);
        assert_int_equal(t.r, 0);
        assert_int_equal(t.r2, 0);
        pair_end(&p);
}

static void answer_six_fds(struct rpc_msg *m, struct peer *p) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int fd = STDERR_FILENO, fds[6] = { fd, fd, fd, fd, fd, fd };

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "fds", 6);
        assert_ok(rpc_reply(m->conn, m->msgid, &b, fds, 6));
}

static void test_co_too_many_descriptors(void **state) {
        struct pair p = { .b = { .on_message = answer_six_fds } };
        struct co_test t = { .p = &p.a, .timeout_ms = -1 };
        unsigned before = count_fds();

        pair_start(&p);
        assert_ok(co_start(p.a.base, co_call, &t));
        loop_until(p.a.base, &t.done, 1);
        assert_int_equal(t.n_fds, RPC_CO_MAX_FDS);
        pair_end(&p);
        assert_int_equal(count_fds(), before);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_co_call),
                cmocka_unit_test(test_co_timeout_and_late_answer),
                cmocka_unit_test(test_co_connection_ends),
                cmocka_unit_test(test_co_owner_drops),
                cmocka_unit_test(test_co_two_calls),
                cmocka_unit_test(test_co_too_many_descriptors),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
