/* SPDX-License-Identifier: MIT */
/* The third sign of a pager's health: what its guests wait for, seen from their side.
 *
 * Theory of operation. The probes tell since when a thread of a VMM waits for memory; the heartbeat, how old the oldest fault is that
 * the pager knows of. A wait longer than the deadline beside faults that are all much younger is of a fault that the pager has lost:
 * it was read and forgotten, or a wake-up went missing. What helps is to wake all of the guest's memory: who still misses his page
 * faults again, and the pager reads that. Should the wait that begins then become as long, the guest does not get its memory.
 *
 * A fault that nobody has read is not lost: a pager that waits for a slow disk, for one guest after the other, comes to it later. Our own
 * descriptor of the userfaultfd tells that there are such faults. They get the time that a pager has which reads from a disk, unless it
 * has had nothing to do lately.
 *
 * Whose fault that is cannot be told from one guest: a VMM holds its userfaultfd, and may take from it what was meant for the pager,
 * or wait at one of its own, for a guest that took it over. So a guest alone is ended alone; the pager counts as hung when most of
 * those that it serves have come to this.
 *
 * Without probes nobody is looked at, and the other signs have to do. */
#include "forkd/pager/internal.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/events.h"
#include "forkd/monitor/monitor.h"
#include "pager/uffd_compat.h"

#define LOST "pager-lost: it waits for memory that its pager knows nothing of"

enum wait { WAIT_FINE, WAIT_WOKEN, WAIT_LOST };

static void wake(struct vm *vm, uint64_t wait_ms) {
        const struct pager_hold *h = &vm->hold;
        int r = 0;

        for (unsigned i = 0; i < h->n_regions; i++) {
                struct uffdio_range range = { .start = h->region[i].base, .len = h->region[i].size };

                if (ioctl(h->uffd, UFFDIO_WAKE, &range) < 0)
                        r = -errno;
        }
        log_warning("%s (%s): it has waited for its memory for %llu ms, and the pager knows nothing of it: woken%s%s", vm->name,
                    vm->id, (unsigned long long) wait_ms, r < 0 ? ", but for: " : "", r < 0 ? strerror(-r) : "");
        events_add(vm->d->events, "vm.woken", vm, "it had waited for its memory for %llu ms, and the pager knew nothing of it",
                   (unsigned long long) wait_ms);
}

/* For how long somebody waits, as of a look that was just made; 0: not as long as the deadline. */
static uint64_t long_wait_ms(struct vm *vm, uint64_t deadline_ms) {
        const struct monitor_vm *mv = monitor_of(vm);

        if (!mv || !mv->watched || mv->waiting_since_ns == 0 || ms_since(mv->waiting_since_ns) < (double) deadline_ms)
                return 0;
        monitor_look(vm->d->monitor);
        return mv->waiting_ns / 1000000 >= deadline_ms ? mv->waiting_ns / 1000000 : 0;
}

/* There is something in its userfaultfd, and its pager is busy with others. */
static bool is_unread(const struct vm *vm, uint64_t wait_ms, uint64_t deadline_ms) {
        struct pollfd unread = { .fd = vm->hold.uffd, .events = POLLIN };
        uint64_t at_work_ns = vm->hold.process->at_work_ns;

        return wait_ms < PAGER_PATIENCE_MS && at_work_ns != 0 && ms_since(at_work_ns) < (double) deadline_ms &&
               poll(&unread, 1, 0) == 1 && (unread.revents & POLLIN);
}

static enum wait look_at(struct vm *vm, uint64_t oldest_ms, uint64_t deadline_ms) {
        uint64_t wait_ms = long_wait_ms(vm, deadline_ms), now = now_ns();
        bool same;

        if (wait_ms == 0 || oldest_ms >= wait_ms / 2 || is_unread(vm, wait_ms, deadline_ms))
                return WAIT_FINE;
        /* Not a wait that began long after the last time that it was woken. */
        same = vm->hold.woken_ns != 0 && monitor_of(vm)->waiting_since_ns < vm->hold.woken_ns + deadline_ms * 1000000 / 2;
        if (same)
                return now - vm->hold.woken_ns < deadline_ms * 1000000 ? WAIT_WOKEN : WAIT_LOST;
        vm->hold.woken_ns = now;
        wake(vm, wait_ms);
        return WAIT_WOKEN;
}

const char *pager_lost_faults(struct pager_process *o, uint64_t oldest_ms, uint64_t deadline_ms) {
        unsigned served = 0, lost = 0;
        struct vm *vm;

        if (o->p->replacing || !monitor_is_up(o->p->d->monitor))
                return NULL;
        TAILQ_FOREACH (vm, &o->p->d->vms, entry) {
                if (!vm->session || vm->hold.process != o || !pager_hold_complete(vm) || vm->lost[0])
                        continue;
                served++;
                vm->hold.faults_lost = look_at(vm, oldest_ms, deadline_ms) == WAIT_LOST;
                lost += vm->hold.faults_lost;
        }
        if (lost > served / 2)
                return "most of its guests wait for memory that it knows nothing of";
        for (struct vm *next = TAILQ_FIRST(&o->p->d->vms); lost > 0 && (vm = next);) {
                next = TAILQ_NEXT(vm, entry);
                if (vm->session && vm->hold.process == o && vm->hold.faults_lost && !vm->lost[0])
                        pager_kill_guest(vm, LOST);
        }
        return NULL;
}
