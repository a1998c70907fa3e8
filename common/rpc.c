/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * Receiving: bytes gather in one buffer. mp_scan says whether a whole message stands at its start, and if not,
 * at least how long the message is, so a large message is not scanned again for each piece of it. Descriptors
 * gather in arrival order; a message that says "fds": n takes the first n (the kernel never delivers a
 * descriptor later than the byte it was sent with).
 *
 * Sending: a queue of encoded messages, each with its descriptors, which go with its first byte.
 *
 * Lifetime: references are counted. The connection holds one on itself while it dispatches, so a handler may
 * drop the last one. After close the structure stays until the last reference goes, answering "closed". */
#include "common/rpc.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>

#include "common/co.h"
#include "common/io.h"

#define READ_CHUNK 65536u
#define MAX_CALLS 4096u

struct out_msg {
        TAILQ_ENTRY(out_msg) entry;
        size_t len, sent;
        size_t n_fds;
        int fds[IO_MAX_FDS];
        char data[];
};

struct pending_call {
        TAILQ_ENTRY(pending_call) entry;
        uint32_t msgid;
        rpc_result_fn fn;
        void *arg;
};

struct rpc_conn {
        struct event_base *base;
        const struct rpc_handlers *handlers;
        void *arg;
        unsigned refs;
        int fd; /* -1 once closed */
        struct ucred peer;
        struct event *read_ev, *write_ev, *close_ev;
        int close_r;

        char *in;
        size_t in_len, in_cap, in_need; /* in_need: do not scan before so many bytes are there */
        int in_fds[RPC_MAX_PENDING_FDS];
        size_t n_in_fds;

        TAILQ_HEAD(, out_msg) out;
        size_t queued;
        bool above_low;

        TAILQ_HEAD(, pending_call) calls;
        unsigned n_calls;
        uint32_t next_msgid;
};

/* ---- life and death ---- */

static void close_fds(int *fds, size_t n) {
        for (size_t i = 0; i < n; i++)
                fds[i] = close_fd(fds[i]);
}

static void out_free(struct out_msg *m) {
        close_fds(m->fds, m->n_fds);
        free(m);
}

/* Everything but the structure. */
static void conn_release(struct rpc_conn *c) {
        if (c->read_ev)
                event_free(c->read_ev);
        if (c->write_ev)
                event_free(c->write_ev);
        c->read_ev = c->write_ev = NULL;
        c->fd = close_fd(c->fd);
        for (struct out_msg *m; (m = TAILQ_FIRST(&c->out));) {
                TAILQ_REMOVE(&c->out, m, entry);
                out_free(m);
        }
        c->queued = 0;
        close_fds(c->in_fds, c->n_in_fds);
        c->n_in_fds = 0;
}

static void fail_calls(struct rpc_conn *c, int r) {
        for (struct pending_call *p; (p = TAILQ_FIRST(&c->calls));) {
                struct rpc_result res = { .r = r };

                TAILQ_REMOVE(&c->calls, p, entry);
                c->n_calls--;
                (void) err_set(&res.e, ERR_UNREACHABLE, r, "the connection was closed before the answer came");
                p->fn(&res, p->arg);
                free(p);
        }
}

static void on_close_event(evutil_socket_t fd, short what, void *arg) {
        struct rpc_conn *c = rpc_conn_ref(arg);

        fail_calls(c, c->close_r < 0 ? c->close_r : -ECANCELED);
        if (c->handlers->on_close)
                c->handlers->on_close(c, c->close_r, c->arg);
        rpc_conn_unref(c);
}

/* Ends the connection; callbacks follow in the loop's next turn, so that no caller is surprised by them. */
static void conn_shut(struct rpc_conn *c, int r) {
        if (c->fd < 0)
                return;
        conn_release(c);
        c->close_r = r;
        event_active(c->close_ev, EV_TIMEOUT, 0);
}

struct rpc_conn *rpc_conn_ref(struct rpc_conn *c) {
        c->refs++;
        return c;
}

void rpc_conn_unref(struct rpc_conn *c) {
        if (!c || --c->refs > 0)
                return;
        conn_release(c);
        for (struct pending_call *p; (p = TAILQ_FIRST(&c->calls));) {
                TAILQ_REMOVE(&c->calls, p, entry);
                free(p);
        }
        if (c->close_ev)
                event_free(c->close_ev);
        free(c->in);
        free(c);
}

void rpc_conn_close(struct rpc_conn *c) {
        conn_shut(c, 0);
}

bool rpc_conn_is_open(const struct rpc_conn *c) {
        return c->fd >= 0;
}

size_t rpc_conn_queued(const struct rpc_conn *c) {
        return c->queued;
}

const struct ucred *rpc_conn_peer(const struct rpc_conn *c) {
        return &c->peer;
}

void *rpc_conn_arg(const struct rpc_conn *c) {
        return c->arg;
}

/* ---- sending ---- */

/* Writes what the socket takes. */
static void conn_flush(struct rpc_conn *c) {
        struct out_msg *m;

        while (c->fd >= 0 && (m = TAILQ_FIRST(&c->out))) {
                bool first = m->sent == 0;
                ssize_t n = io_send_fds(c->fd, m->data + m->sent, m->len - m->sent, m->fds, first ? m->n_fds : 0);

                if (n == -EAGAIN) {
                        (void) event_add(c->write_ev, NULL);
                        break;
                }
                if (n < 0) {
                        /* The peer is gone; what it had sent before may still be worth reading, and the end of
                         * the stream closes the connection then. */
                        conn_shut(c, n == -EPIPE || n == -ECONNRESET ? 0 : (int) n);
                        return;
                }
                m->sent += (size_t) n;
                c->queued -= (size_t) n;
                if (m->sent == m->len) {
                        TAILQ_REMOVE(&c->out, m, entry);
                        out_free(m);
                }
        }
        if (c->above_low && c->queued < RPC_SEND_LOW / 2) {
                c->above_low = false;
                if (c->handlers->on_drain)
                        c->handlers->on_drain(c, c->arg);
        }
}

static void on_writable(evutil_socket_t fd, short what, void *arg) {
        struct rpc_conn *c = rpc_conn_ref(arg);

        conn_flush(c);
        rpc_conn_unref(c);
}

static int conn_send(struct rpc_conn *c, const struct mp_buf *b, const int *fds, size_t n_fds) {
        struct out_msg *m;

        if (c->fd < 0)
                return -ENOTCONN;
        if (b->failed)
                return -ENOMEM;
        if (b->sb.size > RPC_MAX_MESSAGE)
                return -EMSGSIZE;
        if (n_fds > IO_MAX_FDS)
                return -EINVAL;
        m = malloc(sizeof(*m) + b->sb.size);
        if (!m)
                return -ENOMEM;
        *m = (struct out_msg){ .len = b->sb.size };
        memcpy(m->data, b->sb.data, b->sb.size);
        for (; m->n_fds < n_fds; m->n_fds++) {
                m->fds[m->n_fds] = fcntl(fds[m->n_fds], F_DUPFD_CLOEXEC, 3);
                if (m->fds[m->n_fds] < 0) {
                        int r = -errno;

                        out_free(m);
                        return r;
                }
        }
        TAILQ_INSERT_TAIL(&c->out, m, entry);
        c->queued += m->len;
        if (c->queued >= RPC_SEND_LOW)
                c->above_low = true;
        if (TAILQ_FIRST(&c->out) == m)
                conn_flush(c);
        return 0;
}

static void put_params(struct mp_buf *b, const struct mp_buf *params) {
        if (params && params->sb.size)
                mp_raw(b, params->sb.data, params->sb.size);
        else
                mp_map(b, 0);
        if (params && params->failed)
                b->failed = true;
}

int rpc_notify(struct rpc_conn *c, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_array(&b, 3);
        mp_u64(&b, 2);
        mp_str(&b, method);
        put_params(&b, params);
        return conn_send(c, &b, fds, n_fds);
}

int rpc_call(struct rpc_conn *c, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
             rpc_result_fn fn, void *arg, uint32_t *ret_msgid) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pending_call *p;
        uint32_t msgid;
        int r;

        mp_buf_init(&b);
        if (c->n_calls >= MAX_CALLS)
                return -EBUSY;
        p = malloc(sizeof(*p));
        if (!p)
                return -ENOMEM;
        msgid = c->next_msgid++;
        mp_array(&b, 4);
        mp_u64(&b, 0);
        mp_u64(&b, msgid);
        mp_str(&b, method);
        put_params(&b, params);
        r = conn_send(c, &b, fds, n_fds);
        if (r < 0) {
                free(p);
                return r;
        }
        *p = (struct pending_call){ .msgid = msgid, .fn = fn, .arg = arg };
        TAILQ_INSERT_TAIL(&c->calls, p, entry);
        c->n_calls++;
        if (ret_msgid)
                *ret_msgid = msgid;
        return 0;
}

void rpc_call_cancel(struct rpc_conn *c, uint32_t msgid) {
        struct pending_call *p;

        TAILQ_FOREACH(p, &c->calls, entry)
                if (p->msgid == msgid) {
                        TAILQ_REMOVE(&c->calls, p, entry);
                        c->n_calls--;
                        free(p);
                        return;
                }
}

int rpc_reply(struct rpc_conn *c, uint32_t msgid, const struct mp_buf *result, const int *fds, size_t n_fds) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct err e;
        int r;

        mp_buf_init(&b);
        mp_array(&b, 4);
        mp_u64(&b, 1);
        mp_u64(&b, msgid);
        mp_nil(&b);
        put_params(&b, result);
        r = conn_send(c, &b, fds, n_fds);
        if (r == -EMSGSIZE || r == -ENOMEM) {
                /* A caller must not wait for ever for an answer that cannot be sent. */
                (void) err_set(&e, ERR_LIMIT, r, "the answer is larger than one message may be");
                return rpc_reply_err(c, msgid, &e);
        }
        return r;
}

int rpc_reply_err(struct rpc_conn *c, uint32_t msgid, const struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_array(&b, 4);
        mp_u64(&b, 1);
        mp_u64(&b, msgid);
        mp_map(&b, 3);
        mp_kv_str(&b, "code", e->code[0] ? e->code : ERR_INTERNAL);
        mp_kv_str(&b, "message", e->message);
        mp_kv_str(&b, "hint", e->hint);
        mp_nil(&b);
        return conn_send(c, &b, NULL, 0);
}

/* ---- receiving ---- */

static void reply_protocol_error(struct rpc_conn *c, uint32_t msgid, const char *what) {
        struct err e;

        (void) err_set(&e, ERR_PROTOCOL, -EPROTO, "%s", what);
        (void) err_hint(&e, "a request is [0, msgid, method, {params}]");
        (void) rpc_reply_err(c, msgid, &e);
}

/* The n-th element of the encoded array at @data, as bytes. Only for messages that were scanned. */
static int element_bytes(const char *data, size_t len, unsigned n, const char **ret, size_t *ret_len) {
        size_t pos = 1, el = 0;

        for (unsigned i = 0;; i++) {
                if (pos >= len || mp_scan(data + pos, len - pos, &el) != 1)
                        return -EBADMSG;
                if (i == n)
                        break;
                pos += el;
        }
        *ret = data + pos;
        *ret_len = el;
        return 0;
}

/* params as a map; arrays of one map or none are taken as that. */
static int normalize_params(const msgpack_object *o, const char *raw, size_t raw_len, struct rpc_msg *msg) {
        if (o->type == MSGPACK_OBJECT_NIL || (o->type == MSGPACK_OBJECT_ARRAY && o->via.array.size == 0)) {
                msg->params = NULL;
                msg->raw_params = "\x80";
                msg->raw_params_len = 1;
                return 0;
        }
        if (o->type == MSGPACK_OBJECT_ARRAY && o->via.array.size == 1 && raw_len > 1 && ((uint8_t) raw[0] & 0xf0) == 0x90) {
                o = &o->via.array.ptr[0];
                raw++;
                raw_len--;
        }
        if (o->type != MSGPACK_OBJECT_MAP)
                return -EBADMSG;
        msg->params = o;
        msg->raw_params = raw;
        msg->raw_params_len = raw_len;
        return 0;
}

/* Moves the descriptors that @map claims from the connection to @fds. */
static int claim_fds(struct rpc_conn *c, const msgpack_object *map, int *fds, size_t *ret_n) {
        uint64_t n = 0;

        *ret_n = 0;
        if (mp_get_u64(map, "fds", &n) < 0)
                return 0;
        if (n > IO_MAX_FDS || n > c->n_in_fds)
                return -EBADMSG;
        memcpy(fds, c->in_fds, n * sizeof(int));
        memmove(c->in_fds, c->in_fds + n, (c->n_in_fds - n) * sizeof(int));
        c->n_in_fds -= n;
        *ret_n = n;
        return 0;
}

static int dispatch_call(struct rpc_conn *c, const msgpack_object *a, const char *data, size_t len, bool request) {
        unsigned base = request ? 2 : 1;
        const msgpack_object *method = &a->via.array.ptr[base];
        struct rpc_msg msg = { .conn = c, .is_request = request };
        int fds[IO_MAX_FDS];
        const char *raw;
        size_t raw_len;
        int r;

        if (request)
                msg.msgid = (uint32_t) a->via.array.ptr[1].via.u64;
        if (method->type != MSGPACK_OBJECT_STR || method->via.str.size == 0 || method->via.str.size > RPC_MAX_METHOD ||
            memchr(method->via.str.ptr, 0, method->via.str.size)) {
                if (request)
                        reply_protocol_error(c, msg.msgid, "the method is not a name of at most 64 bytes");
                return 0;
        }
        memcpy(msg.method, method->via.str.ptr, method->via.str.size);
        r = element_bytes(data, len, base + 1, &raw, &raw_len);
        if (r == 0)
                r = normalize_params(&a->via.array.ptr[base + 1], raw, raw_len, &msg);
        if (r < 0) {
                if (request)
                        reply_protocol_error(c, msg.msgid, "params are neither a map nor a list of one map");
                return 0;
        }
        r = claim_fds(c, msg.params, fds, &msg.n_fds);
        if (r < 0)
                return r;
        msg.fds = fds;
        c->handlers->on_message(&msg, c->arg);
        close_fds(fds, msg.n_fds);
        return 0;
}

static void fill_remote_error(const msgpack_object *error, struct rpc_result *res) {
        char code[sizeof(res->e.code)] = ERR_INTERNAL, message[sizeof(res->e.message)] = "refused without a reason";

        /* Too long or no map at all: keep what fits the defaults. */
        (void) mp_get_str(error, "code", code, sizeof(code));
        (void) mp_get_str(error, "message", message, sizeof(message));
        if (error->type == MSGPACK_OBJECT_STR)
                (void) snprintf(message, sizeof(message), "%.*s", (int) MIN_OF(error->via.str.size, 300u),
                                error->via.str.ptr);
        res->r = err_set(&res->e, code, -EREMOTEIO, "%s", message);
        (void) mp_get_str(error, "hint", res->e.hint, sizeof(res->e.hint));
}

static int dispatch_response(struct rpc_conn *c, const msgpack_object *a, const char *data, size_t len) {
        const msgpack_object *error = &a->via.array.ptr[2];
        uint32_t msgid = (uint32_t) a->via.array.ptr[1].via.u64;
        struct rpc_result res = { 0 };
        struct pending_call *p;
        int fds[IO_MAX_FDS], r;
        const char *raw;

        TAILQ_FOREACH(p, &c->calls, entry)
                if (p->msgid == msgid)
                        break;
        r = claim_fds(c, &a->via.array.ptr[3], fds, &res.n_fds);
        if (r < 0)
                return r;
        res.fds = fds;
        if (p) { /* else it was cancelled: drop the answer and its descriptors */
                TAILQ_REMOVE(&c->calls, p, entry);
                c->n_calls--;
                if (error->type != MSGPACK_OBJECT_NIL) {
                        fill_remote_error(error, &res);
                } else {
                        res.result = &a->via.array.ptr[3];
                        if (element_bytes(data, len, 3, &raw, &res.raw_len) == 0)
                                res.raw = raw;
                }
                p->fn(&res, p->arg);
                free(p);
        }
        close_fds(fds, res.n_fds);
        return 0;
}

/* One whole message. An error is one that ends the connection: the peer does not speak the protocol. */
static int dispatch(struct rpc_conn *c, const char *data, size_t len) {
        cleanup_mp_doc struct mp_doc doc = { 0 };
        const msgpack_object *a = &doc.root;
        uint64_t type;
        int r;

        r = mp_parse(data, len, &doc);
        if (r < 0)
                return r;
        if (a->type != MSGPACK_OBJECT_ARRAY || a->via.array.size < 3 ||
            a->via.array.ptr[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                return -EBADMSG;
        /* element_bytes steps over a one-byte array header: an encoder that uses a longer one for four elements
         * is odd but valid, so such a message is encoded anew by refusing it clearly. */
        if (((uint8_t) data[0] & 0xf0) != 0x90)
                return -EBADMSG;
        type = a->via.array.ptr[0].via.u64;
        if (type == 2)
                return a->via.array.size == 3 ? dispatch_call(c, a, data, len, false) : -EBADMSG;
        if (type > 1 || a->via.array.size != 4 || a->via.array.ptr[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
            a->via.array.ptr[1].via.u64 > UINT32_MAX)
                return -EBADMSG;
        return type == 0 ? dispatch_call(c, a, data, len, true) : dispatch_response(c, a, data, len);
}

/* Takes all whole messages from the buffer. */
static int conn_parse(struct rpc_conn *c) {
        size_t pos = 0;
        int r = 0;

        while (c->fd >= 0 && c->in_len - pos > 0 && c->in_len - pos >= c->in_need) {
                size_t n;

                r = mp_scan(c->in + pos, c->in_len - pos, &n);
                if (r < 0)
                        break;
                if (n > RPC_MAX_MESSAGE) {
                        r = -EMSGSIZE;
                        break;
                }
                if (r == 0) {
                        c->in_need = n;
                        break;
                }
                c->in_need = 0;
                r = dispatch(c, c->in + pos, n);
                if (r < 0)
                        break;
                pos += n;
        }
        if (pos > 0) {
                memmove(c->in, c->in + pos, c->in_len - pos);
                c->in_len -= pos;
        }
        return r < 0 ? r : 0;
}

static int conn_reserve(struct rpc_conn *c) {
        size_t cap = MAX_OF(c->in_cap, (size_t) READ_CHUNK);
        char *p;

        while (cap - c->in_len < READ_CHUNK / 2 || cap < MIN_OF(c->in_need, (size_t) RPC_MAX_MESSAGE))
                cap *= 2;
        /* A large message leaves no large buffer behind. */
        if (c->in_len == 0)
                cap = READ_CHUNK;
        if (cap == c->in_cap)
                return 0;
        p = realloc(c->in, cap);
        if (!p)
                return -ENOMEM;
        c->in = p;
        c->in_cap = cap;
        return 0;
}

/* Tells the peer why before hanging up: nothing else would explain a closed connection. */
static void conn_refuse(struct rpc_conn *c, int r) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_str(&b, "code", ERR_PROTOCOL);
        if (r == -EMSGSIZE) {
                mp_kv_str(&b, "message", "the message is larger than 4 MiB, or brings too many descriptors");
                mp_kv_str(&b, "hint", "send less at once");
        } else {
                mp_kv_str(&b, "message", "the bytes are no MessagePack-RPC message");
                mp_kv_str(&b, "hint", "a request is [0, msgid, method, {params}]");
        }
        (void) rpc_notify(c, "error", &b, NULL, 0);
        conn_shut(c, r);
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
        struct rpc_conn *c = rpc_conn_ref(arg);
        size_t room;
        ssize_t n;
        int r;

        r = conn_reserve(c);
        if (r < 0) {
                conn_shut(c, r);
                goto out;
        }
        room = RPC_MAX_PENDING_FDS - c->n_in_fds;
        n = io_recv_fds(c->fd, c->in + c->in_len, c->in_cap - c->in_len, c->in_fds + c->n_in_fds, &room);
        if (n == -EAGAIN)
                goto out;
        if (n == -EMSGSIZE) {
                conn_refuse(c, -EMSGSIZE);
                goto out;
        }
        if (n <= 0) {
                conn_shut(c, n == -ECONNRESET ? 0 : (int) n);
                goto out;
        }
        c->n_in_fds += room;
        c->in_len += (size_t) n;
        r = conn_parse(c);
        if (r < 0 && c->fd >= 0)
                conn_refuse(c, r);
out:
        rpc_conn_unref(c);
}

int rpc_conn_new(struct event_base *base, int fd, const struct rpc_handlers *handlers, void *arg, struct rpc_conn **ret) {
        struct rpc_conn *c = calloc(1, sizeof(*c));
        socklen_t len = sizeof(c->peer);
        int r;

        if (!c) {
                (void) close_fd(fd);
                return -ENOMEM;
        }
        c->base = base;
        c->handlers = handlers;
        c->arg = arg;
        c->refs = 1;
        c->fd = fd;
        c->next_msgid = 1;
        TAILQ_INIT(&c->out);
        TAILQ_INIT(&c->calls);
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c->peer, &len) < 0)
                c->peer = (struct ucred){ .pid = 0, .uid = (uid_t) -1, .gid = (gid_t) -1 };
        r = io_set_nonblock(fd, true);
        c->read_ev = event_new(base, fd, EV_READ | EV_PERSIST, on_readable, c);
        c->write_ev = event_new(base, fd, EV_WRITE, on_writable, c);
        c->close_ev = event_new(base, -1, 0, on_close_event, c);
        if (r == 0 && (!c->read_ev || !c->write_ev || !c->close_ev || event_add(c->read_ev, NULL) < 0))
                r = -ENOMEM;
        if (r < 0) {
                rpc_conn_unref(c);
                return r;
        }
        *ret = c;
        return 0;
}

/* ---- calls from coroutines ---- */

static void on_co_result(const struct rpc_result *res, void *arg) {
        struct rpc_co *call = arg;

        if (res->r < 0) {
                call->e = res->e;
                co_wake(&call->wait, res->r);
                return;
        }
        call->raw = malloc(res->raw_len + 1);
        if (!call->raw) {
                co_wake(&call->wait, err_errno(&call->e, -ENOMEM, "keeping the answer to %s", call->method));
                return;
        }
        if (res->raw_len)
                memcpy(call->raw, res->raw, res->raw_len);
        call->raw_len = res->raw_len;
        for (; call->n_fds < res->n_fds && call->n_fds < RPC_CO_MAX_FDS; call->n_fds++)
                call->fds[call->n_fds] = TAKE_FD(res->fds[call->n_fds]);
        co_wake(&call->wait, 0);
}

void rpc_answer_clear(struct rpc_answer *a) {
        mp_doc_clear(&a->doc);
        free(a->raw);
        close_fds(a->fds, a->n_fds);
        *a = (struct rpc_answer){ 0 };
}

int rpc_co_begin(struct rpc_co *call, struct rpc_conn *c, const char *method, const struct mp_buf *params,
                 const int *fds, size_t n_fds, struct err *e) {
        int r;

        *call = (struct rpc_co){ .method = method };
        r = rpc_call(c, method, params, fds, n_fds, on_co_result, call, &call->msgid);
        if (r < 0)
                return err_errno(e, r, "sending %s", method);
        call->conn = rpc_conn_ref(c);
        return 0;
}

int rpc_co_end(struct rpc_co *call, int timeout_ms, struct rpc_answer *ret, struct err *e) {
        struct rpc_answer a = { 0 };
        int r;

        r = co_wait(&call->wait, timeout_ms);
        if (!call->wait.done) {
                rpc_call_cancel(call->conn, call->msgid);
                (void) err_set(&call->e, ERR_TIMEOUT, r, "no answer to %s within %d ms", call->method, timeout_ms);
        }
        rpc_conn_unref(call->conn);
        if (r < 0) {
                if (e)
                        *e = call->e;
                return r;
        }
        a.raw = call->raw;
        a.raw_len = call->raw_len;
        memcpy(a.fds, call->fds, sizeof(a.fds));
        a.n_fds = call->n_fds;
        r = mp_parse(a.raw, a.raw_len, &a.doc);
        if (r < 0) {
                rpc_answer_clear(&a);
                return err_errno(e, r, "reading the answer to %s", call->method);
        }
        if (ret)
                *ret = a;
        else
                rpc_answer_clear(&a);
        return 0;
}

int rpc_call_co(struct rpc_conn *c, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
                int timeout_ms, struct rpc_answer *ret, struct err *e) {
        struct rpc_co call;
        int r;

        r = rpc_co_begin(&call, c, method, params, fds, n_fds, e);
        return r < 0 ? r : rpc_co_end(&call, timeout_ms, ret, e);
}

/* ---- listening ---- */

struct rpc_listener {
        struct event_base *base;
        int fd;
        struct event *ev, *retry;
        void (*fn)(int fd, void *arg);
        void *arg;
};

static void on_retry(evutil_socket_t fd, short what, void *arg) {
        struct rpc_listener *l = arg;

        (void) event_add(l->ev, NULL);
}

static void on_acceptable(evutil_socket_t fd, short what, void *arg) {
        static const struct timeval second = { .tv_sec = 1 };
        struct rpc_listener *l = arg;
        int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (conn >= 0) {
                l->fn(conn, l->arg);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
                (void) event_del(l->ev);
                (void) event_add(l->retry, &second);
        }
}

int rpc_listener_new(struct event_base *base, int listen_fd, void (*fn)(int fd, void *arg), void *arg,
                     struct rpc_listener **ret) {
        struct rpc_listener *l = calloc(1, sizeof(*l));

        if (!l) {
                (void) close_fd(listen_fd);
                return -ENOMEM;
        }
        *l = (struct rpc_listener){ .base = base, .fd = listen_fd, .fn = fn, .arg = arg };
        l->ev = event_new(base, listen_fd, EV_READ | EV_PERSIST, on_acceptable, l);
        l->retry = evtimer_new(base, on_retry, l);
        if (!l->ev || !l->retry || event_add(l->ev, NULL) < 0) {
                rpc_listener_free(l);
                return -ENOMEM;
        }
        *ret = l;
        return 0;
}

void rpc_listener_free(struct rpc_listener *l) {
        if (!l)
                return;
        if (l->ev)
                event_free(l->ev);
        if (l->retry)
                event_free(l->retry);
        (void) close_fd(l->fd);
        free(l);
}
