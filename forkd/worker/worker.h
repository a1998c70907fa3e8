/* SPDX-License-Identifier: MIT */
/* Worker processes: what takes long or blocks (copying memory, compression, fsync, mounting) runs in children
 * of forkd that are told what to do over the same RPC, and that can be killed.
 *
 * A worker is `forkd --worker` with the connection on descriptor 3. One idle worker is kept waiting, so that a
 * standby does not pay for starting one. A worker ends when its connection does. */
#pragma once

#include <stdbool.h>

#include "common/err.h"
#include "common/mp.h"
#include "common/rpc.h"

#define WORKER_FD 3
#define WORKER_MAX 16 /* at once: what is beyond waits for its turn, before its guest is paused */

struct daemon;
struct worker;
struct worker_pool;

int worker_pool_new(struct daemon *d, struct worker_pool **ret) attr_warn_unused;
void worker_pool_free(struct worker_pool *p);
/** Gets a worker for oneself. A coroutine call: waits while WORKER_MAX are in use. */
int worker_get(struct worker_pool *p, struct worker **ret, struct err *e) attr_warn_unused;
/** Gives it back. One that may be in the middle of something (@broken) is killed, and waited for, since its
 *  temporary files may be removed only after it: a coroutine call then. NULL is fine. */
void worker_put(struct worker *w, bool broken);
/** Is any of them in use? */
bool worker_pool_is_busy(const struct worker_pool *p);
/** Kills all that are in use, at forkd's end: whoever waits for one gets an error. */
void worker_pool_cancel(struct worker_pool *p);
/** For rpc_co_begin. */
struct rpc_conn *worker_conn(struct worker *w);

/** One call in a worker of its own. */
int worker_do(struct worker_pool *p, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
              int timeout_ms, struct rpc_answer *ret, struct err *e) attr_warn_unused;

/** The worker's main function; @fd is the connection. Returns the exit code. */
int worker_main(int fd);
