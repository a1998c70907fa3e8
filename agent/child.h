/* SPDX-License-Identifier: MIT */
/* Starting a command in a session of its own, with pipes or on a terminal. */
#pragma once

#include <sys/types.h>

#include "agent/loop.h"
#include "agent/msg.h"

struct child {
        pid_t pid;
        int pidfd;
        int err_fd;    /* at its end when the command runs; else child_start_error */
        int in_fd;     /* write end of stdin, or of the terminal; -1: none */
        int out_fd[2]; /* stdout and stderr; a terminal has only the first */
};

/** Forks and execs. Descriptors are non-blocking and the caller's. That exec itself failed shows later, in
 *  child_start_error: waiting for it here would let a dead network file system stop the agent. */
int child_start(const struct wire_exec *x, struct child *ret) attr_warn_unused;

/** After the end of the child: what kept it from running its command (errno, and in words what was tried),
 *  or 0. */
int child_start_error(int err_fd, const char **ret_what) attr_warn_unused;

/** Waits for a child that has ended, without blocking. 1: *ret_signaled, *ret_code are set; 0: it lives. */
int child_reap(int pidfd, bool *ret_signaled, int *ret_code);

/** Reaps @pidfd (taken) whenever it ends. */
void child_reap_later(struct loop *l, int pidfd);

/** The rest of a descriptor setup that every child needs: a session, default signals, our limits undone, and
 *  no descriptor above 2 after the exec. In the child only. */
void child_reset(void);
