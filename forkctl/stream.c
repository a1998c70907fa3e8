/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * To forkd: our descriptor is read only while there is credit left and the connection's queue is short, so
 * at most one window is in flight.
 *
 * From forkd: received bytes wait in a sink's buffer until the descriptor takes them. Credit goes back only
 * while that buffer is short, so at most STREAM_GRANT plus one window a stream is held. A peer that sends
 * more than it was allowed is in error, and the call ends.
 *
 * Our own stdin and stdout are often shared with other processes, so they are never made non-blocking.
 * Instead poll() says when a pipe or terminal takes data, and then no more than PIPE_BUF bytes are written
 * at once: that much goes without blocking. Where poll() is wrong (another process was faster), we block
 * like any other filter would. */
#include "forkctl/stream.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

#include "common/json.h"

#define WRITES_PER_TURN 64 /* then the loop gets a chance to look at the other descriptors */

void streams_init(struct streams *s, struct ctl *c) {
        *s = (struct streams){ .c = c, .in_fd = -1, .left = UINT64_MAX, .credit = STREAM_WINDOW };
        for (size_t i = 0; i < STREAM_N_OUT; i++)
                s->out[i].allowed = STREAM_WINDOW;
}

void streams_clear(struct streams *s) {
        if (s->c) {
                s->c->on_notify = NULL;
                s->c->on_drain = NULL;
                if (s->c->conn && s->method && !s->answered)
                        rpc_call_cancel(s->c->conn, s->call);
        }
        if (s->in_ev)
                event_free(s->in_ev);
        for (size_t i = 0; i < s->n_sinks; i++) {
                if (s->sinks[i].ev)
                        event_free(s->sinks[i].ev);
                if (s->sinks[i].buf)
                        evbuffer_free(s->sinks[i].buf);
        }
        json_decref(s->result);
        *s = (struct streams){ 0 };
}

void streams_fail(struct streams *s, int r) {
        if (s->r == 0)
                s->r = r;
}

void streams_notify(struct streams *s, const char *method, const struct req *q) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r;

        mp_buf_init(&b);
        mp_map(&b, 1 + q->n);
        mp_kv_u64(&b, "call", s->call);
        mp_raw(&b, q->body.sb.data, q->body.sb.size);
        b.failed |= q->body.failed;
        r = rpc_notify(s->c->conn, method, &b, NULL, 0);
        if (r < 0 && r != -ENOTCONN)
                streams_fail(s, err_errno(&s->c->e, r, "sending %s", method));
}

/* ---- to forkd ---- */

static void send_eof(struct streams *s) {
        cleanup_req struct req q;

        req_init(&q);
        req_u64(&q, "stream", 0);
        s->in_done = true;
        streams_notify(s, "stream.eof", &q);
}

static void send_data(struct streams *s, const void *data, size_t len) {
        cleanup_req struct req q;

        req_init(&q);
        req_u64(&q, "stream", 0);
        req_key(&q, "data");
        mp_bin(&q.body, data, len);
        s->credit -= len;
        s->sent += len;
        if (s->left != UINT64_MAX)
                s->left -= len;
        streams_notify(s, "stream.data", &q);
}

/* Reads on when forkd can take more. */
static void want_input(struct streams *s) {
        if (s->in_ev && !s->in_done && s->credit > 0 && rpc_conn_queued(s->c->conn) < RPC_SEND_LOW)
                (void) event_add(s->in_ev, NULL);
}

static void on_input(evutil_socket_t fd, short what, void *arg) {
        char buf[STREAM_MAX_CHUNK];
        struct streams *s = arg;
        size_t want = (size_t) MIN_OF(MIN_OF((uint64_t) sizeof(buf), s->credit), s->left);
        ssize_t n = want ? read(fd, buf, want) : 0;

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
                want_input(s);
                return;
        }
        if (n < 0 && errno == EIO && isatty(fd))
                n = 0; /* the terminal hung up */
        if (n < 0) {
                streams_fail(s, err_errno(&s->c->e, -errno, "reading the input"));
                return;
        }
        if (n == 0 && s->exact && s->left > 0) {
                streams_fail(s, err_set(&s->c->e, ERR_IO, -EIO, "the file became shorter while it was copied"));
                return;
        }
        if (n == 0) {
                send_eof(s);
                return;
        }
        send_data(s, buf, (size_t) n);
        if (s->left == 0)
                send_eof(s);
        want_input(s);
}

/* ---- from forkd ---- */

static size_t writable_now(const struct sink *k) {
        struct stat st;

        /* A regular file takes any amount; everything else what a pipe guarantees. */
        return fstat(k->fd, &st) == 0 && S_ISREG(st.st_mode) ? STREAM_MAX_CHUNK : PIPE_BUF;
}

static void grant(struct streams *s) {
        for (unsigned i = 0; i < STREAM_N_OUT; i++) {
                struct stream_in *in = &s->out[i];
                cleanup_req struct req q;

                req_init(&q);
                if (!in->sink || in->eof || in->owed < STREAM_GRANT)
                        continue;
                if (evbuffer_get_length(in->sink->buf) >= STREAM_GRANT)
                        continue;
                req_u64(&q, "stream", i);
                req_u64(&q, "bytes", in->owed);
                in->allowed += in->owed;
                in->owed = 0;
                streams_notify(s, "stream.credit", &q);
        }
}

static void sink_broke(struct sink *k, int error) {
        struct streams *s = k->s;

        k->broken = true;
        (void) evbuffer_drain(k->buf, evbuffer_get_length(k->buf));
        if (k->may_break)
                return;
        s->pipe_closed = error == EPIPE;
        streams_fail(s, err_errno(&s->c->e, -error, "writing the output"));
}

static bool takes_more(int fd) {
        struct pollfd p = { .fd = fd, .events = POLLOUT };

        return poll(&p, 1, 0) == 1 && (p.revents & POLLOUT);
}

static void on_output(evutil_socket_t fd, short what, void *arg) {
        struct sink *k = arg;
        size_t max = writable_now(k);

        for (unsigned i = 0; i < WRITES_PER_TURN && evbuffer_get_length(k->buf) > 0; i++) {
                size_t len = MIN_OF(max, evbuffer_get_contiguous_space(k->buf));
                ssize_t n;

                if (i > 0 && !takes_more(fd))
                        break;
                n = write(fd, evbuffer_pullup(k->buf, (ssize_t) len), len);
                if (n < 0 && (errno == EAGAIN || errno == EINTR))
                        break;
                if (n < 0) {
                        sink_broke(k, errno);
                        break;
                }
                (void) evbuffer_drain(k->buf, (size_t) n);
        }
        if (evbuffer_get_length(k->buf) > 0)
                (void) event_add(k->ev, NULL);
        grant(k->s);
}

int streams_sink(struct streams *s, int fd, struct sink **ret) {
        struct sink *k;
        int r;

        if (s->n_sinks == ARRAY_LEN(s->sinks))
                return err_errno(&s->c->e, -EMFILE, "more than two outputs");
        r = ctl_loop(s->c);
        if (r < 0)
                return r;
        k = &s->sinks[s->n_sinks++];
        *k = (struct sink){ .s = s, .fd = fd, .buf = evbuffer_new(), .ev = event_new(s->c->base, fd, EV_WRITE, on_output, k) };
        if (!k->buf || !k->ev)
                return err_errno(&s->c->e, -ENOMEM, "preparing the output");
        *ret = k;
        return 0;
}

static void protocol_error(struct streams *s, const char *what) {
        streams_fail(s, err_set(&s->c->e, ERR_PROTOCOL, -EPROTO, "forkd broke the stream protocol: %s", what));
}

static void take_data(struct streams *s, struct stream_in *in, unsigned n, const msgpack_object *params) {
        const void *data;
        size_t len;
        int r;

        if (mp_get_bin(params, "data", &data, &len) < 0 || len > STREAM_MAX_CHUNK) {
                protocol_error(s, "data that is missing or too long");
                return;
        }
        if (in->eof || len > in->allowed) {
                protocol_error(s, in->eof ? "data behind the end" : "more data than was allowed");
                return;
        }
        in->allowed -= (uint32_t) len;
        in->owed += (uint32_t) len;
        in->total += len;
        if (!in->sink->broken && len > 0) {
                r = s->encode ? s->encode(s, n, data, len, in->sink->buf) : evbuffer_add(in->sink->buf, data, len);
                if (r < 0)
                        streams_fail(s, err_errno(&s->c->e, -ENOMEM, "keeping the output"));
        }
        if (evbuffer_get_length(in->sink->buf) > 0)
                (void) event_add(in->sink->ev, NULL);
        else
                grant(s);
}

static void take_credit(struct streams *s, const msgpack_object *params) {
        uint64_t bytes;

        if (mp_get_u64(params, "bytes", &bytes) < 0) {
                protocol_error(s, "a credit without bytes");
                return;
        }
        if (__builtin_add_overflow(s->credit, bytes, &s->credit))
                s->credit = UINT64_MAX;
        want_input(s);
}

static void on_notify(struct rpc_msg *msg, void *arg) {
        struct streams *s = arg;
        uint64_t call, n;

        if (s->answered || mp_get_u64(msg->params, "call", &call) < 0 || call != s->call)
                return;
        if (strcmp(msg->method, "stream.file") == 0)
                (void) mp_get_u64(msg->params, "size", &s->file_size);
        if (mp_get_u64(msg->params, "stream", &n) < 0)
                return;
        if (strcmp(msg->method, "stream.credit") == 0) {
                if (n == 0)
                        take_credit(s, msg->params);
                return;
        }
        if (n >= STREAM_N_OUT || !s->out[n].sink) {
                protocol_error(s, "a stream that was not asked for");
                return;
        }
        if (strcmp(msg->method, "stream.data") == 0)
                take_data(s, &s->out[n], (unsigned) n, msg->params);
        else if (strcmp(msg->method, "stream.eof") == 0)
                s->out[n].eof = true;
}

/* ---- the call ---- */

static void on_drain(void *arg) {
        want_input(arg);
}

static void on_answer(const struct rpc_result *res, void *arg) {
        struct streams *s = arg;

        s->answered = true;
        s->in_done = true;
        if (s->in_ev)
                (void) event_del(s->in_ev);
        if (res->r < 0) {
                /* A refusal by the protocol check above is the cause; what came after it is not. */
                if (s->r == 0)
                        streams_fail(s, ctl_call_error(s->c, s->method, res));
                return;
        }
        s->result = json_from_mp(res->result);
        if (!s->result)
                streams_fail(s, err_errno(&s->c->e, -ENOMEM, "reading the answer to %s", s->method));
}

int streams_start(struct streams *s, const char *method, const struct req *q) {
        int r = ctl_connect(s->c);

        if (r < 0)
                return r;
        s->c->on_notify = on_notify;
        s->c->on_drain = on_drain;
        s->c->notify_arg = s;
        if (s->in_fd >= 0) {
                s->in_ev = event_new(s->c->base, s->in_fd, EV_READ, on_input, s);
                if (!s->in_ev)
                        return err_errno(&s->c->e, -ENOMEM, "preparing the input");
        }
        r = ctl_start(s->c, method, q, on_answer, s, &s->call);
        if (r < 0)
                return r;
        s->method = method;
        want_input(s);
        return 0;
}

static bool all_written(const struct streams *s) {
        for (size_t i = 0; i < s->n_sinks; i++)
                if (evbuffer_get_length(s->sinks[i].buf) > 0)
                        return false;
        return true;
}

int streams_run(struct streams *s) {
        while (s->r == 0 && !(s->answered && all_written(s)))
                if (event_base_loop(s->c->base, EVLOOP_ONCE) != 0)
                        streams_fail(s, err_set(&s->c->e, ERR_INTERNAL, -EIO, "the event loop failed"));
        /* What came before a failure of the call is still shown. */
        while (s->answered && !s->pipe_closed && !all_written(s))
                if (event_base_loop(s->c->base, EVLOOP_ONCE) != 0)
                        break;
        return s->r;
}
