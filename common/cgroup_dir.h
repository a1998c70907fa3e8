/* SPDX-License-Identifier: MIT */
/* Where the cgroup is that this process lives in. */
#pragma once

#include <stddef.h>

#include "common/cleanup.h"

/** From what /proc/self/mountinfo and /proc/self/cgroup say: the group's directory in cgroup v2, or with @v1 that of this
 *  controller of version 1 ("memory", "pids"), with @root in front. *ret stays NULL where there is none; it is the caller's to
 *  free. *ret_mount_len: how much of it is the mount point. -ENOMEM. */
int cgroup_dir_parse(const char *root, const char *mounts, const char *groups, const char *v1, char **ret,
                     size_t *ret_mount_len) attr_warn_unused;
