/* SPDX-License-Identifier: MIT */
#include "forkd/api.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/co.h"
#include "common/io.h"
#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/pager/link.h"
#include "forkd/request.h"
#include "forkd/streams.h"

struct client {
        TAILQ_ENTRY(client) entry;
        struct api *api;
        struct rpc_conn *conn;
};

struct api {
        struct daemon *d;
        struct rpc_listener *listener;
        TAILQ_HEAD(, client) clients;
        unsigned n_clients, pending;
        struct co_wait *idle; /* woken when nothing is pending */
        char path[FORKD_MAX_RUN_DIR + 16];
};

/* ---- what forkd says of itself ---- */

static int api_version(struct request *rq, struct mp_buf *out, struct err *e) {
        mp_map(out, 2);
        mp_kv_str(out, "version", FORKD_VERSION);
        mp_kv_u64(out, "protocol", FORKD_PROTOCOL);
        return 0;
}

static int api_info(struct request *rq, struct mp_buf *out, struct err *e) {
        struct daemon *d = rq->d;
        uint64_t free_bytes = 0;

        best_effort(io_free_bytes(d->store_dir, &free_bytes));
        mp_map(out, 9);
        mp_kv_str(out, "version", FORKD_VERSION);
        mp_kv_u64(out, "protocol", FORKD_PROTOCOL);
        mp_kv_u64(out, "pid", (uint64_t) getpid());
        mp_kv_str(out, "state_dir", d->state_dir);
        mp_kv_str(out, "run_dir", d->run_dir);
        mp_kv_str(out, "cache_dir", d->cache_dir);
        mp_key(out, "store");
        mp_map(out, 3);
        mp_kv_str(out, "path", d->store_dir);
        mp_kv_bool(out, "reflink", d->reflink);
        mp_kv_u64(out, "free_bytes", free_bytes);
        mp_kv_u64(out, "vms", d->n_vms);
        mp_kv_u64(out, "pager_pid", (uint64_t) pager_pid(d->pager));
        return 0;
}

static int api_pager_status(struct request *rq, struct mp_buf *out, struct err *e) {
        return pager_status(rq->d->pager, out, e);
}

static int api_store_attach(struct request *rq, struct mp_buf *out, struct err *e) {
        int r = daemon_attach_store(rq->d, e);

        if (r < 0)
                return r;
        mp_map(out, 2);
        mp_kv_str(out, "path", rq->d->store_dir);
        mp_kv_bool(out, "reflink", rq->d->reflink);
        return 0;
}

static int api_shutdown(struct request *rq, struct mp_buf *out, struct err *e) {
        cleanup_mp_buf struct mp_buf names = { 0 };
        unsigned n;
        bool all;
        int r = rq_opt_bool(rq, "all", false, &all, e);

        mp_buf_init(&names);
        if (r == 0)
                r = daemon_shutdown(rq->d, all, &names, &n, e);
        if (r < 0)
                return r;
        mp_map(out, 1);
        mp_key(out, "stopped");
        mp_array(out, n);
        mp_raw(out, names.sb.data, names.sb.size);
        return 0;
}

static const struct api_method methods[] = {
        { "version", api_version },
        { "info", api_info },
        { "vm.run", api_vm_run },
        { "vm.list", api_vm_list },
        { "vm.inspect", api_vm_inspect },
        { "vm.standby", api_vm_standby },
        { "vm.restore", api_vm_restore },
        { "vm.fork", api_vm_fork },
        { "vm.pause", api_vm_pause },
        { "vm.resume", api_vm_resume },
        { "vm.stop", api_vm_stop },
        { "vm.rm", api_vm_rm },
        { "vm.logs", api_vm_logs },
        { "vm.ping", api_vm_ping },
        { "vm.exec", api_vm_exec },
        { "vm.put", api_vm_put },
        { "vm.get", api_vm_get },
        { "snapshot.list", api_snapshot_list },
        { "snapshot.show", api_snapshot_show },
        { "snapshot.create", api_snapshot_create },
        { "snapshot.rm", api_snapshot_rm },
        { "snapshot.verify", api_snapshot_verify },
        { "snapshot.memory", api_snapshot_memory },
        { "pager.status", api_pager_status },
        { "store.attach", api_store_attach },
        { "shutdown", api_shutdown },
};

/* Answered until the end: looking changes nothing. */
static bool is_harmless(const struct api_method *m) {
        return m->fn == api_version || m->fn == api_info || m->fn == api_vm_list || m->fn == api_vm_inspect ||
               m->fn == api_shutdown;
}

/* ---- parameters ---- */

static int bad_param(const char *key, int r, struct err *e) {
        if (r == -ENOENT)
                return err_set(e, ERR_INVALID, -EINVAL, "the parameter '%s' is missing", key);
        return err_set(e, ERR_INVALID, -EINVAL,
                       r == -ENAMETOOLONG ? "the parameter '%s' is too long" : "the parameter '%s' has the wrong type", key);
}

int rq_str(struct request *rq, const char *key, char *buf, size_t size, struct err *e) {
        int r = mp_get_str(&rq->doc.root, key, buf, size);

        return r < 0 ? bad_param(key, r, e) : 0;
}

int rq_opt_str(struct request *rq, const char *key, const char *def, char *buf, size_t size, struct err *e) {
        int r = mp_get_str(&rq->doc.root, key, buf, size);

        if (r == -ENOENT) {
                (void) snprintf(buf, size, "%s", def);
                return 0;
        }
        return r < 0 ? bad_param(key, r, e) : 0;
}

int rq_opt_u64(struct request *rq, const char *key, uint64_t def, uint64_t *ret, struct err *e) {
        int r;

        *ret = def;
        r = mp_get_u64(&rq->doc.root, key, ret);
        return r < 0 && r != -ENOENT ? bad_param(key, r, e) : 0;
}

int rq_opt_bool(struct request *rq, const char *key, bool def, bool *ret, struct err *e) {
        int r;

        *ret = def;
        r = mp_get_bool(&rq->doc.root, key, ret);
        return r < 0 && r != -ENOENT ? bad_param(key, r, e) : 0;
}

int rq_obj_str(const msgpack_object *o, char *buf, size_t size) {
        if (o->type != MSGPACK_OBJECT_STR || o->via.str.size >= size ||
            (o->via.str.size && memchr(o->via.str.ptr, 0, o->via.str.size)))
                return -EINVAL;
        if (o->via.str.size)
                memcpy(buf, o->via.str.ptr, o->via.str.size);
        buf[o->via.str.size] = '\0';
        return 0;
}

int rq_opt_array(struct request *rq, const char *key, const msgpack_object **ret, struct err *e) {
        const msgpack_object *o = mp_get(&rq->doc.root, key);

        if (o && o->type != MSGPACK_OBJECT_ARRAY)
                return bad_param(key, -EBADMSG, e);
        *ret = o;
        return 0;
}

int rq_vm(struct request *rq, struct vm **ret, struct err *e) {
        char name[256];
        int r = rq_str(rq, "name", name, sizeof(name), e);

        return r < 0 ? r : vm_find(rq->d, name, ret, e);
}

/* ---- requests ---- */

static void request_free(struct request *rq) {
        for (size_t i = 0; i < rq->n_fds; i++)
                (void) close_fd(rq->fds[i]);
        mp_doc_clear(&rq->doc);
        free(rq->raw);
        rpc_conn_unref(rq->conn);
        free(rq);
}

static void request_done(struct api *a) {
        if (--a->pending == 0 && a->idle)
                co_wake(TAKE_PTR(a->idle), 0);
}

static void request_run(void *arg) {
        cleanup_mp_buf struct mp_buf out = { 0 };
        struct request *rq = arg;
        struct err e = { 0 };
        int r;

        mp_buf_init(&out);
        r = rq->method->fn(rq, &out, &e);
        if (r == 0) {
                (void) rpc_reply(rq->conn, rq->msgid, &out, NULL, 0);
        } else if (r < 0) {
                log_info("%s: %s", rq->method->name, e.message);
                (void) rpc_reply_err(rq->conn, rq->msgid, &e);
        }
        request_done(rq->d->api);
        request_free(rq);
}

static int request_new(struct daemon *d, struct rpc_msg *m, const struct api_method *method, struct request **ret) {
        struct request *rq = calloc(1, sizeof(*rq));
        int r;

        if (!rq)
                return -ENOMEM;
        rq->d = d;
        rq->conn = rpc_conn_ref(m->conn);
        rq->msgid = m->msgid;
        rq->method = method;
        rq->raw = malloc(m->raw_params_len);
        r = rq->raw ? 0 : -ENOMEM;
        if (r == 0) {
                memcpy(rq->raw, m->raw_params, m->raw_params_len);
                r = mp_parse(rq->raw, m->raw_params_len, &rq->doc);
        }
        if (r < 0) {
                request_free(rq);
                return r;
        }
        for (; rq->n_fds < ARRAY_LEN(rq->fds) && rq->n_fds < m->n_fds; rq->n_fds++)
                rq->fds[rq->n_fds] = TAKE_FD(m->fds[rq->n_fds]);
        *ret = rq;
        return 0;
}

static void refuse(struct rpc_msg *m, const char *code, int r, const char *what, const char *hint) {
        struct err e;

        (void) err_set(&e, code, r, "%s", what);
        (void) err_hint(&e, "%s", hint);
        (void) rpc_reply_err(m->conn, m->msgid, &e);
}

static void on_message(struct rpc_msg *m, void *arg) {
        struct client *c = arg;
        struct api *a = c->api;
        struct request *rq;
        char what[128];
        int r;

        if (!m->is_request) {
                streams_on_message(a->d, m);
                return;
        }
        for (size_t i = 0; i < ARRAY_LEN(methods); i++) {
                if (strcmp(m->method, methods[i].name) != 0)
                        continue;
                if (a->d->stopping && !is_harmless(&methods[i])) {
                        refuse(m, ERR_CANCELED, -ECANCELED, "forkd is about to exit", "try again when it is back");
                        return;
                }
                r = request_new(a->d, m, &methods[i], &rq);
                if (r == 0) {
                        a->pending++;
                        r = co_start(a->d->base, request_run, rq);
                        if (r < 0) {
                                request_done(a);
                                request_free(rq);
                        }
                }
                if (r < 0)
                        refuse(m, ERR_NO_SPACE, r, "forkd is out of memory", "try again later");
                return;
        }
        (void) snprintf(what, sizeof(what), "there is no method '%s'", m->method);
        refuse(m, ERR_PROTOCOL, -ENOSYS, what, "see the protocol's table of methods; forkctl and forkd may differ in version");
}

static void client_free(struct client *c) {
        TAILQ_REMOVE(&c->api->clients, c, entry);
        c->api->n_clients--;
        rpc_conn_unref(c->conn);
        free(c);
}

static void on_close(struct rpc_conn *conn, int r, void *arg) {
        struct client *c = arg;

        if (r < 0)
                log_info("a client (pid %d) was disconnected: %s", (int) rpc_conn_peer(conn)->pid, strerror(-r));
        streams_client_gone(c->api->d, conn);
        client_free(c);
}

static const struct rpc_handlers client_handlers = { .on_message = on_message, .on_close = on_close };

static void on_accept(int fd, void *arg) {
        struct api *a = arg;
        struct client *c;

        if (a->n_clients >= FORKD_MAX_CLIENTS) {
                log_warning("refused a client: there are %u already", a->n_clients);
                (void) close_fd(fd);
                return;
        }
        c = calloc(1, sizeof(*c));
        if (!c) {
                (void) close_fd(fd);
                return;
        }
        c->api = a;
        TAILQ_INSERT_TAIL(&a->clients, c, entry);
        a->n_clients++;
        if (rpc_conn_new(a->d->base, fd, &client_handlers, c, &c->conn) < 0) {
                client_free(c);
                return;
        }
        /* The socket's mode keeps others out; this is the second lock, should somebody loosen it. */
        if (rpc_conn_peer(c->conn)->uid != 0 && rpc_conn_peer(c->conn)->uid != geteuid()) {
                log_warning("refused a client of user %u", rpc_conn_peer(c->conn)->uid);
                client_free(c);
        }
}

int api_new(struct daemon *d, struct api **ret, struct err *e) {
        struct api *a = calloc(1, sizeof(*a));
        int fd, r;

        if (!a)
                return err_errno(e, -ENOMEM, "opening the control socket");
        a->d = d;
        TAILQ_INIT(&a->clients);
        (void) snprintf(a->path, sizeof(a->path), "%s/forkd.sock", d->run_dir);
        r = io_listen_unix(a->path, 0600, &fd);
        if (r == 0)
                r = rpc_listener_new(d->base, fd, on_accept, a, &a->listener);
        if (r < 0) {
                free(a);
                (void) err_errno(e, r, "listening on %s/forkd.sock", d->run_dir);
                return r == -EADDRINUSE ? err_hint(e, "another forkd serves it: use another --run-dir") : r;
        }
        *ret = a;
        return 0;
}

void api_close_door(struct api *a) {
        if (!a->listener)
                return;
        rpc_listener_free(TAKE_PTR(a->listener));
        (void) unlink(a->path);
}

void api_free(struct api *a) {
        if (!a)
                return;
        api_close_door(a);
        for (struct client *c; (c = TAILQ_FIRST(&a->clients));) {
                streams_client_gone(a->d, c->conn);
                rpc_conn_close(c->conn); /* a request that got no answer may hold it still */
                client_free(c);
        }
        free(a);
}

void api_wait_idle(struct api *a, int timeout_ms) {
        struct co_wait w = CO_WAIT_INIT;

        if (a->pending == 0)
                return;
        a->idle = &w;
        if (co_wait(&w, timeout_ms) == -ETIMEDOUT && !w.done) {
                a->idle = NULL;
                log_warning("%u request(s) are left without an answer", a->pending);
        }
}
