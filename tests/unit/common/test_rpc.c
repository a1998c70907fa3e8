/* SPDX-License-Identifier: MIT */
/* Two sides that both follow the protocol: calls, answers, descriptors, lifetimes, back-pressure.
 * What a peer may do wrong is in test_rpc_hostile.c. */
#include "rpc_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"

struct result {
        unsigned n;
        int r;
        struct err e;
        size_t n_fds, raw_len;
        int fd;
};

static void on_result(const struct rpc_result *res, void *arg) {
        struct result *x = arg;

        x->n++;
        x->r = res->r;
        x->e = res->e;
        x->n_fds = res->n_fds;
        x->raw_len = res->raw_len;
        x->fd = res->n_fds ? TAKE_FD(res->fds[0]) : -1;
}

static int call(struct peer *p, const char *method, struct result *res) {
        return rpc_call(p->c, method, NULL, NULL, 0, on_result, res, NULL);
}

static ino_t inode(int fd) {
        struct stat st;

        assert_int_equal(fstat(fd, &st), 0);
        return st.st_ino;
}

/* ---- calls and answers ---- */

static void answer_with_error(struct rpc_msg *m, struct peer *p) {
        struct err e;

        (void) err_set(&e, ERR_BUSY, -EBUSY, "it is %s", "busy");
        (void) err_hint(&e, "wait");
        assert_ok(rpc_reply_err(m->conn, m->msgid, &e));
}

static void test_call_and_answer(void **state) {
        struct pair p = { 0 };
        struct result res = { 0 };

        pair_start(&p);
        assert_int_equal(rpc_conn_peer(p.a.c)->pid, getpid());
        assert_ptr_equal(rpc_conn_arg(p.a.c), &p.a);
        assert_ok(call(&p.a, "ping", &res));
        assert_int_equal(res.n, 0);
        loop_until(p.a.base, &res.n, 1);
        assert_int_equal(res.r, 0);
        assert_int_equal(res.raw_len, 1);
        assert_string_equal(p.b.method, "ping");

        p.b.on_message = answer_with_error;
        assert_ok(call(&p.a, "other", &res));
        loop_until(p.a.base, &res.n, 2);
        assert_int_equal(res.r, -EREMOTEIO);
        assert_string_equal(res.e.code, ERR_BUSY);
        assert_string_equal(res.e.message, "it is busy");
        assert_string_equal(res.e.hint, "wait");
        pair_end(&p);
}

static void on_big(struct rpc_msg *m, struct peer *p) {
        size_t want = *(size_t *) p->arg;
        cleanup_free char *data = calloc(1, want);
        cleanup_mp_buf struct mp_buf b = { 0 };
        const void *got;
        size_t n = 0;

        assert_ok(mp_get_bin(m->params, "data", &got, &n));
        assert_int_equal(n, want);
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_bin(&b, "data", data, want);
        (void) rpc_reply(m->conn, m->msgid, &b, NULL, 0);
}

/* As large as a message may be, both ways; one byte more is refused by the sender, and answered all the same. */
static void test_largest_message(void **state) {
        size_t n = RPC_MAX_MESSAGE - 64;
        cleanup_free char *data = calloc(1, RPC_MAX_MESSAGE);
        struct pair p = { .b = { .on_message = on_big, .arg = &n } };
        struct result res = { 0 };

        pair_start(&p);
        for (unsigned i = 0; i < 2; i++) {
                cleanup_mp_buf struct mp_buf b = { 0 };

                mp_buf_init(&b);
                mp_map(&b, 1);
                mp_kv_bin(&b, "data", data, n);
                assert_ok(rpc_call(p.a.c, "big", &b, NULL, 0, on_result, &res, NULL));
                loop_until(p.a.base, &res.n, i + 1);
                assert_int_equal(res.r, 0);
                assert_true(res.raw_len > n);
                n = 1000 + i;
        }
        {
                cleanup_mp_buf struct mp_buf b = { 0 };

                mp_buf_init(&b);
                mp_map(&b, 1);
                mp_kv_bin(&b, "data", data, RPC_MAX_MESSAGE);
                assert_fails(rpc_notify(p.a.c, "big", &b, NULL, 0), EMSGSIZE);
                assert_fails(rpc_call(p.a.c, "big", &b, NULL, 0, on_result, &res, NULL), EMSGSIZE);
        }
        pair_end(&p);
}

static void answer_too_large(struct rpc_msg *m, struct peer *p) {
        cleanup_free char *data = calloc(1, RPC_MAX_MESSAGE);
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_bin(&b, data, RPC_MAX_MESSAGE);
        (void) rpc_reply(m->conn, m->msgid, &b, NULL, 0);
}

static void answer_with_bad_fd(struct rpc_msg *m, struct peer *p) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int bad = -1;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "fds", 1);
        (void) rpc_reply(m->conn, m->msgid, &b, &bad, 1);
}

static void answer_after_failure(struct rpc_msg *m, struct peer *p) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 0);
        b.failed = true;
        (void) rpc_reply(m->conn, m->msgid, &b, NULL, 0);
}

/* A caller must never wait for an answer that cannot be sent. */
static void test_unsendable_answers(void **state) {
        void (*const answers[])(struct rpc_msg * m, struct peer * p) = { answer_too_large, answer_with_bad_fd,
                                                                         answer_after_failure };
        static const char *const codes[] = { ERR_LIMIT, ERR_IO, ERR_NO_SPACE };

        for (size_t i = 0; i < ARRAY_LEN(answers); i++) {
                struct pair p = { .b = { .on_message = answers[i] } };
                struct result res = { 0 };

                pair_start(&p);
                assert_ok(call(&p.a, "x", &res));
                loop_until(p.a.base, &res.n, 1);
                assert_int_equal(res.r, -EREMOTEIO);
                assert_string_equal(res.e.code, codes[i]);
                pair_end(&p);
        }
}

/* ---- descriptors ---- */

static void take_fd(struct rpc_msg *m, struct peer *p) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        assert_int_equal(m->n_fds, 2);
        *(int *) p->arg = TAKE_FD(m->fds[1]); /* the first is left, and must be closed for us */
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "fds", 1);
        assert_ok(rpc_reply(m->conn, m->msgid, &b, (int *) p->arg, 1));
}

static void test_descriptors_travel(void **state) {
        int taken = -1, fds[2] = { open("/dev/null", O_RDONLY | O_CLOEXEC), open("/dev/zero", O_RDONLY | O_CLOEXEC) };
        struct pair p = { .b = { .on_message = take_fd, .arg = &taken } };
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct result res = { 0 };
        unsigned before;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "fds", 2);
        before = count_fds();
        pair_start(&p);
        assert_ok(rpc_call(p.a.c, "x", &b, fds, 2, on_result, &res, NULL));
        loop_until(p.a.base, &res.n, 1);
        assert_int_equal(res.n_fds, 1);
        assert_int_equal(inode(res.fd), inode(fds[1]));
        assert_int_equal(inode(taken), inode(fds[1]));
        assert_int_equal(fcntl(res.fd, F_GETFD), FD_CLOEXEC);
        (void) close(res.fd);
        (void) close(taken);
        pair_end(&p);
        assert_int_equal(count_fds(), before);
        (void) close(fds[0]);
        (void) close(fds[1]);
}

/* Queued behind a message that the socket does not take at once, descriptors stay with their own message. */
static void on_numbered(struct rpc_msg *m, struct peer *p) {
        uint64_t ino = 0;

        if (mp_get_u64(m->params, "ino", &ino) == 0) {
                assert_int_equal(m->n_fds, 1);
                assert_int_equal(inode(m->fds[0]), ino);
        } else {
                assert_int_equal(m->n_fds, 0);
        }
}

static void test_descriptors_in_a_full_queue(void **state) {
        cleanup_free char *data = calloc(1, 300000);
        struct pair p = { .b = { .on_message = on_numbered } };
        int pipes[2];
        unsigned before;

        assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
        before = count_fds();
        pair_start(&p);
        for (unsigned i = 0; i < 40; i++) {
                cleanup_mp_buf struct mp_buf b = { 0 };
                int memfd = memfd_create("numbered", MFD_CLOEXEC);

                mp_buf_init(&b);
                mp_map(&b, 2);
                if (i % 3 == 0) {
                        mp_kv_u64(&b, "fds", 1);
                        mp_kv_u64(&b, "ino", inode(memfd));
                } else {
                        mp_kv_bin(&b, "data", data, 1 + i * 7000);
                        mp_kv_u64(&b, "fds", 0);
                }
                assert_ok(rpc_notify(p.a.c, "n", &b, &memfd, i % 3 == 0));
                (void) close(memfd); /* stays the caller's */
        }
        assert_true(rpc_conn_queued(p.a.c) > 0);
        loop_until(p.a.base, &p.b.n_messages, 40);
        assert_int_equal(rpc_conn_queued(p.a.c), 0);
        pair_end(&p);
        assert_int_equal(count_fds(), before);
        (void) close(pipes[0]);
        (void) close(pipes[1]);
}

/* ---- the ends of connections ---- */

static void test_pending_calls_fail(void **state) {
        struct pair p = { .b = { 0 } };
        struct result res = { 0 }, res2 = { 0 };

        pair_start(&p);
        assert_ok(call(&p.a, "x", &res));
        assert_ok(call(&p.a, "y", &res2));
        rpc_conn_close(p.a.c);
        rpc_conn_close(p.a.c);
        assert_false(rpc_conn_is_open(p.a.c));
        assert_int_equal(res.n, 0); /* never from inside our own call */
        loop_until(p.a.base, &p.a.n_closed, 1);
        assert_int_equal(res.n, 1);
        assert_int_equal(res.r, -ECANCELED);
        assert_int_equal(res2.n, 1);
        assert_int_equal(p.a.close_r, 0);
        assert_fails(call(&p.a, "z", &res), ENOTCONN);
        assert_fails(rpc_notify(p.a.c, "z", NULL, NULL, 0), ENOTCONN);
        assert_fails(rpc_reply(p.a.c, 1, NULL, NULL, 0), ENOTCONN);
        loop_until(p.a.base, &p.b.n_closed, 1);
        assert_int_equal(p.b.close_r, 0);
        pair_end(&p);
}

static void unref_in_close(struct rpc_conn *c, struct peer *p) {
        rpc_conn_unref(TAKE_PTR(p->c));
}

static void close_and_unref(struct rpc_msg *m, struct peer *p) {
        rpc_conn_close(m->conn);
        assert_fails(rpc_reply(m->conn, m->msgid, NULL, NULL, 0), ENOTCONN);
        rpc_conn_unref(TAKE_PTR(p->c));
}

static void only_unref(struct rpc_msg *m, struct peer *p) {
        rpc_conn_unref(TAKE_PTR(p->c));
}

static void only_close(struct rpc_msg *m, struct peer *p) {
        rpc_conn_close(m->conn);
}

/* The connection ends in a handler while more messages wait in its buffer. */
static void test_end_inside_on_message(void **state) {
        void (*const ends[])(struct rpc_msg * m, struct peer * p) = { close_and_unref, only_unref, only_close };

        for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
                struct peer p = { .on_message = ends[i] };
                cleanup_mp_buf struct mp_buf b = { 0 };
                struct result res = { 0 };

                mp_buf_init(&b);
                peer_start(&p);
                assert_ok(call(&p, "waits", &res));
                for (unsigned n = 0; n < 3; n++)
                        put_request(&b, n, "x", NULL);
                peer_write(&p, b.sb.data, b.sb.size, NULL, 0);
                loop_until(p.base, &p.n_messages, 1);
                loop_once(p.base);
                loop_once(p.base);
                assert_int_equal(p.n_messages, 1);
                assert_int_equal(p.n_closed, ends[i] == only_close);
                assert_int_equal(res.n, ends[i] == only_close); /* the last unref forgets calls */
                peer_end(&p);
        }
}

static void test_unref_in_on_close(void **state) {
        struct peer p = { .on_close = unref_in_close };

        peer_start(&p);
        p.fd = close_fd(p.fd);
        loop_until(p.base, &p.n_closed, 1);
        assert_int_equal(p.close_r, 0);
        assert_null(p.c);
        peer_end(&p);
}

struct ending {
        struct peer *p;
        unsigned n;
        uint32_t other;
        bool unref;
};

static void end_in_result(const struct rpc_result *res, void *arg) {
        struct ending *x = arg;

        x->n++;
        rpc_call_cancel(x->p->c, x->other);
        rpc_conn_close(x->p->c);
        if (x->unref)
                rpc_conn_unref(TAKE_PTR(x->p->c));
}

static void test_end_inside_result(void **state) {
        for (unsigned unref = 0; unref < 2; unref++) {
                struct peer p = { 0 };
                struct result res = { 0 };
                struct ending x = { .p = &p, .unref = unref };

                peer_start(&p);
                assert_ok(rpc_call(p.c, "a", NULL, NULL, 0, end_in_result, &x, NULL)); /* 1 */
                assert_ok(rpc_call(p.c, "b", NULL, NULL, 0, on_result, &res, &x.other));
                peer_write(&p, "\x94\x01\x01\xc0\xc0\x94\x01\x02\xc0\xc0", 10, NULL, 0);
                loop_until(p.base, &x.n, 1);
                loop_once(p.base);
                loop_once(p.base);
                assert_int_equal(x.n, 1);
                assert_int_equal(res.n, 0); /* cancelled */
                assert_int_equal(p.n_closed, !unref);
                peer_end(&p);
        }
}

/* What a peer said before it went away counts, also when we notice by a failed write. */
static void test_answer_before_the_end(void **state) {
        struct peer p = { 0 };
        struct result res = { 0 };

        peer_start(&p);
        assert_ok(call(&p, "x", &res));
        peer_write(&p, "\x94\x01\x01\xc0\x80", 5, NULL, 0);
        p.fd = close_fd(p.fd);
        (void) rpc_notify(p.c, "you are gone", NULL, NULL, 0); /* EPIPE, or ECONNRESET as it left bytes unread */
        (void) rpc_notify(p.c, "you are gone", NULL, NULL, 0);
        loop_until(p.base, &p.n_closed, 1);
        assert_int_equal(res.n, 1);
        assert_int_equal(res.r, 0);
        assert_int_equal(p.close_r, 0);
        peer_end(&p);
}

static void answer_100k(struct rpc_msg *m, struct peer *p) {
        cleanup_free char *data = calloc(1, 100000);
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_bin(&b, data, 100000);
        assert_ok(rpc_reply(m->conn, m->msgid, &b, NULL, 0));
}

/* A client that ends its sending side with its last request still gets the answers. */
static void test_answers_after_half_close(void **state) {
        enum { REQUESTS = 2000 };
        struct peer p = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        for (unsigned i = 0; i < REQUESTS; i++)
                put_request(&b, i, "x", NULL);
        peer_start(&p);
        peer_write(&p, b.sb.data, b.sb.size, NULL, 0);
        assert_int_equal(shutdown(p.fd, SHUT_WR), 0);
        while (p.n_messages < REQUESTS)
                loop_once(p.base);
        for (unsigned i = 0; i < 5; i++) /* the end is seen while answers wait for room in the socket */
                loop_once(p.base);
        assert_true(rpc_conn_queued(p.c) > 0);
        for (unsigned i = 0; i < REQUESTS; i++)
                peer_expect(&p, i, "");
        peer_expect_hangup(&p, false);
        assert_int_equal(p.close_r, 0);
        peer_end(&p);
}

/* It ended its sending side, and then goes away without having read everything. */
static void test_gone_after_half_close(void **state) {
        struct peer p = { .on_message = answer_100k };

        peer_start(&p);
        for (unsigned i = 0; i < 20; i++)
                peer_request(&p, i, "x");
        assert_int_equal(shutdown(p.fd, SHUT_WR), 0);
        loop_until(p.base, &p.n_messages, 20);
        loop_once(p.base);
        assert_int_equal(p.n_closed, 0);
        p.fd = close_fd(p.fd);
        loop_until(p.base, &p.n_closed, 1);
        peer_end(&p);
}

static void test_cancel(void **state) {
        struct peer p = { 0 };
        struct result res = { 0 }, other = { 0 };
        uint32_t id = 0;

        peer_start(&p);
        assert_ok(rpc_call(p.c, "x", NULL, NULL, 0, on_result, &res, &id));
        assert_ok(call(&p, "y", &other));
        rpc_call_cancel(p.c, id);
        rpc_call_cancel(p.c, id);
        rpc_call_cancel(p.c, 12345);
        peer_write(&p, "\x94\x01\x01\xc0\x80\x94\x01\x02\xc0\x80", 10, NULL, 0);
        loop_until(p.base, &other.n, 1);
        assert_int_equal(res.n, 0);
        assert_int_equal(id, 1);
        peer_end(&p);
}

/* ---- back-pressure ---- */

static void test_drain(void **state) {
        cleanup_free char *data = calloc(1, 100000);
        struct pair p = { 0 };

        pair_start(&p);
        for (unsigned i = 0; i < 10; i++) {
                cleanup_mp_buf struct mp_buf b = { 0 };

                mp_buf_init(&b);
                mp_map(&b, 1);
                mp_kv_bin(&b, "data", data, 100000);
                assert_ok(rpc_notify(p.a.c, "n", &b, NULL, 0));
        }
        assert_true(rpc_conn_queued(p.a.c) >= RPC_SEND_LOW);
        assert_int_equal(p.a.n_drained, 0);
        loop_until(p.a.base, &p.a.n_drained, 1);
        assert_true(rpc_conn_queued(p.a.c) < RPC_SEND_LOW / 2);
        loop_until(p.a.base, &p.b.n_messages, 10);
        assert_int_equal(p.a.n_drained, 1);
        pair_end(&p);
}

/* A client that asks and asks but does not read fills its own socket, not our memory; when it reads again it
 * gets every answer. */
static void test_client_that_does_not_read(void **state) {
        enum { REQUESTS = 2000 };
        struct peer p = { .on_message = answer_100k };
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint64_t deadline = now_ns() + TEST_DEADLINE_MS * 1000000ull;
        size_t done = 0, total = 0, expected = 0;

        mp_buf_init(&b);
        for (unsigned i = 0; i < REQUESTS; i++) {
                /* [1, i, nil, 100000 bytes]: fixarray, 1, the number, nil, bin32 header, data */
                expected += 1 + 1 + (i < 128 ? 1 : i < 256 ? 2 : 3) + 1 + 5 + 100000;
                put_request(&b, i, "x", NULL);
        }
        peer_start(&p);
        for (unsigned idle = 0; idle < 3;) {
                ssize_t n = done < b.sb.size ? io_send_fds(p.fd, b.sb.data + done, b.sb.size - done, NULL, 0) : -EAGAIN;

                if (n == -EAGAIN)
                        idle++;
                else
                        assert_ok(n);
                done += n > 0 ? (size_t) n : 0;
                loop_once(p.base);
        }
        assert_true(rpc_conn_queued(p.c) > 0);
        assert_true(rpc_conn_queued(p.c) <= RPC_MAX_QUEUED + 100100);
        assert_in_range(p.n_messages, 2, REQUESTS / 2);
        while (total < expected) {
                static char buf[1 << 20];
                size_t none = 0;
                ssize_t n = done < b.sb.size ? io_send_fds(p.fd, b.sb.data + done, b.sb.size - done, NULL, 0) : 0;

                done += n > 0 ? (size_t) n : 0;
                loop_once(p.base);
                n = io_recv_fds(p.fd, buf, sizeof(buf), NULL, &none);
                assert_true(n > 0 || n == -EAGAIN);
                assert_true(now_ns() < deadline);
                total += n > 0 ? (size_t) n : 0;
        }
        assert_int_equal(total, expected);
        assert_int_equal(p.n_messages, REQUESTS);
        peer_end(&p);
}

/* ---- listening ---- */

struct server {
        struct event_base *base;
        struct rpc_listener *l;
        char dir[64], path[128];
        unsigned accepted;
        struct peer peers[200];
};

static void on_accept(int fd, void *arg) {
        struct server *s = arg;

        if (s->accepted >= ARRAY_LEN(s->peers)) {
                (void) close_fd(fd);
                return;
        }
        peer_start_on(&s->peers[s->accepted++], s->base, fd);
}

static void server_start(struct server *s) {
        int fd;

        memset(s, 0, sizeof(*s));
        s->base = event_base_new();
        temp_dir(s->dir, sizeof(s->dir));
        (void) snprintf(s->path, sizeof(s->path), "%s/sock", s->dir);
        assert_ok(io_listen_unix(s->path, 0600, &fd));
        assert_ok(rpc_listener_new(s->base, fd, on_accept, s, &s->l));
}

static void server_end(struct server *s) {
        for (unsigned i = 0; i < s->accepted; i++)
                rpc_conn_unref(s->peers[i].c);
        rpc_listener_free(s->l);
        event_base_free(s->base);
        temp_dir_remove(s->dir);
}

static void test_many_connections(void **state) {
        static struct server s;
        int fds[150];
        unsigned before = count_fds();

        server_start(&s);
        for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
                assert_ok(io_connect_unix(s.path, &fds[i]));
                assert_int_equal(write(fds[i], "\x94\x00\x01\xa1x\x80", 6), 6);
                loop_once(s.base);
        }
        loop_until(s.base, &s.accepted, ARRAY_LEN(fds));
        for (size_t i = 0; i < ARRAY_LEN(fds); i++)
                loop_until(s.base, &s.peers[i].n_messages, 1);
        for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
                char answer[8];

                assert_int_equal(read(fds[i], answer, sizeof(answer)), 5);
                assert_memory_equal(answer, "\x94\x01\x01\xc0\x80", 5);
                (void) close(fds[i]);
        }
        for (size_t i = 0; i < ARRAY_LEN(fds); i++)
                loop_until(s.base, &s.peers[i].n_closed, 1);
        server_end(&s);
        assert_int_equal(count_fds(), before);
}

/* Who sends thousands of messages at once takes turns with who sends one. */
static void test_many_messages_take_turns(void **state) {
        static struct server s;
        char flood[60000];
        int loud, quiet;

        for (size_t i = 0; i < sizeof(flood); i += 5)
                memcpy(flood + i, "\x93\x02\xa1x\x80", 5);
        server_start(&s);
        assert_ok(io_connect_unix(s.path, &loud));
        assert_ok(io_connect_unix(s.path, &quiet));
        loop_until(s.base, &s.accepted, 2);
        assert_int_equal(write(loud, flood, sizeof(flood)), sizeof(flood));
        assert_int_equal(write(quiet, "\x93\x02\xa1q\x80", 5), 5);
        loop_until(s.base, &s.peers[1].n_messages, 1);
        assert_in_range(s.peers[0].n_messages, 0, 4 * RPC_TURN_MESSAGES);
        loop_until(s.base, &s.peers[0].n_messages, sizeof(flood) / 5);
        assert_int_equal(s.peers[0].n_messages, sizeof(flood) / 5);
        /* the end of the stream behind many messages is seen behind them */
        assert_int_equal(write(loud, flood, 50000), 50000);
        (void) close(loud);
        loop_until(s.base, &s.peers[0].n_closed, 1);
        assert_int_equal(s.peers[0].n_messages, (sizeof(flood) + 50000) / 5);
        (void) close(quiet);
        loop_until(s.base, &s.peers[1].n_closed, 1);
        server_end(&s);
}

static void on_tick(evutil_socket_t fd, short what, void *arg) {
        ++*(unsigned *) arg;
}

/* Without descriptors accepting pauses, it does not spin; with descriptors it goes on. */
static void test_out_of_descriptors(void **state) {
        static struct server s;
        const struct timeval some = { .tv_usec = 100000 };
        struct rlimit old, low;
        unsigned ticks = 0, turns = 0;
        struct event *tick;
        int fd;

        server_start(&s);
        assert_ok(io_connect_unix(s.path, &fd));
        tick = evtimer_new(s.base, on_tick, &ticks);
        assert_int_equal(event_add(tick, &some), 0);
        assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
        low = old;
        low.rlim_cur = 3;
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
        while (ticks == 0) {
                (void) event_base_loop(s.base, EVLOOP_ONCE);
                turns++;
        }
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
        assert_int_equal(s.accepted, 0);
        assert_in_range(turns, 1, 5);
        loop_until(s.base, &s.accepted, 1);
        event_free(tick);
        (void) close(fd);
        server_end(&s);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_call_and_answer),
                cmocka_unit_test(test_largest_message),
                cmocka_unit_test(test_unsendable_answers),
                cmocka_unit_test(test_descriptors_travel),
                cmocka_unit_test(test_descriptors_in_a_full_queue),
                cmocka_unit_test(test_pending_calls_fail),
                cmocka_unit_test(test_end_inside_on_message),
                cmocka_unit_test(test_unref_in_on_close),
                cmocka_unit_test(test_end_inside_result),
                cmocka_unit_test(test_answer_before_the_end),
                cmocka_unit_test(test_answers_after_half_close),
                cmocka_unit_test(test_gone_after_half_close),
                cmocka_unit_test(test_cancel),
                cmocka_unit_test(test_drain),
                cmocka_unit_test(test_client_that_does_not_read),
                cmocka_unit_test(test_many_connections),
                cmocka_unit_test(test_many_messages_take_turns),
                cmocka_unit_test(test_out_of_descriptors),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
