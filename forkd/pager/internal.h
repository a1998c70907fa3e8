/* SPDX-License-Identifier: MIT */
/* Between the two halves of forkd's side of the pager: process.c has the process, sessions.c its sessions. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>

#include "forkd/daemon.h"
#include "forkd/pager/link.h"

#define PAGER_CALL_TIMEOUT_MS 10000

struct pager {
        struct daemon *d;
        char socket_path[FORKD_MAX_RUN_DIR + 16], pid_path[FORKD_MAX_RUN_DIR + 16];
        struct rpc_conn *conn;
        pid_t pid;
        int pidfd;
        struct event *death;
        bool connecting, suspected;
        struct co_wait *connect_waiter; /* others that need the pager while one coroutine brings it up */
};

/** What the pager tells without being asked; @arg is the struct pager. */
void pager_on_message(struct rpc_msg *m, void *arg);

/** Asks the pager and waits for its answer, at most PAGER_CALL_TIMEOUT_MS. One that answers nothing any more is ended.
 *  A coroutine call; parameters as of rpc_call_co. */
int pager_call(struct pager *p, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
               struct rpc_answer *ret, struct err *e) attr_warn_unused;
