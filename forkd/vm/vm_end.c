/* SPDX-License-Identifier: MIT */
/* How the living parts of a VM go.
 *
 * A VMM that is killed is gone within milliseconds, but for one that the kernel cannot let go: it waits for a disk that does
 * not answer, or a debugger holds one of its threads. Such a VM *lingers*: whatever became of it (stopped, on standby,
 * failed, removed), its name, its user, its cgroup, its directories and its session in the pager stay its own, and nothing
 * else is started in its place. Its record keeps the pid, so the next forkd comes to the same. When the process ends at last
 * everything goes, and a VM that was removed is forgotten. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>

#include "common/co.h"
#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/daemon.h"
#include "forkd/host/jail.h"
#include "forkd/monitor/monitor.h"
#include "forkd/pager/link.h"
#include "forkd/vm/recording.h"
#include "forkd/host/room.h"
#include "forkd/api/streams.h"
#include "forkd/vm/vm.h"
#include "forkd/vmm/cgroup.h"

#define END_TIMEOUT_MS 5000 /* as long as a driver waits for the end of what it has killed */

/* ---- lingering ---- */

bool vm_lingers(const struct vm *vm) {
        return vm->ending_fd >= 0;
}

char *vm_describe_end(const struct vm *vm, char *buf, size_t size) {
        cleanup_free char *status = NULL;
        char path[64], state[40] = "";
        const char *p;

        (void) snprintf(path, sizeof(path), "/proc/%d/status", (int) vm->pid);
        if (io_read_file(AT_FDCWD, path, 16384, &status, NULL) == 0 && (p = strstr(status, "\nState:\t")))
                (void) snprintf(state, sizeof(state), ", state %.*s", (int) MIN_OF(strcspn(p + 8, "\n"), (size_t) 24), p + 8);
        (void) snprintf(buf, size, "its VMM (pid %d%s) was killed and has not ended yet", (int) vm->pid, state);
        return buf;
}

int vm_check_ended(const struct vm *vm, struct err *e) {
        char why[160];

        if (!vm_lingers(vm))
                return 0;
        (void) err_set(e, ERR_BUSY, -EBUSY, "'%s' has not ended: %s", vm->name, vm_describe_end(vm, why, sizeof(why)));
        return err_hint(e, "a disk that does not answer or a debugger may hold it; what belongs to it is free when it has ended");
}

static void stop_watching(struct vm *vm) {
        if (vm->ending_ev)
                event_free(TAKE_PTR(vm->ending_ev));
        vm->ending_fd = close_fd(vm->ending_fd);
        vm->ended = false;
}

void vm_forget_end(struct vm *vm) {
        stop_watching(vm);
}

/* What is left when the process is no more. */
void vm_drop_vmm(struct vm *vm) {
        char path[PATH_MAX];
        struct err e;

        monitor_vm_gone(vm->d->monitor, vm);
        vm->pid = 0;
        vm->start_time = 0;
        /* Also kills a VMM that an earlier forkd started but did not come to note. */
        if (cgroup_remove(vm->d->instance, vm_group(vm), &e) < 0)
                log_warning("%s: %s", vm->name, e.message);
        vm->group[0] = '\0';
        /* Only now: without its pager a living guest would wait for ever. */
        pager_session_close(vm->d->pager, vm);
        recording_end(vm);
        vm_drop_user(vm);
        if (vm_run_path(vm, NULL, path, sizeof(path)) == 0)
                best_effort(io_remove_tree(AT_FDCWD, path));
}

static void release(struct vm *vm) {
        stop_watching(vm);
        vm_drop_vmm(vm);
        admission_release(vm->d->admission, &vm->claim);
        identities_drop_kind(vm->d->identities, &vm->identity, IDENTITY_CID);
}

static void end_at_last(void *arg) {
        struct vm *vm = arg;
        struct err e;

        log_info("%s (%s): the VMM (pid %d) has ended at last", vm->name, vm->id, (int) vm->pid);
        release(vm);
        if (vm->removing) {
                vm_delete(vm, true);
                return;
        }
        if (vm->state != VM_FAILED)
                vm->reason[0] = '\0';
        if (vm_record_save(vm, &e) < 0)
                log_warning("%s", e.message);
        vm_op_end(vm);
}

void vm_end_later(struct vm *vm) {
        if (!vm_lingers(vm))
                return;
        if (!vm->reason[0])
                (void) vm_describe_end(vm, vm->reason, sizeof(vm->reason));
        if (vm->ended && !vm->busy && !vm->d->stopping)
                vm_chore(vm, "cleaning up", end_at_last);
}

static void on_ended(evutil_socket_t fd, short what, void *arg) {
        struct vm *vm = arg;

        best_effort(spawn_wait(fd, 0, NULL));
        vm->ended = true;
        vm_end_later(vm); /* or whoever holds the VM does when it gives it back */
}

/* @pidfd is taken. Without an event nobody hears of the end but the next rm. */
static void linger(struct vm *vm, int pidfd) {
        struct err e;
        char why[160];

        room_hold(vm);
        vm->ending_fd = pidfd;
        vm->ended = false;
        vm->ending_ev = event_new(vm->d->base, pidfd, EV_READ, on_ended, vm);
        if (!vm->ending_ev || event_add(vm->ending_ev, NULL) < 0)
                log_error("%s (%s): out of memory: the end of its VMM is not waited for", vm->name, vm->id);
        log_error("%s (%s): %s", vm->name, vm->id, vm_describe_end(vm, why, sizeof(why)));
        if (vm_record_save(vm, &e) < 0)
                log_warning("%s", e.message);
}

/* ---- the end of the process ---- */

/* Killed by its driver: 0, or -ETIMEDOUT and a descriptor of it, should one be had. */
static int end_vmm(struct vm *vm, int *ret_pidfd) {
        struct err e;
        int r;

        if (vm->vmm_exited)
                return 0;
        r = vm->ops->kill(vm->vmm, &e);
        if (r >= 0)
                return 0;
        log_error("%s (%s): %s", vm->name, vm->id, e.message);
        *ret_pidfd = fcntl(vm->ops->pidfd(vm->vmm), F_DUPFD_CLOEXEC, 0);
        return *ret_pidfd < 0 ? 0 : -ETIMEDOUT; /* it was killed: without a descriptor there is nothing to wait with */
}

/* One that has no driver: it was found in a record, or it did not come to talk to us. */
static int end_process(struct vm *vm, int *ret_pidfd) {
        cleanup_fd int pidfd = -1;

        if (vm->start_time == 0 || spawn_pidfd_open(vm->pid, vm->start_time, &pidfd) < 0)
                return 0;
        best_effort(spawn_kill(pidfd, SIGKILL));
        if (co_wait_fd(pidfd, EV_READ, END_TIMEOUT_MS) == 0) {
                best_effort(spawn_wait(pidfd, 0, NULL));
                return 0;
        }
        *ret_pidfd = TAKE_FD(pidfd);
        return -ETIMEDOUT;
}

static int end_any(struct vm *vm, int *ret_pidfd) {
        int r = 0;

        if (vm->vmm) {
                r = end_vmm(vm, ret_pidfd);
                vm->ops->free(TAKE_PTR(vm->vmm));
        } else if (vm_lingers(vm)) {
                /* It was waited for already. */
                return spawn_wait(vm->ending_fd, 0, NULL);
        } else if (vm->pid > 0) {
                r = end_process(vm, ret_pidfd);
        }
        return r;
}

bool vm_teardown(struct vm *vm) {
        int pidfd = -1, r;

        streams_fail(vm, "the VM was ended");
        guest_link_free(TAKE_PTR(vm->link));
        monitor_vm_ending(vm->d->monitor, vm);
        r = end_any(vm, &pidfd);
        vm->vmm_exited = vm->guest_shutdown = vm->agent_lost = vm->io_error = false;
        vm->lost[0] = '\0';
        if (r == 0) {
                release(vm);
                return true;
        }
        if (pidfd >= 0)
                linger(vm, pidfd);
        return false;
}

int vm_remove(struct vm *vm, struct err *e) {
        struct err ignored;
        int r;

        if (vm_teardown(vm)) {
                vm_delete(vm, true);
                return 0;
        }
        vm->removing = true;
        vm->state = VM_STOPPING;
        vm->reason[0] = '\0';
        if (vm_record_save(vm, &ignored) < 0)
                log_warning("%s", ignored.message);
        r = vm_check_ended(vm, e);
        vm_op_end(vm);
        return r;
}

void vm_drop_files(struct vm *vm) {
        char path[PATH_MAX];
        int r;

        vm->has_base = vm->has_parent = vm->live = false;
        r = vm_store_path(vm, NULL, path, sizeof(path));
        if (r == 0)
                r = io_remove_tree(AT_FDCWD, path);
        if (r < 0)
                log_warning("%s: its files in the store stay: %s", vm->name, strerror(-r));
}
