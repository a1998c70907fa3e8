/* SPDX-License-Identifier: MIT */
/* The one way a child process is started: what it inherits is listed, everything else is closed. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/cleanup.h"

#define SPAWN_MAX_FDS 32
#define SPAWN_STEP_LEN 80

struct jail;

struct spawn_fd {
        int parent_fd; /* stays the caller's */
        int child_fd;  /* number in the child; 0, 1, 2 for the standard streams */
};

struct spawn_params {
        const char *const *argv; /* argv[0] is the path of the program (no PATH search) */
        const char *const *env;  /* whole environment, NULL-terminated; NULL: the caller's */
        const struct spawn_fd *fds;
        size_t n_fds;            /* standard streams that are not listed become /dev/null */
        int cgroup_fd;           /* the cgroup to be in from birth: its directory, or (slower) its cgroup.procs; -1 */
        int death_signal;        /* sent to the child when the caller's thread dies, 0: none */
        bool new_session;        /* setsid() */
        bool no_huge_pages;      /* its memory is made of small pages only, and so is that of what it executes */
        bool no_new_privs;       /* whatever it executes: setuid programs are ordinary ones */
        const struct jail *jail; /* whose it is and what it sees (common/jail.h); NULL: as the caller */
        char *step;              /* SPAWN_STEP_LEN bytes, or NULL: on failure, what it was that failed in the child */
};

/** Starts a child. 0 and *ret_pid, *ret_pidfd (owned by the caller), or -errno, also when exec itself
 *  fails in the child (-ENOENT …). Signal mask and dispositions are reset in the child. In a jail argv[0] is a path
 *  in there. */
int spawn_process(const struct spawn_params *params, pid_t *ret_pid, int *ret_pidfd) attr_warn_unused;

/** A pidfd for @pid if it still is the process that started at @start_time (0: do not check).
 *  -ESRCH when it is gone or another one. */
int spawn_pidfd_open(pid_t pid, uint64_t start_time, int *ret_pidfd) attr_warn_unused;
/** Field 22 of /proc/pid/stat, clock ticks since boot: with the pid it names a process for good. */
int spawn_start_time(pid_t pid, uint64_t *ret) attr_warn_unused;
/** The pid behind @pidfd, as seen from here, while the process lives. -ESRCH: it has ended, or cannot be seen from this
 *  pid namespace; -EINVAL: no pidfd. */
int spawn_pidfd_pid(int pidfd, pid_t *ret) attr_warn_unused;
int spawn_kill(int pidfd, int sig) attr_warn_unused;
/** Waits for the end of a process by its pidfd, child of ours or not, at most @timeout_ms (-1: for ever).
 *  Reaps it if it is our child. -ETIMEDOUT. *ret_status (may be NULL): wait status, or -1 if unknown. */
int spawn_wait(int pidfd, int timeout_ms, int *ret_status) attr_warn_unused;
