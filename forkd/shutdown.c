/* SPDX-License-Identifier: MIT */
/* Theory of operation: forkd's life is one coroutine, and its end the last part of that, whoever asked for it: a signal,
 * `shutdown`, or both at once. Those who ask by `shutdown` wait until the VMs are where they shall be, so that their
 * answer tells what happened and not what was meant to.
 *
 * In order: no new clients and no new operations; what is under way ends by itself; VMs are stopped, if they shall be;
 * the waiting are answered; what still goes on in workers is cut off; pager and store go if no VM needs them. */
#include <errno.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/api/api.h"
#include "forkd/daemon.h"
#include "forkd/events.h"
#include "forkd/monitor/http.h"
#include "forkd/monitor/metrics.h"
#include "forkd/monitor/page.h"
#include "forkd/pager/link.h"
#include "forkd/pool/pool.h"
#include "forkd/api/streams.h"
#include "forkd/host/shells.h"
#include "forkd/host/turns.h"
#include "forkd/worker/worker.h"

#define DRAIN_TIMEOUT_MS 60000 /* longer than any single step of an operation but a boot */
#define CANCEL_TIMEOUT_MS 5000

void daemon_begin_stop(struct daemon *d, bool all) {
        d->stopping = true;
        d->stop_all |= all;
        events_close(d->events);
        if (d->stopped)
                co_wake(d->stopped, 0);
}

struct shutdown_wait {
        TAILQ_ENTRY(shutdown_wait) entry;
        struct co_wait wait;
        struct mp_buf *names;
        unsigned n;
};

/* Operations under way are waited for: each ends by itself within its own deadlines. A VM that is waited for may
 * be gone afterwards (rm), so each turn looks anew. */
static void drain(struct daemon *d, int timeout_ms) {
        uint64_t start = now_ns();

        for (;;) {
                struct co_wait idle = CO_WAIT_INIT;
                int left = timeout_ms - (int) ms_since(start);
                struct vm *vm;

                TAILQ_FOREACH (vm, &d->vms, entry)
                        if (vm->busy)
                                break;
                if (!vm)
                        break;
                vm->idle_waiter = &idle;
                if (left <= 0 || (co_wait(&idle, left) == -ETIMEDOUT && !idle.done)) {
                        log_warning("%s does not finish (%s)", vm->name, vm->busy);
                        vm->idle_waiter = NULL;
                        break;
                }
        }
}

struct stopper {
        struct vm *vm;
        bool member; /* of a pool: it goes, and the next forkd makes another one */
        struct co_wait done;
};

static void stop_one(void *arg) {
        struct stopper *s = arg;
        struct err e;
        int r = s->member ? vm_op_rm(s->vm, &e) : vm_op_stop(s->vm, &e);

        if (r < 0)
                log_error("stopping: %s", e.message);
        co_wake(&s->done, r);
}

static void tell_stopped(struct daemon *d, const char *name) {
        struct shutdown_wait *w;

        TAILQ_FOREACH (w, &d->shutdowns, entry) {
                mp_str(w->names, name);
                w->n++;
        }
}

/* All at once: each guest is given its time to end by itself. */
static void stop_vms(struct daemon *d) {
        cleanup_free struct stopper *all = calloc(d->n_vms + 1u, sizeof(*all));
        struct vm *vm;
        unsigned n = 0;

        if (!all) {
                log_error("out of memory: VMs are left running");
                return;
        }
        TAILQ_FOREACH (vm, &d->vms, entry)
                if (vm->vmm && !vm->busy) {
                        vm->busy = "shutdown";
                        all[n++] = (struct stopper){ .vm = vm, .member = vm->pool[0], .done = CO_WAIT_INIT };
                }
        for (unsigned i = 0; i < n; i++)
                if (co_start(d->base, stop_one, &all[i]) < 0)
                        stop_one(&all[i]);
        for (unsigned i = 0; i < n; i++) {
                int r = co_wait(&all[i].done, -1);

                if (all[i].member)
                        continue;
                if (r == 0)
                        tell_stopped(d, all[i].vm->name);
                vm_op_end(all[i].vm);
        }
}

bool daemon_has_live_vms(struct daemon *d) {
        struct vm *vm;

        TAILQ_FOREACH (vm, &d->vms, entry)
                if (vm->vmm || vm->pid > 0 || vm_lingers(vm)) /* a pid without a VMM: still being taken back */
                        return true;
        return false;
}

void daemon_end(struct daemon *d) {
        struct shutdown_wait *w;
        struct vm *vm;

        api_close_door(d->api);
        turns_stop(d->turns); /* what has not begun does not begin */
        pools_stop(d);
        shells_end(d->shells);
        drain(d, DRAIN_TIMEOUT_MS);
        pager_settle(d->pager, DRAIN_TIMEOUT_MS);
        if (d->stop_all)
                stop_vms(d);
        while ((w = TAILQ_FIRST(&d->shutdowns))) {
                TAILQ_REMOVE(&d->shutdowns, w, entry);
                co_wake(&w->wait, 0);
        }
        TAILQ_FOREACH (vm, &d->vms, entry)
                streams_fail(vm, "forkd is about to exit");
        /* What a worker is still busy with, a verification say, or an operation that took too long, ends with an error. */
        worker_pool_cancel(d->workers);
        drain(d, CANCEL_TIMEOUT_MS);
        http_close_door(d->http);
        metrics_settle(d->metrics, CANCEL_TIMEOUT_MS);
        page_settle(d->page, CANCEL_TIMEOUT_MS);
        api_wait_idle(d->api, CANCEL_TIMEOUT_MS);
        if (daemon_has_live_vms(d)) {
                log_info("exiting; VMs, pager and store stay");
                pager_leave(d->pager);
                return;
        }
        pager_shutdown(d->pager);
        daemon_close_store(d);
}

int daemon_shutdown(struct daemon *d, bool all, struct mp_buf *names, unsigned *ret_n, struct err *e) {
        struct shutdown_wait w = { .wait = CO_WAIT_INIT, .names = names };

        if (d->stopping && (all && !d->stop_all))
                return err_set(e, ERR_CANCELED, -ECANCELED, "forkd is about to exit already, and leaves its VMs running");
        TAILQ_INSERT_TAIL(&d->shutdowns, &w, entry);
        daemon_begin_stop(d, all);
        (void) co_wait(&w.wait, -1);
        *ret_n = w.n;
        return 0;
}
