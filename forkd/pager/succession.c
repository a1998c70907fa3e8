/* SPDX-License-Identifier: MIT */
/* When a pager has ended.
 *
 * Theory of operation. Its guests' faults wait: VMM and forkd keep the userfaultfd open. A guest with the policy `kill` dies
 * at once. One with `recover` is handed to a successor, which gets the duplicates that forkd holds (struct pager_hold) and
 * needs nothing of the dead: the image's memory tells what is present in it, the VMM's mappings what was discarded, and a
 * wake-up of all its memory raises those faults again that the dead pager had read.
 *
 * All of that has a deadline, from the death's notice on; whoever is not served by then is killed. So is each guest of an
 * image at one page of which two pagers have died (suspects.c).
 *
 * Never is a fault answered with anything but the guest's memory: the successor decodes and verifies as any pager. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/events.h"
#include "forkd/vm/recording.h"

#define CONDEMNED "pager-lost: two pagers have died at the same page of its memory image"

void pager_kill_guest(struct vm *vm, const char *reason) {
        vm->d->pager->counts.killed++;
        vm_kill_lost(vm, reason);
}

static bool is_condemned(const struct vm *vm) {
        return pager_condemned(vm->d->pager, vm->hold.image_dev, vm->hold.image_ino, NULL);
}

/* ---- the successor ---- */

static bool is_orphan(void *arg, const struct vm *vm) {
        return vm->session && !vm->hold.process && !vm->lost[0];
}

static struct vm *first_orphan(struct pager *p) {
        struct vm *vm;

        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (is_orphan(NULL, vm))
                        return vm;
        return NULL;
}

/* Of a VM that joined nobody knows any more what it has discarded since it was forked, of which its parent may have something. All
 * that it ever wrote is dirty now; below that it has nothing, and that is what base.img has. */
static void forget_parent(struct vm *vm) {
        struct err e;

        if (!vm->hold.joined || !vm->has_parent)
                return;
        vm->has_parent = false;
        if (vm_record_save(vm, &e) < 0)
                log_warning("%s", e.message);
}

/* 0 also when the guest could not be saved; -errno: this pager is gone. */
static int save(void *arg, struct vm *vm, struct err *e) {
        struct pager *p = arg;
        char reason[sizeof(vm->lost)];
        int r;

        if (is_condemned(vm)) {
                pager_kill_guest(vm, CONDEMNED);
                return 0;
        }
        if (!pager_hold_complete(vm)) {
                pager_kill_guest(vm, "pager-lost");
                return 0;
        }
        if (!pager_is_up(p))
                return err_set(e, ERR_PAGER, -EPIPE, "the pager is gone");
        pager_hold_set_process(vm, p->serving); /* from here on it is this one's to lose */
        r = pager_session_adopt(p->serving, vm, NULL, 0, e);
        if (r == 0 && vm->hold.process == p->serving) {
                recording_end(vm);
                forget_parent(vm);
                p->counts.recovered++;
                log_info("%s (%s): another pager serves it", vm->name, vm->id);
                events_add(p->d->events, "vm.recovered", vm, "pager %d serves it", (int) p->serving->pid);
                return 0;
        }
        if (!pager_is_up(p))
                return r < 0 ? r : -EPIPE;
        (void) snprintf(reason, sizeof(reason), "pager-lost: %.200s", e->message);
        pager_kill_guest(vm, reason);
        return 0;
}

void pager_succeed(struct pager *p) {
        const struct pager_each orphans = { .wants = is_orphan, .fn = save, .arg = p };
        struct vm *vm;
        struct err e = { 0 };

        while ((vm = first_orphan(p))) {
                int r;

                if (ms_since(p->lost_ns) > p->d->cfg.recover_ms) {
                        pager_kill_guest(vm, "pager-lost: no successor could be had in time");
                        continue;
                }
                r = pager_bring_up(p, &e);
                if (r == 0)
                        r = pager_each(p->d, &orphans, &e);
                if (r < 0) {
                        log_error("%s", e.message);
                        co_sleep(10); /* a program that cannot be started is not tried a thousand times a second */
                }
        }
        p->counts.last_ms = ms_since(p->lost_ns);
        p->counts.longest_ms = MAX_OF(p->counts.longest_ms, p->counts.last_ms);
}

static void succeed_main(void *arg) {
        struct pager *p = arg;

        if (co_sem_acquire(&p->turn, -1) == 0) {
                pager_succeed(p);
                co_sem_release(&p->turn);
        }
        p->replacing--;
        p->succeeding = false;
}

/* ---- the loss ---- */

/* What becomes of one guest. True: it needs a successor. */
static bool lose(struct pager *p, struct pager_process *o, struct vm *vm) {
        if (o == p->next) { /* a failed upgrade: the one before goes on (upgrade.c) */
                pager_hold_set_process(vm, NULL);
                return false;
        }
        if (is_condemned(vm)) {
                pager_kill_guest(vm, CONDEMNED);
                return false;
        }
        if (strcmp(vm->on_pager_loss, "recover") != 0 || !pager_hold_complete(vm) || vm->lost[0]) {
                pager_kill_guest(vm, "pager-lost");
                return false;
        }
        pager_hold_set_process(vm, NULL);
        return true;
}

void pager_lost(struct pager *p, struct pager_process *o) {
        bool orphans = false;
        struct vm *vm;

        TAILQ_FOREACH (vm, &p->d->vms, entry)
                if (vm->session && vm->hold.process == o)
                        orphans |= lose(p, o, vm);
        pager_wake_attached(p); /* what an upgrade waits for will not come: it gives the turn back */
        if (!orphans || p->succeeding)
                return;
        p->lost_ns = now_ns();
        p->succeeding = true;
        p->replacing++;
        if (co_start(p->d->base, succeed_main, p) == 0)
                return;
        p->succeeding = false;
        p->replacing--;
        while ((vm = first_orphan(p)))
                pager_kill_guest(vm, "pager-lost: out of memory");
}
