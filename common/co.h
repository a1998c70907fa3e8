/* SPDX-License-Identifier: MIT */
/* Coroutines on one libevent loop: an operation of many asynchronous steps (a fork has twelve) reads as one
 * function, with its undo at its end, instead of as twelve callbacks.
 *
 * A coroutine runs on its own stack until it waits; then the loop goes on, and whatever the coroutine waits
 * for resumes it. Nothing runs in parallel: between two waits a coroutine has the process for itself, so
 * state may only change across a wait. All functions belong to the loop's thread. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/cleanup.h"

struct co;

/** Runs @fn(@arg) in a new coroutine, at once, until its first wait. -ENOMEM. */
int co_start(struct event_base *base, void (*fn)(void *arg), void *arg) attr_warn_unused;

/** The running coroutine, NULL on the loop's own stack. */
struct co *co_self(void);

/** On whose behalf the running coroutine works: whatever its starter says, else that of the coroutine that started it; NULL on
 *  the loop's own stack. Nothing but an identity: who waits with others for a turn is told apart by it. */
const void *co_owner(void);
void co_set_owner(const void *owner);

/** What one coroutine waits for. Lives where both sides see it (often on the waiter's stack); zeroed by
 *  CO_WAIT_INIT. The other side calls co_wake once; waking before the wait is remembered, and waking
 *  twice keeps the first result. */
struct co_wait {
        struct co *waiter;
        bool done;
        int result;
};
#define CO_WAIT_INIT ((struct co_wait){ 0 })

/** Waits until co_wake(@w) or for @timeout_ms (-1: for ever). Returns the result given to co_wake, or
 *  -ETIMEDOUT. Only inside a coroutine. After a timeout nobody may call co_wake(@w) any more: the caller
 *  withdraws it from wherever it was registered before @w goes out of scope. */
int co_wait(struct co_wait *w, int timeout_ms);

/** Ends the wait. The waiter runs in the next turn of the loop, never inside this call. */
void co_wake(struct co_wait *w, int result);

/** Waits until @fd is readable/writable (EV_READ | EV_WRITE): 0, -ETIMEDOUT. */
int co_wait_fd(int fd, short events, int timeout_ms);

/** Lets @ms pass; for back-off, never for synchronisation. */
void co_sleep(int ms);

/** Coroutines that have not ended yet. */
unsigned co_alive(void);

/** A counting semaphore for coroutines, first come, first served: bounds how many do heavy work at once. */
struct co_sem_waiter;
struct co_sem {
        unsigned free;
        struct co_sem_waiter *first, *last;
};
void co_sem_init(struct co_sem *s, unsigned n);
/** Waits for a slot, at most @timeout_ms: 0 or -ETIMEDOUT. */
int co_sem_acquire(struct co_sem *s, int timeout_ms) attr_warn_unused;
void co_sem_release(struct co_sem *s);
