/* SPDX-License-Identifier: MIT */
/* The methods of the control socket: docs/protocol.md, section 2. */
#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "pager/ahead.h"
#include "pager/mapping.h"
#include "pager/pager_internal.h"

#define PROTOCOL_VERSION 1

/* ---- notifications and late answers ---- */

void pager_notify(struct pager *p, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds) {
        for (struct pager_conn *c = p->conns; c; c = c->next) {
                int r = rpc_notify(c->rpc, method, params, fds, n_fds);

                if (r == 0 && rpc_conn_queued(c->rpc) <= PAGER_MAX_CONN_QUEUE)
                        continue;
                if (!rpc_conn_is_open(c->rpc))
                        continue;
                /* Better no connection than one that has missed a guest's failure. */
                log_warning("closing a control connection that does not read its notifications");
                rpc_conn_close(c->rpc);
        }
}

static void refuse_ended(struct pager_waiter *w) {
        struct err e = { 0 };

        if (!w->conn)
                return;
        (void) err_set(&e, ERR_NOT_FOUND, -ENOENT, "the session ended");
        (void) rpc_reply_err(w->conn, w->msgid, &e);
        rpc_conn_unref(TAKE_PTR(w->conn));
}

void pager_answer_ended(struct pager_waiter *close, struct pager_waiter *sync, struct pager_waiter *release) {
        refuse_ended(sync);
        refuse_ended(release);
        if (close->conn) {
                (void) rpc_reply(close->conn, close->msgid, NULL, NULL, 0);
                rpc_conn_unref(TAKE_PTR(close->conn));
        }
}

static void encode_removed(const struct pager_session *s, struct mp_buf *b) {
        cleanup_mp_buf struct mp_buf ranges = { 0 };
        uint64_t page = s->sync_first_page, first, n;
        size_t count = 0;
        bool more;

        /* Once over the bitmap: its worker goes on setting bits, so a second look would find other ranges. */
        mp_buf_init(&ranges);
        while ((more = pager_session_next_removed(s, page, &first, &n)) && count < PAGER_MAX_RANGES) {
                mp_array(&ranges, 2);
                mp_u64(&ranges, first);
                mp_u64(&ranges, n);
                page = first + n;
                count++;
        }
        mp_map(b, more ? 2 : 1);
        mp_kv_list(b, "ranges", &ranges, count);
        if (more)
                mp_kv_u64(b, "next", page);
}

void pager_answer_removed(struct pager_session *s) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        if (!s->sync_waiter.conn)
                return;
        mp_buf_init(&b);
        encode_removed(s, &b);
        (void) rpc_reply(s->sync_waiter.conn, s->sync_waiter.msgid, &b, NULL, 0);
        rpc_conn_unref(TAKE_PTR(s->sync_waiter.conn));
}

/* ---- methods: 0 when answered (now or later), else -errno with *e filled ---- */

int pager_named_session(struct pager *p, const struct rpc_msg *msg, struct pager_session **ret, struct err *e) {
        id_str id;
        struct pager_session *s;

        if (mp_get_str(msg->params, "session", id, sizeof(id)) < 0 || !id_valid(id))
                return err_set(e, ERR_INVALID, -EINVAL, "session is not an id of %d hex digits", ID_LEN);
        s = pager_find_session(p, id);
        if (!s)
                return err_set(e, ERR_NOT_FOUND, -ENOENT, "no session %s is open", id);
        if (s->ending)
                return err_set(e, ERR_BUSY, -EBUSY, "session %s is being closed", id);
        *ret = s;
        return 0;
}

static int do_hello(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_i64(&b, "pid", getpid());
        mp_kv_str(&b, "version", p->cfg.version);
        mp_kv_u64(&b, "protocol", PROTOCOL_VERSION);
        return rpc_reply(msg->conn, msg->msgid, &b, NULL, 0);
}

/** Reads `id` and `chain`; @chain has room for PAGER_MAX_DESCENT. */
static int get_descent(const msgpack_object *params, id_str id, id_str *chain, struct pager_descent *ret, struct err *e) {
        const msgpack_object *list = mp_get_array(params, "chain");
        int r = mp_get_str(params, "id", id, sizeof(id_str));

        if (r != -ENOENT && (r < 0 || !id_valid(id)))
                return err_set(e, ERR_INVALID, -EINVAL, "id is not an id of %d hex digits", ID_LEN);
        if (r == -ENOENT)
                id[0] = '\0';
        *ret = (struct pager_descent){ .id = id, .chain = chain };
        if (!list && mp_get(params, "chain"))
                return err_set(e, ERR_INVALID, -EINVAL, "chain is no list");
        if (list && list->via.array.size > PAGER_MAX_DESCENT)
                return err_set(e, ERR_INVALID, -EINVAL, "chain has more than %u ids", PAGER_MAX_DESCENT);
        for (; list && ret->n_chain < list->via.array.size; ret->n_chain++) {
                const msgpack_object *o = &list->via.array.ptr[ret->n_chain];

                if (o->type == MSGPACK_OBJECT_STR && o->via.str.size == ID_LEN) {
                        memcpy(chain[ret->n_chain], o->via.str.ptr, ID_LEN);
                        chain[ret->n_chain][ID_LEN] = '\0';
                }
                if (!id_valid(chain[ret->n_chain]))
                        return err_set(e, ERR_INVALID, -EINVAL, "chain is no list of ids");
        }
        return 0;
}

static int do_open(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        char uuid[2 * SNAP_UUID_LEN + 1];
        struct pager_image_stats stats;
        cleanup_free id_str *chain = calloc(PAGER_MAX_DESCENT, sizeof(*chain));
        struct pager_opening o = { 0 };
        struct pager_session *s;
        int64_t vm_pid = 0;
        size_t sock;
        id_str id, image_id, live;
        int r;

        mp_buf_init(&b);
        if (mp_get_str(msg->params, "session", id, sizeof(id)) < 0 || !id_valid(id))
                return err_set(e, ERR_INVALID, -EINVAL, "session is not an id of %d hex digits", ID_LEN);
        o.id = id;
        if (mp_get_u64(msg->params, "ram_bytes", &o.ram_bytes) < 0)
                return err_set(e, ERR_INVALID, -EINVAL, "ram_bytes is missing or no number");
        r = mp_get_str(msg->params, "live", live, sizeof(live));
        if (r != -ENOENT && (r < 0 || !id_valid(live)))
                return err_set(e, ERR_INVALID, -EINVAL, "live is not an id of %d hex digits", ID_LEN);
        o.live = r == 0 ? live : NULL;
        sock = o.live ? 0 : 1; /* a nascent image has no file */
        if (msg->n_fds != sock + 1 && msg->n_fds != sock + 2)
                return err_set(e, ERR_INVALID, -EINVAL, "%zu descriptors came, not %sa socket, perhaps a working set", msg->n_fds,
                               o.live ? "" : "memory.img, ");
        r = mp_get_i64(msg->params, "vm_pid", &vm_pid);
        if (r != -ENOENT && (r < 0 || vm_pid <= 0 || vm_pid > INT32_MAX))
                return err_set(e, ERR_INVALID, -EINVAL, "vm_pid is no process id");
        o.vm_pid = (pid_t) vm_pid;
        if (mp_get_bool(msg->params, "expect", &o.expect) == -EBADMSG)
                return err_set(e, ERR_INVALID, -EINVAL, "expect is neither true nor false");
        if (o.expect && o.vm_pid > 0)
                return err_set(e, ERR_INVALID, -EINVAL, "vm_pid names the VMM, so there is nothing to expect");
        if (mp_get_bool(msg->params, "record", &o.record) == -EBADMSG)
                return err_set(e, ERR_INVALID, -EINVAL, "record is neither true nor false");
        if (mp_get_bool(msg->params, "segments", &o.segments) == -EBADMSG)
                return err_set(e, ERR_INVALID, -EINVAL, "segments is neither true nor false");
        if (!chain)
                return err_errno(e, -ENOMEM, "opening a session");
        r = get_descent(msg->params, image_id, chain, &o.descent, e);
        if (r < 0)
                return r;
        o.workingset_fd = msg->n_fds == sock + 2 ? TAKE_FD(msg->fds[sock + 1]) : -1;
        o.image_fd = o.live ? -1 : TAKE_FD(msg->fds[0]);
        o.vmm_sock = TAKE_FD(msg->fds[sock]);
        r = pager_open_session(p, &o, &s, e);
        if (r < 0)
                return r;
        log_info("session %s: opened", s->id);

        hex_encode(pager_image_info(s->image)->uuid, SNAP_UUID_LEN, uuid);
        pager_image_get_stats(s->image, &stats);
        mp_map(&b, 5 + PAGER_MAPPING_KEYS);
        pager_mapping_put(&b, s);
        mp_kv_str(&b, "image", uuid);
        mp_kv_u64(&b, "ram_bytes", o.ram_bytes);
        mp_kv_u64(&b, "present_bytes", stats.present_bytes);
        mp_kv_u64(&b, "workingset_pages", s->ahead ? s->ahead->n_pages : 0);
        mp_kv_u64(&b, "fds", 2);
        r = rpc_reply(msg->conn, msg->msgid, &b, (int[]){ pager_image_readonly_fd(s->image), pager_image_memfd(s->image) }, 2);
        if (r < 0) {
                /* The caller does not have the memfd, so nobody can use this session. */
                pager_end_session(p, s);
                return err_errno(e, r, "handing out the image's memory");
        }
        return 0;
}

static int do_expect(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_session *s;
        int r = pager_named_session(p, msg, &s, e);

        if (r < 0)
                return r;
        if (msg->n_fds != 1)
                return err_set(e, ERR_INVALID, -EINVAL, "%zu descriptors came, not one: the VMM's pidfd", msg->n_fds);
        r = pager_expect_vmm(s, TAKE_FD(msg->fds[0]), e);
        if (r < 0)
                return r;
        r = rpc_reply(msg->conn, msg->msgid, NULL, NULL, 0);
        pager_peer_go_on(s->peer); /* may be the end of the session */
        return r;
}

static int do_close(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_session *s;
        int r = pager_named_session(p, msg, &s, e);

        if (r < 0)
                return r;
        s->close_waiter = (struct pager_waiter){ rpc_conn_ref(msg->conn), msg->msgid };
        pager_end_session(p, s);
        return 0;
}

static int do_removed(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_session *s;
        uint64_t first = 0;
        int r = pager_named_session(p, msg, &s, e);

        if (r < 0)
                return r;
        if (s->sync_waiter.conn)
                return err_set(e, ERR_BUSY, -EBUSY, "session.removed of session %s is under way", s->id);
        if (mp_get_u64(msg->params, "first_page", &first) == -EBADMSG)
                return err_set(e, ERR_INVALID, -EINVAL, "first_page is no page number");
        s->sync_first_page = first;
        s->sync_waiter = (struct pager_waiter){ rpc_conn_ref(msg->conn), msg->msgid };
        /* Through the worker: what the VMM discarded before this call is then in the answer. */
        if (s->moving)
                s->sync_deferred = true;
        else if (s->worker)
                pager_worker_sync(s->worker, s);
        else
                pager_answer_removed(s);
        return 0;
}

static int do_workingset(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pager_session *s;
        int r = pager_named_session(p, msg, &s, e);

        if (r < 0)
                return r;
        mp_buf_init(&b);
        pager_workingset_tell(s, &b);
        return rpc_reply(msg->conn, msg->msgid, &b, NULL, 0);
}

static int do_prefetch(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_session *s;
        int r = pager_named_session(p, msg, &s, e);

        if (r < 0)
                return r;
        pager_filler_start(p->filler, pager_image_job(s->image));
        return rpc_reply(msg->conn, msg->msgid, NULL, NULL, 0);
}

static int do_status(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        pager_status(p, &b);
        return rpc_reply(msg->conn, msg->msgid, &b, NULL, 0);
}

static int do_shutdown(struct pager *p, struct rpc_msg *msg, struct err *e) {
        bool force = false;
        int r;

        if (mp_get_bool(msg->params, "force", &force) == -EBADMSG)
                return err_set(e, ERR_INVALID, -EINVAL, "force is neither true nor false");
        if (p->n_sessions > 0 && !force) {
                r = err_set(e, ERR_BUSY, -EBUSY, "%u sessions are open: their guests would hang", p->n_sessions);
                (void) err_hint(e, "stop their guests first, or pass force");
                return r;
        }
        if (p->n_sessions > 0)
                log_warning("ending by force: %u sessions are open, their guests wait for pages from now on", p->n_sessions);
        r = rpc_reply(msg->conn, msg->msgid, NULL, NULL, 0);
        pager_end(p);
        return r;
}

static const struct {
        const char *name;
        int (*fn)(struct pager *p, struct rpc_msg *msg, struct err *e);
} methods[] = {
        { "hello", do_hello },
        { "session.open", do_open },
        { "session.expect", do_expect },
        { "session.close", do_close },
        { "session.removed", do_removed },
        { "session.workingset", do_workingset },
        { "session.handles", pager_do_handles },
        { "session.release", pager_do_release },
        { "session.resume", pager_do_resume },
        { "session.mark_removed", pager_do_mark_removed },
        { "session.adopt", pager_do_adopt },
        { "session.join", pager_do_join },
        { "session.unprotect", pager_do_unprotect },
        { "live.prepare", pager_do_live_prepare },
        { "live.protect", pager_do_live_protect },
        { "live.wait", pager_do_live_wait },
        { "live.publish", pager_do_live_publish },
        { "live.cancel", pager_do_live_cancel },
        { "heartbeat", pager_do_heartbeat },
        { "flight", pager_do_flight },
        { "image.prefetch", do_prefetch },
        { "image.handles", pager_do_image_handles },
        { "image.adopt", pager_do_image_adopt },
        { "status", do_status },
        { "shutdown", do_shutdown },
};

/* ---- connections ---- */

static void on_message(struct rpc_msg *msg, void *arg) {
        struct pager_conn *c = arg;
        struct err e = { 0 };

        if (!msg->is_request)
                return;
        for (size_t i = 0; i < ARRAY_LEN(methods); i++)
                if (strcmp(msg->method, methods[i].name) == 0) {
                        int r = methods[i].fn(c->pager, msg, &e);

                        if (r < 0 && e.r < 0)
                                (void) rpc_reply_err(msg->conn, msg->msgid, &e);
                        return;
                }
        (void) err_set(&e, ERR_INVALID, -ENOSYS, "no method %s", msg->method);
        (void) rpc_reply_err(msg->conn, msg->msgid, &e);
}

static void conn_free(struct pager_conn *c) {
        struct pager_conn **at = &c->pager->conns;

        while (*at != c)
                at = &(*at)->next;
        *at = c->next;
        c->pager->n_conns--;
        rpc_conn_unref(c->rpc);
        free(c);
}

static void on_close(struct rpc_conn *conn, int r, void *arg) {
        /* Sessions stay: forkd may come back. */
        conn_free(arg);
}

static const struct rpc_handlers handlers = { .on_message = on_message, .on_close = on_close };

static bool peer_allowed(int fd) {
        struct ucred peer;
        socklen_t len = sizeof(peer);

        return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && (peer.uid == 0 || peer.uid == geteuid());
}

void pager_accept(int fd, void *arg) {
        struct pager *p = arg;
        struct pager_conn *c;

        if (p->n_conns >= PAGER_MAX_CONNECTIONS || !peer_allowed(fd)) {
                log_warning("refused a control connection: %s",
                            p->n_conns >= PAGER_MAX_CONNECTIONS ? "too many" : "another user's");
                (void) close_fd(fd);
                return;
        }
        c = calloc(1, sizeof(*c));
        if (!c) {
                (void) close_fd(fd);
                return;
        }
        c->pager = p;
        if (rpc_conn_new(p->base, fd, &handlers, c, &c->rpc) < 0) {
                free(c);
                return;
        }
        c->next = p->conns;
        p->conns = c;
        p->n_conns++;
}

void pager_close_conns(struct pager *p) {
        while (p->conns)
                conn_free(p->conns);
}
