/* SPDX-License-Identifier: MIT */
/* The sessions that VMs have with the pager; process.c has the process.
 *
 * Of each session forkd holds (struct pager_hold) what another pager needs to go on with it: the VMM's userfaultfd, the
 * image's memory, and the socket on which the VMM's end is noticed. A forkd that comes back asks the pager for them. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/vm/recording.h"
#include "snapstore/manifest.h"

static struct vm *vm_of(struct pager *p, const msgpack_object *params) {
        id_str id;

        return mp_get_str(params, "session", id, sizeof(id)) < 0 ? NULL : vm_by_id(p->d, id);
}

static struct vm *session_of(struct pager *p, const msgpack_object *params) {
        struct vm *vm = vm_of(p, params);

        return vm && vm->session ? vm : NULL;
}

/* ---- what is held of a session ---- */

void pager_hold_init(struct pager_hold *h) {
        *h = (struct pager_hold){ .uffd = -1, .memfd = -1, .sock = -1 };
}

void pager_hold_clear(struct pager_hold *h) {
        pager_process_unref(h->process);
        (void) close_fd(h->uffd);
        (void) close_fd(h->memfd);
        (void) close_fd(h->sock);
        pager_hold_drop_memories(h);
        pager_hold_init(h);
}

void pager_hold_set_process(struct vm *vm, struct pager_process *o) {
        struct pager_process *old = vm->hold.process;

        vm->hold.process = o ? pager_process_ref(o) : NULL;
        pager_process_unref(old);
}

bool pager_has_sessions(const struct pager_process *o) {
        const struct vm *vm;

        TAILQ_FOREACH (vm, &o->p->d->vms, entry)
                if (vm->session && vm->hold.process == o)
                        return true;
        return false;
}

bool pager_hold_complete(const struct vm *vm) {
        const struct pager_hold *h = &vm->hold;

        return vm->session && h->pid > 0 && !vm->vmm_exited && h->uffd >= 0 && h->memfd >= 0 && h->sock >= 0 &&
               h->n_regions > 0 && h->image_ino != 0 && h->mapped;
}

void pager_wake_attached(struct pager *p) {
        if (p->attached)
                co_wake(TAKE_PTR(p->attached), 0);
}

/* ---- what the pager tells ---- */

static void on_failed(struct vm *vm, const msgpack_object *params) {
        char reason[sizeof(vm->lost) - 8] = "unknown", full[sizeof(vm->lost)];

        (void) mp_get_str(params, "reason", reason, sizeof(reason));
        log_error("the pager cannot serve %s: %s", vm->name, reason);
        (void) snprintf(full, sizeof(full), "pager: %s", reason);
        vm_kill_lost(vm, full);
}

void pager_on_message(struct rpc_msg *m, void *arg) {
        struct pager_process *o = arg;
        struct vm *vm = session_of(o->p, m->params);

        if (m->is_request) {
                struct err e;

                (void) err_set(&e, ERR_PROTOCOL, -EPROTO, "forkd takes no calls from the pager");
                (void) rpc_reply_err(m->conn, m->msgid, &e);
                return;
        }
        if (!vm || vm->hold.process != o) /* of a session that is another's by now */
                return;
        if (strcmp(m->method, "session.attached") == 0) {
                if (m->n_fds == 1) {
                        (void) close_fd(vm->hold.uffd);
                        vm->hold.uffd = TAKE_FD(m->fds[0]);
                        pager_hold_read_regions(&vm->hold, m->params);
                }
                pager_wake_attached(o->p);
        } else if (strcmp(m->method, "session.failed") == 0) {
                on_failed(vm, m->params);
        } else if (strcmp(m->method, "session.rebased") == 0) {
                pager_hold_refresh(vm);
        } else if (strcmp(m->method, "session.recorded") == 0) {
                recording_done(vm);
        }
}

/* ---- sessions ---- */

void pager_put_session(struct mp_buf *b, const struct vm *vm, size_t more) {
        mp_map(b, 1 + more);
        mp_kv_str(b, "session", vm->id);
}

/* While sessions are being moved nobody asks for anything; @waiting: has another use for the pager. */
static int wait_turn(struct pager *p, bool (*waiting)(const struct pager *p), struct err *e) {
        int r = 0;

        while (r == 0 && waiting(p)) {
                r = co_sem_acquire(&p->turn, PAGER_CALL_TIMEOUT_MS);
                if (r == 0)
                        co_sem_release(&p->turn);
        }
        return r < 0 ? err_set(e, ERR_PAGER, r, "the pager is being replaced") : 0;
}

static bool is_replacing(const struct pager *p) {
        return p->replacing;
}

static bool is_closed(const struct pager *p) {
        return p->closed || p->replacing || !pager_is_up(p);
}

/* Who serves @vm, when nobody is being replaced; who does not hold the VM may find it gone after the wait. */
static int who_serves(struct pager *p, struct vm *vm, struct pager_process **ret, struct err *e) {
        id_str id;
        int r;

        memcpy(id, vm->id, sizeof(id));
        r = wait_turn(p, is_replacing, e);
        if (r < 0)
                return r;
        if (vm_by_id(p->d, id) != vm || !vm->session)
                return err_set(e, ERR_PAGER, -ESRCH, "VM %s has no session any more", id);
        if (!vm->hold.process)
                return err_set(e, ERR_PAGER, -EPIPE, "the pager is gone");
        *ret = vm->hold.process;
        return 0;
}

int pager_session_call(struct pager *p, struct vm *vm, const char *method, const struct mp_buf *params, const int *fds,
                       size_t n_fds, struct rpc_answer *ret, struct err *e) {
        struct pager_process *o;
        int r = who_serves(p, vm, &o, e);

        return r < 0 ? r : pager_process_call(o, method, params, fds, n_fds, ret, e);
}

int pager_ensure(struct pager *p, struct err *e) {
        int r = 0;

        while (r == 0 && is_closed(p)) {
                r = co_sem_acquire(&p->turn, -1);
                if (r < 0)
                        break;
                if (!p->closed)
                        r = pager_bring_up(p, e);
                co_sem_release(&p->turn);
        }
        return r;
}

/* An image at which two pagers have died gets no third. */
static int check_image(struct pager *p, struct vm *vm, int image_fd, struct err *e) {
        struct stat st;
        uint64_t page;

        if (fstat(image_fd, &st) < 0)
                return err_errno(e, -errno, "looking at the memory image");
        vm->hold.image_dev = st.st_dev;
        vm->hold.image_ino = st.st_ino;
        if (!pager_condemned(p, st.st_dev, st.st_ino, &page))
                return 0;
        (void) err_set(e, ERR_CORRUPT, -EUCLEAN, "two pagers have died at page %llu of this memory image",
                       (unsigned long long) page);
        return err_hint(e, "check it with 'forkctl snapshot verify'; after 'forkctl pager upgrade' it may be tried again");
}

/* Whose image it is: what is the same in an ancestor that is open need not be there twice. */
static void put_descent(struct mp_buf *b, const struct snap_manifest *m) {
        mp_kv_str(b, "id", m->id);
        mp_key(b, "chain");
        mp_array(b, m->n_chain);
        for (unsigned i = 0; i < m->n_chain; i++)
                mp_str(b, m->chain[i]);
}

static int open_once(struct pager *p, struct vm *vm, const struct pager_open *on, int *ret_sock, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_fd int vmm_end = -1, pager_end = -1;
        cleanup_mp_buf struct mp_buf b = { 0 };
        int sv[2], fds[3], r;
        size_t n_fds = 0;

        mp_buf_init(&b);
        /* A nascent image is one pager's, and an upgrade waits for those who live on it. */
        r = !on->live ? pager_ensure(p, e) : !pager_is_up(p) ? err_set(e, ERR_PAGER, -EPIPE, "the pager is gone") : 0;
        pager_hold_clear(&vm->hold);
        if (r == 0 && !on->live)
                r = check_image(p, vm, on->image_fd, e);
        if (r < 0)
                return r;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
                return err_errno(e, -errno, "opening a pager session");
        vmm_end = sv[0];
        pager_end = sv[1];
        if (!on->live)
                fds[n_fds++] = on->image_fd;
        fds[n_fds++] = pager_end;
        if (on->workingset_fd >= 0)
                fds[n_fds++] = on->workingset_fd;
        pager_put_session(&b, vm, 5 + (on->live != NULL) + (on->m != NULL ? 2 : 0));
        mp_kv_u64(&b, "ram_bytes", vm->machine.mem_bytes);
        if (on->live)
                mp_kv_str(&b, "live", on->live);
        if (on->m)
                put_descent(&b, on->m);
        mp_kv_bool(&b, "expect", true);
        mp_kv_bool(&b, "segments", true);
        mp_kv_bool(&b, "record", vm->recording);
        mp_kv_u64(&b, "fds", n_fds);
        /* Armed before the pager can serve anything: if it dies from here on, this VM is killed or recovered. */
        vm->session = true;
        vm->hold.process = pager_process_ref(p->serving);
        r = pager_process_call(p->serving, "session.open", &b, fds, n_fds, &a, e);
        if (r == 0 && a.n_fds != 2)
                r = err_set(e, ERR_PAGER, -EPROTO, "the pager sent no image memory");
        if (r == 0)
                r = pager_hold_read_mapping(p->serving, &vm->hold, &a.doc.root, e);
        if (r < 0) {
                pager_session_close(p, vm);
                return r;
        }
        *ret_sock = TAKE_FD(vmm_end);
        vm->hold.memfd = TAKE_FD(a.fds[1]);
        vm->hold.sock = TAKE_FD(pager_end);
        return 0;
}

int pager_session_open(struct pager *p, struct vm *vm, const struct pager_open *on, int *ret_sock, struct err *e) {
        int r = open_once(p, vm, on, ret_sock, e);

        /* The pager died while it was asked. Nothing of this VM lives yet, so a new one may as well serve it. */
        if (r == -EPIPE && !on->live) {
                vm->lost[0] = '\0'; /* what was lost with the old one was nothing */
                r = open_once(p, vm, on, ret_sock, e);
        }
        if (r == -EPIPE && !on->live)
                return err_prefix(e, "the pager died twice while it was opening the memory image of '%s'", vm->name);
        return r < 0 ? err_prefix(e, "opening the memory image of '%s'", vm->name) : 0;
}

int pager_session_expect(struct pager *p, struct vm *vm, int pidfd, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r = spawn_pidfd_pid(pidfd, &vm->hold.pid);

        if (r < 0)
                return err_errno(e, r, "looking at the VMM of '%s'", vm->name);
        mp_buf_init(&b);
        pager_put_session(&b, vm, 1);
        mp_kv_u64(&b, "fds", 1);
        return pager_session_call(p, vm, "session.expect", &b, &pidfd, 1, NULL, e);
}

void pager_session_close(struct pager *p, struct vm *vm) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct err e;

        if (vm->session) {
                mp_buf_init(&b);
                pager_put_session(&b, vm, 0);
                /* However long it takes: whoever moves sessions relies on it that this struct stays while it has one. */
                while (wait_turn(p, is_replacing, &e) < 0)
                        log_info("%s (%s): its session is closed when the pager has been replaced", vm->name, vm->id);
                if (pager_session_call(p, vm, "session.close", &b, NULL, 0, NULL, &e) < 0)
                        log_debug("closing the pager session of %s: %s", vm->name, e.message);
        }
        vm->session = false;
        vm->session_known = false;
        pager_hold_clear(&vm->hold);
        pager_wake_attached(p);
}

/* ---- what it knows of a guest ---- */

/* One answer's worth of ranges, from page @first on, appended to @out. *ret_next: where to go on, 0 at the end. */
static int removed_part(struct pager_process *o, struct vm *vm, uint64_t first, struct mp_buf *out, uint64_t *ret_n,
                        uint64_t *ret_next, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        const msgpack_object *ranges;
        int r;

        mp_buf_init(&b);
        pager_put_session(&b, vm, 1);
        mp_kv_u64(&b, "first_page", first);
        r = pager_process_call(o, "session.removed", &b, NULL, 0, &a, e);
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

int pager_removed_of(struct pager_process *o, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, struct err *e) {
        uint64_t next = 0, total = 0, n = 0;

        do {
                int r = removed_part(o, vm, next, ret, &n, &next, e);

                if (r < 0)
                        return r;
                total += n;
        } while (next != 0);
        *ret_n = total;
        return 0;
}

int pager_session_removed(struct pager *p, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, struct err *e) {
        struct pager_process *o;
        int r = who_serves(p, vm, &o, e);

        return r < 0 ? r : pager_removed_of(o, vm, ret, ret_n, e);
}

int pager_session_workingset(struct pager *p, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, bool *ret_complete,
                             struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        const msgpack_object *runs;
        bool complete;
        int r;

        mp_buf_init(&b);
        pager_put_session(&b, vm, 0);
        r = pager_session_call(p, vm, "session.workingset", &b, NULL, 0, &a, e);
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

/* ---- all sessions ---- */

static void put_counts(struct mp_buf *b, const struct pager_counts *c) {
        mp_map(b, 7);
        mp_kv_u64(b, "deaths", c->deaths);
        mp_kv_u64(b, "hangs", c->hangs);
        mp_kv_u64(b, "guests_recovered", c->recovered);
        mp_kv_u64(b, "guests_killed", c->killed);
        mp_kv_u64(b, "upgrades", c->upgrades);
        mp_kv_double(b, "last_recovery_ms", c->last_ms);
        mp_kv_double(b, "longest_recovery_ms", c->longest_ms);
}

int pager_status(struct pager *p, struct mp_buf *ret, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        const msgpack_object_map *m;
        int r = 0;

        if (pager_is_up(p))
                r = pager_process_call(p->serving, "status", NULL, NULL, 0, &a, e);
        if (r < 0)
                return r;
        if (a.doc.root.type != MSGPACK_OBJECT_MAP) {
                mp_map(ret, 2);
                mp_kv_bool(ret, "up", false);
                mp_key(ret, "watchdog");
                put_counts(ret, &p->counts);
                return 0;
        }
        m = &a.doc.root.via.map;
        mp_map(ret, m->size + 2u);
        mp_kv_bool(ret, "up", true);
        mp_key(ret, "watchdog");
        put_counts(ret, &p->counts);
        for (uint32_t i = 0; i < m->size; i++) {
                mp_obj(ret, &m->ptr[i].key);
                mp_obj(ret, &m->ptr[i].val);
        }
        return 0;
}

/* Its mappings are looked at: they must not be those of a process that came later. */
static bool vmm_lives(const struct vm *vm) {
        cleanup_fd int pidfd = -1;

        return vm->pid > 0 && vm->start_time != 0 && spawn_pidfd_open(vm->pid, vm->start_time, &pidfd) == 0;
}

static void mark_session(struct pager_process *o, struct vm *vm, const msgpack_object *s) {
        bool attached = false, failed = false, released = false;
        char reason[sizeof(vm->lost) - 8] = "unknown";
        struct err e;

        (void) mp_get_bool(s, "attached", &attached);
        (void) mp_get_bool(s, "failed", &failed);
        (void) mp_get_bool(s, "released", &released);
        if (failed) {
                (void) mp_get_str(s, "reason", reason, sizeof(reason));
                (void) snprintf(vm->lost, sizeof(vm->lost), "pager: %s", reason);
                return;
        }
        /* In the middle of an upgrade two know it: it is served by whoever has not released it. */
        if (!attached || (released && vm->session_known))
                return;
        vm->session_known = true;
        if (!vmm_lives(vm)) {
                vm->hold.process = pager_process_ref(o);
                return;
        }
        if (pager_hold_fetch(o, vm, &e) < 0) {
                log_warning("%s (%s) could not be handed to another pager: %s", vm->name, vm->id, e.message);
                pager_hold_clear(&vm->hold);
                vm->hold.process = pager_process_ref(o);
                vm->hold.pid = vm->pid; /* it lives: nobody may end this pager below it */
        }
        vm->hold.released_ns = released ? now_ns() : 0;
}

static int mark_sessions(struct pager_process *o, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        const msgpack_object *sessions;
        int r;

        r = pager_process_call(o, "status", NULL, NULL, 0, &a, e);
        if (r < 0)
                return err_prefix(e, "asking the pager for its sessions");
        sessions = mp_get_array(&a.doc.root, "sessions");
        for (uint32_t i = 0; sessions && i < sessions->via.array.size; i++) {
                struct vm *vm = vm_of(o->p, &sessions->via.array.ptr[i]);

                if (!vm)
                        continue;
                if (vm->session) {
                        mark_session(o, vm, &sessions->via.array.ptr[i]);
                } else if (vm->pid > 0 && vm->has_base) {
                        /* It booted, and joined in the moment in which the last forkd ended: its record does not say so. */
                        vm->session = true;
                        mark_session(o, vm, &sessions->via.array.ptr[i]);
                        vm->session = vm->session_known;
                }
        }
        return 0;
}

int pager_mark_sessions(struct pager *p, struct err *e) {
        int r = p->next ? mark_sessions(p->next, e) : 0;

        return r == 0 && p->serving ? mark_sessions(p->serving, e) : r;
}
