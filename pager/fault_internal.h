/* SPDX-License-Identifier: MIT */
/* Inside a turn: events.c reads, fault.c answers. The session's worker only. */
#pragma once

#include "pager/fault.h"

/** Notes why the session fails, and returns @r. */
int pager_fault_fail(struct pager_session *s, int r, const char *reason) attr_warn_unused;

/** Reads until nothing is left or `pending` is full. A short read says that nothing is left: what comes later
 *  makes the descriptor readable again. Returns 1 if there is too much for one turn: a VMM whose threads discard
 *  and move memory all the time has always something to tell. */
int pager_events_read(struct pager_session *s) attr_warn_unused;

/** Makes room for events when `pending` is full of faults that wait for one. They are raised again, but not before
 *  that event was read: the kernel hands out faults first, so a guest of many threads would fill `pending` for ever. */
void pager_events_drop(struct pager_session *s);

/** All events are read: whoever waits looks again. */
void pager_events_raise(struct pager_session *s);
