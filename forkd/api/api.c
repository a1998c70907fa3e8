/* SPDX-License-Identifier: MIT */
/* The table of methods, and a request's way from its message to its answer. Who may connect is api_clients.c. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/api/api_internal.h"
#include "forkd/catalog.h"
#include "forkd/events.h"
#include "forkd/monitor/stats.h"
#include "forkd/pager/link.h"
#include "forkd/api/request.h"
#include "forkd/host/room.h"
#include "forkd/api/streams.h"

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
        mp_map(out, 10);
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
        mp_key(out, "admission");
        room_encode(d, out);
        return 0;
}

static int api_pager_status(struct request *rq, struct mp_buf *out, struct err *e) {
        return pager_status(rq->d->pager, out, e);
}

static int api_pager_upgrade(struct request *rq, struct mp_buf *out, struct err *e) {
        struct pager_upgrade_result res;
        int r = pager_upgrade(rq->d->pager, &res, e);

        if (r < 0)
                return r;
        mp_map(out, 8);
        mp_kv_i64(out, "old_pid", res.old_pid);
        mp_kv_i64(out, "new_pid", res.new_pid);
        mp_kv_str(out, "old_version", res.old_version);
        mp_kv_str(out, "new_version", res.new_version);
        mp_kv_u64(out, "sessions", res.sessions);
        mp_kv_double(out, "pause_p50_ms", res.pause_p50_ms);
        mp_kv_double(out, "pause_max_ms", res.pause_max_ms);
        mp_kv_double(out, "total_ms", res.total_ms);
        return 0;
}

static int api_pager_stop(struct request *rq, struct mp_buf *out, struct err *e) {
        int r = pager_stop(rq->d->pager, e);

        if (r == 0)
                mp_map(out, 0);
        return r;
}

static int api_events(struct request *rq, struct mp_buf *out, struct err *e) {
        uint64_t after, wait_ms;
        int r = rq_opt_u64(rq, "after", events_newest(rq->d->events), &after, e);

        if (r == 0)
                r = rq_opt_u64(rq, "wait_ms", 0, &wait_ms, e);
        if (r < 0)
                return r;
        r = events_read(rq->d->events, after, (unsigned) MIN_OF(wait_ms, (uint64_t) EVENTS_MAX_WAIT_MS),
                        caller_is_root(rq->caller) ? NULL : rq->account, out);
        if (r == -EUSERS)
                return err_set(e, ERR_LIMIT, r, "%u requests of the user %u wait for events already", EVENTS_MAX_USER_WAITERS,
                               (unsigned) rq->caller->uid);
        if (r == -EBUSY)
                return err_set(e, ERR_LIMIT, r, "%u clients wait for events already", EVENTS_MAX_WAITERS);
        return r < 0 ? err_errno(e, r, "reading the events") : 0;
}

static int api_stats(struct request *rq, struct mp_buf *out, struct err *e) {
        char name[256];
        int r = rq_opt_str(rq, "name", "", name, sizeof(name), e);

        return r < 0 ? r : stats_document(rq->d, name[0] ? name : NULL, out, e);
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
        mp_kv_list(out, "stopped", &names, n);
        return 0;
}

/* Who may ask for what. A member may do everything with VMs and snapshots: the group is one circle of trust. What changes
 * the host or ends forkd is root's. */
static const struct api_method methods[] = {
        { "version", api_version, API_MEMBER },
        { "info", api_info, API_MEMBER },
        { "vm.run", api_vm_run, API_MEMBER },
        { "vm.list", api_vm_list, API_MEMBER },
        { "vm.inspect", api_vm_inspect, API_MEMBER },
        { "vm.standby", api_vm_standby, API_MEMBER },
        { "vm.restore", api_vm_restore, API_MEMBER },
        { "vm.fork", api_vm_fork, API_MEMBER },
        { "vm.pause", api_vm_pause, API_MEMBER },
        { "vm.resume", api_vm_resume, API_MEMBER },
        { "vm.stop", api_vm_stop, API_MEMBER },
        { "vm.rm", api_vm_rm, API_MEMBER },
        { "vm.logs", api_vm_logs, API_MEMBER },
        { "vm.ping", api_vm_ping, API_MEMBER },
        { "vm.exec", api_vm_exec, API_MEMBER },
        { "vm.put", api_vm_put, API_MEMBER },
        { "vm.get", api_vm_get, API_MEMBER },
        { "pool.create", api_pool_create, API_MEMBER },
        { "pool.set", api_pool_set, API_MEMBER },
        { "pool.take", api_pool_take, API_MEMBER },
        { "pool.list", api_pool_list, API_MEMBER },
        { "pool.rm", api_pool_rm, API_MEMBER },
        { "snapshot.list", api_snapshot_list, API_MEMBER },
        { "snapshot.show", api_snapshot_show, API_MEMBER },
        { "snapshot.create", api_snapshot_create, API_MEMBER },
        { "snapshot.rm", api_snapshot_rm, API_MEMBER },
        { "snapshot.verify", api_snapshot_verify, API_MEMBER },
        { "snapshot.memory", api_snapshot_memory, API_MEMBER },
        { "pager.status", api_pager_status, API_MEMBER },
        { "pager.upgrade", api_pager_upgrade, API_ROOT },
        { "pager.stop", api_pager_stop, API_ROOT },
        { "events", api_events, API_MEMBER },
        { "stats", api_stats, API_MEMBER },
        { "store.attach", api_store_attach, API_ROOT },
        { "orphans", api_orphans, API_ROOT },
        { "shutdown", api_shutdown, API_ROOT },
};

/* Answered until the end: looking changes nothing. */
static bool is_harmless(const struct api_method *m) {
        return m->fn == api_version || m->fn == api_info || m->fn == api_vm_list || m->fn == api_vm_inspect ||
               m->fn == api_pool_list || m->fn == api_shutdown;
}

/* ---- requests ---- */

static void request_free(struct request *rq) {
        for (size_t i = 0; i < rq->n_fds; i++)
                (void) close_fd(rq->fds[i]);
        mp_doc_clear(&rq->doc);
        free(rq->raw);
        caller_unref(rq->caller);
        account_request_end(rq->account, rq->raw_len);
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
        co_set_owner(rq->conn);
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

static int request_new(struct client *c, struct rpc_msg *m, const struct api_method *method, struct request **ret,
                       struct err *e) {
        struct request *rq = calloc(1, sizeof(*rq));
        int r = rq ? account_request_begin(c->account, m->raw_params_len, e) : err_errno(e, -ENOMEM, "taking a request");

        if (r < 0) {
                free(rq);
                return r;
        }
        rq->d = c->api->d;
        rq->conn = rpc_conn_ref(m->conn);
        rq->caller = caller_ref(c->caller);
        rq->account = c->account;
        rq->raw_len = m->raw_params_len;
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
                return err_errno(e, r, "taking a request");
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

static const struct api_method *find_method(const char *name) {
        for (size_t i = 0; i < ARRAY_LEN(methods); i++)
                if (strcmp(name, methods[i].name) == 0)
                        return &methods[i];
        return NULL;
}

static void request_start(struct client *c, struct rpc_msg *m, const struct api_method *method) {
        struct api *a = c->api;
        struct request *rq = NULL;
        struct err e = { 0 };
        int r = request_new(c, m, method, &rq, &e);

        if (r == 0) {
                a->pending++;
                r = co_start(a->d->base, request_run, rq);
                if (r < 0) {
                        request_done(a);
                        request_free(rq);
                        (void) err_errno(&e, r, "taking a request");
                }
        }
        if (r < 0)
                (void) rpc_reply_err(m->conn, m->msgid, &e);
}

void api_request(struct client *c, struct rpc_msg *m) {
        const struct api_method *method = find_method(m->method);
        char what[128];

        if (!method) {
                (void) snprintf(what, sizeof(what), "there is no method '%s'", m->method);
                refuse(m, ERR_PROTOCOL, -ENOSYS, what,
                       "see the protocol's table of methods; forkctl and forkd may differ in version");
        } else if (method->right != API_MEMBER && !caller_is_root(c->caller)) {
                (void) snprintf(what, sizeof(what), "only root may ask for '%s'", m->method);
                refuse(m, ERR_FORBIDDEN, -EACCES, what, "try again as root: it changes the host or forkd itself");
        } else if (c->api->d->stopping && !is_harmless(method)) {
                refuse(m, ERR_CANCELED, -ECANCELED, "forkd is about to exit", "try again when it is back");
        } else {
                request_start(c, m, method);
        }
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
