/* SPDX-License-Identifier: MIT */
/* A process noted in a file, so that another forkd finds it again and can be sure that it is the same: by pid, start
 * time and boot. */
#pragma once

#include <sys/types.h>

#include "common/cleanup.h"

/** Replaces @path. */
int pidfile_write(const char *path, const char *boot_id, pid_t pid) attr_warn_unused;
/** *ret_pidfd is the caller's. -ESRCH: it has ended, or the file means nothing here and now; -ENOENT: no file. */
int pidfile_open(const char *path, const char *boot_id, pid_t *ret_pid, int *ret_pidfd) attr_warn_unused;
