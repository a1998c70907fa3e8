/* SPDX-License-Identifier: MIT */
/* Theory of operation: ucontext coroutines. Each has one libevent event that serves both as "run me in the
 * next turn" (event_active) and as its timeout (event_add), so that a wake-up and a timeout that meet can
 * resume it only once. Whoever resumes a coroutine gets control back when it waits or ends; the stack of one
 * that ended is freed (or kept for the next) by the resumer, never by itself.
 *
 * The only state outside the coroutines is which one runs, per thread: it cannot be passed as an argument,
 * since co_wait is called from deep inside code that knows nothing of coroutines. */
#include "common/co.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(FORKD_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(FORKD_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

#define CO_STACK_SIZE (256u << 10)
#define CO_GUARD_SIZE 4096u
#define CO_SPARE_STACKS 8u

struct co {
        ucontext_t ctx, back; /* ourselves; whoever resumed us */
        struct co *resumer;   /* the coroutine that resumed us, NULL: the loop */
        struct event_base *base;
        struct event *ev;
        void *stack;
        void (*fn)(void *arg);
        void *arg;
        const void *owner;
        bool ended;
#if defined(FORKD_ASAN)
        void *fake_stack;
        const void *back_stack;
        size_t back_size;
#endif
#if defined(FORKD_TSAN)
        void *fiber, *back_fiber;
#endif
};

static _Thread_local struct {
        struct co *current;
        unsigned alive;
        void *spare[CO_SPARE_STACKS];
        unsigned n_spare;
} co_state;

struct co *co_self(void) {
        return co_state.current;
}

const void *co_owner(void) {
        return co_state.current ? co_state.current->owner : NULL;
}

void co_set_owner(const void *owner) {
        if (co_state.current)
                co_state.current->owner = owner;
}

unsigned co_alive(void) {
        return co_state.alive;
}

static void *stack_new(void) {
        char *p;

        if (co_state.n_spare > 0)
                return co_state.spare[--co_state.n_spare];
        p = mmap(NULL, CO_STACK_SIZE + CO_GUARD_SIZE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
                return NULL;
        if (mprotect(p, CO_GUARD_SIZE, PROT_NONE) < 0) {
                (void) munmap(p, CO_STACK_SIZE + CO_GUARD_SIZE);
                return NULL;
        }
        return p;
}

static void stack_free(void *p) {
        if (co_state.n_spare < CO_SPARE_STACKS)
                co_state.spare[co_state.n_spare++] = p;
        else
                (void) munmap(p, CO_STACK_SIZE + CO_GUARD_SIZE);
}

static void co_free(struct co *co) {
#if defined(FORKD_TSAN)
        if (co->fiber)
                __tsan_destroy_fiber(co->fiber);
#endif
        if (co->ev)
                event_free(co->ev);
        if (co->stack)
                stack_free(co->stack);
        free(co);
}

/* Runs @co until it waits or ends. Called on the loop's stack or on that of another coroutine. */
static void co_enter(struct co *co) {
#if defined(FORKD_ASAN)
        void *my_fake = NULL;
#endif
        co->resumer = co_state.current;
        co_state.current = co;
        /* Sanitizers must be told of every change of stack. */
#if defined(FORKD_ASAN)
        __sanitizer_start_switch_fiber(&my_fake, (char *) co->stack + CO_GUARD_SIZE, CO_STACK_SIZE);
#endif
#if defined(FORKD_TSAN)
        co->back_fiber = __tsan_get_current_fiber();
        __tsan_switch_to_fiber(co->fiber, 0);
#endif
        (void) swapcontext(&co->back, &co->ctx);
#if defined(FORKD_ASAN)
        __sanitizer_finish_switch_fiber(my_fake, NULL, NULL);
#endif
        co_state.current = co->resumer;
        if (co->ended) {
                co_free(co);
                co_state.alive--;
        }
}

/* Back to whoever resumed us. */
static void co_leave(struct co *co) {
#if defined(FORKD_ASAN)
        __sanitizer_start_switch_fiber(co->ended ? NULL : &co->fake_stack, co->back_stack, co->back_size);
#endif
#if defined(FORKD_TSAN)
        __tsan_switch_to_fiber(co->back_fiber, 0);
#endif
        (void) swapcontext(&co->ctx, &co->back);
#if defined(FORKD_ASAN)
        __sanitizer_finish_switch_fiber(co->fake_stack, &co->back_stack, &co->back_size);
#endif
}

static void co_main(unsigned hi, unsigned lo) {
        struct co *co = (struct co *) ((uintptr_t) hi << 32 | lo);

#if defined(FORKD_ASAN)
        __sanitizer_finish_switch_fiber(NULL, &co->back_stack, &co->back_size);
#endif
        co->fn(co->arg);
        co->ended = true;
        co_leave(co);
        abort(); /* an ended coroutine is never resumed */
}

static void on_event(evutil_socket_t fd, short what, void *arg) {
        co_enter(arg);
}

int co_start(struct event_base *base, void (*fn)(void *arg), void *arg) {
        struct co *co = calloc(1, sizeof(*co));

        if (!co)
                return -ENOMEM;
        co->base = base;
        co->fn = fn;
        co->arg = arg;
        co->owner = co_owner();
        co->stack = stack_new();
        co->ev = event_new(base, -1, 0, on_event, co);
        if (!co->stack || !co->ev || getcontext(&co->ctx) < 0) {
                co_free(co);
                return -ENOMEM;
        }
#if defined(FORKD_TSAN)
        co->fiber = __tsan_create_fiber(0);
#endif
        co->ctx.uc_stack.ss_sp = (char *) co->stack + CO_GUARD_SIZE;
        co->ctx.uc_stack.ss_size = CO_STACK_SIZE;
        co->ctx.uc_link = NULL;
        makecontext(&co->ctx, (void (*)(void)) co_main, 2, (unsigned) ((uintptr_t) co >> 32), (unsigned) (uintptr_t) co);
        co_state.alive++;
        co_enter(co);
        return 0;
}

int co_wait(struct co_wait *w, int timeout_ms) {
        struct co *co = co_state.current;
        struct timeval tv = { .tv_sec = timeout_ms / 1000, .tv_usec = (timeout_ms % 1000) * 1000L };

        if (!co)
                abort(); /* only coroutines can wait */
        if (w->done)
                return w->result;
        w->waiter = co;
        if (timeout_ms >= 0)
                (void) event_add(co->ev, &tv);
        co_leave(co);
        (void) event_del(co->ev);
        w->waiter = NULL;
        return w->done ? w->result : -ETIMEDOUT;
}

void co_wake(struct co_wait *w, int result) {
        if (w->done)
                return;
        w->done = true;
        w->result = result;
        if (w->waiter)
                event_active(w->waiter->ev, EV_TIMEOUT, 0);
}

static void on_fd(evutil_socket_t fd, short what, void *arg) {
        co_wake(arg, what & EV_TIMEOUT ? -ETIMEDOUT : 0);
}

int co_wait_fd(int fd, short events, int timeout_ms) {
        struct timeval tv = { .tv_sec = timeout_ms / 1000, .tv_usec = (timeout_ms % 1000) * 1000L };
        struct pollfd pfd = { .fd = fd };
        struct co_wait w = CO_WAIT_INIT;
        struct event *ev;
        int r;

        pfd.events = (short) ((events & EV_READ ? POLLIN : 0) | (events & EV_WRITE ? POLLOUT : 0));
        ev = event_new(co_state.current->base, fd, events, on_fd, &w);
        if (!ev)
                return -ENOMEM;
        if (event_add(ev, timeout_ms >= 0 ? &tv : NULL) < 0)
                r = -EIO;
        else
                r = co_wait(&w, -1);
        event_free(ev);
        /* When both come in one turn of the loop, libevent tells only of the timeout: a loop that was busy for
         * a while must not take what is ready for what is late. */
        if (r == -ETIMEDOUT && poll(&pfd, 1, 0) > 0)
                r = 0;
        return r;
}

void co_sleep(int ms) {
        struct co_wait w = CO_WAIT_INIT;

        (void) co_wait(&w, ms);
}

struct co_sem_waiter {
        struct co_sem_waiter *next;
        struct co_wait wait;
};

void co_sem_init(struct co_sem *s, unsigned n) {
        *s = (struct co_sem){ .free = n };
}

int co_sem_acquire(struct co_sem *s, int timeout_ms) {
        struct co_sem_waiter w = { .wait = CO_WAIT_INIT };
        int r;

        if (s->free > 0 && !s->first) {
                s->free--;
                return 0;
        }
        if (s->last)
                s->last->next = &w;
        else
                s->first = &w;
        s->last = &w;
        r = co_wait(&w.wait, timeout_ms);
        if (r == -ETIMEDOUT && !w.wait.done) {
                struct co_sem_waiter **p = &s->first, *prev = NULL;

                for (; *p != &w; p = &(*p)->next)
                        prev = *p;
                *p = w.next;
                if (s->last == &w)
                        s->last = prev;
        }
        return r;
}

void co_sem_release(struct co_sem *s) {
        struct co_sem_waiter *w = s->first;

        /* The slot is handed over, not freed: a newcomer cannot overtake the queue. */
        if (!w) {
                s->free++;
                return;
        }
        s->first = w->next;
        if (!s->first)
                s->last = NULL;
        co_wake(&w->wait, 0);
}
