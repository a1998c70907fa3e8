/* SPDX-License-Identifier: MIT */
/* Warm pools: clones of a snapshot that were made before anybody asks. Each has been woken up and answered once, so that what
 * that needs is in memory and translated, and then paused. To take one is to tell it who it is and let it run.
 *
 *      making ─▶ warm ─▶ taken: an ordinary VM
 *                 └────▶ sick, old or too many: removed
 *
 * A member is a VM that has the mark of a pool beside its record (vm_pool_mark). While it has no request can touch it, and a forkd
 * that starts keeps it only if it is paused: whatever was half done with it is undone by its end. So a VM is handed out by the
 * removal of that mark, when it has answered under its new name, and before the answer: never twice, and never lost.
 *
 *      pool.c    the table
 *      change.c  pools come, change, and go
 *      size.c    how many, and the next step
 *      keeper.c  takes these steps: makes, checks and removes members in the background
 *      member.c  a member's own life
 *      take.c    hands one out
 *      record.c  what survives forkd: <state>/pools/<name> */
#pragma once

#include <stdbool.h>

#include "common/err.h"
#include "common/ids.h"
#include "common/mp.h"
#include "forkd/pool/size.h"

#define POOL_MAX_POOLS 256

struct daemon;
struct pool;
struct pools;
struct vm;

/* ---- forkd's life ---- */

int pools_new(struct daemon *d, struct pools **ret) attr_warn_unused;
/** NULL is fine. */
void pools_free(struct pools *ps);
/** Reads the records, before VMs are taken back. One that cannot be read is logged and stays. */
int pools_load(struct daemon *d, struct err *e) attr_warn_unused;
/** From now on pools are kept. */
void pools_start(struct daemon *d);
/** Whoever waits for a pool is answered. */
void pools_stop(struct daemon *d);
/** Something has happened to a member, or changed what is wanted: looked at in the loop's next turn. Never waits. */
void pools_kick(struct daemon *d);

/* ---- for requests ---- */

/** -ENOENT. */
int pool_find(struct daemon *d, const char *name, struct pool **ret, struct err *e) attr_warn_unused;

/** What is to be; of a change NULL and false leave it as it is. */
struct pool_params {
        const char *name, *from; /* the pool; a snapshot's id or tag */
        const char *on_pager_loss;
        bool has_size, has_idle_timeout;
        struct pool_sizes sizes;
        bool wait; /* until it is as it shall be, or something keeps it from that */
};
/** Both are coroutine calls with @p->wait. A pool whose first member cannot be made is not there afterwards. */
int pool_create(struct daemon *d, const struct pool_params *p, struct mp_buf *out, struct err *e) attr_warn_unused;
int pool_set(struct daemon *d, const struct pool_params *p, struct mp_buf *out, struct err *e) attr_warn_unused;
/** When its members are gone. A coroutine call. -EBUSY: a member's VMM does not end. */
int pool_remove(struct daemon *d, const char *name, unsigned *ret_members, struct err *e) attr_warn_unused;

struct pool_taken {
        char name[NAME_MAX_LEN + 1];
        id_str id;
        pid_t pid;
        double take_ms;
        bool warm;
};
/** A VM named @name ("": one is found) that runs: a member, or if there is none a clone that is made now. A coroutine call. */
int pool_take(struct daemon *d, const char *pool, const char *name, struct pool_taken *ret, struct err *e) attr_warn_unused;

/** The *pool* map of docs/protocol.md. */
void pool_encode(const struct pool *p, struct mp_buf *b);
unsigned pools_count(const struct daemon *d);
const struct pool *pools_first(const struct daemon *d);
const struct pool *pools_next(const struct pool *p);
struct pool_figures {
        const char *name;
        unsigned size, wanted, warm, making;
        uint64_t taken_warm, taken_cold;
};
void pool_get_figures(const struct pool *p, struct pool_figures *ret);

/** The name of a pool that makes its members from this snapshot; NULL: there is none. */
const char *pools_user_of(const struct daemon *d, const char *snapshot);

/* ---- members, for those who look after VMs ---- */

/** -EINVAL if @vm waits in a pool: it is nobody's to use. */
int pool_check_free(const struct vm *vm, struct err *e) attr_warn_unused;
/** Its VMM has just been started: it must not be in the way of guests that are used. */
void pool_member_spawned(const struct vm *vm, pid_t pid);
/** From loaded to warm: the end of its restore. A coroutine call. */
int pool_member_warm_up(struct vm *vm, struct err *e) attr_warn_unused;
/** Of one that a forkd before left: is it as it was? A coroutine call. */
int pool_member_adopt(struct vm *vm, struct err *e) attr_warn_unused;
