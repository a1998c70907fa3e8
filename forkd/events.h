/* SPDX-License-Identifier: MIT */
/* What happened to VMs and to the pager, for whoever wants to follow it: the newest EVENTS_KEPT are kept in memory, each with a
 * number that only grows. Nobody is waited for: who reads too slowly is told how many it has missed. They start anew with
 * forkd. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "common/mp.h"

#define EVENTS_KEPT 1024
#define EVENTS_MAX_WAIT_MS 60000
#define EVENTS_MAX_WAITERS 256
#define EVENTS_KIND_LEN 24
#define EVENTS_MAX_KINDS 32
#define EVENTS_MAX_USER_WAITERS 32 /* of one user */

struct events;
struct vm;

int events_new(struct events **ret) attr_warn_unused;
/** Nobody may wait. NULL is fine. */
void events_free(struct events *ev);

/** Notes an event. @kind: a word such as "vm.state"; @vm: NULL if it is of none. Never fails and never waits. */
void events_add(struct events *ev, const char *kind, const struct vm *vm, const char *fmt, ...) attr_printf(4, 5);

/** The @i-th kind of event, and how many of it there were; NULL: there are no more kinds. */
const char *events_kind(const struct events *ev, unsigned i, uint64_t *ret_n);
/** The number of the newest event, 0: there was none. */
uint64_t events_newest(const struct events *ev);
/** Appends {events: […], next, missed} to @out: what came after number @after. Waits at most @wait_ms while there is nothing. A
 *  coroutine call. @user: whose share of the waiters it is, any pointer; NULL: root, who has no share. -EUSERS: too many of the
 *  user's wait already; -EBUSY: too many of all; -ENOMEM. */
int events_read(struct events *ev, uint64_t after, unsigned wait_ms, const void *user, struct mp_buf *out) attr_warn_unused;
/** Whoever waits is answered now, and nobody waits any more. */
void events_close(struct events *ev);
