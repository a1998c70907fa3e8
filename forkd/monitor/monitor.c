/* SPDX-License-Identifier: MIT */
/* The monitor's life: the table of VMs, and its turns.
 *
 * Probes are loaded before forkd serves anybody: they are tried out, in which forkd is deaf for a tenth of a second. Where they
 * cannot be had nothing here does anything but keep the table. Where nothing is watched there are no turns. */
#include "forkd/monitor/internal.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/events.h"
#include "forkd/pager/internal.h"

#define RETRY_MS 60000 /* for want of memory */
#define LOOK_MS 100    /* out of turn, at most so often */
#define LATE 2         /* a turn that took so many times its time voids the windows */
/* Places in the probes' maps, half a KiB each and there from the beginning. Beyond them VMs are not watched, which is told. */
#define VMS_MAX 4096u
#define PAGER_PLACES 4u /* a pager, its successor, one that ends … */
#define THREADS_EACH 8u /* of a VMM */
#define THREADS_MIN 8192u

/* ---- turns ---- */

uint64_t monitor_turn_ns(const struct monitor *m) {
        return (uint64_t) m->d->cfg.window_ms * 1000000u / MONITOR_TICKS;
}

static void turn(struct monitor *m) {
        uint64_t now = now_ns();

        if (m->turn_ns != 0 && now - m->turn_ns > LATE * monitor_turn_ns(m))
                monitor_void(m);
        m->turn_ns = now;
        monitor_read(m);
        monitor_mark_all(m, now);
        monitor_judge(m, now);
}

static void on_turn(evutil_socket_t fd, short what, void *arg) {
        struct monitor *m = arg;

        if (TAILQ_EMPTY(&m->watches)) {
                (void) event_del(m->timer);
                m->ticking = false;
                m->turn_ns = 0;
                return;
        }
        turn(m);
}

static void tick(struct monitor *m) {
        uint64_t us = monitor_turn_ns(m) / 1000;
        struct timeval every = { .tv_sec = (time_t) (us / 1000000), .tv_usec = (suseconds_t) (us % 1000000) };

        if (m->ticking || TAILQ_EMPTY(&m->watches))
                return;
        m->ticking = event_add(m->timer, &every) == 0;
}

void monitor_look(struct monitor *m) {
        if (m && now_ns() - m->look_ns >= LOOK_MS * 1000000ull)
                monitor_read(m);
}

/* ---- the table ---- */

static void vm_free_mv(struct monitor *m, struct monitor_vm *mv) {
        struct watched *w;

        TAILQ_FOREACH (w, &m->watches, entry)
                if (w->mv == mv)
                        w->mv = NULL;
        if (mv->vm)
                mv->vm->monitored = NULL;
        else
                m->n_ended--;
        TAILQ_REMOVE(&m->vms, mv, entry);
        free(mv->vcpu);
        free(mv);
}

static struct monitor_vm *oldest_ended(struct monitor *m) {
        struct monitor_vm *mv, *oldest = NULL;

        TAILQ_FOREACH (mv, &m->vms, entry)
                if (!mv->vm && (!oldest || mv->ended_ns < oldest->ended_ns))
                        oldest = mv;
        return oldest;
}

static void forget_namesake(struct monitor *m, const char *name) {
        struct monitor_vm *mv;

        TAILQ_FOREACH (mv, &m->vms, entry)
                if (!mv->vm && strcmp(mv->name, name) == 0) {
                        vm_free_mv(m, mv);
                        return; /* the one before it went when that one came */
                }
}

static struct monitor_vm *enter(struct monitor *m, struct vm *vm) {
        struct monitor_vm *mv = calloc(1, sizeof(*mv));

        if (!mv)
                return NULL;
        *mv = (struct monitor_vm){ .m = m, .vm = vm, .n_vcpus = MIN_OF(vm->machine.vcpus, (unsigned) VMM_MAX_VCPUS) };
        memcpy(mv->id, vm->id, sizeof(mv->id));
        memcpy(mv->name, vm->name, sizeof(mv->name));
        mv->vcpu = calloc(MAX_OF(mv->n_vcpus, 1u), sizeof(*mv->vcpu));
        if (!mv->vcpu) {
                free(mv);
                return NULL;
        }
        for (unsigned i = 0; i < mv->n_vcpus; i++)
                mv->vcpu[i].vcpu = i;
        forget_namesake(m, vm->name);
        TAILQ_INSERT_TAIL(&m->vms, mv, entry);
        return vm->monitored = mv;
}

/* ---- what happens to VMs and to the pager ---- */

static bool any_refused(const struct monitor *m) {
        const struct monitor_vm *mv;

        TAILQ_FOREACH (mv, &m->vms, entry)
                if (mv->refused)
                        return true;
        return false;
}

/* Told once, until all are watched again. */
static void refuse(struct monitor *m, struct monitor_vm *mv, int r) {
        bool told = any_refused(m);

        mv->refused = true;
        if (told)
                return;
        log_warning("%s (%s) is not watched: %s", mv->name, mv->id,
                    r == -ENOSPC ? "as many processes as fit are watched already" : strerror(-r));
        events_add(m->d->events, "probes.full", mv->vm, "its VMM is not watched: %s",
                   r == -ENOSPC ? "as many processes as fit are watched already" : strerror(-r));
}

static void watch_vm(struct monitor *m, struct monitor_vm *mv, int pidfd, pid_t pid) {
        int r = monitor_watch(m, mv, NULL, pidfd, pid);

        mv->watched = r == 0;
        if (r == 0)
                mv->refused = false;
        else if (r != -EOPNOTSUPP && r != -ESRCH && !mv->refused)
                refuse(m, mv, r);
        tick(m);
}

void monitor_vm_born(struct monitor *m, struct vm *vm, int pidfd, pid_t pid) {
        struct monitor_vm *mv;

        if (!m)
                return;
        monitor_vm_gone(m, vm); /* one that its driver has ended by itself */
        mv = vm->monitored ? vm->monitored : enter(m, vm);
        if (mv)
                watch_vm(m, mv, pidfd, pid);
}

void monitor_vm_ending(struct monitor *m, struct vm *vm) {
        if (m && vm->monitored && vm->monitored->watch)
                monitor_look(m);
}

void monitor_vm_gone(struct monitor *m, struct vm *vm) {
        if (!m || !vm->monitored)
                return;
        monitor_acquit(vm->monitored, "its VMM has ended");
        monitor_leave(vm->monitored);
}

void monitor_vm_renamed(struct monitor *m, struct vm *vm) {
        if (!m || !vm->monitored)
                return;
        forget_namesake(m, vm->name);
        memcpy(vm->monitored->name, vm->name, sizeof(vm->monitored->name));
}

void monitor_vm_forget(struct monitor *m, struct vm *vm) {
        struct monitor_vm *mv = vm->monitored;

        if (!m || !mv)
                return;
        monitor_vm_gone(m, vm);
        mv->vm = NULL;
        vm->monitored = NULL;
        mv->ended_ns = now_ns();
        m->n_ended++;
        if (vm->pool[0]) /* nobody has used it */
                vm_free_mv(m, mv);
        else if (m->n_ended > MONITOR_MAX_ENDED)
                vm_free_mv(m, oldest_ended(m));
}

static struct watched *watch_of(struct monitor *m, const struct pager_process *o) {
        struct watched *w;

        TAILQ_FOREACH (w, &m->watches, entry)
                if (w->o == o)
                        return w;
        return NULL;
}

void monitor_pager_born(struct monitor *m, struct pager_process *o) {
        int r;

        if (!m || !m->probes || watch_of(m, o))
                return;
        r = monitor_watch(m, NULL, o, o->pidfd, o->pid);
        if (r < 0)
                log_warning("the pager (pid %d) is not watched: %s", (int) o->pid, strerror(-r));
        tick(m);
}

void monitor_pager_gone(struct monitor *m, struct pager_process *o) {
        struct watched *w = m ? watch_of(m, o) : NULL;

        if (!w)
                return;
        w->o = NULL;
        w->gone = true;
}

/* ---- probes ---- */

static void open_probes(struct monitor *m) {
        struct probes_status st;
        struct err e = { 0 };
        int r;

        m->tried_ns = now_ns();
        r = probes_open(&m->options, &m->probes, &e);
        m->retry = r == -ENOMEM;
        (void) snprintf(m->reason, sizeof(m->reason), "%s", r < 0 ? e.message : "");
        (void) snprintf(m->hint, sizeof(m->hint), "%s", r < 0 ? e.hint : "");
        if (r < 0) {
                log_warning("guests and the pager are not watched by probes: %s%s%s", e.message, e.hint[0] ? "; " : "", e.hint);
                events_add(m->d->events, "probes.absent", NULL, "%s", e.message);
                return;
        }
        m->lately.since_ns = now_ns();
        probes_get_status(m->probes, &st);
        log_info("guests and the pager are watched by probes (%s, %.0f ms)%s%s", probes_method_name(st.method),
                 ms_since(m->tried_ns), st.why[0] ? ": " : "", st.why);
        events_add(m->d->events, "probes.ready", NULL, "waits for memory are seen by %s", probes_method_name(st.method));
}

static void watch_missing(struct monitor *m) {
        struct pager_process *const pagers[] = { m->d->pager->serving, m->d->pager->next };
        struct monitor_vm *mv;

        TAILQ_FOREACH (mv, &m->vms, entry)
                if (mv->vm && mv->vm->vmm && !mv->watch && !mv->vm->vmm_exited)
                        watch_vm(m, mv, mv->vm->ops->pidfd(mv->vm->vmm), mv->vm->pid);
        for (size_t i = 0; i < ARRAY_LEN(pagers); i++)
                if (pagers[i] && pagers[i]->pidfd >= 0)
                        monitor_pager_born(m, pagers[i]);
}

void monitor_housekeeping(struct monitor *m) {
        uint64_t keep_ms = m ? (uint64_t) m->d->cfg.keep_ended_seconds * 1000 : 0;

        if (!m)
                return;
        for (struct monitor_vm *next, *mv = TAILQ_FIRST(&m->vms); mv; mv = next) {
                next = TAILQ_NEXT(mv, entry);
                if (!mv->vm && ms_since(mv->ended_ns) >= (double) keep_ms)
                        vm_free_mv(m, mv);
        }
        if (!m->probes && m->retry && ms_since(m->tried_ns) > RETRY_MS)
                open_probes(m);
        if (m->probes)
                watch_missing(m);
}

/* ---- the object ---- */

int monitor_new(struct daemon *d, struct monitor **ret) {
        struct monitor *m = calloc(1, sizeof(*m));

        if (!m)
                return -ENOMEM;
        *m = (struct monitor){ .d = d };
        TAILQ_INIT(&m->vms);
        TAILQ_INIT(&m->watches);
        m->timer = event_new(d->base, -1, EV_PERSIST, on_turn, m);
        if (!m->timer) {
                free(m);
                return -ENOMEM;
        }
        if (d->cfg.probes < CONFIG_PROBES_OFF) {
                unsigned vms = MIN_OF(d->cfg.max_vms, VMS_MAX);

                m->options = (struct probes_options){ .max_processes = vms + PAGER_PLACES,
                                                      .max_threads = MAX_OF(vms * THREADS_EACH, THREADS_MIN),
                                                      .method = d->cfg.probes };
                open_probes(m);
        } else {
                (void) snprintf(m->reason, sizeof(m->reason), "the configuration says so: [monitor] probes = off");
        }
        *ret = m;
        return 0;
}

void monitor_free(struct monitor *m) {
        if (!m)
                return;
        for (struct watched *w; (w = TAILQ_FIRST(&m->watches));)
                monitor_unwatch(w);
        for (struct monitor_vm *mv; (mv = TAILQ_FIRST(&m->vms));)
                vm_free_mv(m, mv);
        probes_close(m->probes);
        event_free(m->timer);
        free(m);
}
