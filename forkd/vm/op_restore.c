/* SPDX-License-Identifier: MIT */
/* Bringing a VM to life from a snapshot: `restore`, and every clone of a `fork`. The order is that of the
 * architecture: image, pager session (the watchdog holds the VM from there on), VMM, device state, wake-up,
 * resume, acknowledgement. */
#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"
#include "forkd/pager/link.h"
#include "forkd/pool/pool.h"
#include "forkd/vm/origin.h"
#include "forkd/vm/recording.h"
#include "forkd/host/room.h"
#include "forkd/host/shells.h"
#include "forkd/vm/stages.h"
#include "forkd/host/turns.h"
#include "forkd/vm/vm.h"

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

/* A session, and a VMM that is attached to it. -ERESTART: there was a shell, which failed. */
static int launch(struct vm *vm, const struct vm_origin *o, bool no_shell, struct stages *stages, struct err *e) {
        cleanup_fd int image = -1, workingset = -1, sock = -1;
        struct pager_open open = { .image_fd = -1, .workingset_fd = -1, .live = o->entry ? NULL : o->m->id };
        struct vm_launch l = { .no_shell = no_shell };
        int r;

        if (o->entry) {
                r = vm_open_base(vm, VM_BASE_FILE, &image);
                if (r < 0)
                        return err_errno(e, r, "opening the memory of snapshot %s", o->m->id);
                open.image_fd = image;
                open.m = o->m;
                open.workingset_fd = workingset = recording_begin(vm, o->entry);
        }
        r = pager_session_open(vm->d->pager, vm, &open, &sock, e);
        stage_done(stages, "session");
        if (r < 0)
                return r;
        l.pager_sock = sock;
        r = vm_launch(vm, &l, e);
        stage_done(stages, "launch");
        return r;
}

/* VMM with its memory attached and its device state loaded; the guest's vCPUs do not run. -ERESTART as above. */
static int load(struct vm *vm, const struct vm_origin *o, bool no_shell, struct stages *stages, struct err *e) {
        cleanup_fd int vmstate = -1;
        int r;

        r = origin_make_files(vm, o, e);
        if (r == 0)
                r = origin_open_vmstate(vm, o, &vmstate, e);
        stage_done(stages, "files");
        if (r < 0)
                return r;
        r = launch(vm, o, no_shell, stages, e);
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

/* A nascent one may have been published while we waited; then it is as any other, and there is no nascent one any more. */
static int load_once(struct vm *vm, const struct vm_origin *o, bool no_shell, struct stages *stages, struct err *e) {
        struct snap_entry *s = o->entry ? NULL : catalog_by_id(vm->d->catalog, o->m->id);
        struct vm_origin published;
        int r;

        if (!s)
                return load(vm, o, no_shell, stages, e);
        origin_published(s, &published);
        s->users++;
        r = load(vm, &published, no_shell, stages, e);
        s->users--;
        return r;
}

static int load_origin(struct vm *vm, const struct vm_origin *o, struct stages *stages, struct err *e) {
        int r = load_once(vm, o, vm->pool[0], stages, e); /* shells are for those who wait */

        return r == -ERESTART ? load_once(vm, o, true, stages, e) : r;
}

static int restore(struct vm *vm, const struct vm_origin *o, bool paused, struct vm_clone_result *ret, struct err *e) {
        uint64_t start = now_ns(), loaded;
        struct stages stages;
        int r;

        stages_begin(&stages);
        r = load_origin(vm, o, &stages, e);
        if (r == 0)
                r = vm_link_open(vm, e);
        stage_done(&stages, "link");
        if (r < 0)
                return r;
        loaded = now_ns();
        ret->load_ms = (double) (loaded - start) / 1e6;
        vm->needs_wake = true;
        if (vm->pool[0])
                r = pool_member_warm_up(vm, e);
        else
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

int vm_restore_from(struct vm *vm, const struct vm_origin *o, bool paused, bool force, struct vm_clone_result *ret,
                    struct err *e) {
        enum vm_state before = vm->state;
        struct err ignored;
        char reason[sizeof(vm->reason)];
        int r;

        memcpy(reason, vm->reason, sizeof(reason));
        r = vm_check_ended(vm, e);
        if (r < 0)
                return r;
        r = check_fits(vm, o->m, force, e);
        if (r == 0)
                r = reserve(vm, e);
        if (r < 0)
                return r;
        if (before == VM_CREATING) {
                (void) snprintf(vm->net, sizeof(vm->net), "%.7s", o->m->net[0] ? o->m->net : "none");
                if (!vm->on_pager_loss[0])
                        (void) strcpy(vm->on_pager_loss, "kill");
        }
        catalog_vm_stands_by(vm, o->m);
        r = vm_record_save(vm, e);
        if (r == 0)
                r = vm->pool[0] ? turns_take_spare(vm->d->turns, HEAVY_START, e) : turns_take(vm->d->turns, HEAVY_START, e);
        if (r == 0) {
                r = restore(vm, o, paused, ret, e);
                turns_give(vm->d->turns, HEAVY_START);
        }
        if (r == 0) {
                room_hold(vm);
                if (vm->pool[0]) /* nobody has waited for it */
                        return 0;
                shells_want(vm->d->shells, vm);
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

int vm_op_restore(struct vm *vm, const char *snapshot, bool paused, bool force, struct vm_clone_result *ret, struct err *e) {
        struct snap_entry *s;
        struct vm_origin o;
        int r = catalog_find(vm->d->catalog, snapshot, &s, e);

        if (r < 0)
                return r;
        origin_published(s, &o);
        s->users++;
        r = vm_restore_from(vm, &o, paused, force, ret, e);
        s->users--;
        return r;
}
