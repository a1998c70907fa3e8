/* SPDX-License-Identifier: MIT */
/* The sessions that VMs have with the pager; process.c has the process. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/recording.h"

static struct vm *session_of(struct pager *p, const msgpack_object *params) {
        struct vm *vm;
        id_str id;

        if (mp_get_str(params, "session", id, sizeof(id)) < 0)
                return NULL;
        vm = vm_by_id(p->d, id);
        return vm && vm->session ? vm : NULL;
}

/* ---- what the pager tells ---- */

void pager_on_message(struct rpc_msg *m, void *arg) {
        struct pager *p = arg;
        struct vm *vm = session_of(p, m->params);
        char reason[sizeof(vm->lost) - 8] = "unknown";

        if (strcmp(m->method, "session.attached") == 0) {
                if (vm && m->n_fds == 1) {
                        (void) close_fd(vm->uffd);
                        vm->uffd = TAKE_FD(m->fds[0]);
                }
        } else if (strcmp(m->method, "session.failed") == 0) {
                (void) mp_get_str(m->params, "reason", reason, sizeof(reason));
                log_error("the pager cannot serve %s: %s", vm ? vm->name : "an unknown session", reason);
                if (vm) {
                        char full[sizeof(vm->lost)];

                        (void) snprintf(full, sizeof(full), "pager: %s", reason);
                        vm_kill_lost(vm, full);
                }
        } else if (strcmp(m->method, "session.recorded") == 0) {
                if (vm)
                        recording_done(vm);
        } else if (m->is_request) {
                struct err e;

                (void) err_set(&e, ERR_PROTOCOL, -EPROTO, "forkd takes no calls from the pager");
                (void) rpc_reply_err(m->conn, m->msgid, &e);
        }
}

/* ---- sessions ---- */

static void put_session(struct mp_buf *b, const struct vm *vm, size_t more) {
        mp_map(b, 1 + more);
        mp_kv_str(b, "session", vm->id);
}

static int open_once(struct pager *p, struct vm *vm, int image_fd, int workingset_fd, int *ret_memfd, int *ret_sock,
                     struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_fd int vmm_end = -1, pager_end = -1;
        cleanup_mp_buf struct mp_buf b = { 0 };
        size_t n_fds = workingset_fd >= 0 ? 3 : 2;
        int sv[2], r;

        mp_buf_init(&b);
        r = pager_ensure(p, e);
        if (r < 0)
                return r;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
                return err_errno(e, -errno, "opening a pager session");
        vmm_end = sv[0];
        pager_end = sv[1];
        put_session(&b, vm, 4);
        mp_kv_u64(&b, "ram_bytes", vm->machine.mem_bytes);
        mp_kv_bool(&b, "expect", true);
        mp_kv_bool(&b, "record", vm->recording);
        mp_kv_u64(&b, "fds", n_fds);
        /* Armed before the pager can serve anything: if it dies from here on, this VM is killed. */
        vm->session = true;
        r = pager_call(p, "session.open", &b, (int[]){ image_fd, pager_end, workingset_fd }, n_fds, &a, e);
        if (r == 0 && a.n_fds < 1)
                r = err_set(e, ERR_PAGER, -EPROTO, "the pager sent no image memory");
        if (r < 0) {
                pager_session_close(p, vm);
                return r;
        }
        *ret_memfd = TAKE_FD(a.fds[0]);
        *ret_sock = TAKE_FD(vmm_end);
        return 0;
}

int pager_session_open(struct pager *p, struct vm *vm, int image_fd, int workingset_fd, int *ret_memfd, int *ret_sock,
                       struct err *e) {
        int r = open_once(p, vm, image_fd, workingset_fd, ret_memfd, ret_sock, e);

        /* The pager died while it was asked. Nothing of this VM lives yet, so a new one may as well serve it. */
        if (r < 0 && strcmp(e->code, ERR_UNREACHABLE) == 0) {
                vm->lost[0] = '\0'; /* what was lost with the old one was nothing */
                r = open_once(p, vm, image_fd, workingset_fd, ret_memfd, ret_sock, e);
        }
        if (r < 0 && strcmp(e->code, ERR_UNREACHABLE) == 0) {
                (void) strcpy(e->code, ERR_PAGER); /* to a client "unreachable" means forkd */
                return err_prefix(e, "the pager died twice while it was opening the memory image of '%s'", vm->name);
        }
        return r < 0 ? err_prefix(e, "opening the memory image of '%s'", vm->name) : 0;
}

int pager_session_expect(struct pager *p, struct vm *vm, int pidfd, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        put_session(&b, vm, 1);
        mp_kv_u64(&b, "fds", 1);
        return pager_call(p, "session.expect", &b, &pidfd, 1, NULL, e);
}

void pager_session_close(struct pager *p, struct vm *vm) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct err e;

        vm->uffd = close_fd(vm->uffd);
        if (!vm->session)
                return;
        vm->session = false;
        if (!pager_is_up(p))
                return;
        mp_buf_init(&b);
        put_session(&b, vm, 0);
        if (pager_call(p, "session.close", &b, NULL, 0, NULL, &e) < 0)
                log_debug("closing the pager session of %s: %s", vm->name, e.message);
}

/* One answer's worth of ranges, from page @first on, appended to @out. *ret_next: where to go on, 0 at the end. */
static int removed_part(struct pager *p, struct vm *vm, uint64_t first, struct mp_buf *out, uint64_t *ret_n, uint64_t *ret_next,
                        struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        const msgpack_object *ranges;
        int r;

        mp_buf_init(&b);
        put_session(&b, vm, 1);
        mp_kv_u64(&b, "first_page", first);
        r = pager_call(p, "session.removed", &b, NULL, 0, &a, e);
        if (r < 0)
                return r;
        ranges = mp_get_array(&a.doc.root, "ranges");
        *ret_next = 0;
        (void) mp_get_u64(&a.doc.root, "next", ret_next);
        if (!ranges || (*ret_next != 0 && *ret_next <= first))
                return err_set(e, ERR_PAGER, -EPROTO, "the pager's answer to session.removed makes no sense");
        for (uint32_t i = 0; i < ranges->via.array.size; i++)
                mp_obj(out, &ranges->via.array.ptr[i]);
        *ret_n = ranges->via.array.size;
        return out->failed ? err_errno(e, -ENOMEM, "reading the discarded pages") : 0;
}

int pager_session_removed(struct pager *p, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, struct err *e) {
        uint64_t next = 0, total = 0, n = 0;

        do {
                int r;

                if (!pager_is_up(p))
                        return err_set(e, ERR_PAGER, -EPIPE, "the pager is gone");
                r = removed_part(p, vm, next, ret, &n, &next, e);
                if (r < 0)
                        return r;
                total += n;
        } while (next != 0);
        *ret_n = total;
        return 0;
}

int pager_session_workingset(struct pager *p, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, bool *ret_complete,
                             struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        const msgpack_object *runs;
        bool complete;
        int r;

        mp_buf_init(&b);
        put_session(&b, vm, 0);
        r = pager_call(p, "session.workingset", &b, NULL, 0, &a, e);
        if (r < 0)
                return r;
        runs = mp_get_array(&a.doc.root, "runs");
        if (!runs || runs->via.array.size > SNAP_WORKINGSET_MAX_RUNS || mp_get_bool(&a.doc.root, "complete", &complete) < 0)
                return err_set(e, ERR_PAGER, -EPROTO, "the pager's answer to session.workingset makes no sense");
        for (uint32_t i = 0; i < runs->via.array.size; i++)
                mp_obj(ret, &runs->via.array.ptr[i]);
        if (ret->failed)
                return err_errno(e, -ENOMEM, "reading the recorded pages");
        *ret_n = runs->via.array.size;
        *ret_complete = complete;
        return 0;
}

int pager_status(struct pager *p, struct mp_buf *ret, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        const msgpack_object_map *m;
        int r;

        if (!pager_is_up(p)) {
                mp_map(ret, 1);
                mp_kv_bool(ret, "up", false);
                return 0;
        }
        r = pager_call(p, "status", NULL, NULL, 0, &a, e);
        if (r < 0)
                return r;
        if (a.doc.root.type != MSGPACK_OBJECT_MAP)
                return err_set(e, ERR_PAGER, -EPROTO, "the pager's status is no map");
        m = &a.doc.root.via.map;
        mp_map(ret, m->size + 1u);
        mp_kv_bool(ret, "up", true);
        for (uint32_t i = 0; i < m->size; i++) {
                mp_obj(ret, &m->ptr[i].key);
                mp_obj(ret, &m->ptr[i].val);
        }
        return 0;
}

int pager_mark_sessions(struct pager *p, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        const msgpack_object *sessions;
        int r;

        r = pager_call(p, "status", NULL, NULL, 0, &a, e);
        if (r < 0)
                return err_prefix(e, "asking the pager for its sessions");
        sessions = mp_get_array(&a.doc.root, "sessions");
        for (uint32_t i = 0; sessions && i < sessions->via.array.size; i++) {
                const msgpack_object *s = &sessions->via.array.ptr[i];
                struct vm *vm = session_of(p, s);
                bool attached = false, failed = false;
                char reason[sizeof(vm->lost) - 8] = "unknown";

                if (!vm)
                        continue;
                (void) mp_get_bool(s, "attached", &attached);
                (void) mp_get_bool(s, "failed", &failed);
                vm->session_known = attached && !failed;
                if (failed) {
                        (void) mp_get_str(s, "reason", reason, sizeof(reason));
                        (void) snprintf(vm->lost, sizeof(vm->lost), "pager: %s", reason);
                }
        }
        return 0;
}
