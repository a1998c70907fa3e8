/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * Receiving: bytes gather in one buffer. A scanner says whether a whole message stands at its start, and if not,
 * at least how long the message is; it looks at each byte once, however small the pieces are that they come in.
 *
 * Descriptors gather in arrival order; a message that says "fds": n takes the first n. The kernel never delivers
 * a descriptor later than the byte it was sent with, and ends a read behind the write that brought one. So a
 * descriptor that was read before the first byte of the message at hand was brought by an earlier one that did
 * not say so: the peer is hung up on, rather than that a message gets what was sent with another.
 *
 * Sending: a queue of encoded messages, each with its descriptors, which go with its first byte. A peer that does
 * not read what it asked for is not read from either (RPC_MAX_QUEUED), so that its socket fills up and not our
 * memory. When the peer is gone, its last words are still read: the end of the stream closes the connection.
 *
 * Lifetime: owners hold references. A callback pins the structure while it works with it, so a handler may drop
 * the last reference: the connection is closed then and there, and freed when the callback returns. */
#include "common/rpc.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>

#include "common/io.h"

#define READ_CHUNK 65536u
#define MAX_CALLS 4096u
#define MAX_OPEN_REQUESTS 1024u

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
        unsigned refs, pins;
        int fd; /* -1 once closed */
        struct ucred peer;
        struct event *read_ev, *write_ev, *close_ev, *turn_ev;
        int close_r;

        char *in;
        size_t in_len, in_cap;
        uint64_t in_start;      /* where in the stream the buffer begins */
        struct mp_scanner scan; /* of the message at the buffer's beginning */
        size_t in_need;         /* its length, at least: no use in scanning before so many bytes are there */
        struct {
                int fd;
                uint64_t end; /* where in the stream the read ended that brought it */
        } in_fds[RPC_MAX_PENDING_FDS];
        size_t n_in_fds;
        unsigned open_requests; /* not answered yet */
        bool paused;            /* not reading until the queue has shrunk */
        bool waits_turn;        /* nor until the loop has looked at others: more may be there, whole */

        TAILQ_HEAD(, out_msg) out;
        size_t queued;
        bool above_low;
        bool deaf; /* the peer does not read any more */
        bool mute; /* it sends nothing more, but may still be reading what is queued for it */

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

static void drop_queue(struct rpc_conn *c) {
        for (struct out_msg *m; (m = TAILQ_FIRST(&c->out));) {
                TAILQ_REMOVE(&c->out, m, entry);
                out_free(m);
        }
        c->queued = 0;
}

/* Everything but the structure. */
static void conn_release(struct rpc_conn *c) {
        if (c->read_ev)
                event_free(c->read_ev);
        if (c->write_ev)
                event_free(c->write_ev);
        if (c->turn_ev)
                event_free(c->turn_ev);
        c->read_ev = c->write_ev = c->turn_ev = NULL;
        c->fd = close_fd(c->fd);
        drop_queue(c);
        while (c->n_in_fds > 0)
                (void) close_fd(c->in_fds[--c->n_in_fds].fd);
}

static void conn_free(struct rpc_conn *c) {
        if (c->close_ev)
                event_free(c->close_ev);
        free(c->in);
        free(c);
}

static void conn_unpin(struct rpc_conn *c) {
        if (--c->pins == 0 && c->refs == 0)
                conn_free(c);
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
        struct rpc_conn *c = arg;

        c->pins++;
        fail_calls(c, c->close_r < 0 ? c->close_r : -ECANCELED);
        if (c->refs > 0 && c->handlers->on_close)
                c->handlers->on_close(c, c->close_r, c->arg);
        conn_unpin(c);
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
        if (c->pins == 0)
                conn_free(c);
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

void rpc_conn_use(const struct rpc_conn *c, struct rpc_conn_use *ret) {
        *ret = (struct rpc_conn_use){
                .unread = c->in_len,
                .memory = c->in_cap + c->queued,
                .open_requests = c->open_requests,
        };
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
                if (n == -EPIPE || n == -ECONNRESET) {
                        /* The peer is gone; what it had sent before may still be worth reading, and the end of
                         * the stream closes the connection then. */
                        c->deaf = true;
                        drop_queue(c);
                        break;
                }
                if (n < 0) {
                        conn_shut(c, (int) n);
                        return;
                }
                m->sent += (size_t) n;
                c->queued -= (size_t) n;
                if (m->sent == m->len) {
                        TAILQ_REMOVE(&c->out, m, entry);
                        out_free(m);
                }
        }
}

static void conn_process(struct rpc_conn *c);

static void on_writable(evutil_socket_t fd, short what, void *arg) {
        struct rpc_conn *c = arg;

        c->pins++;
        conn_flush(c);
        if (c->fd >= 0 && c->above_low && c->queued < RPC_SEND_LOW / 2) {
                c->above_low = false;
                if (c->handlers->on_drain)
                        c->handlers->on_drain(c, c->arg);
        }
        if (c->fd >= 0 && c->paused && c->queued < RPC_MAX_QUEUED / 2) {
                c->paused = false;
                (void) event_add(c->read_ev, NULL);
                conn_process(c); /* whole messages may have been waiting */
        }
        if (c->fd >= 0 && c->mute && TAILQ_EMPTY(&c->out))
                conn_shut(c, 0);
        conn_unpin(c);
}

static int conn_send(struct rpc_conn *c, const struct mp_buf *b, const int *fds, size_t n_fds) {
        struct out_msg *m;

        if (c->fd < 0 || c->deaf)
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
        if (TAILQ_FIRST(&c->out) == m)
                conn_flush(c);
        if (c->queued >= RPC_SEND_LOW)
                c->above_low = true;
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

int rpc_call(struct rpc_conn *c, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds, rpc_result_fn fn,
             void *arg, uint32_t *ret_msgid) {
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

        TAILQ_FOREACH (p, &c->calls, entry)
                if (p->msgid == msgid) {
                        TAILQ_REMOVE(&c->calls, p, entry);
                        c->n_calls--;
                        free(p);
                        return;
                }
}

static int send_error(struct rpc_conn *c, uint32_t msgid, const struct err *e) {
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

static void request_answered(struct rpc_conn *c) {
        if (c->open_requests > 0)
                c->open_requests--;
}

int rpc_reply(struct rpc_conn *c, uint32_t msgid, const struct mp_buf *result, const int *fds, size_t n_fds) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct err e;
        int r;

        request_answered(c);
        mp_buf_init(&b);
        mp_array(&b, 4);
        mp_u64(&b, 1);
        mp_u64(&b, msgid);
        mp_nil(&b);
        put_params(&b, result);
        r = conn_send(c, &b, fds, n_fds);
        if (r == 0 || r == -ENOTCONN)
                return r;
        /* A caller must not wait for ever for an answer that cannot be sent. */
        if (r == -EMSGSIZE)
                (void) err_set(&e, ERR_LIMIT, r, "the answer is larger than one message may be");
        else
                (void) err_errno(&e, r, "sending the answer");
        return send_error(c, msgid, &e);
}

int rpc_reply_err(struct rpc_conn *c, uint32_t msgid, const struct err *e) {
        request_answered(c);
        return send_error(c, msgid, e);
}

/* ---- receiving ---- */

static void refuse_request(struct rpc_conn *c, uint32_t msgid, const char *wrong) {
        struct err e;

        if (wrong) {
                (void) err_set(&e, ERR_PROTOCOL, -EPROTO, "%s", wrong);
                (void) err_hint(&e, "a request is [0, msgid, method, {params}]");
        } else {
                (void) err_set(&e, ERR_LIMIT, -EBUSY, "%u requests of this connection wait for their answers", MAX_OPEN_REQUESTS);
                (void) err_hint(&e, "wait for answers before asking more");
        }
        (void) rpc_reply_err(c, msgid, &e);
}

/* Bytes of an encoded array's header; some encoders use longer ones than they need. */
static size_t array_header(const char *data) {
        uint8_t t = (uint8_t) data[0];

        return t == 0xdc ? 3 : t == 0xdd ? 5 : 1;
}

/* The n-th element of the encoded array at @data, as bytes. Only for messages that were scanned. */
static int element_bytes(const char *data, size_t len, unsigned n, const char **ret, size_t *ret_len) {
        size_t pos = array_header(data), el = 0;

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
        if (o->type == MSGPACK_OBJECT_ARRAY && o->via.array.size == 1) {
                size_t head = array_header(raw);

                o = &o->via.array.ptr[0];
                raw += head;
                raw_len -= head;
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
        for (size_t i = 0; i < n; i++)
                fds[i] = c->in_fds[i].fd;
        memmove(c->in_fds, c->in_fds + n, (c->n_in_fds - n) * sizeof(c->in_fds[0]));
        c->n_in_fds -= n;
        *ret_n = n;
        return 0;
}

/* What is wrong with a request that was understood as far as its number; NULL: nothing. */
static const char *read_call(const msgpack_object *method, const msgpack_object *params, const char *raw, size_t raw_len,
                             struct rpc_msg *msg) {
        if (method->type != MSGPACK_OBJECT_STR || method->via.str.size == 0 || method->via.str.size > RPC_MAX_METHOD ||
            memchr(method->via.str.ptr, 0, method->via.str.size))
                return "the method is not a name of at most 64 bytes";
        memcpy(msg->method, method->via.str.ptr, method->via.str.size);
        if (normalize_params(params, raw, raw_len, msg) < 0)
                return "params are neither a map nor a list of one map";
        return NULL;
}

static int dispatch_call(struct rpc_conn *c, const msgpack_object *a, const char *data, size_t len, bool request) {
        const msgpack_object *method = &a->via.array.ptr[request ? 2 : 1], *params = method + 1;
        struct rpc_msg msg = { .conn = c, .is_request = request };
        const char *raw, *wrong;
        int fds[IO_MAX_FDS], r;
        size_t raw_len;

        r = element_bytes(data, len, request ? 3 : 2, &raw, &raw_len);
        if (r == 0)
                r = claim_fds(c, params, fds, &msg.n_fds);
        if (r < 0)
                return r;
        if (request) {
                msg.msgid = (uint32_t) a->via.array.ptr[1].via.u64;
                c->open_requests++;
        }
        msg.fds = fds;
        wrong = read_call(method, params, raw, raw_len, &msg);
        if (!wrong && msg.params != params && msg.params)
                r = claim_fds(c, msg.params, fds, &msg.n_fds); /* those of [{…}] */
        if (r == 0 && !wrong && c->open_requests <= MAX_OPEN_REQUESTS)
                c->handlers->on_message(&msg, c->arg);
        else if (r == 0 && request)
                refuse_request(c, msg.msgid, wrong);
        close_fds(fds, msg.n_fds);
        return r;
}

/* What is missing, empty, too long or of another type is replaced: whoever sees an error sees a sentence. */
static void fill_remote_error(const msgpack_object *error, struct rpc_result *res) {
        char code[sizeof(res->e.code)], message[sizeof(res->e.message)];

        if (mp_get_str(error, "code", code, sizeof(code)) < 0 || !code[0])
                (void) strcpy(code, ERR_INTERNAL);
        if (error->type == MSGPACK_OBJECT_STR)
                (void) snprintf(message, sizeof(message), "%.*s", (int) MIN_OF(error->via.str.size, 300u), error->via.str.ptr);
        else if (mp_get_str(error, "message", message, sizeof(message)) < 0)
                message[0] = '\0';
        res->r = err_set(&res->e, code, -EREMOTEIO, "%s", message[0] ? message : "refused without a reason");
        (void) mp_get_str(error, "hint", res->e.hint, sizeof(res->e.hint));
}

static int dispatch_response(struct rpc_conn *c, const msgpack_object *a, const char *data, size_t len) {
        const msgpack_object *error = &a->via.array.ptr[2];
        uint32_t msgid = (uint32_t) a->via.array.ptr[1].via.u64;
        struct rpc_result res = { 0 };
        struct pending_call *p;
        int fds[IO_MAX_FDS], r;
        const char *raw;

        TAILQ_FOREACH (p, &c->calls, entry)
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
        type = a->via.array.ptr[0].via.u64;
        if (type == 2)
                return a->via.array.size == 3 ? dispatch_call(c, a, data, len, false) : -EBADMSG;
        if (type > 1 || a->via.array.size != 4 || a->via.array.ptr[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
            a->via.array.ptr[1].via.u64 > UINT32_MAX)
                return -EBADMSG;
        return type == 0 ? dispatch_call(c, a, data, len, true) : dispatch_response(c, a, data, len);
}

/* The oldest descriptor came before the message at @start: nobody has claimed it who could have. */
static bool has_stray_fd(const struct rpc_conn *c, uint64_t start) {
        return c->n_in_fds > 0 && c->in_fds[0].end <= start;
}

static void wait_turn(struct rpc_conn *c) {
        static const struct timeval next_turn = { 0 };

        c->waits_turn = true;
        (void) event_del(c->read_ev);
        (void) event_add(c->turn_ev, &next_turn);
}

/* Takes whole messages from the buffer: all there are, unless they are many or the peer does not read our answers. */
static int conn_parse(struct rpc_conn *c) {
        unsigned n_taken = 0;
        size_t pos = 0;
        int r = 0;

        while (c->fd >= 0 && c->in_len - pos > 0 && c->in_len - pos >= c->in_need) {
                size_t n;

                if (c->queued > RPC_MAX_QUEUED) {
                        c->paused = true;
                        (void) event_del(c->read_ev);
                        break;
                }
                if (n_taken == RPC_TURN_MESSAGES) {
                        wait_turn(c);
                        break;
                }
                r = mp_scan_more(&c->scan, c->in + pos, c->in_len - pos, &n);
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
                c->scan = MP_SCANNER_INIT;
                c->in_need = 0;
                r = has_stray_fd(c, c->in_start + pos) ? -EBADMSG : dispatch(c, c->in + pos, n);
                if (r < 0)
                        break;
                pos += n;
                n_taken++;
        }
        if (pos > 0) {
                memmove(c->in, c->in + pos, c->in_len - pos);
                c->in_len -= pos;
                c->in_start += pos;
        }
        if (r >= 0 && c->in_len == 0 && has_stray_fd(c, c->in_start))
                r = -EBADMSG;
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
                mp_kv_str(&b, "message", "the bytes are no MessagePack-RPC message, or its descriptors are not as it says");
                mp_kv_str(&b, "hint", "a request is [0, msgid, method, {params}]; n descriptors need \"fds\": n in params");
        }
        (void) rpc_notify(c, "error", &b, NULL, 0);
        conn_shut(c, r);
}

static void conn_process(struct rpc_conn *c) {
        int r = conn_parse(c);

        if (r < 0 && c->fd >= 0)
                conn_refuse(c, r);
}

static void on_turn(evutil_socket_t fd, short what, void *arg) {
        struct rpc_conn *c = arg;

        c->pins++;
        c->waits_turn = false;
        (void) event_add(c->read_ev, NULL);
        conn_process(c);
        conn_unpin(c);
}

static void conn_read(struct rpc_conn *c) {
        int fds[RPC_MAX_PENDING_FDS];
        size_t n_fds = RPC_MAX_PENDING_FDS - c->n_in_fds;
        ssize_t n;
        int r;

        r = conn_reserve(c);
        if (r < 0) {
                conn_shut(c, r);
                return;
        }
        n = io_recv_fds(c->fd, c->in + c->in_len, c->in_cap - c->in_len, fds, &n_fds);
        if (n == -EAGAIN)
                return;
        if (n == -EMSGSIZE) {
                conn_refuse(c, -EMSGSIZE);
                return;
        }
        if (n == 0 && !c->deaf && !TAILQ_EMPTY(&c->out)) {
                c->mute = true;
                (void) event_del(c->read_ev);
                return;
        }
        if (n <= 0) {
                conn_shut(c, n == -ECONNRESET ? 0 : (int) n);
                return;
        }
        c->in_len += (size_t) n;
        for (size_t i = 0; i < n_fds; i++) {
                c->in_fds[c->n_in_fds].fd = fds[i];
                c->in_fds[c->n_in_fds++].end = c->in_start + c->in_len;
        }
        conn_process(c);
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
        struct rpc_conn *c = arg;

        c->pins++;
        conn_read(c);
        conn_unpin(c);
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
        c->scan = MP_SCANNER_INIT;
        TAILQ_INIT(&c->out);
        TAILQ_INIT(&c->calls);
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c->peer, &len) < 0)
                c->peer = (struct ucred){ .pid = 0, .uid = (uid_t) -1, .gid = (gid_t) -1 };
        r = io_set_nonblock(fd, true);
        c->read_ev = event_new(base, fd, EV_READ | EV_PERSIST, on_readable, c);
        c->write_ev = event_new(base, fd, EV_WRITE, on_writable, c);
        c->close_ev = event_new(base, -1, 0, on_close_event, c);
        c->turn_ev = evtimer_new(base, on_turn, c);
        if (r == 0 && (!c->read_ev || !c->write_ev || !c->close_ev || !c->turn_ev || event_add(c->read_ev, NULL) < 0))
                r = -ENOMEM;
        if (r < 0) {
                rpc_conn_unref(c);
                return r;
        }
        *ret = c;
        return 0;
}
