/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * Everything happens on one libevent loop that runs only while a call waits. The loop uses poll(2): unlike
 * epoll it also takes regular files and /dev/null, which forkctl's own stdin and stdout often are. */
#include "forkctl/client.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "common/io.h"
#include "common/json.h"

/* ---- params ---- */

void req_init(struct req *q) {
        mp_buf_init(&q->body);
        q->n = 0;
}

void req_clear(struct req *q) {
        mp_buf_clear(&q->body);
}

void req_key(struct req *q, const char *key) {
        mp_key(&q->body, key);
        q->n++;
}

void req_str(struct req *q, const char *key, const char *v) {
        if (!v)
                return;
        req_key(q, key);
        mp_str(&q->body, v);
}

void req_u64(struct req *q, const char *key, uint64_t v) {
        req_key(q, key);
        mp_u64(&q->body, v);
}

void req_bool(struct req *q, const char *key, bool v) {
        req_key(q, key);
        mp_bool(&q->body, v);
}

void req_double(struct req *q, const char *key, double v) {
        req_key(q, key);
        mp_double(&q->body, v);
}

void req_strs(struct req *q, const char *key, char *const *v, size_t n) {
        req_key(q, key);
        mp_array(&q->body, n);
        for (size_t i = 0; i < n; i++)
                mp_str(&q->body, v[i]);
}

static void req_encode(const struct req *q, struct mp_buf *b) {
        mp_buf_init(b);
        mp_map(b, q ? q->n : 0);
        if (!q)
                return;
        mp_raw(b, q->body.sb.data, q->body.sb.size);
        b->failed |= q->body.failed;
}

/* ---- files that are not complete yet ---- */

static void on_deadly_signal(evutil_socket_t sig, short what, void *arg) {
        struct ctl *c = arg;

        (void) unlink(c->partial);
        (void) signal((int) sig, SIG_DFL);
        (void) raise((int) sig);
}

static void forget_partial(struct ctl *c) {
        for (size_t i = 0; i < ARRAY_LEN(c->partial_ev); i++) {
                if (c->partial_ev[i])
                        event_free(c->partial_ev[i]);
                c->partial_ev[i] = NULL;
        }
        c->partial = NULL;
}

int ctl_partial(struct ctl *c, const char *path) {
        static const int deadly[ARRAY_LEN(c->partial_ev)] = { SIGINT, SIGTERM, SIGHUP };

        forget_partial(c);
        c->partial = path;
        for (size_t i = 0; path && i < ARRAY_LEN(deadly); i++) {
                c->partial_ev[i] = evsignal_new(c->base, deadly[i], on_deadly_signal, c);
                if (!c->partial_ev[i] || event_add(c->partial_ev[i], NULL) < 0)
                        return err_errno(&c->e, -ENOMEM, "watching signals");
        }
        return 0;
}

/* ---- the connection ---- */

/* forkd says why it hangs up on us, before it does. */
static void on_error_notification(struct ctl *c, const msgpack_object *params) {
        char code[sizeof(c->e.code)] = ERR_PROTOCOL, message[300] = "no reason given";

        (void) mp_get_str(params, "code", code, sizeof(code));
        (void) mp_get_str(params, "message", message, sizeof(message));
        c->peer_refused = true;
        if (strcmp(code, ERR_PROTOCOL) != 0) { /* not what was sent, but who sent it, or how much */
                (void) err_set(&c->e, code, -EACCES, "forkd refused this client: %s", message);
                (void) mp_get_str(params, "hint", c->e.hint, sizeof(c->e.hint));
                return;
        }
        (void) err_set(&c->e, ERR_PROTOCOL, -EPROTO, "forkd refused what forkctl sent: %s", message);
        (void) err_hint(&c->e, "are forkctl and forkd of the same version? see 'forkctl version'");
}

static void on_message(struct rpc_msg *msg, void *arg) {
        struct ctl *c = arg;
        struct err e;

        if (msg->is_request) {
                (void) err_set(&e, ERR_UNSUPPORTED, -EOPNOTSUPP, "forkctl answers no requests");
                (void) rpc_reply_err(msg->conn, msg->msgid, &e);
        } else if (strcmp(msg->method, "error") == 0) {
                on_error_notification(c, msg->params);
        } else if (c->on_notify) {
                c->on_notify(msg, c->notify_arg);
        }
}

static void on_drain(struct rpc_conn *conn, void *arg) {
        struct ctl *c = arg;

        if (c->on_drain)
                c->on_drain(c->notify_arg);
}

static void on_close(struct rpc_conn *conn, int r, void *arg) {
        struct ctl *c = arg;

        c->closed = true;
}

static const struct rpc_handlers handlers = { .on_message = on_message, .on_close = on_close, .on_drain = on_drain };

int ctl_loop(struct ctl *c) {
        struct event_config *cfg;

        if (c->base)
                return 0;
        cfg = event_config_new();
        if (cfg && event_config_avoid_method(cfg, "epoll") == 0)
                c->base = event_base_new_with_config(cfg);
        if (cfg)
                event_config_free(cfg);
        return c->base ? 0 : err_errno(&c->e, -ENOMEM, "making the event loop");
}

static int unreachable(struct ctl *c, int r) {
        (void) err_set(&c->e, ERR_UNREACHABLE, r, "cannot reach forkd at %s: %s", c->socket, strerror(-r));
        if (r == -ENOENT || r == -ECONNREFUSED)
                (void) err_hint(&c->e, "is forkd running? start it, or name its socket with --socket or FORKD_SOCKET");
        else if (r == -EACCES || r == -EPERM)
                (void) err_hint(&c->e, "root may, and members of the group in forkd's configuration: join it and log in again, "
                                       "or try as root");
        else if (r == -ENAMETOOLONG)
                (void) err_hint(&c->e, "a unix socket's path has at most 107 bytes");
        return c->e.r;
}

int ctl_connect(struct ctl *c) {
        int fd, r;

        if (c->conn)
                return 0;
        r = ctl_loop(c);
        if (r < 0)
                return r;
        r = io_connect_unix(c->socket, &fd);
        if (r < 0)
                return unreachable(c, r);
        r = rpc_conn_new(c->base, fd, &handlers, c, &c->conn);
        return r < 0 ? err_errno(&c->e, r, "connecting to forkd") : 0;
}

void ctl_hang_up(struct ctl *c) {
        rpc_conn_unref(c->conn);
        c->conn = NULL;
        c->closed = c->peer_refused = false;
}

void ctl_disconnect(struct ctl *c) {
        forget_partial(c);
        rpc_conn_unref(c->conn);
        c->conn = NULL;
        if (c->base)
                event_base_free(c->base);
        c->base = NULL;
}

/* ---- calls ---- */

static int went_away(struct ctl *c, int r, const char *method) {
        (void) err_set(&c->e, ERR_UNREACHABLE, r, "forkd went away before it answered %s", method);
        return err_hint(&c->e, "forkd's log has the reason; what was under way is completed or undone when it starts "
                               "again: see 'forkctl ps'");
}

int ctl_call_error(struct ctl *c, const char *method, const struct rpc_result *res) {
        if (c->peer_refused)
                return c->e.r;
        if (res->r != -EREMOTEIO) /* not forkd's answer: the connection ended */
                return went_away(c, res->r, method);
        c->e = res->e;
        return c->e.r;
}

static int start_fds(struct ctl *c, const char *method, const struct req *q, const int *fds, size_t n_fds, rpc_result_fn fn,
                     void *arg, uint32_t *ret_msgid) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r;

        req_encode(q, &b);
        r = ctl_connect(c);
        if (r < 0)
                return r;
        r = rpc_call(c->conn, method, &b, fds, n_fds, fn, arg, ret_msgid);
        if (r == -ENOTCONN)
                return went_away(c, r, method);
        if (r == -EMSGSIZE) {
                (void) err_set(&c->e, ERR_LIMIT, r, "the request is larger than %u MiB", RPC_MAX_MESSAGE >> 20);
                return r;
        }
        return r < 0 ? err_errno(&c->e, r, "calling %s", method) : 0;
}

int ctl_start(struct ctl *c, const char *method, const struct req *q, rpc_result_fn fn, void *arg, uint32_t *ret_msgid) {
        return start_fds(c, method, q, NULL, 0, fn, arg, ret_msgid);
}

struct waiting {
        struct ctl *c;
        const char *method;
        bool done;
        int r;
        json_t *result;
};

static void on_answer(const struct rpc_result *res, void *arg) {
        struct waiting *w = arg;

        w->done = true;
        if (res->r < 0) {
                w->r = ctl_call_error(w->c, w->method, res);
                return;
        }
        w->result = json_from_mp(res->result);
        if (!w->result)
                w->r = err_errno(&w->c->e, -ENOMEM, "reading the answer to %s", w->method);
}

static int wait_answer(struct ctl *c, struct waiting *w, json_t **ret_result) {
        while (!w->done)
                if (event_base_loop(c->base, EVLOOP_ONCE) != 0) {
                        w->done = true;
                        w->r = err_set(&c->e, ERR_INTERNAL, -EIO, "the event loop failed");
                }
        if (w->r < 0) {
                json_decref(w->result);
                return w->r;
        }
        if (ret_result)
                *ret_result = w->result;
        else
                json_decref(w->result);
        return 0;
}

int ctl_call(struct ctl *c, const char *method, const struct req *q, json_t **ret_result) {
        struct waiting w = { .c = c, .method = method };
        int r = start_fds(c, method, q, NULL, 0, on_answer, &w, NULL);

        return r < 0 ? r : wait_answer(c, &w, ret_result);
}

int ctl_call_fd(struct ctl *c, const char *method, struct req *q, int fd, json_t **ret_result) {
        struct waiting w = { .c = c, .method = method };
        int r;

        req_u64(q, "fds", 1);
        r = start_fds(c, method, q, &fd, 1, on_answer, &w, NULL);
        return r < 0 ? r : wait_answer(c, &w, ret_result);
}

int ctl_call_name(struct ctl *c, const char *method, const char *key, const char *name, json_t **ret_result) {
        cleanup_req struct req q;

        req_init(&q);
        req_str(&q, key, name);
        return ctl_call(c, method, &q, ret_result);
}

int ctl_wait_close(struct ctl *c, unsigned seconds) {
        const struct timeval tv = { .tv_sec = seconds };
        uint64_t start = now_ns();

        /* Whatever else happens meanwhile, the loop comes back when the time is over. */
        if (!c->closed && event_base_loopexit(c->base, &tv) < 0)
                return err_errno(&c->e, -ENOMEM, "waiting for forkd's end");
        while (!c->closed) {
                if (ms_since(start) >= seconds * 1000.0)
                        return err_set(&c->e, ERR_TIMEOUT, -ETIMEDOUT, "forkd did not end within %u s", seconds);
                if (event_base_loop(c->base, EVLOOP_ONCE) < 0)
                        return err_set(&c->e, ERR_INTERNAL, -EIO, "the event loop failed");
        }
        return 0;
}

int ctl_print(struct ctl *c, const json_t *j) {
        errno = 0;
        return json_print(stdout, j) < 0 ? err_errno(&c->e, errno ? -errno : -EIO, "writing the output") : 0;
}

int ctl_print_list(struct ctl *c, const json_t *list) {
        cleanup_json json_t *none = json_array();

        return ctl_print(c, list ? list : none);
}
