/* SPDX-License-Identifier: MIT */
/* Live forks as forkd asks for them (forkd/vm/op_live.c has their order): the methods live.* of docs/protocol.md, and how a VM
 * that booted comes to have a session.
 *
 * A live fork is one pager's: its nascent image is in that process and nowhere else. So while one is under way the pager is not
 * upgraded (`lives`), and when the process ends the fork has failed. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"

#define PROTECT_TIMEOUT_MS 60000 /* 1 ms for some thousand pages */
#define COPY_TIMEOUT_MS 600000   /* as long as a worker may take for it */

struct pager_live {
        struct pager *p;
        struct pager_process *process; /* a reference */
        struct vm *vm;                 /* the source, which is held by who forks it */
        id_str id;
        bool prepared;
};

/* "unsupported" comes over the wire as a code. */
static int outcome(int r, struct err *e) {
        if (r < 0 && strcmp(e->code, ERR_UNSUPPORTED) == 0)
                r = e->r = -EOPNOTSUPP;
        return r;
}

static void put_live(struct mp_buf *b, const struct pager_live *l, size_t more) {
        mp_map(b, 1 + more);
        mp_kv_str(b, "live", l->id);
}

static int call(struct pager_live *l, unsigned timeout_ms, const char *method, const int *fd, struct rpc_answer *ret,
                struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        put_live(&b, l, fd != NULL);
        if (fd)
                mp_kv_u64(&b, "fds", 1);
        return outcome(pager_process_call_within(l->process, timeout_ms, method, &b, fd, fd != NULL, ret, e), e);
}

/* ---- a VM that booted ---- */

static void put_regions(struct mp_buf *b, const struct vmm_region *regions, size_t n) {
        mp_key(b, "regions");
        mp_array(b, n);
        for (size_t i = 0; i < n; i++) {
                mp_array(b, 3);
                mp_u64(b, regions[i].host_addr);
                mp_u64(b, regions[i].size);
                mp_u64(b, regions[i].offset);
        }
}

int pager_session_join(struct pager *p, struct vm *vm, const struct pager_join *j, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pager_process *o;
        int r = pager_ensure(p, e);

        if (r < 0)
                return r;
        mp_buf_init(&b);
        pager_put_session(&b, vm, 4);
        mp_kv_u64(&b, "ram_bytes", vm->machine.mem_bytes);
        mp_kv_i64(&b, "vm_pid", vm->pid);
        put_regions(&b, j->regions, j->n_regions);
        mp_kv_u64(&b, "fds", 3);
        o = pager_process_ref(p->serving);
        r = pager_process_call(o, "session.join", &b, (int[]){ j->image_fd, j->uffd, j->pidfd }, 3, NULL, e);
        if (r == 0) {
                /* Not before: until its memory is protected the guest does without the pager, and outlives it. */
                vm->session = true;
                pager_hold_clear(&vm->hold);
                pager_hold_set_process(vm, o);
                r = pager_hold_fetch(o, vm, e);
                if (r < 0)
                        pager_session_close(p, vm);
        }
        pager_process_unref(o);
        return outcome(r, e);
}

/* ---- a live fork ---- */

static int open_proc(pid_t pid, const char *file, int *ret_fd) {
        char path[40];
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/%d/%s", (int) pid, file);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        *ret_fd = fd;
        return 0;
}

int pager_live_begin(struct pager *p, struct vm *vm, const char *id, struct pager_live **ret, struct err *e) {
        cleanup_fd int mem = -1, pagemap = -1;
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pager_live *l;
        int r;

        r = open_proc(vm->pid, "mem", &mem);
        if (r == 0)
                r = open_proc(vm->pid, "pagemap", &pagemap);
        if (r < 0)
                return err_errno(e, r, "looking at the memory of '%s'", vm->name);
        r = pager_ensure(p, e);
        if (r < 0)
                return r;
        if (!vm->hold.process)
                return err_set(e, ERR_PAGER, -EPIPE, "the pager is gone");
        l = calloc(1, sizeof(*l));
        if (!l)
                return err_errno(e, -ENOMEM, "forking '%s'", vm->name);
        *l = (struct pager_live){ .p = p, .process = pager_process_ref(vm->hold.process), .vm = vm };
        memcpy(l->id, id, sizeof(l->id));
        p->lives++;
        mp_buf_init(&b);
        put_live(&b, l, 3);
        mp_kv_str(&b, "session", vm->id);
        mp_kv_str(&b, "parent", vm->snapshot);
        mp_kv_u64(&b, "fds", 2);
        r = outcome(pager_process_call(l->process, "live.prepare", &b, (int[]){ mem, pagemap }, 2, NULL, e), e);
        if (r < 0) {
                pager_live_free(l);
                return r;
        }
        l->prepared = true;
        *ret = l;
        return 0;
}

int pager_live_protect(struct pager_live *l, uint64_t *ret_removed, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        uint64_t removed = 1; /* one that does not tell: ask */
        int r = call(l, PROTECT_TIMEOUT_MS, "live.protect", NULL, &a, e);

        if (r < 0)
                return r;
        (void) mp_get_u64(&a.doc.root, "removed_pages", &removed);
        *ret_removed = removed;
        return 0;
}

int pager_live_wait(struct pager_live *l, int *ret_memfd, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        int r = call(l, COPY_TIMEOUT_MS, "live.wait", NULL, &a, e);

        if (r == 0 && a.n_fds != 1)
                r = err_set(e, ERR_PAGER, -EPROTO, "the pager sent no memory of what it has copied");
        if (r == 0)
                *ret_memfd = TAKE_FD(a.fds[0]);
        return r;
}

int pager_live_publish(struct pager_live *l, int image_fd, struct err *e) {
        int r;

        l->vm->hold.mapped = false; /* from now on it may map the new image */
        r = call(l, PAGER_CALL_TIMEOUT_MS, "live.publish", &image_fd, NULL, e);

        if (r == 0)
                l->prepared = false;
        if (l->vm->session && l->vm->hold.process == l->process)
                pager_hold_refresh(l->vm);
        return r;
}

void pager_live_free(struct pager_live *l) {
        struct err e;

        if (!l)
                return;
        if (l->prepared && pager_process_is_up(l->process) && call(l, PAGER_CALL_TIMEOUT_MS, "live.cancel", NULL, NULL, &e) < 0)
                log_debug("%s: cancelling a live fork: %s", l->vm->name, e.message);
        l->p->lives--;
        if (l->vm->session && l->vm->hold.process == l->process && !l->vm->hold.mapped) /* nobody could be asked meanwhile */
                pager_hold_refresh(l->vm);
        pager_wake_attached(l->p);
        pager_process_unref(l->process);
        free(l);
}

void pager_live_cancel(struct pager *p, const char *id) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct err e;

        if (!pager_is_up(p))
                return;
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "live", id);
        if (pager_process_call(p->serving, "live.cancel", &b, NULL, 0, NULL, &e) < 0)
                log_debug("cancelling the live fork %s: %s", id, e.message);
}

int pager_session_unprotect(struct pager *p, struct vm *vm, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        pager_put_session(&b, vm, 0);
        return pager_session_call(p, vm, "session.unprotect", &b, NULL, 0, NULL, e);
}

int pager_session_has_image(struct vm *vm) {
        char path[PATH_MAX];
        struct stat st;
        int r = vm_store_path(vm, VM_BASE_FILE, path, sizeof(path));

        if (r == 0 && stat(path, &st) < 0)
                r = -errno;
        if (r < 0)
                return r;
        vm->hold.image_dev = st.st_dev;
        vm->hold.image_ino = st.st_ino;
        return 0;
}
