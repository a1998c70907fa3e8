/* SPDX-License-Identifier: MIT */
/* Theory of operation. A VM that runs is saved while it runs: `fork` and `snapshot create` of a running VM.
 *
 *      prepare     worker: as for any snapshot; pager: the VM's memory is registered for writes       guest runs
 *      pause       VMM
 *      still       pager: what the guest has written is write-protected ‖ VMM: device state ‖
 *                  worker: disks are reflinked, what was discarded is noted                           guest paused
 *      resume      VMM
 *      tell        clones may start, on the nascent image                                             guest runs, and
 *      copy        pager: protected pages are copied, first those that the guest is about to write    waits for the copy
 *                  or that a clone needs; then worker: they are compressed and written                of a page it writes
 *      publish     worker: as for any snapshot; pager: it is an image like any other
 *      settle      the source's next snapshot is a child of this one (parent.img); its session stays what it was
 *
 * After that what the source has not written since is still protected, and as it is in parent.img; so what is dirty is what is
 * anonymous and not protected (dirty.c). That rests on two things that change at different times, the page table and the
 * record. So the record says `live` from before anything is protected until both agree; who finds it there (after a
 * failure, or the death of forkd) has everything unprotected before the memory is looked at again. Then all that is anonymous is dirty,
 * against whichever parent: more than needed, and as right.
 *
 * A VM that booted has no session until then: it joins the pager, with an empty image below it (base.img) that its memory
 * is not mapped from.
 *
 * Where the host cannot, or `live_forks` is off, the guest stands still until its memory is read (op_snapshot.c). */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/pager/link.h"
#include "forkd/vm/taking.h"
#include "snapstore/writer.h"

int vm_unprotect(struct vm *vm, struct err *e) {
        int r = 0;

        if (!vm->live)
                return 0;
        if (vm->session && !vm->vmm_exited)
                r = pager_session_unprotect(vm->d->pager, vm, e);
        if (r < 0)
                return err_prefix(e, "what a fork of '%s' has left cannot be undone", vm->name);
        vm->live = false;
        return vm_record_save(vm, e);
}

/* ---- joining ---- */

/* Whole when it has its name. */
static int make_empty_base(struct vm *vm) {
        const struct snap_writer_params p = { .ram_bytes = vm->machine.mem_bytes, .codec = SNAP_CODEC_LZ4 };
        cleanup_snap_writer struct snap_writer *w = NULL;
        struct snap_writer_stats stats;
        char path[PATH_MAX], tmp[PATH_MAX];
        cleanup_fd int fd = -1;
        int r;

        r = vm_store_path(vm, VM_BASE_FILE, path, sizeof(path));
        if (r == 0)
                r = vm_store_path(vm, "new.img", tmp, sizeof(tmp));
        if (r < 0)
                return r;
        fd = open(tmp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
                return -errno;
        r = snap_writer_new(fd, -1, &p, &w);
        if (r == 0)
                r = snap_writer_finish(w, &stats);
        if (r == 0 && rename(tmp, path) < 0)
                r = -errno;
        if (r < 0)
                (void) unlink(tmp);
        return r;
}

static int join(struct taking *t, int uffd, struct err *e) {
        cleanup_fd int image = -1;
        struct vm *vm = t->vm;
        struct pager_join j;
        int r = vm_open_base(vm, VM_BASE_FILE, &image);

        if (r < 0)
                return err_errno(e, r, "opening the empty image of '%s'", vm->name);
        j = (struct pager_join){ image, uffd, vm->ops->pidfd(vm->vmm), t->regions, t->n_regions };
        return pager_session_join(vm->d->pager, vm, &j, e);
}

/* ---- before the pause ---- */

/* Before the pager does anything: that it may have the VM's memory, and that some of it may be protected. */
static int note(struct vm *vm, struct err *e) {
        int r = vm->has_base ? 0 : make_empty_base(vm);

        if (r < 0)
                return err_errno(e, r, "making an empty image for '%s'", vm->name);
        vm->has_base = vm->live = true;
        return vm_record_save(vm, e);
}

/* Of a failure: @ret_refused, nothing has happened to the VM's memory. An answer that did not come tells nothing of that. */
static int begin(struct taking *t, bool *ret_refused, struct err *e) {
        cleanup_fd int uffd = -1;
        struct vm *vm = t->vm;
        int r = 0;

        *ret_refused = true;
        if (!vm->session)
                r = vm->ops->idle_uffd ? vm->ops->idle_uffd(vm->vmm, &uffd, e)
                                       : err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "its VMM has no userfaultfd");
        if (r == 0)
                r = note(vm, e);
        if (r == 0 && !vm->session)
                r = join(t, uffd, e);
        if (r < 0)
                return r;
        r = pager_live_begin(vm->d->pager, vm, t->m->id, &t->live, e);
        *ret_refused = r == -EREMOTEIO || r == -EOPNOTSUPP; /* said the pager */
        return r;
}

int op_live_prepare(struct taking *t, struct err *e) {
        struct vm *vm = t->vm;
        bool refused;
        int r;

        if (!vm->d->cfg.live_forks)
                return 0;
        r = begin(t, &refused, e);
        if (r == 0)
                return 0;
        if (!refused || vm->lost[0] || vm->vmm_exited)
                return r;
        /* Nothing has happened to it: then it waits until its memory is read. That its record says otherwise does no harm. */
        vm->live = false;
        if (r == -EOPNOTSUPP)
                log_debug("%s is saved while it stands still: %s", vm->name, e->message);
        else
                log_warning("%s (%s) is saved while it stands still: %s", vm->name, vm->id, e->message);
        return 0;
}

/* ---- the pause ---- */

int op_live_protect(struct taking *t, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint64_t removed = 1;
        int r;

        mp_buf_init(&b);
        /* The pager has heard of all that was discarded when it answers; only then it is asked for it. */
        r = pager_live_protect(t->live, &removed, e);
        t->none_removed = removed == 0;
        if (r == 0)
                r = taking_put_source(t, &b, e);
        if (r == 0)
                r = rpc_call_co(worker_conn(t->worker), "snap.still", &b, NULL, 0, COPY_TIMEOUT_MS, NULL, e);
        return r;
}

/* ---- the guest runs ---- */

static int open_disks(struct taking *t, struct vm_origin *o, struct err *e) {
        for (unsigned i = 0; i < t->m->n_disks; i++) {
                cleanup_rpc_answer struct rpc_answer a = { 0 };
                cleanup_mp_buf struct mp_buf b = { 0 };
                int r;

                mp_buf_init(&b);
                mp_map(&b, 1);
                mp_kv_u64(&b, "disk", i);
                r = rpc_call_co(worker_conn(t->worker), "snap.disk", &b, NULL, 0, COPY_TIMEOUT_MS, &a, e);
                if (r == 0 && a.n_fds != 1)
                        r = err_set(e, ERR_INTERNAL, -EPROTO, "a worker gave no descriptor of a disk");
                if (r < 0)
                        return r;
                o->disk_fd[i] = TAKE_FD(a.fds[0]);
        }
        return 0;
}

int op_live_tell(struct taking *t, struct err *e) {
        struct vm_origin o;
        int r;

        /* A disk that has to be copied for each clone is copied from the snapshot, when there is one. */
        if (!t->p->on_nascent || (!t->vm->d->reflink && t->m->n_disks > 0))
                return 0;
        origin_nascent(t->m, &o);
        r = open_disks(t, &o, e);
        if (r == 0) {
                o.vmstate_fd = fcntl(t->vmstate_fd, F_DUPFD_CLOEXEC, 0);
                if (o.vmstate_fd < 0)
                        r = err_errno(e, -errno, "handing on the device state");
        }
        if (r == 0)
                t->p->on_nascent(&o, t->p->arg);
        origin_clear(&o);
        return r;
}

int op_live_copy(struct taking *t, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_fd int memfd = -1;
        uint64_t pages = 0, start = now_ns();
        int r;

        r = pager_live_wait(t->live, &memfd, e);
        t->result->memory_ms = ms_since(start);
        stage_done(&t->stages, "wait");
        if (r < 0)
                return err_prefix(e, "copying the memory of '%s'", t->vm->name);
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "fds", 1);
        r = rpc_call_co(worker_conn(t->worker), "snap.pages", &b, &memfd, 1, COPY_TIMEOUT_MS, &a, e);
        if (r < 0)
                return r;
        (void) mp_get_u64(&a.doc.root, "dirty_pages", &pages);
        t->m->dirty_bytes = pages * SNAP_PAGE_SIZE;
        stage_done(&t->stages, "pages");
        return 0;
}

/* ---- the end ---- */

/* From here on the source's next snapshot is a child of @s; `live` stays. It is so before the pager has the VMM map memory of @s:
 * what it maps from there is dirty against no other parent, whatever happens to us in between. */
static int descend(struct taking *t, const struct snap_entry *s, struct err *e) {
        struct vm *vm = t->vm;
        int r = origin_link_memory(vm, s->m.id, VM_PARENT_FILE);

        if (r < 0)
                return err_errno(e, r, "keeping the memory of snapshot %s for '%s'", s->m.id, vm->name);
        /* Its session goes on, and what it tells from now on is no restore's of either snapshot. */
        recording_learn(vm, vm->snapshot, &t->recorded);
        recording_end(vm);
        if (!vm->has_origin)
                memcpy(vm->origin, vm->snapshot, sizeof(vm->origin));
        vm->has_origin = true;
        catalog_vm_descends(vm, &s->m);
        vm->has_parent = true;
        return vm_record_save(vm, e);
}

static int publish(struct taking *t, const struct snap_entry *s, struct err *e) {
        cleanup_fd int image = -1;
        struct vm *vm = t->vm;
        int r = snap_store_open_file(vm->d->store, s->m.id, SNAP_FILE_MEMORY, &image);

        if (r < 0)
                return err_errno(e, r, "opening the memory of snapshot %s", s->m.id);
        /* Sent before anything else happens: who opens the snapshot's file from now on finds the image that is there. */
        return pager_live_publish(t->live, image, e);
}

int op_live_settle(struct taking *t, struct snap_entry *s, struct err *e) {
        struct vm *vm = t->vm;
        int r;

        s->users++;
        r = vm->vmm_exited || vm->lost[0] ? 0 : descend(t, s, e);
        if (r == 0)
                r = publish(t, s, e);
        if (r == 0) {
                pager_live_free(TAKE_PTR(t->live));
                vm->live = false;
                /* Should it not be written: who finds `live` unprotects, and more is dirty than need be. */
                if (!vm->vmm_exited && vm_record_save(vm, e) < 0)
                        log_warning("%s", e->message);
        }
        s->users--;
        return r;
}

void op_live_undo(struct taking *t) {
        struct err e;

        pager_live_free(TAKE_PTR(t->live));
        if (vm_unprotect(t->vm, &e) < 0)
                log_warning("%s", e.message); /* the next snapshot tries again, or the next forkd */
}
