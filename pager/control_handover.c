/* SPDX-License-Identifier: MIT */
/* The methods by which a session goes to another pager, and by which forkd sees that this one lives: docs/protocol.md,
 * section 2. What they do is in handover.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "pager/mapping.h"
#include "pager/pager_internal.h"

/* ---- reading ---- */

/** The page ranges in @key, all inside of @n_pages. The caller frees *ret. */
static int get_ranges(const msgpack_object *params, const char *key, uint64_t n_pages, struct pager_removed_range **ret,
                      size_t *ret_n, struct err *e) {
        const msgpack_object *a = mp_get_array(params, key);
        cleanup_free struct pager_removed_range *list = NULL;

        if (!a || a->via.array.size > PAGER_MAX_RANGES)
                return err_set(e, ERR_INVALID, -EINVAL, "%s is no list of at most %u ranges", key, PAGER_MAX_RANGES);
        list = calloc((size_t) a->via.array.size + 1, sizeof(*list));
        if (!list)
                return err_errno(e, -ENOMEM, "reading %s", key);
        for (uint32_t i = 0; i < a->via.array.size; i++) {
                uint64_t v[2];

                if (mp_as_u64s(&a->via.array.ptr[i], v, 2) < 0 || v[1] == 0 || v[0] >= n_pages || v[1] > n_pages - v[0])
                        return err_set(e, ERR_INVALID, -EINVAL, "range %u of %s is no range of guest pages", i, key);
                list[i] = (struct pager_removed_range){ v[0], v[1] };
        }
        *ret_n = a->via.array.size;
        *ret = TAKE_PTR(list);
        return 0;
}

/** The layout that the handshake told of once. */
static int get_layout(const msgpack_object *params, uint64_t ram_bytes, struct pager_layout **ret, struct err *e) {
        const msgpack_object *a = mp_get_array(params, "regions");
        cleanup_free struct pager_layout *l = NULL;
        char why[PAGER_MAX_REASON];
        int r;

        if (!a || a->via.array.size == 0 || a->via.array.size > PAGER_MAX_REGIONS)
                return err_set(e, ERR_INVALID, -EINVAL, "regions is no list of 1 to %u regions", PAGER_MAX_REGIONS);
        l = pager_layout_new(a->via.array.size);
        if (!l)
                return err_errno(e, -ENOMEM, "reading the regions");
        for (; l->n < a->via.array.size; l->n++) {
                struct pager_region *g = &l->region[l->n];
                const char *wrong;
                uint64_t v[3];

                if (mp_as_u64s(&a->via.array.ptr[l->n], v, 3) < 0)
                        return err_set(e, ERR_INVALID, -EINVAL, "region %zu is not [base, size, offset]", l->n);
                *g = (struct pager_region){ .base = v[0], .size = v[1], .offset = v[2] };
                wrong = pager_region_check(g, PAGER_PAGE, ram_bytes);
                if (wrong)
                        return err_set(e, ERR_INVALID, -EINVAL, "region %zu %s", l->n, wrong);
        }
        r = pager_layout_finish(l, why, sizeof(why));
        if (r < 0)
                return err_set(e, ERR_INVALID, r, "%s", why);
        *ret = TAKE_PTR(l);
        return 0;
}

/* ---- methods ---- */

int pager_do_handles(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pager_session *s;
        int fds[3];
        int r = pager_named_session(p, msg, &s, e);

        if (r == 0)
                r = pager_handover_check(p, s, e);
        if (r < 0)
                return r;
        fds[0] = pager_image_memfd(s->image);
        fds[1] = pager_peer_fd(s->peer);
        fds[2] = s->uffd;
        mp_buf_init(&b);
        mp_map(&b, 5 + PAGER_MAPPING_KEYS);
        pager_mapping_put(&b, s);
        mp_kv_bool(&b, "joined", s->joined);
        mp_kv_str(&b, "session", s->id);
        mp_key(&b, "regions");
        if (s->attached)
                pager_put_regions(&b, s->layout); /* in memfd mode it never changes */
        else
                mp_array(&b, 0);
        mp_kv_bool(&b, "attached", s->attached);
        mp_kv_u64(&b, "fds", s->attached ? 3 : 2);
        return rpc_reply(msg->conn, msg->msgid, &b, fds, s->attached ? 3 : 2);
}

int pager_do_release(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_session *s;
        int r = pager_named_session(p, msg, &s, e);

        return r < 0 ? r : pager_handover_release(p, s, msg->conn, msg->msgid, e);
}

int pager_do_resume(struct pager *p, struct rpc_msg *msg, struct err *e) {
        struct pager_session *s;
        int r = pager_named_session(p, msg, &s, e);

        if (r == 0)
                r = pager_handover_resume(p, s, e);
        return r < 0 ? r : rpc_reply(msg->conn, msg->msgid, NULL, NULL, 0);
}

int pager_do_mark_removed(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_free struct pager_removed_range *list = NULL;
        struct pager_session *s;
        size_t n;
        int r = pager_named_session(p, msg, &s, e);

        if (r < 0)
                return r;
        if (!s->released)
                return err_set(e, ERR_STATE, -EBUSY, "session %s is served: what its VMM discards is heard of", s->id);
        r = get_ranges(msg->params, "ranges", pager_image_info(s->image)->ram_bytes / PAGER_PAGE, &list, &n, e);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                pager_session_mark_pages(s, list[i].first, list[i].first + list[i].n);
        return rpc_reply(msg->conn, msg->msgid, NULL, NULL, 0);
}

static int get_flag(const msgpack_object *params, const char *key, bool *ret, struct err *e) {
        if (mp_get_bool(params, key, ret) == -EBADMSG)
                return err_set(e, ERR_INVALID, -EINVAL, "%s is neither true nor false", key);
        return 0;
}

int pager_do_adopt(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_free struct pager_removed_range *removed = NULL;
        cleanup_free struct pager_mapping *mapping = NULL;
        cleanup_free struct pager_layout *layout = NULL;
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pager_adoption a = { 0 };
        struct pager_image_stats stats;
        struct pager_session *s;
        bool record = false;
        int64_t vm_pid = 0;
        id_str id;
        int r;

        if (mp_get_str(msg->params, "session", id, sizeof(id)) < 0 || !id_valid(id))
                return err_set(e, ERR_INVALID, -EINVAL, "session is not an id of %d hex digits", ID_LEN);
        if (mp_get_u64(msg->params, "ram_bytes", &a.ram_bytes) < 0 || a.ram_bytes == 0 || a.ram_bytes % PAGER_PAGE ||
            a.ram_bytes > SNAP_MAX_RAM)
                return err_set(e, ERR_INVALID, -EINVAL, "ram_bytes is missing or no size of guest RAM");
        if (msg->n_fds != 4)
                return err_set(e, ERR_INVALID, -EINVAL,
                               "%zu descriptors came, not four: memory.img, a socket, the image's memory, a userfaultfd",
                               msg->n_fds);
        r = mp_get_i64(msg->params, "vm_pid", &vm_pid);
        if (r != -ENOENT && (r < 0 || vm_pid <= 0 || vm_pid > INT32_MAX))
                return err_set(e, ERR_INVALID, -EINVAL, "vm_pid is no process id");
        r = get_flag(msg->params, "hold", &a.hold, e);
        if (r == 0)
                r = get_flag(msg->params, "record", &record, e);
        if (r == 0 && record)
                r = err_set(e, ERR_INVALID, -EINVAL, "what an adopted session needed first cannot be recorded any more");
        if (r == 0)
                r = get_layout(msg->params, a.ram_bytes, &layout, e);
        if (r == 0)
                r = get_ranges(msg->params, "removed", a.ram_bytes / PAGER_PAGE, &removed, &a.n_removed, e);
        if (r == 0)
                r = pager_mapping_get(msg->params, a.ram_bytes / PAGER_PAGE, &mapping, e);
        if (r < 0)
                return r;
        a.id = id;
        a.mapping = mapping;
        a.vm_pid = (pid_t) vm_pid;
        a.layout = layout;
        a.removed = removed;
        a.image_fd = msg->fds[0];
        a.vmm_sock = msg->fds[1];
        a.memfd = msg->fds[2];
        a.uffd = msg->fds[3];
        r = pager_adopt_session(p, &a, &s, e);
        if (r < 0)
                return r;
        log_info("session %s: adopted%s", s->id, a.hold ? ", not served yet" : "");
        pager_image_get_stats(s->image, &stats);
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "present_pages", stats.present_bytes / PAGER_PAGE);
        return rpc_reply(msg->conn, msg->msgid, &b, NULL, 0);
}

int pager_do_join(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_free struct pager_layout *layout = NULL;
        struct pager_adoption a = { .memfd = -1 };
        struct pager_session *s;
        int64_t vm_pid = 0;
        id_str id;
        int r;

        if (mp_get_str(msg->params, "session", id, sizeof(id)) < 0 || !id_valid(id))
                return err_set(e, ERR_INVALID, -EINVAL, "session is not an id of %d hex digits", ID_LEN);
        if (mp_get_u64(msg->params, "ram_bytes", &a.ram_bytes) < 0 || a.ram_bytes == 0 || a.ram_bytes % PAGER_PAGE ||
            a.ram_bytes > SNAP_MAX_RAM)
                return err_set(e, ERR_INVALID, -EINVAL, "ram_bytes is missing or no size of guest RAM");
        if (mp_get_i64(msg->params, "vm_pid", &vm_pid) < 0 || vm_pid <= 0 || vm_pid > INT32_MAX)
                return err_set(e, ERR_INVALID, -EINVAL, "vm_pid is no process id");
        if (msg->n_fds != 3 || !pager_peer_is_process(msg->fds[2]))
                return err_set(e, ERR_INVALID, -EINVAL, "what came is not memory.img, a userfaultfd and the VMM's pidfd");
        r = get_layout(msg->params, a.ram_bytes, &layout, e);
        if (r < 0)
                return r;
        a.id = id;
        a.vm_pid = (pid_t) vm_pid;
        a.layout = layout;
        a.image_fd = msg->fds[0];
        a.uffd = msg->fds[1];
        a.vmm_sock = msg->fds[2];
        r = pager_adopt_session(p, &a, &s, e);
        if (r < 0)
                return r;
        log_info("session %s: joined", s->id);
        return rpc_reply(msg->conn, msg->msgid, NULL, NULL, 0);
}

/** How long the oldest fault of @w's sessions (NULL: of any) waits, in ms. */
static uint64_t oldest_ms(const struct pager *p, const struct pager_worker *w, uint64_t now) {
        uint64_t oldest = now;

        for (const struct pager_session *s = p->sessions; s; s = s->next) {
                uint64_t since = atomic_load_explicit(&s->oldest_ns, memory_order_relaxed);

                if (s->failed || !s->worker || (w && s->worker != w))
                        continue;
                if (!since)
                        since = s->unread_since_ns;
                if (since)
                        oldest = MIN_OF(oldest, since);
        }
        return (now - oldest) / 1000000;
}

int pager_do_heartbeat(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint64_t now = now_ns();

        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_key(&b, "workers");
        mp_array(&b, p->n_workers);
        for (unsigned i = 0; i < p->n_workers; i++) {
                struct pager_worker *w = p->workers[i];

                mp_map(&b, 3);
                mp_kv_u64(&b, "stamp_age_ms", pager_worker_silent_ns(w) / 1000000);
                mp_kv_bool(&b, "reading", pager_worker_reading(w));
                mp_kv_u64(&b, "oldest_fault_ms", oldest_ms(p, w, now));
                pager_worker_beat(w);
        }
        mp_kv_u64(&b, "oldest_fault_ms", oldest_ms(p, NULL, now));
        return rpc_reply(msg->conn, msg->msgid, &b, NULL, 0);
}

int pager_do_flight(struct pager *p, struct rpc_msg *msg, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "fds", 1);
        return rpc_reply(msg->conn, msg->msgid, &b, &p->flight.readonly_fd, 1);
}
