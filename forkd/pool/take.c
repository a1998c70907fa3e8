/* SPDX-License-Identifier: MIT */
/* Hands a VM out.
 *
 * In its order: the member gets its name, here only → its wake-up is queued in the agent's channel, with fresh entropy, the time
 * and the name → the vCPUs run → the agent has acknowledged → the mark that makes it a member becomes its name (record.c). Until that
 * it is one on disk, and a forkd that finds such a member running ends it. The acknowledgement is the echo: a take has one
 * command for the VMM, one message to the guest and one back; its record is written after the answer.
 *
 * A member that does not wake up, or not within PATIENCE_MS, is ended, and the next one is taken: waking up and letting run are
 * coroutines of their own, so that the taker can go on when a VMM hangs. If there is none left, or never was, a clone is made as
 * `fork` does, which is slower, and said. */
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

/* ---- waking one up ---- */

/* Shared by the taker, who waits for the acknowledgement, the one that wakes the guest, and the one that lets it run. The VM stays
 * busy until the last of them is done with it. */
struct attempt {
        struct vm *vm;
        unsigned refs;
        bool failed, ended; /* it is not to be handed out; there is a verdict */
        struct co_wait done;
        struct stages stages;
        struct err e;
};

static void leave(struct attempt *a) {
        struct vm *vm = a->vm;

        if (--a->refs > 0)
                return;
        if (a->failed && (vm->state == VM_PAUSED || vm->state == VM_RUNNING))
                vm_fail(vm, "it was to be taken: %.200s", a->e.message);
        free(a);
        vm_op_end(vm); /* what failed is nobody's: the keeper does the rest */
}

/* The first word counts. */
static void tell(struct attempt *a, int r, const struct err *e) {
        if (a->ended)
                return;
        a->ended = true;
        if (r < 0)
                a->e = *e;
        co_wake(&a->done, r);
}

/* A guest that has acknowledged runs, whether its VMM has said so yet or not: on a busy host that may come a good deal later. */
static void let_run(void *arg) {
        struct attempt *a = arg;
        struct err e = { 0 };
        int r = a->vm->ops->resume(a->vm->vmm, &e);

        stage_done(&a->stages, "resume");
        if (r < 0)
                tell(a, r, &e);
        leave(a);
}

static void wake(void *arg) {
        struct attempt *a = arg;
        struct err e = { 0 };
        int r;

        r = vm_wake_queue(a->vm, WIRE_WAKE_RESTORE, &e);
        stage_done(&a->stages, "queue");
        if (r == 0) {
                a->refs++;
                if (co_start(a->vm->d->base, let_run, a) < 0)
                        let_run(a); /* we are a coroutine too */
                r = vm_wake_wait(a->vm, &e);
                stage_done(&a->stages, "ack");
        }
        tell(a, r, &e);
        leave(a);
}

/* ---- handing it out ---- */

/* From here on it is the caller's, whatever happens to this forkd. */
static int hand_out(struct vm *vm, struct err *e) {
        char pool[sizeof(vm->pool)];
        struct timespec now;
        int r;

        memcpy(pool, vm->pool, sizeof(pool));
        r = vm_enter_state(vm, VM_RUNNING, e);
        if (r == 0)
                r = vm_pool_unmark(vm, e);
        if (r < 0)
                return r;
        (void) clock_gettime(CLOCK_REALTIME, &now);
        vm->created_ns = (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
        monitor_vm_renamed(vm->d->monitor, vm);
        events_add(vm->d->events, "pool.taken", vm, "from %s", pool);
        return 0;
}

/* ---- when it is answered ---- */

/* A full disk does no harm: what the mark says holds. */
static void note(void *arg) {
        struct attempt *a = arg;
        struct err e;

        if (vm_record_save(a->vm, &e) < 0)
                log_warning("%s", e.message);
        else
                vm_pool_settle(a->vm);
        leave(a);
}

static void on_answered(evutil_socket_t fd, short what, void *arg) {
        struct attempt *a = arg;

        if (co_start(a->vm->d->base, note, a) < 0)
                leave(a); /* then the next record tells */
}

/* Its record is written when the answer is on its way; whoever asks for the VM until then waits a moment. */
static void note_later(struct attempt *a) {
        static const struct timeval next = { 0 };

        a->vm->chore = true;
        if (event_base_once(a->vm->d->base, -1, EV_TIMEOUT, on_answered, a, &next) < 0)
                note(a);
}

/* Its name is free again at once: the next member gets it. */
static void give_up(struct pool *p, struct attempt *a) {
        char name[NAME_MAX_LEN + 1];
        struct vm *vm = a->vm;
        struct err e;

        if (!a->ended)
                (void) err_set(&a->e, ERR_TIMEOUT, -ETIMEDOUT, "it did not wake up within %d ms", PATIENCE_MS);
        log_warning("pool '%s': %s cannot be taken: %s", p->name, vm->name, a->e.message);
        pool_member_name(p, name);
        if (vm_rename(vm, name, &e) < 0)
                log_error("%s", e.message);
        a->failed = a->ended = true;
        if (a->refs > 1 && !vm->vmm_exited)
                best_effort(spawn_kill(vm->ops->pidfd(vm->vmm), SIGKILL)); /* then what the others wait for fails */
}

/* 0, or -EAGAIN: not this one. */
static int wake_and_hand_out(struct pool *p, struct attempt *a) {
        int r;

        stages_begin(&a->stages);
        a->refs++;
        if (co_start(p->d->base, wake, a) < 0)
                wake(a); /* with more patience then */
        r = co_wait(&a->done, PATIENCE_MS);
        if (r == 0)
                r = hand_out(a->vm, &a->e);
        stage_done(&a->stages, "record");
        stages_log(&a->stages, a->vm->name, "take");
        if (r == 0)
                return 0;
        give_up(p, a);
        return -EAGAIN;
}

/* 0; -EEXIST, -EINVAL, -ECANCELED: not under this name, or not now; -EAGAIN: not this one. */
static int take_member(struct pool *p, struct vm *vm, const char *name, struct pool_taken *ret, struct err *e) {
        struct attempt *a = calloc(1, sizeof(*a));
        int r;

        if (!a)
                return err_errno(e, -ENOMEM, "taking from the pool '%s'", p->name);
        r = vm_op_begin(vm, "take", e); /* it is idle: no wait */
        if (r < 0) {
                free(a);
                return r;
        }
        *a = (struct attempt){ .vm = vm, .refs = 1, .done = CO_WAIT_INIT };
        r = vm_rename(vm, name, e);
        if (r == 0)
                r = wake_and_hand_out(p, a);
        if (r == 0) {
                memcpy(ret->id, vm->id, sizeof(ret->id));
                ret->pid = vm->pid;
                ret->warm = true;
                note_later(a);
        } else {
                leave(a);
        }
        return r;
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
        struct fork_params fp = {
                .source = from, .snapshot_only = true, .name = name, .count = 1, .on_pager_loss = p->on_pager_loss
        };
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
        d->pools->last_take_ns = now_ns();
        if (d->pools->first_take_ns == 0)
                d->pools->first_take_ns = d->pools->last_take_ns;
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
