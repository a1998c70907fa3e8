/* SPDX-License-Identifier: MIT */
/* Taking a snapshot: `standby`, and where the guest cannot run on meanwhile (op_live.c) `snapshot create` and the first half of
 * forking a running VM.
 *
 *      prepare     worker: temporary directory, reflink of the image below the VM       guest runs
 *      pause       VMM: vCPUs stopped, disks drained
 *      copy        worker: dirty pages read, disks ‖ VMM: device state                 guest paused
 *      [resume     the VM goes on, if it is to]
 *      publish     worker: pages compressed, device state, manifest, sync, rename
 *      [end        the VMM is killed, the VM is on standby]
 *
 * Whatever fails before the rename: the temporary directory goes with the worker, the guest goes on. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/host/admission.h"
#include "forkd/daemon.h"
#include "forkd/vm/journal.h"
#include "forkd/pager/link.h"
#include "forkd/vm/taking.h"
#include "forkd/host/turns.h"
#include "setup/assets.h"

/* Refuse to begin when not even the device state and an index would fit. */
#define MIN_FREE_BYTES (4u << 20)

static int fill_manifest(struct taking *t, struct err *e) {
        struct vm *vm = t->vm;
        struct snap_manifest *m = t->m;
        struct snap_entry *parent;
        struct assets assets;
        struct timespec now;
        struct err ignored;

        int r;

        r = catalog_claim_tag(vm->d->catalog, t->p->tag, &t->claim, e);
        if (r < 0)
                return r;
        (void) strcpy(m->tag, t->claim.tag);
        (void) clock_gettime(CLOCK_REALTIME, &now);
        id_new(m->id);
        (void) strcpy(m->source, vm->name);
        m->created_ns = (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
        (void) snprintf(m->vmm, sizeof(m->vmm), "%s", vm->driver);
        (void) snprintf(m->vmm_version, sizeof(m->vmm_version), "%s", vm->vmm_version);
        (void) snprintf(m->machine, sizeof(m->machine), "%s", vm->ops->machine);
        (void) snprintf(m->accel, sizeof(m->accel), "%s", vm->machine.accel == VMM_ACCEL_KVM ? "kvm" : "tcg");
        (void) snprintf(m->net, sizeof(m->net), "%s", vm->net);
        m->vcpus = vm->machine.vcpus;
        m->mem_bytes = vm->machine.mem_bytes;
        m->n_disks = vm->machine.n_disks;
        m->pages_zero = m->mem_bytes / SNAP_PAGE_SIZE; /* until the worker has counted */
        /* What the guest booted from is told for people; nothing depends on it. */
        if (assets_locate(vm->d->cache_dir, &assets, &ignored) == 0)
                (void) snprintf(m->kernel, sizeof(m->kernel), "%s", assets.id);
        if (vm->snapshot[0]) {
                parent = catalog_by_id(vm->d->catalog, vm->snapshot);
                if (parent) {
                        snap_manifest_set_parent(m, &parent->m);
                } else {
                        /* The parent was removed; its id still tells the lineage. */
                        memcpy(m->parent, vm->snapshot, sizeof(m->parent));
                        m->depth = vm->generation;
                        m->n_chain = 1;
                        memcpy(m->chain[0], vm->snapshot, sizeof(m->chain[0]));
                }
        }
        return 0;
}

/* The snapshot is named, by the VM's record or by the journal, before anything of it is visible, so that the next forkd
 * can finish the standby, or remove what nobody was told of. */
static int announce(struct taking *t, bool keep_running, struct err *e) {
        if (keep_running) {
                int r = journal_add_snapshot(t->p->journal, t->m->id);

                return r < 0 ? err_errno(e, r, "noting the snapshot") : journal_write(t->vm->d, t->p->journal, e);
        }
        memcpy(t->vm->pending_snapshot, t->m->id, sizeof(t->vm->pending_snapshot));
        return vm_record_save(t->vm, e);
}

/* Room in the store, before the guest is paused. */
static int reserve(struct taking *t, uint64_t bytes, struct err *e) {
        const struct admission_need need = { .disk = bytes };
        char who[80];

        (void) snprintf(who, sizeof(who), "a snapshot of '%s'", t->vm->name);
        return admission_reserve(t->vm->d->admission, &t->claim_disk, who, &need, 1, e);
}

/* What @pages of a running guest take. Compression is seen to save a third; where it saves less and the store is that full,
 * the worker hears of it. */
static uint64_t stored_estimate(const struct taking *t, uint64_t pages) {
        uint64_t bytes = pages * SNAP_PAGE_SIZE;

        return t->p->codec == SNAP_CODEC_NONE ? bytes : bytes / 3 * 2;
}

static void put_regions(const struct taking *t, struct mp_buf *b) {
        mp_kv_u64(b, "pid", (uint64_t) t->vm->ops->pid(t->vm->vmm));
        mp_key(b, "regions");
        mp_array(b, t->n_regions);
        for (size_t i = 0; i < t->n_regions; i++) {
                mp_map(b, 3);
                mp_kv_u64(b, "addr", t->regions[i].host_addr);
                mp_kv_u64(b, "size", t->regions[i].size);
                mp_kv_u64(b, "offset", t->regions[i].offset);
        }
}

static int prepare(struct taking *t, bool keep_running, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        uint64_t dirty = 0;
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct err worker_err = { 0 };
        struct rpc_co call;
        int r, worker_r;

        mp_buf_init(&b);
        r = vm_unprotect(t->vm, e);
        if (r == 0)
                r = fill_manifest(t, e);
        if (r == 0)
                r = reserve(t, MIN_FREE_BYTES, e);
        if (r == 0)
                r = t->vm->ops->ram_regions(t->vm->vmm, t->regions, MAX_REGIONS, &t->n_regions, e);
        if (r < 0)
                return r;
        if (t->vm->has_base) {
                r = vm_open_base(t->vm, t->vm->has_parent ? VM_PARENT_FILE : VM_BASE_FILE, &t->base_fd);
                if (r < 0)
                        return err_errno(e, r, "opening the memory that '%s' lives on", t->vm->name);
        }
        t->vmstate_fd = memfd_create("forkd-vmstate", MFD_CLOEXEC);
        if (t->vmstate_fd < 0)
                return err_errno(e, -errno, "making room for the device state");
        r = worker_get(t->vm->d->workers, &t->worker, e);
        if (r < 0)
                return r;
        mp_map(&b, 8);
        put_regions(t, &b);
        mp_kv_str(&b, "store", t->vm->d->store_dir);
        mp_kv_str(&b, "id", t->m->id);
        mp_kv_u64(&b, "ram_bytes", t->vm->machine.mem_bytes);
        mp_kv_u64(&b, "codec", (uint64_t) t->p->codec);
        mp_kv_u64(&b, "level", (uint64_t) t->p->level);
        mp_kv_u64(&b, "fds", t->base_fd >= 0);
        r = rpc_co_begin(&call, worker_conn(t->worker), "snap.prepare", &b, &t->base_fd, t->base_fd >= 0, e);
        if (r < 0)
                return r;
        r = announce(t, keep_running, e); /* meanwhile */
        worker_r = rpc_co_end(&call, COPY_TIMEOUT_MS, &a, &worker_err);
        if (r == 0 && worker_r < 0) {
                r = worker_r;
                *e = worker_err;
        }
        if (r == 0)
                (void) mp_get_u64(&a.doc.root, "dirty_pages", &dirty);
        return r < 0 ? r : reserve(t, MIN_FREE_BYTES + stored_estimate(t, dirty), e);
}

int taking_put_source(struct taking *t, struct mp_buf *b, struct err *e) {
        cleanup_mp_buf struct mp_buf removed = { 0 };
        struct vm *vm = t->vm;
        uint64_t n_removed = 0;
        int r = 0;

        mp_buf_init(&removed);
        if (vm->session && !t->none_removed)
                r = pager_session_removed(vm->d->pager, vm, &removed, &n_removed, e);
        if (r < 0)
                return r;
        mp_map(b, 4);
        put_regions(t, b);
        mp_key(b, "disks");
        mp_array(b, vm->machine.n_disks);
        for (unsigned i = 0; i < vm->machine.n_disks; i++) {
                char file[32], path[PATH_MAX];

                (void) snprintf(file, sizeof(file), "disk-%u.img", i);
                r = vm_store_path(vm, file, path, sizeof(path));
                if (r < 0)
                        return err_errno(e, r, "saving disk %u", i);
                mp_str(b, path);
        }
        mp_kv_list(b, "removed", &removed, n_removed);
        return 0;
}

/* The guest's memory and disks; a coroutine of its own. */
struct memory_copy {
        struct taking *t;
        struct co_wait done;
        struct err e;
};

static int copy_memory(struct taking *t, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint64_t pages = 0;
        int r;

        mp_buf_init(&b);
        r = taking_put_source(t, &b, e);
        if (r == 0)
                r = rpc_call_co(worker_conn(t->worker), "snap.copy", &b, NULL, 0, COPY_TIMEOUT_MS, &a, e);
        if (r < 0)
                return r;
        (void) mp_get_u64(&a.doc.root, "dirty_pages", &pages);
        (void) mp_get_double(&a.doc.root, "ms", &t->result->memory_ms);
        t->m->dirty_bytes = pages * SNAP_PAGE_SIZE;
        return 0;
}

static void copy_memory_main(void *arg) {
        struct memory_copy *c = arg;

        co_wake(&c->done, c->t->live ? op_live_protect(c->t, &c->e) : copy_memory(c->t, &c->e));
}

/* Memory in the worker and device state in the VMM, at the same time. */
static int copy(struct taking *t, struct err *e) {
        struct memory_copy memory = { .t = t, .done = CO_WAIT_INIT };
        uint64_t start;
        int r, memory_r;

        r = co_start(t->vm->d->base, copy_memory_main, &memory);
        if (r < 0)
                return err_errno(e, r, "copying the memory of '%s'", t->vm->name);
        start = now_ns();
        r = t->vm->ops->save_state(t->vm->vmm, t->vmstate_fd, e);
        t->result->device_ms = ms_since(start);
        memory_r = co_wait(&memory.done, -1); /* its own steps have deadlines */
        if (r < 0)
                return err_prefix(e, "saving the device state of '%s'", t->vm->name);
        if (memory_r < 0)
                *e = memory.e;
        return memory_r;
}

static int publish(struct taking *t, struct snap_entry **ret, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_free void *manifest = NULL;
        cleanup_mp_buf struct mp_buf b = { 0 };
        const void *data;
        size_t len;
        int r;

        mp_buf_init(&b);
        r = snap_manifest_encode(t->m, &manifest, &len);
        if (r < 0)
                return err_errno(e, r, "describing the snapshot");
        mp_map(&b, 5);
        mp_kv_bin(&b, "manifest", manifest, len);
        mp_kv_str(&b, "came_from", t->vm->d->cfg.workingset ? t->vm->snapshot : "");
        mp_kv_list(&b, "runs", &t->recorded.runs, t->recorded.n);
        mp_kv_bool(&b, "sync", t->p->sync);
        mp_kv_u64(&b, "fds", 1);
        r = rpc_call_co(worker_conn(t->worker), "snap.publish", &b, &t->vmstate_fd, 1, COPY_TIMEOUT_MS, &a, e);
        if (r < 0)
                return r;
        r = mp_get_bin(&a.doc.root, "manifest", &data, &len);
        if (r == 0)
                r = snap_manifest_decode(data, len, t->m);
        if (r == 0)
                r = catalog_add(t->vm->d->catalog, t->m, t->p->sync, ret);
        return r < 0 ? err_errno(e, r, "publishing the snapshot") : 0;
}

static int pause_vm(struct taking *t, struct err *e) {
        int r;

        t->t_pause = now_ns();
        if (t->vm->state == VM_PAUSED)
                return 0;
        /* Also one that did not answer in time may do so later: undo tells it to go on. */
        t->paused_by_us = true;
        r = t->vm->ops->pause(t->vm->vmm, e);
        return r < 0 ? err_prefix(e, "pausing '%s'", t->vm->name) : 0;
}

/* The guest goes on, after a failure or because it shall. */
static int resume_vm(struct taking *t, struct err *e) {
        if (!t->paused_by_us)
                return 0;
        t->paused_by_us = false;
        return t->vm->ops->resume(t->vm->vmm, e);
}

static int finish(struct taking *t, struct snap_entry **ret, struct err *e) {
        struct snap_entry *s;
        int r = 0;

        if (t->live)
                r = op_live_tell(t, e);
        if (t->live && r == 0)
                r = op_live_copy(t, e);
        if (r == 0)
                r = publish(t, &s, e);
        stage_done(&t->stages, "publish");
        if (r < 0)
                return r;
        if (t->live)
                r = op_live_settle(t, s, e);
        if (r < 0)
                catalog_drop(t->vm->d->catalog, t->m->id);
        else
                *ret = s;
        return r;
}

static int take(struct taking *t, bool keep_running, struct snap_entry **ret, struct err *e) {
        int r;

        r = prepare(t, keep_running, e);
        if (r == 0 && keep_running)
                r = op_live_prepare(t, e);
        if (r < 0)
                return r;
        recording_fetch(t->vm, &t->recorded);
        stage_done(&t->stages, "prepare");
        r = pause_vm(t, e);
        stage_done(&t->stages, "pause");
        if (r == 0)
                r = copy(t, e);
        stage_done(&t->stages, "copy");
        if (r == 0 && keep_running)
                r = resume_vm(t, e);
        t->result->pause_ms = ms_since(t->t_pause);
        stage_done(&t->stages, "resume");
        return r < 0 ? r : finish(t, ret, e);
}

/* After a failure: the guest runs on and nothing half-written stays. */
static void undo(struct taking *t) {
        struct vm *vm = t->vm;
        struct err e;

        if (vm->vmm && !vm->vmm_exited && resume_vm(t, &e) < 0)
                log_error("%s does not go on after a failed snapshot: %s", vm->name, e.message);
        op_live_undo(t);
        if (t->worker) {
                worker_put(TAKE_PTR(t->worker), true);
                /* A worker that died between the publishing and its answer has left a snapshot that nobody asked for:
                 * its VM runs on. */
                if (snap_store_remove(vm->d->store, t->m->id) == 0)
                        log_info("removed snapshot %s, of which nobody was told", t->m->id);
                best_effort(snap_store_sweep(vm->d->store, NULL, NULL));
        }
        if (vm->pending_snapshot[0]) {
                vm->pending_snapshot[0] = '\0';
                if (vm_record_save(vm, &e) < 0)
                        log_error("%s", e.message);
        }
}

/* The record on disk names the snapshot as pending already: should it not be writable any more, the next forkd still
 * comes to the same result. So that is no reason to tell of a failure, of which there is none. */
static void become_standby(struct taking *t, struct snap_entry *s) {
        struct vm *vm = t->vm;
        struct err e;

        recording_learn(vm, vm->snapshot, &t->recorded);
        /* A VMM takes milliseconds to die, in which its files can go: disks and memory are in the snapshot now. */
        if (vm->vmm && !vm->vmm_exited)
                best_effort(spawn_kill(vm->ops->pidfd(vm->vmm), SIGKILL));
        vm_drop_files(vm);
        (void) vm_teardown(vm);
        stage_done(&t->stages, "end");
        catalog_vm_stands_by(vm, &s->m);
        if (vm_set_state(vm, VM_STANDBY, &e) < 0)
                log_warning("%s", e.message);
        stage_done(&t->stages, "record");
}

int vm_op_snapshot(struct vm *vm, const struct vm_snap_params *p, bool keep_running, struct vm_snap_result *ret, struct err *e) {
        cleanup_free struct snap_manifest *m = calloc(1, sizeof(*m));
        struct taking t = { .vm = vm, .p = p, .m = m, .result = ret, .base_fd = -1, .vmstate_fd = -1, .t0 = now_ns() };
        struct snap_entry *s = NULL;
        int r;

        if (!m)
                return err_errno(e, -ENOMEM, "taking a snapshot of '%s'", vm->name);
        if (vm->state != VM_RUNNING && vm->state != VM_PAUSED) {
                (void) err_set(e, ERR_STATE, -EINVAL, "'%s' is %s: only a running or paused VM can be saved", vm->name,
                               vm_state_name(vm->state));
                return err_hint(e, vm->state == VM_STANDBY ? "it is saved already: snapshot %s" : "see 'forkctl ps'",
                                vm->snapshot);
        }
        *ret = (struct vm_snap_result){ 0 };
        stages_begin(&t.stages);
        recorded_init(&t.recorded);
        r = turns_take(vm->d->turns, HEAVY_SAVE, e);
        if (r == 0) {
                stage_done(&t.stages, "turn");
                r = take(&t, keep_running, &s, e);
                turns_give(vm->d->turns, HEAVY_SAVE);
        }
        if (r < 0)
                undo(&t);
        else
                worker_put(TAKE_PTR(t.worker), false);
        catalog_release_tag(&t.claim);
        admission_release(vm->d->admission, &t.claim_disk);
        (void) close_fd(t.base_fd);
        (void) close_fd(t.vmstate_fd);
        if (r == 0 && !keep_running) {
                s->users++; /* ending the VM takes a while, in which nobody may remove its snapshot */
                become_standby(&t, s);
                s->users--;
        }
        recorded_clear(&t.recorded);
        if (r < 0) {
                if (!keep_running)
                        times_failed(vm->d, OP_STANDBY, r);
                return r;
        }
        memcpy(ret->snapshot, s->m.id, sizeof(ret->snapshot));
        ret->dirty_bytes = s->m.dirty_bytes;
        ret->stored_bytes = s->m.stored_bytes;
        ret->durable = s->durable;
        ret->total_ms = ms_since(t.t0);
        if (!keep_running)
                times_took(vm->d, OP_STANDBY, ret->total_ms);
        stages_log(&t.stages, vm->name, keep_running ? "snapshot" : "standby");
        if (!s->durable)
                catalog_sync_later(vm->d->catalog, s);
        return 0;
}

int vm_op_snapshot_create(struct vm *vm, struct vm_snap_params *p, struct vm_snap_result *ret, struct err *e) {
        cleanup_journal struct journal_entry j = { 0 };
        int r;

        journal_init(&j, JOURNAL_SNAPSHOT);
        p->journal = &j;
        r = vm_op_snapshot(vm, p, true, ret, e);
        if (r == 0) {
                r = journal_end(vm->d, &j, e);
                if (r < 0)
                        catalog_drop(vm->d->catalog, ret->snapshot);
        }
        if (r < 0)
                journal_undone(vm->d, &j);
        p->journal = NULL;
        return r;
}
