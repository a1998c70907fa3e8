/* SPDX-License-Identifier: MIT */
/* A cgroup (version 2) of its own for every VMM, one for the pager, one for the workers: whatever they become, they can be
 * found and killed as a whole.
 *
 *      <cgroup2 mount>/forkd-<instance>/<id of a VM>
 *                                      /pager
 *                                      /workers
 *
 * The mount is found wherever it is: in a hybrid setup it is not at /sys/fs/cgroup. Without one, or without
 * the right to write there, all of this is -EOPNOTSUPP and VMMs run where forkd runs. */
#pragma once

#include <stddef.h>

#include "common/cleanup.h"
#include "common/err.h"

#define CGROUP_PAGER "pager"
#define CGROUP_WORKERS "workers"

/** Where cgroup v2 is mounted: the path into @buf. -EOPNOTSUPP: nowhere. */
int cgroup_mount(char *buf, size_t size) attr_warn_unused;

/** Makes the group of @id, or takes one that an earlier life left (its processes are killed first).
 *  *ret_fd: its directory, for spawn_process. -EOPNOTSUPP. */
int cgroup_create(const char *instance, const char *id, int *ret_fd, struct err *e) attr_warn_unused;

/** As cgroup_create, but what lives in the group stays: for one that several processes share. */
int cgroup_join(const char *instance, const char *name, int *ret_fd, struct err *e) attr_warn_unused;

/** SIGKILL to every process in the group. A group that is not there is no error. */
int cgroup_kill(const char *instance, const char *id, struct err *e) attr_warn_unused;

/** Kills what is left in the group, waits until it is empty and removes it, then the instance's own group if
 *  that was the last. In a coroutine other work goes on meanwhile; outside it blocks. At most 5 seconds,
 *  then -EBUSY. A group that is not there is no error. */
int cgroup_remove(const char *instance, const char *id, struct err *e) attr_warn_unused;
