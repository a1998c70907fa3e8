/* SPDX-License-Identifier: MIT */
/* Hands a VM out.
 *
 * In its order: the member gets its name, here only → its wake-up is queued in the agent's channel, with fresh entropy, the time
 * and the name → the vCPUs run → the agent has acknowledged → its record says that it is nobody's member. Until that last write
 * it is one on disk, and a forkd that finds such a member running ends it. The acknowledgement is the echo: a take has one
 * command for the VMM, one message to the guest and one back, and writes one file.
 *
 * A member that does not wake up, or not within PATIENCE_MS, is ended, and the next one is taken: waking up is a coroutine of its
 * own, so that the taker can go on when a VMM hangs. If there is none left, or never was, a clone is made as `fork` does, which is
 * slower, and said. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/catalog.h"
#include "forkd/events.h"
#include "forkd/monitor/monitor.h"
#include "forkd/pool/internal.h"
#include "forkd/vm/fork.h"
#include "forkd/vm/stages.h"

#define PATIENCE_MS 3000 /* hundreds of times what it takes; on a host so busy a clone that is made now is not faster */

/* Of the pool's snapshot rather than of the one before; the one that has waited longest. One that is being checked is not waited for:
 * it may be the one that hangs. */
static struct vm *pick(const struct pool *p) {
        struct vm *vm, *old = NULL;

        TAILQ_FOREACH (vm, &p->d->vms, entry) {
                if (!pool_has_member(p, vm) || !pool_member_is_warm(vm) || vm->busy)
                        continue;
                if (strcmp(vm->snapshot, p->from) == 0)
                        return vm;
                if (!old)
                        old = vm;
        }
        return old;
}

/* From here on it is the caller's, whatever happens to this forkd. */
static int hand_out(struct vm *vm, struct err *e) {
        char pool[sizeof(vm->pool)];
        struct timespec now;
        int r;

        (void) clock_gettime(CLOCK_REALTIME, &now);
        vm->created_ns = (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
        memcpy(pool, vm->pool, sizeof(pool));
        vm->pool[0] = '\0';
        r = vm_set_state(vm, VM_RUNNING, e);
        if (r < 0) {
                memcpy(vm->pool, pool, sizeof(pool));
                return r;
        }
        monitor_vm_renamed(vm->d->monitor, vm);
        events_add(vm->d->events, "pool.taken", vm, "from %s", pool);
        return 0;
}

/* ---- waking one up ---- */

/* Shared by taker and waker; the last of them frees it. The VM stays busy, and so there, until the waker has ended. */
struct attempt {
        struct vm *vm;
        bool ended, abandoned;
        struct co_wait done;
        struct stages stages;
        struct err e;
};

static int wake(struct vm *vm, struct stages *s, struct err *e) {
        int r;

        r = vm_wake_queue(vm, WIRE_WAKE_RESTORE, e);
        stage_done(s, "queue");
        if (r == 0)
                r = vm->ops->resume(vm->vmm, e);
        stage_done(s, "resume");
        if (r == 0)
                r = vm_wake_wait(vm, e);
        stage_done(s, "ack");
        return r;
}

/* Nobody's: the keeper does the rest. */
static void fail_member(struct vm *vm, const char *why) {
        if (vm->state == VM_PAUSED || vm->state == VM_RUNNING)
                vm_fail(vm, "it was to be taken: %.200s", why);
        vm_op_end(vm);
}

static void waker(void *arg) {
        struct attempt *a = arg;
        int r = wake(a->vm, &a->stages, &a->e);

        if (!a->abandoned) {
                a->ended = true;
                co_wake(&a->done, r);
                return;
        }
        fail_member(a->vm, "it has not woken up in time");
        free(a);
}

/* Its name is free again at once: the next member gets it. */
static void give_up(struct pool *p, struct attempt *a) {
        char name[NAME_MAX_LEN + 1];
        struct vm *vm = a->vm;
        struct err e;

        log_warning("pool '%s': %s cannot be taken: %s", p->name, vm->name, a->ended ? a->e.message : "it does not wake up");
        pool_member_name(p, name);
        if (vm_rename(vm, name, &e) < 0)
                log_error("%s", e.message);
        if (a->ended) {
                fail_member(vm, a->e.message);
                free(a);
                return;
        }
        a->abandoned = true;
        if (!vm->vmm_exited)
                best_effort(spawn_kill(vm->ops->pidfd(vm->vmm), SIGKILL)); /* then the waker's steps fail */
}

/* 0, or -EAGAIN: not this one. */
static int wake_in_time(struct pool *p, struct attempt *a) {
        struct vm *vm = a->vm;
        int r;

        stages_begin(&a->stages);
        if (co_start(p->d->base, waker, a) < 0)
                waker(a); /* we are a coroutine too, with more patience then */
        r = co_wait(&a->done, PATIENCE_MS);
        if (r == 0)
                r = hand_out(vm, &a->e);
        stage_done(&a->stages, "record");
        stages_log(&a->stages, vm->name, "take");
        if (r < 0)
                give_up(p, a);
        else
                free(a);
        return r < 0 ? -EAGAIN : 0;
}

/* 0; -EEXIST, -EINVAL, -ECANCELED: not under this name, or not now; -EAGAIN: not this one. */
static int take_member(struct pool *p, struct vm *vm, const char *name, struct pool_taken *ret, struct err *e) {
        struct attempt *a = calloc(1, sizeof(*a));
        int r;

        if (!a)
                return err_errno(e, -ENOMEM, "taking from the pool '%s'", p->name);
        r = vm_op_begin(vm, "take", e); /* it is idle: no wait */
        if (r == 0)
                r = vm_rename(vm, name, e);
        if (r < 0) {
                if (vm->busy)
                        vm_op_end(vm);
                free(a);
                return r;
        }
        *a = (struct attempt){ .vm = vm, .done = CO_WAIT_INIT };
        r = wake_in_time(p, a);
        if (r < 0)
                return r;
        memcpy(ret->id, vm->id, sizeof(ret->id));
        ret->pid = vm->pid;
        ret->warm = true;
        vm_op_end(vm);
        return 0;
}

static int take_warm(struct pool *p, const char *name, struct pool_taken *ret, struct err *e) {
        struct vm *vm;
        int r = -EAGAIN;

        while (r == -EAGAIN && (vm = pick(p)))
                r = take_member(p, vm, name, ret, e);
        return r;
}

/* Nobody is warm. */
static int take_cold(struct pool *p, const char *name, struct pool_taken *ret, struct err *e) {
        cleanup_free struct fork_result *res = calloc(1, sizeof(*res));
        id_str from;
        struct fork_params fp = { .source = from, .name = name, .count = 1, .on_pager_loss = p->on_pager_loss };
        int r;

        if (!res)
                return err_errno(e, -ENOMEM, "taking from the pool '%s'", p->name);
        if (!pool_snapshot(p)) {
                (void) err_set(e, ERR_NOT_FOUND, -ENOENT, "the pool '%s' is empty, and its snapshot %s is not there any more",
                               p->name, p->from);
                return err_hint(e, "give it another one: forkctl pool set %s --from SNAPSHOT", p->name);
        }
        memcpy(from, p->from, sizeof(from));
        r = fork_run(p->d, &fp, res, e);
        if (r < 0)
                return r;
        memcpy(ret->id, res->clones[0].id, sizeof(ret->id));
        ret->pid = res->clones[0].pid;
        ret->warm = false;
        return 0;
}

static void find_name(struct pool *p, char ret[NAME_MAX_LEN + 1]) {
        do {
                char suffix[16];
                int len = snprintf(suffix, sizeof(suffix), "-%u", ++p->named);

                (void) snprintf(ret, NAME_MAX_LEN + 1, "%.*s%s", NAME_MAX_LEN - len, p->name, suffix);
        } while (vm_name_taken(p->d, ret));
}

/* A pool that is removed meanwhile stays until the last take of it has ended. */
static int take(struct pool *p, const char *name, struct pool_taken *ret, struct err *e) {
        int r;

        pool_demand_take(&p->demand, now_ns());
        if (name[0])
                (void) strcpy(ret->name, name);
        else
                find_name(p, ret->name);
        r = take_warm(p, ret->name, ret, e);
        if (r != -EAGAIN)
                return r;
        if (p->removing)
                return err_set(e, ERR_BUSY, -EBUSY, "the pool '%s' is being removed", p->name);
        return take_cold(p, ret->name, ret, e);
}

int pool_take(struct daemon *d, const char *pool, const char *name, struct pool_taken *ret, struct err *e) {
        uint64_t start = now_ns();
        struct pool *p;
        int r;

        r = pool_find(d, pool, &p, e);
        if (r == 0 && name[0])
                r = vm_check_name(d, name, e);
        if (r == 0 && p->removing)
                r = err_set(e, ERR_BUSY, -EBUSY, "the pool '%s' is being removed", p->name);
        if (r < 0)
                return r;
        d->pools->taking++;
        p->taking++;
        r = take(p, name, ret, e);
        p->taking--;
        d->pools->taking--;
        ret->take_ms = ms_since(start);
        if (r == 0) {
                times_took(d, OP_POOL_TAKE, ret->take_ms);
                p->taken_warm += ret->warm;
                p->taken_cold += !ret->warm;
        } else {
                times_failed(d, OP_POOL_TAKE, r);
        }
        pools_kick(d);
        return r;
}
