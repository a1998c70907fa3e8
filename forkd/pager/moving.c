/* SPDX-License-Identifier: MIT */
/* How a session goes from one pager to another: what the calls for it carry, and many of them under way at once, for
 * every guest whose session moves may wait. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"

void pager_hold_read_regions(struct pager_hold *h, const msgpack_object *params) {
        const msgpack_object *list = mp_get_array(params, "regions");

        h->n_regions = 0;
        if (!list || list->via.array.size > PAGER_HOLD_REGIONS)
                return;
        for (uint32_t i = 0; i < list->via.array.size; i++) {
                const msgpack_object *o = &list->via.array.ptr[i];
                struct pager_hold_region *g = &h->region[i];

                if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 3)
                        return;
                for (unsigned k = 0; k < 3; k++)
                        if (o->via.array.ptr[k].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                                return;
                *g = (struct pager_hold_region){ o->via.array.ptr[0].via.u64, o->via.array.ptr[1].via.u64,
                                                 o->via.array.ptr[2].via.u64 };
        }
        h->n_regions = list->via.array.size;
}

int pager_hold_fetch(struct pager_process *o, struct vm *vm, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct stat st;
        char path[PATH_MAX];
        int r;

        mp_buf_init(&b);
        pager_put_session(&b, vm, 0);
        r = pager_process_call(o, "session.handles", &b, NULL, 0, &a, e);
        if (r < 0)
                return r;
        if (a.n_fds != 3)
                return err_set(e, ERR_PAGER, -EPROTO, "the pager gave %zu descriptors of a session, not three", a.n_fds);
        r = vm_store_path(vm, VM_BASE_FILE, path, sizeof(path));
        if (r == 0 && stat(path, &st) < 0)
                r = -errno;
        if (r < 0)
                return err_errno(e, r, "looking at the memory image of '%s'", vm->name);
        pager_hold_clear(&vm->hold);
        vm->hold.pid = vm->pid;
        vm->hold.memfd = TAKE_FD(a.fds[0]);
        vm->hold.sock = TAKE_FD(a.fds[1]);
        vm->hold.uffd = TAKE_FD(a.fds[2]);
        vm->hold.image_dev = st.st_dev;
        vm->hold.image_ino = st.st_ino;
        pager_hold_read_regions(&vm->hold, &a.doc.root);
        (void) mp_get_bool(&a.doc.root, "joined", &vm->hold.joined);
        vm->hold.process = pager_process_ref(o);
        return pager_hold_read_mapping(o, &vm->hold, &a.doc.root, e);
}

/* More than one message takes goes with others behind it, and the session is held until the last has come. */
static int adopt_params(struct vm *vm, const struct mp_buf *unmapped, uint64_t n_unmapped, bool hold, struct mp_buf *b) {
        const struct pager_hold *h = &vm->hold;

        pager_put_session(b, vm, 6 + PAGER_HOLD_LISTS);
        mp_raw(b, h->mapping.sb.data, h->mapping.sb.size);
        mp_kv_u64(b, "ram_bytes", vm->machine.mem_bytes);
        mp_kv_i64(b, "vm_pid", h->pid);
        mp_key(b, "regions");
        mp_array(b, h->n_regions);
        for (unsigned i = 0; i < h->n_regions; i++) {
                mp_array(b, 3);
                mp_u64(b, h->region[i].base);
                mp_u64(b, h->region[i].size);
                mp_u64(b, h->region[i].offset);
        }
        mp_kv_list(b, "removed", unmapped, n_unmapped);
        mp_kv_bool(b, "hold", hold);
        mp_kv_u64(b, "fds", 4);
        return b->failed ? -ENOMEM : 0;
}

static int mark_removed(struct pager_process *to, struct vm *vm, const struct mp_buf *removed, uint64_t n, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        pager_put_session(&b, vm, 1);
        mp_kv_list(&b, "ranges", removed, n);
        return pager_process_call(to, "session.mark_removed", &b, NULL, 0, NULL, e);
}

int pager_session_tell(struct pager_process *o, struct vm *vm, const char *method, unsigned timeout_ms, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        pager_put_session(&b, vm, 0);
        return pager_process_call_within(o, timeout_ms, method, &b, NULL, 0, NULL, e);
}

/* It goes on with a session that it has released, or adopted and held. */
static int resume(struct pager_process *o, struct vm *vm, struct err *e) {
        return pager_session_tell(o, vm, "session.resume", PAGER_CALL_TIMEOUT_MS, e);
}

int pager_session_give_back(struct pager_process *o, struct vm *vm, const struct mp_buf *removed, uint64_t n_removed,
                            struct err *e) {
        cleanup_mp_buf struct mp_buf unmapped = { 0 };
        uint64_t n;
        int r;

        mp_buf_init(&unmapped);
        r = pager_unmapped(vm, &unmapped, &n);
        if (r < 0)
                return err_errno(e, r, "finding what '%s' has discarded", vm->name);
        r = mark_removed(o, vm, &unmapped, n, e);
        if (r == 0 && n_removed > 0)
                r = mark_removed(o, vm, removed, n_removed, e);
        return r == 0 ? resume(o, vm, e) : r;
}

int pager_session_adopt(struct pager_process *to, struct vm *vm, const struct mp_buf *removed, uint64_t n_removed,
                        struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 }, unmapped = { 0 };
        cleanup_fd int image = -1;
        char path[PATH_MAX];
        uint64_t n_unmapped;
        int r;

        mp_buf_init(&b);
        mp_buf_init(&unmapped);
        r = vm_store_path(vm, VM_BASE_FILE, path, sizeof(path));
        if (r == 0 && (image = open(path, O_RDONLY | O_CLOEXEC)) < 0)
                r = -errno;
        if (r < 0)
                return err_errno(e, r, "opening the memory image of '%s'", vm->name);
        r = pager_hold_give_memories(to, &vm->hold, e);
        if (r < 0)
                return r;
        r = pager_unmapped(vm, &unmapped, &n_unmapped);
        if (r == 0)
                r = adopt_params(vm, &unmapped, n_unmapped, n_removed > 0, &b);
        if (r < 0)
                return err_errno(e, r, "finding what '%s' has discarded", vm->name);
        /* Its guest waits meanwhile. */
        r = pager_process_call_within(to, vm->d->cfg.recover_ms, "session.adopt", &b,
                                      (int[]){ image, vm->hold.sock, vm->hold.memfd, vm->hold.uffd }, 4, NULL, e);
        if (r == 0 && n_removed > 0) {
                r = mark_removed(to, vm, removed, n_removed, e);
                if (r == 0)
                        r = resume(to, vm, e);
        }
        return r;
}

/* ---- many at once ---- */

struct one {
        const struct pager_each *all;
        struct vm *vm;
        struct co_wait done;
        struct err e;
};

static void one_main(void *arg) {
        struct one *o = arg;

        co_wake(&o->done, o->all->fn(o->all->arg, o->vm, &o->e));
}

static int batch(struct daemon *d, struct one *one, unsigned n, struct err *e) {
        int first = 0;

        for (unsigned i = 0; i < n; i++)
                if (co_start(d->base, one_main, &one[i]) < 0)
                        co_wake(&one[i].done, err_errno(&one[i].e, -ENOMEM, "moving the session of '%s'", one[i].vm->name));
        for (unsigned i = 0; i < n; i++) {
                int r = co_wait(&one[i].done, -1); /* each step in it has a deadline */

                if (r < 0 && first == 0) {
                        first = r;
                        *e = one[i].e;
                }
        }
        return first;
}

int pager_each(struct daemon *d, const struct pager_each *all, struct err *e) {
        cleanup_free struct one *one = calloc(PAGER_EACH_AT_ONCE, sizeof(*one));
        cleanup_free struct vm **vms = calloc(d->n_vms + 1u, sizeof(struct vm *));
        unsigned n = 0;
        struct vm *vm;
        int r = 0;

        if (!one || !vms)
                return err_errno(e, -ENOMEM, "moving sessions");
        TAILQ_FOREACH (vm, &d->vms, entry)
                if (all->wants(all->arg, vm))
                        vms[n++] = vm;
        for (unsigned at = 0; r == 0 && at < n; at += PAGER_EACH_AT_ONCE) {
                unsigned some = MIN_OF(n - at, (unsigned) PAGER_EACH_AT_ONCE);

                for (unsigned i = 0; i < some; i++)
                        one[i] = (struct one){ .all = all, .vm = vms[at + i], .done = CO_WAIT_INIT };
                r = batch(d, one, some, e);
        }
        return r;
}
