/* SPDX-License-Identifier: MIT */
/* Heavy work takes turns: starts of VMMs, snapshots, reads of whole snapshots. Each kind has a number of places; who finds
 * none waits. The waiting stand in one queue for each client, and the clients take turns: somebody's hundred forks do not
 * keep another's single one waiting for all of them. Within a client it is first come, first served.
 *
 * A client is whoever the waiting coroutine works for (co_owner); forkd itself is one, too. */
#pragma once

#include <stdbool.h>

#include "common/err.h"

enum heavy {
        HEAVY_START, /* a VMM that boots or is loaded, until its guest answers */
        HEAVY_SAVE,  /* a snapshot that is taken: its pages are read and compressed */
        HEAVY_SCAN,  /* a whole snapshot that is read: verify, memory */
};
#define HEAVY_KINDS 3

struct turns;

/** @limits: places of each kind, at least 1. @gone (may be NULL): has this client left? It may be the address of something that
 *  is no more. -ENOMEM. */
int turns_new(const unsigned limits[HEAVY_KINDS], bool (*gone)(const void *client, void *arg), void *arg,
              struct turns **ret) attr_warn_unused;
/** Nobody may be waiting. NULL is fine. */
void turns_free(struct turns *t);

/** Waits for a place: a coroutine call. -ECANCELED with @e: the client has left, or turns_stop. */
int turns_take(struct turns *t, enum heavy kind, struct err *e) attr_warn_unused;
/** The same for work that nobody waits for: only when no other waits for a place. Among its kind first come, first served. */
int turns_take_spare(struct turns *t, enum heavy kind, struct err *e) attr_warn_unused;
/** Gives it back. */
void turns_give(struct turns *t, enum heavy kind);

/** Ends the waiting of a client that has left. */
void turns_client_gone(struct turns *t, const void *client);
/** Ends all waiting; from now on nobody gets a place. */
void turns_stop(struct turns *t);

struct turns_count {
        unsigned limit, running, waiting;
};
struct turns_count turns_count(const struct turns *t, enum heavy kind);
