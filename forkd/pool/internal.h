/* SPDX-License-Identifier: MIT */
/* What the files of this folder share. */
#pragma once

#include <event2/event.h>
#include <sys/queue.h>

#include "common/co.h"
#include "forkd/daemon.h"
#include "forkd/pool/pool.h"

struct pool_waiter {
        TAILQ_ENTRY(pool_waiter) entry;
        struct co_wait wait;
};

struct pool {
        TAILQ_ENTRY(pool) entry;
        struct daemon *d;
        uint64_t serial; /* never used again: tells it from a later one of its name */

        /* ---- the record ---- */
        char name[NAME_MAX_LEN + 1];
        id_str from;
        char on_pager_loss[8];
        struct pool_sizes sizes;
        bool removing; /* its members go, and then it does */
        int64_t created_ns;

        /* ---- gone with forkd ---- */
        struct pool_demand demand;
        unsigned making, taking;
        unsigned named; /* VMs that had no name given, of this forkd's life */
        uint64_t taken_warm, taken_cold;
        char problem[320];                 /* why it has fewer than it shall have; else "" */
        unsigned pause_ms;                 /* after a failure; doubled by each */
        uint64_t retry_ns;                 /* then it is tried again */
        TAILQ_HEAD(, pool_waiter) waiters; /* for anything that happens to it */
};

struct pools {
        struct daemon *d;
        TAILQ_HEAD(, pool) list; /* by name */
        unsigned n;
        uint64_t serials;
        unsigned making, taking;              /* in all */
        uint64_t first_take_ns, last_take_ns; /* since a refill has begun; 0: there was none */
        unsigned cores;
        bool may_raise_priority;
        bool open;
        struct event *kick, *later;
        struct event *tick; /* every second, while there are pools */
};

/* ---- record.c ---- */
/** The file's bytes. -ENOMEM. */
int pool_record_encode(const struct pool *p, struct mp_buf *b) attr_warn_unused;
/** From bytes that may be anything. -EBADMSG, -EPROTONOSUPPORT, -ENOMEM. */
int pool_record_decode(const void *data, size_t len, struct pool *p) attr_warn_unused;
int pool_record_save(struct pool *p, struct err *e) attr_warn_unused;
/** A missing one is fine. */
int pool_record_remove(struct pool *p, struct err *e) attr_warn_unused;

/* ---- pool.c ---- */
struct pool *pool_by_name(const struct daemon *d, const char *name);
struct pool *pool_new(struct daemon *d, const char *name);
void pool_enter(struct pool *p);
void pool_free(struct pool *p);
/** Waits until something happens to @p, which may be gone then: 0; -ECANCELED: forkd ends. */
int pool_wait(struct pool *p) attr_warn_unused;
/** Something has happened: whoever waits looks anew. */
void pool_tell(struct pool *p, int r);

/* ---- member.c ---- */
bool pool_may_raise_priority(void);
/** Paused, well, and nobody's yet. */
bool pool_member_is_warm(const struct vm *vm);
/** Waits in @p, or was to. */
bool pool_has_member(const struct pool *p, const struct vm *vm);
void pool_count(const struct pool *p, struct pool_counts *ret);
/** A name that no VM has. */
void pool_member_name(const struct pool *p, char ret[NAME_MAX_LEN + 1]);
/** Makes one: a coroutine call. */
int pool_member_make(struct pool *p, struct err *e) attr_warn_unused;
/** Removes it in the background. */
void pool_member_drop(struct vm *vm);
/** Asks its VMM in the background whether all is well, and drops it if not. */
void pool_member_check(struct vm *vm);

/* ---- keeper.c ---- */
void pools_keep(struct pools *ps);
void pools_tick(struct pools *ps);
/** Its snapshot, NULL if it is not there. */
struct snap_entry *pool_snapshot(const struct pool *p);
