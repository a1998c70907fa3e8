/* SPDX-License-Identifier: MIT */
/* The memory cgroup that this process lives in: where it is, and how much it may use. The pages of a memfd are
 * charged to whoever puts them there, so an image's decoded pages count against the pager's own group. */
#pragma once

#include <stdint.h>

#include "common/cleanup.h"

struct pager_memcg {
        char *v2;            /* the group's directory in cgroup v2, or NULL */
        size_t v2_mount_len; /* of it, the mount point: limits of all groups between the two count */
        char *v1;            /* the group's directory of the v1 controller "memory", or NULL */
        int v2_mount_fd;     /* > 0: the mount point, opened when it was found; it is of use where its path is not any more */
        int v1_fd;           /* > 0: ditto, the v1 group's directory */
};

/** @root stands in front of /proc (tests; "" is the system). What cannot be found is NULL: there is no error but
 *  -ENOMEM, and *ret is valid after that, too. */
int pager_memcg_find(const char *root, struct pager_memcg *ret) attr_warn_unused;
/** The same from what /proc/self/mountinfo and /proc/self/cgroup say; directories get @root in front. */
int pager_memcg_parse(const char *root, const char *mounts, const char *groups, struct pager_memcg *ret) attr_warn_unused;
void pager_memcg_clear(struct pager_memcg *m);

/** Bytes that the group may use, the least of what memory.max and memory.high of it and its parents say (v1:
 *  hierarchical_memory_limit). UINT64_MAX: no limit, or none that can be read. Reads files each time. */
uint64_t pager_memcg_limit(const struct pager_memcg *m);
