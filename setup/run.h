/* SPDX-License-Identifier: MIT */
/* Other people's programs (apt, dpkg-deb, mkfs.xfs), run without a shell and with a deadline. */
#pragma once

#include <stddef.h>

#include "common/err.h"

#define RUN_MAX_OUTPUT (4u << 20)

struct run_params {
        const char *const *argv; /* argv[0]: a name that run_find finds, or a path */
        int timeout_ms;
        int stdout_fd;           /* where its output goes instead of *ret_output; 0: capture */
        void (*tick)(void *arg); /* called about four times a second while it runs; may be NULL */
        void *tick_arg;
};

/** Path of a program in the usual places, into @buf. -ENOENT. */
int run_find(const char *name, char *buf, size_t size) attr_warn_unused;

/** Runs to the end. Exit status 0 is success; else -EIO (-ETIMEDOUT, -ENOENT) with the program's name, its
 *  status and the last line it printed on stderr. *ret_output (may be NULL) gets its stdout as a string. */
int run_program(const struct run_params *params, char **ret_output, struct err *e) attr_warn_unused;
