/* SPDX-License-Identifier: MIT */
#include "rpc_test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "common/io.h"

static void on_deadline(evutil_socket_t fd, short what, void *arg) {
        *(bool *) arg = true;
}

void loop_until(struct event_base *base, const unsigned *what, unsigned n) {
        struct timeval tv = { .tv_sec = TEST_DEADLINE_MS / 1000 };
        bool late = false;
        struct event *timer = evtimer_new(base, on_deadline, &late);

        assert_non_null(timer);
        assert_int_equal(event_add(timer, &tv), 0);
        while (*what < n && !late)
                assert_true(event_base_loop(base, EVLOOP_ONCE) >= 0);
        event_free(timer);
        if (*what < n)
                fail_msg("waited in vain for %u, have %u", n, *what);
}

void loop_once(struct event_base *base) {
        assert_true(event_base_loop(base, EVLOOP_NONBLOCK) >= 0);
}

static void on_message(struct rpc_msg *m, void *arg) {
        struct peer *p = arg;

        p->n_messages++;
        memcpy(p->method, m->method, sizeof(p->method));
        p->n_fds = (unsigned) m->n_fds;
        if (p->on_message)
                p->on_message(m, p);
        else if (m->is_request)
                (void) rpc_reply(m->conn, m->msgid, NULL, NULL, 0); /* the peer may be gone */
}

static void on_close(struct rpc_conn *c, int r, void *arg) {
        struct peer *p = arg;

        p->n_closed++;
        p->close_r = r;
        if (p->on_close)
                p->on_close(c, p);
}

static void on_drain(struct rpc_conn *c, void *arg) {
        struct peer *p = arg;

        p->n_drained++;
        if (p->on_drain)
                p->on_drain(c, p);
}

static const struct rpc_handlers handlers = { .on_message = on_message, .on_close = on_close, .on_drain = on_drain };

void peer_start_on(struct peer *p, struct event_base *base, int fd) {
        p->base = base;
        p->fd = -1;
        assert_ok(rpc_conn_new(base, fd, &handlers, p, &p->c));
}

void peer_start(struct peer *p) {
        struct event_base *base = event_base_new();
        int sv[2];

        assert_non_null(base);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        peer_start_on(p, base, sv[0]);
        p->fd = sv[1];
        assert_ok(io_set_nonblock(p->fd, true));
}

void peer_end(struct peer *p) {
        rpc_conn_unref(p->c);
        p->c = NULL;
        p->fd = close_fd(p->fd);
        /* Nothing of the connection may still be on the loop. */
        assert_int_equal(event_base_get_num_events(p->base, EVENT_BASE_COUNT_ADDED | EVENT_BASE_COUNT_ACTIVE), 0);
        event_base_free(p->base);
}

void peer_write(struct peer *p, const void *data, size_t len, const int *fds, size_t n_fds) {
        for (size_t done = 0; done < len;) {
                ssize_t n = io_send_fds(p->fd, (const char *) data + done, len - done, fds, done ? 0 : n_fds);

                if (n == -EPIPE)
                        return; /* it hung up in the middle, which its tests look for */
                if (n == -EAGAIN)
                        loop_once(p->base);
                else
                        assert_ok(n);
                done += n > 0 ? (size_t) n : 0;
        }
}

void put_request(struct mp_buf *b, uint32_t id, const char *method, const struct mp_buf *params) {
        mp_array(b, 4);
        mp_u64(b, 0);
        mp_u64(b, id);
        mp_str(b, method);
        if (params)
                mp_raw(b, params->sb.data, params->sb.size);
        else
                mp_map(b, 0);
}

void peer_request(struct peer *p, uint32_t id, const char *method) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        put_request(&b, id, method, NULL);
        peer_write(p, b.sb.data, b.sb.size, NULL, 0);
}

/* One byte at a time, so that nothing of the next message (and none of its descriptors) is taken with it. */
static bool read_byte(struct peer *p, char *ret, int *ret_fd) {
        uint64_t end = now_ns() + TEST_DEADLINE_MS * 1000000ull;

        for (;;) {
                int fds[IO_MAX_FDS];
                size_t n_fds = IO_MAX_FDS;
                ssize_t n = io_recv_fds(p->fd, ret, 1, fds, &n_fds);

                if (n == -EAGAIN) {
                        assert_true(now_ns() < end);
                        assert_true(event_base_loop(p->base, EVLOOP_NONBLOCK) >= 0);
                        continue;
                }
                if (n == -ECONNRESET)
                        return false;
                assert_ok(n);
                for (size_t i = 0; n > 0 && i < n_fds; i++)
                        if (*ret_fd < 0)
                                *ret_fd = fds[i];
                        else
                                (void) close_fd(fds[i]);
                return n > 0;
        }
}

static bool read_message(struct peer *p, struct reply *ret) {
        struct mp_scanner s = MP_SCANNER_INIT;
        size_t cap = 64, need;

        *ret = (struct reply){ .fd = -1, .bytes = malloc(cap) };
        while (mp_scan_more(&s, ret->bytes, ret->len, &need) == 0) {
                if (ret->len == cap)
                        ret->bytes = realloc(ret->bytes, cap *= 2);
                assert_non_null(ret->bytes);
                if (!read_byte(p, ret->bytes + ret->len, &ret->fd)) {
                        assert_int_equal(ret->len, 0); /* else: it hung up within a message */
                        return false;
                }
                ret->len++;
        }
        assert_ok(mp_parse(ret->bytes, ret->len, &ret->doc));
        return true;
}

void peer_read(struct peer *p, struct reply *ret) {
        if (!read_message(p, ret))
                fail_msg("the connection was closed instead of an answer");
}

void reply_clear(struct reply *r) {
        mp_doc_clear(&r->doc);
        free(r->bytes);
        (void) close_fd(r->fd);
}

void peer_expect(struct peer *p, uint32_t id, const char *code) {
        cleanup_reply struct reply r = { .fd = -1 };
        const msgpack_object *a = &r.doc.root;
        char got[32] = "";

        peer_read(p, &r);
        assert_int_equal(a->type, MSGPACK_OBJECT_ARRAY);
        assert_int_equal(a->via.array.size, 4);
        assert_int_equal(a->via.array.ptr[0].via.u64, 1);
        assert_int_equal(a->via.array.ptr[1].via.u64, id);
        if (a->via.array.ptr[2].type != MSGPACK_OBJECT_NIL)
                assert_ok(mp_get_str(&a->via.array.ptr[2], "code", got, sizeof(got)));
        assert_string_equal(got, code);
}

void peer_expect_hangup(struct peer *p, bool with_reason) {
        struct reply r = { .fd = -1 };
        bool told = false;

        while (read_message(p, &r)) {
                assert_int_equal(r.doc.root.via.array.ptr[0].via.u64, 2);
                assert_true(mp_is_str(&r.doc.root.via.array.ptr[1], "error"));
                told = true;
                reply_clear(&r);
        }
        reply_clear(&r);
        assert_int_equal(told, with_reason);
        loop_until(p->base, &p->n_closed, 1);
}

void pair_start(struct pair *p) {
        struct event_base *base = event_base_new();
        int sv[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        peer_start_on(&p->a, base, sv[0]);
        peer_start_on(&p->b, base, sv[1]);
}

void pair_end(struct pair *p) {
        rpc_conn_unref(TAKE_PTR(p->b.c));
        peer_end(&p->a);
}
