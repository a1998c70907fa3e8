/* SPDX-License-Identifier: MIT */
/* Fault workers: threads, each with its own epoll set and its own sessions. */
#pragma once

#include "pager/fault.h"

struct pager_thread;
struct pager_worker;

/** What workers tell the filling thread: how many of them are at work. */
struct pager_load {
        _Atomic unsigned busy;
};

/** Starts a thread. @to_control: where its letters go; @load: shared by all; @flight: its slot of the flight recorder. All
 *  outlive the worker. */
int pager_worker_new(unsigned index, struct pager_mailbox *to_control, struct pager_load *load, struct pager_flight_slot *flight,
                     struct pager_worker **ret) attr_warn_unused;
/** Stops the thread. Its sessions are handed back first, by RELEASED letters. NULL is fine. */
void pager_worker_free(struct pager_worker *w);

/** Control thread: gives @s, attached, to the worker; takes it back (RELEASED follows). */
void pager_worker_add(struct pager_worker *w, struct pager_session *s);
void pager_worker_drop(struct pager_worker *w, struct pager_session *s);
/** Takes it from its worker for @to (NULL: for none); MOVED follows, and the control thread adds it there. */
void pager_worker_move(struct pager_worker *w, struct pager_session *s, struct pager_worker *to);
/** Of a session that has failed: from now on its pages are poisoned as they are touched. */
void pager_worker_poison(struct pager_worker *w, struct pager_session *s);
/** SYNCED follows when all that the worker has read by now is in the session's bitmap. One at a time. */
void pager_worker_live_sync(struct pager_worker *w, struct pager_session *s);
void pager_worker_sync(struct pager_worker *w, struct pager_session *s);
/** Posts a beat for the worker to read, unless it has not read the last one. */
void pager_worker_beat(struct pager_worker *w);
/** How long it has given no sign of life while it has a beat to read: since that was posted, or since it began what it
 *  does now. 0: it has read it. */
uint64_t pager_worker_silent_ns(const struct pager_worker *w);
/** Is it in a read of an image's file, or waiting for a thread that may be? */
bool pager_worker_reading(const struct pager_worker *w);
unsigned pager_worker_sessions(const struct pager_worker *w);
/** Lives as long as the worker. */
const struct pager_thread *pager_worker_thread(const struct pager_worker *w);
unsigned pager_worker_index(const struct pager_worker *w);

/** How long it has been at work on what it does now, 0 when it waits. Grows when a worker hangs. */
uint64_t pager_worker_busy_ns(const struct pager_worker *w);
