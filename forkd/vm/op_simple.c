/* SPDX-License-Identifier: MIT */
/* pause, resume, stop, rm. */
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/vm/recording.h"
#include "forkd/vm/vm.h"

static int attr_printf(4, 5) wrong_state(struct vm *vm, const char *want, struct err *e, const char *hint, ...) {
        va_list ap;

        (void) err_set(e, ERR_STATE, -EINVAL, "'%s' is %s, not %s", vm->name, vm_state_name(vm->state), want);
        va_start(ap, hint);
        (void) vsnprintf(e->hint, sizeof(e->hint), hint, ap);
        va_end(ap);
        return e->r;
}

/* A VMM that did not answer in time may still do what it was told, later: it is told the opposite, too, and does both in their
 * order. So the guest ends up as its state says. */
static void take_back(struct vm *vm, int (*opposite)(struct vmm *v, struct err *e)) {
        struct err e;

        if (!vm->lost[0] && !vm->vmm_exited && opposite(vm->vmm, &e) < 0)
                log_error("%s (%s): %s", vm->name, vm->id, e.message);
}

int vm_op_pause(struct vm *vm, struct err *e) {
        int r;

        if (vm->state == VM_PAUSED)
                return 0;
        if (vm->state != VM_RUNNING)
                return wrong_state(vm, "running", e, "only a running VM can be paused: see 'forkctl inspect %s'", vm->name);
        r = vm->ops->pause(vm->vmm, e);
        if (r < 0) {
                take_back(vm, vm->ops->resume);
                return err_prefix(e, "pausing '%s'", vm->name);
        }
        r = vm_set_state(vm, VM_PAUSED, e);
        if (r < 0 && !vm->lost[0] && !vm->vmm_exited) {
                /* A pause that is not written down would not survive forkd: rather none. */
                vm->state = VM_RUNNING;
                take_back(vm, vm->ops->resume);
        }
        return r;
}

/* Its agent has to hear of something before it is talked to: who it is (a clone that was kept paused), or that this is a
 * new connection (the pause outlived a forkd, or the old connection broke). Queued before the vCPUs run. */
static bool agent_must_wake(const struct vm *vm) {
        return vm->needs_wake || !vm->link || !guest_link_ready(vm->link);
}

static int resume_guest(struct vm *vm, struct err *e) {
        bool wake = agent_must_wake(vm);
        int r = 0;

        if (wake)
                r = vm_wake_queue(vm, vm->needs_wake ? WIRE_WAKE_RESTORE : WIRE_WAKE_RECONNECT, e);
        if (r == 0)
                r = vm->ops->resume(vm->vmm, e);
        if (r < 0)
                take_back(vm, vm->ops->pause);
        if (r < 0 || !wake)
                return r;
        r = vm_wake_wait(vm, e);
        if (r < 0 && vm->needs_wake) {
                /* A clone that does not know who it is must not run as the one it was copied from. */
                take_back(vm, vm->ops->pause);
                return r;
        }
        if (r < 0 && !vm->vmm_exited)
                log_warning("%s (%s) runs, but its agent does not answer: %s", vm->name, vm->id, e->message);
        return vm->vmm_exited ? r : 0;
}

int vm_op_resume(struct vm *vm, struct err *e) {
        int r;

        if (vm->state == VM_RUNNING)
                return 0;
        if (vm->state == VM_STANDBY)
                return wrong_state(vm, "paused", e, "bring it back with: forkctl restore %s", vm->name);
        if (vm->state != VM_PAUSED)
                return wrong_state(vm, "paused", e, "see 'forkctl inspect %s'", vm->name);
        r = resume_guest(vm, e);
        if (r < 0)
                return err_prefix(e, "resuming '%s'", vm->name);
        r = vm_set_state(vm, VM_RUNNING, e);
        if (r < 0 && !vm->lost[0] && !vm->vmm_exited) {
                /* It runs, and the next forkd will see that it does, whatever the record says. */
                log_warning("%s", e->message);
                r = 0;
        }
        return r;
}

/* ---- stop ---- */

static void on_poweroff_data(unsigned stream, const void *data, size_t len, void *arg) {
}
static void on_poweroff_eof(unsigned stream, void *arg) {
}
static void on_poweroff_done(const struct guest_result *res, void *arg) {
        co_wake(arg, 0);
}

/* Asks the guest to end itself; the VMM's end is what counts. */
static void ask_guest(struct vm *vm) {
        static const struct guest_call_handlers handlers = {
                .on_data = on_poweroff_data,
                .on_eof = on_poweroff_eof,
                .on_done = on_poweroff_done,
        };
        const char *argv[] = { "/bin/sh", "-c", "sync; exec poweroff", NULL };
        struct guest_exec_params p = { .argv = argv };
        struct co_wait done = CO_WAIT_INIT;
        struct guest_call *call;
        struct err e;

        if (vm->state != VM_RUNNING || !vm->link || !guest_link_ready(vm->link))
                return;
        if (guest_exec(vm->link, &p, &handlers, &done, &call, &e) < 0) {
                log_debug("asking %s to end: %s", vm->name, e.message);
                return;
        }
        if (co_wait_fd(vm->ops->pidfd(vm->vmm), EV_READ, (int) vm->d->cfg.stop_timeout_s * 1000) < 0)
                log_info("%s does not end by itself within %u s: its VMM is killed", vm->name, vm->d->cfg.stop_timeout_s);
        if (!done.done)
                guest_call_cancel(call);
}

int vm_op_stop(struct vm *vm, struct err *e) {
        enum vm_state before = vm->state;

        if (before == VM_STOPPED)
                return 0;
        if (before == VM_STANDBY)
                return wrong_state(vm, "running", e, "it uses nothing but disk; remove it with: forkctl rm %s", vm->name);
        if (before == VM_FAILED)
                return wrong_state(vm, "running", e, "it has ended already; remove it with: forkctl rm %s", vm->name);
        recording_keep(vm);
        /* A full disk must not keep anybody from stopping things. */
        if (vm_set_state(vm, VM_STOPPING, e) < 0)
                log_warning("%s", e->message);
        vm->state = before; /* the record says stopping; the guest is asked as what it still is */
        ask_guest(vm);
        vm->state = VM_STOPPING;
        (void) vm_teardown(vm);
        if (vm_set_state(vm, VM_STOPPED, e) < 0)
                log_warning("%s", e->message);
        return vm_check_ended(vm, e);
}

int vm_op_rm(struct vm *vm, struct err *e) {
        recording_keep(vm);
        /* So that a forkd that is killed now finishes the removal instead of taking the VM back; a full disk
         * must not keep anybody from removing things. */
        vm->removing = true;
        if (vm_record_save(vm, e) < 0)
                log_warning("%s", e->message);
        return vm_remove(vm, e);
}
