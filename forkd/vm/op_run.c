/* SPDX-License-Identifier: MIT */
/* `run`: a new VM boots from the guest assets. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/api/caller.h"
#include "forkd/daemon.h"
#include "forkd/host/room.h"
#include "forkd/host/turns.h"
#include "forkd/vm/vm.h"
#include "forkd/worker/worker.h"
#include "setup/assets.h"
#include "setup/setup.h"

#define DISK_COPY_TIMEOUT_MS 600000
#define KVM_VERDICT_TIMEOUT_MS 60000

static int check_params(const struct vm_run_params *p, struct err *e) {
        char have[32];

        if (p->mem_bytes < VMM_MIN_MEM || p->mem_bytes > VMM_MAX_MEM || p->mem_bytes % (1u << 20)) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "a VM cannot have %s of memory",
                               size_format(p->mem_bytes, have, sizeof(have)));
                return err_hint(e, "memory is from 96M to 1T, in whole MiB");
        }
        if (p->vcpus < 1 || p->vcpus > VMM_MAX_VCPUS) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "a VM cannot have %u vCPUs", p->vcpus);
                return err_hint(e, "vCPUs are from 1 to %d", VMM_MAX_VCPUS);
        }
        if (!vmm_driver(p->vmm)) {
                (void) err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "this build of forkd has no driver for the VMM '%.40s'", p->vmm);
                return err_hint(e, "use --vmm qemu");
        }
        if (strcmp(p->net, "none") != 0) {
                (void) err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP,
                               "this build of forkd has no network for guests (asked for '%.40s')", p->net);
                return err_hint(e, "use --net none");
        }
        return vm_check_policy(p->on_pager_loss, e);
}

/* auto: KVM where a guest has really booted under it, else TCG. */
static int choose_accel(struct daemon *d, const char *want, enum vmm_accel *ret, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        char reason[240] = "";
        bool kvm = false;
        int r;

        mp_buf_init(&b);
        if (strcmp(want, "tcg") == 0) {
                *ret = VMM_ACCEL_TCG;
                return 0;
        }
        if (strcmp(want, "auto") != 0 && strcmp(want, "kvm") != 0) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "there is no accelerator '%.40s'", want);
                return err_hint(e, "use auto, kvm or tcg");
        }
        r = setup_kvm_verdict(d->cache_dir, 0, e);
        if (r == -ENODATA) {
                mp_map(&b, 2);
                mp_kv_str(&b, "cache_dir", d->cache_dir);
                mp_kv_u64(&b, "timeout_ms", SETUP_KVM_TIMEOUT_MS);
                r = worker_do(d->workers, "kvm.verdict", &b, NULL, 0, KVM_VERDICT_TIMEOUT_MS, &a, e);
                if (r == 0) {
                        (void) mp_get_bool(&a.doc.root, "kvm", &kvm);
                        (void) mp_get_str(&a.doc.root, "reason", reason, sizeof(reason));
                }
        } else {
                kvm = r == 1;
                if (r != 1)
                        (void) snprintf(reason, sizeof(reason), "%.230s", e->message);
        }
        if (!kvm && strcmp(want, "kvm") == 0) {
                (void) err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "KVM cannot run a guest on this host: %s",
                               reason[0] ? reason : "it could not be tried");
                return err_hint(e, "use --accel tcg, or see 'forkctl doctor'");
        }
        *ret = kvm ? VMM_ACCEL_KVM : VMM_ACCEL_TCG;
        return 0;
}

static int make_disks(struct vm *vm, const struct vm_run_params *p, struct err *e) {
        char path[PATH_MAX];
        int r;

        for (unsigned i = 0; i < p->n_disks; i++) {
                cleanup_mp_buf struct mp_buf b = { 0 };
                char file[32];

                mp_buf_init(&b);
                (void) snprintf(file, sizeof(file), "disk-%u.img", i);
                r = vm_store_path(vm, file, path, sizeof(path));
                if (r < 0)
                        return err_errno(e, r, "making disk %u", i);
                mp_map(&b, 3);
                mp_kv_str(&b, "from", p->disks[i]);
                mp_kv_str(&b, "to", path);
                caller_encode(p->caller, &b);
                r = worker_do(vm->d->workers, "disk.copy", &b, NULL, 0, DISK_COPY_TIMEOUT_MS, NULL, e);
                if (r < 0)
                        return r;
        }
        vm->machine.n_disks = p->n_disks;
        return 0;
}

static int boot(struct vm *vm, const struct vm_run_params *p, const struct assets *assets, struct err *e) {
        struct vm_launch l = {
                .kernel = assets->kernel,
                .initrd = assets->initrd,
                .cmdline = vmm_qemu_cmdline(),
                .pager_sock = -1,
        };
        char dir[PATH_MAX];
        int r;

        r = vm_store_path(vm, NULL, dir, sizeof(dir));
        if (r == 0)
                r = io_mkdir_p(dir, 0700);
        if (r < 0)
                return err_errno(e, r, "making the directory %s", dir);
        r = make_disks(vm, p, e);
        if (r == 0)
                r = vm_set_state(vm, VM_BOOTING, e);
        if (r == 0)
                r = vm_launch(vm, &l, e);
        if (r == 0)
                r = vm_link_open(vm, e);
        if (r == 0)
                r = vm->ops->resume(vm->vmm, e);
        if (r == 0)
                r = guest_link_wait_hello(vm->link, (int) vm->d->cfg.boot_timeout_s * 1000, e);
        if (r == 0)
                r = vm_wake_queue(vm, WIRE_WAKE_BOOT, e);
        if (r == 0)
                r = vm_wake_wait(vm, e);
        if (r < 0)
                return r;
        return vm_set_state(vm, VM_RUNNING, e);
}

static int reserve(struct vm *vm, const struct vm_run_params *p, struct err *e) {
        const struct admission_need need = admission_vm_need(p->mem_bytes, p->vcpus, true);
        char who[80];

        (void) snprintf(who, sizeof(who), "'%s'", p->name);
        return admission_reserve(vm->d->admission, &vm->claim, who, &need, 1, e);
}

int vm_op_run(struct daemon *d, const struct vm_run_params *p, struct vm **ret, double *ret_boot_ms, struct err *e) {
        uint64_t start = now_ns();
        struct assets assets;
        enum vmm_accel accel = VMM_ACCEL_TCG;
        struct err ignored;
        struct vm *vm;
        int r;

        r = check_params(p, e);
        if (r == 0)
                r = assets_locate(d->cache_dir, &assets, e);
        if (r < 0)
                return r;
        r = vm_new(d, p->name, &vm, e);
        if (r < 0)
                return r;
        r = reserve(vm, p, e);
        if (r < 0) {
                vm_delete(vm, false);
                return r;
        }
        vm->busy = "run";
        (void) snprintf(vm->driver, sizeof(vm->driver), "%s", p->vmm);
        (void) snprintf(vm->net, sizeof(vm->net), "%s", p->net);
        (void) snprintf(vm->on_pager_loss, sizeof(vm->on_pager_loss), "%s", p->on_pager_loss);
        vm->ops = vmm_driver(p->vmm);
        vm->machine = (struct vmm_machine){ .mem_bytes = p->mem_bytes, .vcpus = p->vcpus };
        r = vm->ops->version(vm->vmm_version, sizeof(vm->vmm_version), e);
        if (r == 0)
                r = choose_accel(d, p->accel, &accel, e);
        if (r == 0) {
                vm->machine.accel = accel;
                r = vm_record_save(vm, e);
        }
        if (r == 0) {
                r = turns_take(d->turns, HEAVY_START, e);
                if (r == 0) {
                        start = now_ns();
                        r = boot(vm, p, &assets, e);
                        turns_give(d->turns, HEAVY_START);
                }
        }
        if (r < 0) {
                times_failed(d, OP_BOOT, r);
                /* A VM that never ran leaves nothing but the error, which has the end of the VMM's log. */
                vm_explain(vm, e);
                (void) vm_remove(vm, &ignored);
                return r;
        }
        room_hold(vm);
        *ret_boot_ms = ms_since(start);
        times_took(d, OP_BOOT, *ret_boot_ms);
        *ret = vm;
        vm_op_end(vm);
        return 0;
}
