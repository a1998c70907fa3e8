/* SPDX-License-Identifier: MIT */
/* After a restart: what an earlier forkd left is taken back, finished, undone or removed.
 *
 * Theory of operation. Every record is looked at by a coroutine of its own, so that one VMM that hangs costs its
 * deadline once and not once per VM. What becomes of each is the table "When forkd is killed" in docs/architecture.md.
 *
 * A VMM that was started but whose pid had not been noted yet is found by its cgroup, which has the VM's id for a
 * name, or by the mark in its environment: orphans.c knows what belongs to nobody. What belongs to a record that cannot be
 * read stays, except for processes: nobody could end them any more.
 *
 * The door opens when every VMM is known, or VMMS_TIMEOUT_MS have passed; VMMs and agents that do not answer at once are
 * waited for in the background, and their VMs are busy meanwhile. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"
#include "forkd/vm/journal.h"
#include "forkd/monitor/monitor.h"
#include "forkd/host/orphans.h"
#include "forkd/pager/link.h"
#include "forkd/vm/recording.h"
#include "forkd/host/room.h"
#include "forkd/pool/pool.h"
#include "forkd/vm/vm.h"

#define VMMS_TIMEOUT_MS 10000 /* one that hangs must not keep forkd from serving the others */
#define AGENTS_TIMEOUT_MS 5000

/* Shared by the coroutines of one start; the last of them frees it. */
struct adoption {
        unsigned refs, vmms_left, agents_left;
        struct co_wait vmms, agents;
        struct adopting {
                struct adoption *a;
                struct vm *vm;
        } vm[];
};

/* ---- VMs without a VMM ---- */

static void finish_standby(struct vm *vm, const struct snap_entry *s) {
        struct err e;

        catalog_vm_stands_by(vm, &s->m);
        vm_drop_files(vm);
        if (vm_set_state(vm, VM_STANDBY, &e) < 0)
                log_error("%s", e.message);
}

/* The VMM is gone, or cannot be used: what was it doing? The VM itself may be gone afterwards. */
static void settle_dead(struct vm *vm, const char *why) {
        bool stale = vm->pid > 0 || vm->has_base || vm->session;
        struct snap_entry *s;
        struct err e;

        if (vm->removing || vm->state == VM_CREATING || vm->state == VM_BOOTING || vm->pool[0]) {
                log_info("%s (%s) %s: it goes", vm->name, vm->id,
                         vm->removing             ? "was being removed when forkd was ended"
                         : vm->state == VM_PAUSED ? "is of no use to its pool any more"
                                                  : "was being made when forkd was ended");
                (void) vm_remove(vm, &e);
                return;
        }
        (void) vm_teardown(vm);
        if (vm->state == VM_STANDBY)
                vm_drop_files(vm); /* what half a restore made, noted in the record or not */
        if (vm->pending_snapshot[0] && (s = catalog_by_id(vm->d->catalog, vm->pending_snapshot))) {
                /* The standby had published its snapshot: it is complete. */
                finish_standby(vm, s);
        } else if (vm->state == VM_RUNNING || vm->state == VM_PAUSED) {
                vm->pending_snapshot[0] = '\0';
                vm_fail(vm, "%s", why);
        } else if (vm->state == VM_STOPPING) {
                (void) vm_set_state(vm, VM_STOPPED, &e);
        } else if (vm->state == VM_STANDBY && !catalog_by_id(vm->d->catalog, vm->snapshot)) {
                vm_fail(vm, "its snapshot %s is not there", vm->snapshot);
        } else if (stale) {
                vm->needs_wake = false;
                if (vm_record_save(vm, &e) < 0)
                        log_error("%s", e.message);
        }
        vm_op_end(vm);
}

/* ---- VMs with one ---- */

static int adopt_vmm(struct vm *vm, struct err *e) {
        char run_dir[PATH_MAX], log_path[PATH_MAX];
        cleanup_fd int pidfd = -1;
        int r;

        /* Without a start time any process could be meant. One that has ended may not be reaped yet. */
        if (vm->pid <= 0 || vm->start_time == 0 || spawn_pidfd_open(vm->pid, vm->start_time, &pidfd) < 0 ||
            spawn_wait(pidfd, 0, NULL) == 0)
                return err_set(e, ERR_VMM, -ESRCH, "the VMM ended while forkd was away");
        if (vm->session && !vm->session_known) {
                best_effort(spawn_kill(pidfd, SIGKILL)); /* vm_teardown waits */
                times_killed(vm->d, vm->lost[0] ? vm->lost : "pager-lost");
                return err_set(e, ERR_PAGER, -ESRCH, "%s", vm->lost[0] ? vm->lost : "pager-lost");
        }
        if (vm->removing || (vm->state != VM_RUNNING && vm->state != VM_PAUSED)) {
                best_effort(spawn_kill(pidfd, SIGKILL));
                return err_set(e, ERR_VMM, -ESRCH, "what was under way with it is undone");
        }
        r = vm_run_path(vm, NULL, run_dir, sizeof(run_dir));
        if (r == 0)
                r = vm_state_path(vm, "vmm.log", log_path, sizeof(log_path));
        if (r < 0)
                (void) err_errno(e, r, "finding its files");
        else
                r = vm->ops->adopt(vm->d->base, run_dir, log_path, vm->pid, pidfd, &vm->machine, &vm_vmm_events, vm, &vm->vmm, e);
        if (r < 0) {
                best_effort(spawn_kill(pidfd, SIGKILL));
                return err_prefix(e, "it could not be taken back");
        }
        monitor_vm_born(vm->d->monitor, vm, pidfd, vm->pid);
        (void) TAKE_FD(pidfd);
        return 0;
}

/* Record and VMM may disagree by the one step that forkd was about to do. Pausing is undone, resuming finished: in
 * both cases the guest runs. So it does after a standby that had published nothing. If it had, and the guest has stood
 * still since, then @ret_saved: only its end is missing. */
static int agree(struct vm *vm, bool *ret_saved, struct err *e) {
        bool running = false;
        int r;

        r = vm->ops->is_running(vm->vmm, &running, e);
        if (r == 0 && !running && vm->pending_snapshot[0] && catalog_by_id(vm->d->catalog, vm->pending_snapshot)) {
                *ret_saved = true;
                return 0;
        }
        /* One that was published all the same, and its standby then undone: nobody was told of it. */
        if (vm->pending_snapshot[0])
                catalog_drop(vm->d->catalog, vm->pending_snapshot);
        vm->pending_snapshot[0] = '\0';
        if (r == 0 && vm->state == VM_RUNNING && !running)
                r = vm->ops->resume(vm->vmm, e);
        if (r == 0 && vm->state == VM_PAUSED && running)
                r = vm_set_state(vm, VM_RUNNING, e);
        return r;
}

static void vmm_known(struct adoption *a) {
        if (--a->vmms_left == 0)
                co_wake(&a->vmms, 0);
}

static void adopt_agent(struct vm *vm) {
        struct err e = { 0 };

        recording_adopt(vm);
        if (vm_unprotect(vm, &e) < 0) /* a live fork was under way; the next snapshot tries again */
                log_warning("%s", e.message);
        if (vm->state == VM_RUNNING && vm_agent_regain(vm, VM_REGAIN_TIMEOUT_MS, &e) < 0)
                log_warning("%s (%s): taken back, but its agent does not answer: %s", vm->name, vm->id, e.message);
        if (vm_record_save(vm, &e) < 0)
                log_error("%s", e.message);
        vm_op_end(vm);
}

static void adopt_one(struct vm *vm, struct adoption *a) {
        struct err e = { 0 };
        bool saved = false;
        int r;

        if (vm->state == VM_STANDBY && !vm->removing && vm->pid <= 0) {
                settle_dead(vm, "");
                vmm_known(a);
                return;
        }
        r = adopt_vmm(vm, &e);
        if (r < 0) {
                log_info("%s (%s) is not taken back: %s", vm->name, vm->id, e.message);
                settle_dead(vm, e.message);
                vmm_known(a);
                return;
        }
        room_hold(vm);
        if (vm->pool[0] && pool_member_adopt(vm, &e) < 0) {
                log_info("%s (%s) is not taken back: %s", vm->name, vm->id, e.message);
                settle_dead(vm, e.message);
                vmm_known(a);
                return;
        }
        r = agree(vm, &saved, &e);
        if (saved) {
                settle_dead(vm, "its standby was finished");
                vmm_known(a);
                return;
        }
        if (r < 0)
                log_warning("%s (%s): taken back, but not whole: %s", vm->name, vm->id, e.message);
        else
                log_info("%s (%s): taken back, %s", vm->name, vm->id, vm_state_name(vm->state));
        vmm_known(a);
        adopt_agent(vm);
}

static void adopt_run(void *arg) {
        struct adopting *me = arg;
        struct adoption *a = me->a;

        adopt_one(me->vm, a);
        if (--a->agents_left == 0)
                co_wake(&a->agents, 0);
        if (--a->refs == 0)
                free(a);
}

/* ---- what belongs to nobody ---- */

/* Guests first, and before any VM is looked at: what no record names can then be in nobody's way. */
static void sweep(struct daemon *d, bool processes) {
        struct orphans o = { .d = d, .fix = true, .certain = true, .processes = processes };

        orphans_walk(&o);
        if (o.found > o.fixed)
                log_warning("%u thing(s) that belong to nobody could not be removed: see 'forkctl doctor --orphans'",
                            o.found - o.fixed);
}

/* ---- all of it ---- */

static void mark_sessions(struct daemon *d) {
        struct err e;
        struct vm *vm;
        bool any = false;

        TAILQ_FOREACH (vm, &d->vms, entry)
                any |= vm->session || (vm->has_base && vm->pid > 0);
        if (any && pager_mark_sessions(d->pager, &e) < 0)
                log_error("%s", e.message);
        pager_finish_upgrade(d->pager);
        if (any && !pager_is_up(d->pager))
                log_warning("the pager of the VMs that ran is gone");
}

void vms_adopt(struct daemon *d) {
        unsigned n = d->n_vms, i = 0;
        struct adoption *a;
        struct vm *vm;

        sweep(d, true);
        mark_sessions(d);
        a = calloc(1, sizeof(*a) + n * sizeof(a->vm[0]));
        if (!a) {
                log_error("out of memory: no VM is taken back");
                return;
        }
        a->refs = 1 + n;
        a->vmms_left = a->agents_left = n;
        TAILQ_FOREACH (vm, &d->vms, entry) {
                vm->busy = "taking back";
                vm->chore = true;
                a->vm[i++] = (struct adopting){ .a = a, .vm = vm };
        }
        for (i = 0; i < n; i++)
                if (co_start(d->base, adopt_run, &a->vm[i]) < 0)
                        adopt_run(&a->vm[i]); /* we are a coroutine too: one after the other then */
        /* The waits outlive us in the shared part: waking one that nobody waits for any more does nothing. */
        if (n > 0 && co_wait(&a->vmms, VMMS_TIMEOUT_MS) == -ETIMEDOUT)
                log_warning("%u VMM(s) have not answered yet: they are waited for while forkd is open", a->vmms_left);
        else if (n > 0 && co_wait(&a->agents, AGENTS_TIMEOUT_MS) == -ETIMEDOUT)
                log_info("not every agent has answered yet: they are waited for while forkd is open");
        journal_settle(d);
        if (--a->refs == 0)
                free(a);
        sweep(d, false);
}
