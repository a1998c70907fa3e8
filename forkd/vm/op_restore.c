/* SPDX-License-Identifier: MIT */
/* Bringing a VM to life from a snapshot: `restore`, and every clone of a `fork`. The order is that of the
 * architecture: image, pager session (the watchdog holds the VM from there on), VMM, device state, wake-up,
 * resume, acknowledgement. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"
#include "forkd/pager/link.h"
#include "forkd/vm/recording.h"
#include "forkd/host/room.h"
#include "forkd/vm/stages.h"
#include "forkd/host/turns.h"
#include "forkd/vm/vm.h"
#include "forkd/worker/worker.h"

#define DISK_COPY_TIMEOUT_MS 600000

static int check_fits(struct vm *vm, const struct snap_manifest *m, bool force, struct err *e) {
        char version[32];
        int r;

        vm->ops = vmm_driver(m->vmm);
        if (!vm->ops)
                return err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP,
                               "snapshot %s needs the VMM '%s', for which this build has no driver", m->id, m->vmm);
        r = vm->ops->version(version, sizeof(version), e);
        if (r < 0)
                return r;
        if (strcmp(version, m->vmm_version) != 0 && !force) {
                (void) err_set(e, ERR_VERSION, -EPROTONOSUPPORT, "snapshot %s was made with %s %s, this host has %s %s", m->id,
                               m->vmm, m->vmm_version, m->vmm, version);
                return err_hint(e, "device state is only sure to load under the same version; --force tries all the same");
        }
        if (strcmp(vm->ops->machine, m->machine) != 0 && !force) {
                (void) err_set(e, ERR_VERSION, -EPROTONOSUPPORT,
                               "snapshot %s was made on the machine '%s', this forkd builds '%s'", m->id, m->machine,
                               vm->ops->machine);
                return err_hint(e, "restore it with the forkd that made it; --force tries all the same");
        }
        if (m->mem_bytes < VMM_MIN_MEM || m->mem_bytes > VMM_MAX_MEM || m->vcpus < 1 || m->vcpus > VMM_MAX_VCPUS ||
            m->n_disks > VMM_MAX_DISKS)
                return err_set(e, ERR_CORRUPT, -EBADMSG, "the manifest of snapshot %s describes an impossible machine", m->id);
        (void) snprintf(vm->driver, sizeof(vm->driver), "%s", m->vmm);
        (void) snprintf(vm->vmm_version, sizeof(vm->vmm_version), "%s", version);
        vm->machine = (struct vmm_machine){
                .mem_bytes = m->mem_bytes,
                .vcpus = m->vcpus,
                .accel = strcmp(m->accel, "kvm") == 0 ? VMM_ACCEL_KVM : VMM_ACCEL_TCG,
                .n_disks = m->n_disks,
        };
        return 0;
}

/* A regular file of the size that the manifest tells: a disk has no checksum. */
static int open_disk(struct vm *vm, const struct snap_manifest *m, const char *file, unsigned i, int *ret_fd) {
        cleanup_fd int fd = -1;
        struct stat st;
        int r = snap_store_open_file(vm->d->store, m->id, file, &fd);

        if (r < 0)
                return r;
        if (fstat(fd, &st) < 0)
                return -errno;
        if ((uint64_t) st.st_size != m->disk_bytes[i])
                return -EBADMSG;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static int share_disk(struct vm *vm, const struct snap_manifest *m, unsigned i, struct err *e) {
        cleanup_fd int src = -1, dst = -1;
        char to[PATH_MAX], file[32];
        int r;

        (void) snprintf(file, sizeof(file), "disk-%u.img", i);
        r = vm_store_path(vm, file, to, sizeof(to));
        if (r == 0)
                r = open_disk(vm, m, file, i, &src);
        if (r == 0 && (dst = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) < 0)
                r = -errno;
        if (r == 0)
                r = io_clone_file(src, dst, NULL);
        return r < 0 ? err_errno(e, r, "preparing disk %u of '%s'", i, vm->name) : 0;
}

/* Where extents cannot be shared a disk is copied, which may take long: not here. */
static int copy_disk(struct vm *vm, const struct snap_manifest *m, unsigned i, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        char from[PATH_MAX], to[PATH_MAX], file[32];
        cleanup_fd int checked = -1;
        int r;

        mp_buf_init(&b);
        (void) snprintf(file, sizeof(file), "disk-%u.img", i);
        r = vm_store_path(vm, file, to, sizeof(to));
        if (r == 0)
                r = open_disk(vm, m, file, i, &checked);
        if (r == 0)
                r = snap_store_path(vm->d->store, m->id, file, from, sizeof(from));
        if (r < 0)
                return err_errno(e, r, "preparing disk %u of '%s'", i, vm->name);
        mp_map(&b, 3);
        mp_kv_str(&b, "from", from);
        mp_kv_str(&b, "to", to);
        mp_key(&b, "caller"); /* forkd itself: the file is its own */
        mp_nil(&b);
        return worker_do(vm->d->workers, "disk.copy", &b, NULL, 0, DISK_COPY_TIMEOUT_MS, NULL, e);
}

/* The VM's own files: reflinks of the disks, and a second name for the memory image, so that the snapshot may
 * be removed while the VM lives on it. */
static int make_files(struct vm *vm, const struct snap_manifest *m, struct err *e) {
        char dir[PATH_MAX], from[PATH_MAX], to[PATH_MAX];
        int r;

        r = vm_store_path(vm, NULL, dir, sizeof(dir));
        if (r == 0)
                r = io_remove_tree(AT_FDCWD, dir);
        if (r == 0)
                r = io_mkdir_p(dir, 0700);
        if (r == 0)
                r = snap_store_path(vm->d->store, m->id, SNAP_FILE_MEMORY, from, sizeof(from));
        if (r == 0)
                r = vm_store_path(vm, "base.img", to, sizeof(to));
        if (r == 0 && link(from, to) < 0)
                r = -errno;
        if (r < 0)
                return err_errno(e, r, "preparing the memory of '%s'", vm->name);
        vm->has_base = true;
        for (unsigned i = 0; r == 0 && i < m->n_disks; i++)
                r = vm->d->reflink ? share_disk(vm, m, i, e) : copy_disk(vm, m, i, e);
        return r;
}

static int read_vmstate(struct vm *vm, const struct snap_manifest *m, int *ret_fd, struct err *e) {
        cleanup_fd int fd = memfd_create("forkd-vmstate", MFD_CLOEXEC);
        int r = fd < 0 ? -errno : 0;

        if (r == 0)
                r = snap_store_read_vmstate(vm->d->store, m->id, fd);
        if (r == 0 && lseek(fd, 0, SEEK_SET) < 0)
                r = -errno;
        if (r < 0)
                return err_errno(e, r, "reading the device state of snapshot %s", m->id);
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int vm_open_base(const struct vm *vm, int *ret_fd) {
        cleanup_fd int fd = -1;
        char path[PATH_MAX];
        struct stat st;
        int r = vm_store_path(vm, "base.img", path, sizeof(path));

        if (r < 0)
                return r;
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd < 0)
                return errno == ELOOP ? -EBADMSG : -errno;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode))
                return -EBADMSG;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* VMM with its memory attached and its device state loaded; the guest's vCPUs do not run. */
static int load(struct vm *vm, struct snap_entry *s, struct stages *stages, struct err *e) {
        cleanup_fd int image = -1, workingset = -1, memfd = -1, sock = -1, vmstate = -1;
        const struct snap_manifest *m = &s->m;
        struct vm_launch l = { .image_fd = -1, .pager_sock = -1 };
        int r;

        r = make_files(vm, m, e);
        if (r == 0)
                r = read_vmstate(vm, m, &vmstate, e);
        stage_done(stages, "files");
        if (r < 0)
                return r;
        r = vm_open_base(vm, &image);
        if (r < 0)
                return err_errno(e, r, "opening the memory of snapshot %s", m->id);
        workingset = recording_begin(vm, s);
        r = pager_session_open(vm->d->pager, vm, image, workingset, &memfd, &sock, e);
        stage_done(stages, "session");
        if (r < 0)
                return r;
        l.image_fd = memfd;
        l.pager_sock = sock;
        r = vm_launch(vm, &l, e);
        stage_done(stages, "launch");
        if (r < 0)
                return r;
        r = vm->ops->load_state(vm->vmm, vmstate, e);
        stage_done(stages, "state");
        return r < 0 ? err_prefix(e, "loading the device state of '%s'", vm->name) : 0;
}

static int come_alive(struct vm *vm, struct stages *stages, struct err *e) {
        int r;

        r = vm_wake_queue(vm, WIRE_WAKE_RESTORE, e);
        if (r == 0)
                r = vm->ops->resume(vm->vmm, e);
        stage_done(stages, "resume");
        if (r == 0)
                r = vm_wake_wait(vm, e);
        stage_done(stages, "ack");
        return r < 0 ? r : vm_set_state(vm, VM_RUNNING, e);
}

static int restore(struct vm *vm, struct snap_entry *s, bool paused, struct vm_clone_result *ret, struct err *e) {
        uint64_t start = now_ns(), loaded;
        struct stages stages;
        int r;

        stages_begin(&stages);
        r = load(vm, s, &stages, e);
        if (r == 0)
                r = vm_link_open(vm, e);
        stage_done(&stages, "link");
        if (r < 0)
                return r;
        loaded = now_ns();
        ret->load_ms = (double) (loaded - start) / 1e6;
        vm->needs_wake = true;
        r = paused ? vm_set_state(vm, VM_PAUSED, e) : come_alive(vm, &stages, e);
        ret->ack_ms = paused ? 0 : ms_since(loaded);
        ret->total_ms = ms_since(start);
        stage_done(&stages, "record");
        stages_log(&stages, vm->name, "restore");
        return r;
}

/* A fork has reserved for its clones already. */
static int reserve(struct vm *vm, struct err *e) {
        const struct admission_need need = admission_vm_need(vm->machine.mem_bytes, vm->machine.vcpus, false);
        char who[80];

        if (vm->claim.count > 0)
                return 0;
        (void) snprintf(who, sizeof(who), "'%s'", vm->name);
        return admission_reserve(vm->d->admission, &vm->claim, who, &need, 1, e);
}

int vm_op_restore(struct vm *vm, const char *snapshot, bool paused, bool force, struct vm_clone_result *ret, struct err *e) {
        enum vm_state before = vm->state;
        struct snap_entry *s;
        struct err ignored;
        char reason[sizeof(vm->reason)];
        int r;

        memcpy(reason, vm->reason, sizeof(reason));
        r = vm_check_ended(vm, e);
        if (r < 0)
                return r;
        r = catalog_find(vm->d->catalog, snapshot, &s, e);
        if (r == 0)
                r = check_fits(vm, &s->m, force, e);
        if (r == 0)
                r = reserve(vm, e);
        if (r < 0)
                return r;
        s->users++;
        if (before == VM_CREATING) {
                (void) snprintf(vm->net, sizeof(vm->net), "%.7s", s->m.net[0] ? s->m.net : "none");
                if (!vm->on_pager_loss[0])
                        (void) strcpy(vm->on_pager_loss, "kill");
        }
        catalog_vm_stands_by(vm, s);
        r = vm_record_save(vm, e);
        if (r == 0)
                r = turns_take(vm->d->turns, HEAVY_START, e);
        if (r == 0) {
                r = restore(vm, s, paused, ret, e);
                turns_give(vm->d->turns, HEAVY_START);
        }
        s->users--;
        if (r == 0) {
                room_hold(vm);
                times_took(vm->d, before == VM_CREATING ? OP_FORK : OP_RESTORE, ret->total_ms);
                return 0;
        }
        if (before != VM_CREATING) /* a fork counts its own */
                times_failed(vm->d, OP_RESTORE, r);
        /* As it was: the snapshot is untouched. */
        if (vm->lost[0])
                (void) err_prefix(e, "%s", vm->lost);
        vm_explain(vm, e);
        (void) vm_teardown(vm);
        vm->needs_wake = false;
        vm_drop_files(vm);
        if (before != VM_CREATING) {
                vm->state = before;
                memcpy(vm->reason, reason, sizeof(reason));
                if (vm_record_save(vm, &ignored) < 0)
                        log_warning("%s", ignored.message);
        }
        return r;
}
