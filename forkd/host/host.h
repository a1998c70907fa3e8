/* SPDX-License-Identifier: MIT */
/* What the host has to give at this moment: memory, processes, room on a disk. What cannot be found out is UINT64_MAX: a host
 * that cannot tell is not refused. */
#pragma once

#include <stdint.h>

#include "common/cleanup.h"

struct host; /* where to look: cgroups are found once */

/** @root stands in front of /proc and of cgroups (tests; "" is the system). @instance names the group that VMMs live in
 *  (vmm/cgroup.h). -ENOMEM. */
int host_new(const char *root, const char *instance, struct host **ret) attr_warn_unused;
void host_free(struct host *h);

/** Bytes of memory that VMMs can still take: the host's MemAvailable, or less if a memory cgroup above them has less left. */
uint64_t host_memory(const struct host *h);
/** Processes and threads that can still be made: of kernel.threads-max, kernel.pid_max, and the pids cgroups above VMMs. */
uint64_t host_pids(const struct host *h);
/** Free bytes where @path is. */
uint64_t host_disk(const char *path);
/** Private memory of a process, in bytes; 0 for one that is not there. */
uint64_t host_private_bytes(const struct host *h, int pid);
/** Descriptors that this process may have. */
uint64_t host_descriptors(void);
