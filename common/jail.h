/* SPDX-License-Identifier: MIT */
/* What a process may no longer do: whose it is, its capabilities and limits, what it sees of the host. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/cleanup.h"

struct sock_fprog;

#define JAIL_MAX_GROUPS 4
#define JAIL_STEP_LEN 80

struct jail_limit {
        int resource; /* RLIMIT_… */
        uint64_t max; /* soft and hard */
};

/** What a child lives in; see spawn_params.jail. Descriptors stay the caller's. */
struct jail {
        uid_t uid; /* also its group */
        gid_t groups[JAIL_MAX_GROUPS];
        size_t n_groups;
        uint64_t caps;      /* 1 << CAP_…: what it keeps, over exec, too */
        int mnt_ns, net_ns; /* namespaces to join; -1: the caller's */
        int root_fd;        /* the root directory in mnt_ns, where there is one: in a chroot it is not the namespace's own */
        bool own;           /* pid, IPC and UTS namespaces of its own, and a copy of mnt_ns with a /proc of its own */
        const struct jail_limit *limits;
        size_t n_limits;
        const struct sock_fprog *filter; /* of system calls; NULL: none */
};

/** The namespaces that a process of @j is born in: flags of clone(). */
unsigned long jail_clone_flags(const struct jail *j);

/** Both are for a child between fork and exec: they only call the kernel. 0, or -errno with the step that failed in
 *  *ret_step. First the namespaces, while it has the descriptors … */
int jail_enter(const struct jail *j, const char **ret_step) attr_warn_unused;
/** … and last of all what it may: user, capabilities, limits, and no new privileges by exec. */
int jail_drop(const struct jail *j, const char **ret_step) attr_warn_unused;

/* ---- the same in pieces, for a process that gives up its own privileges ---- */

/** No exec gains anything from now on, in this thread and those that it starts. */
int privs_no_new(void) attr_warn_unused;
/** Takes all capabilities but @keep out of the bounding set, and all out of the inheritable one. */
int privs_bound(uint64_t keep) attr_warn_unused;
/** All threads become @uid, with its group and no other than @groups. Without capabilities, unless there are some in
 *  @keep, which only the calling thread gets. */
int privs_become(uid_t uid, const gid_t *groups, size_t n_groups, uint64_t keep) attr_warn_unused;

/* ---- a root directory of its own ---- */

enum newroot_kind {
        NEWROOT_DIR,    /* an empty directory */
        NEWROOT_BIND,   /* what the host has at this path, read-only; nothing, if it has nothing there */
        NEWROOT_DEVICE, /* ditto, a device's node */
        NEWROOT_NODE,   /* a node of its own for the device that the host has at this path, with .mode and .group; nothing, if
                         * there is none or no node may be made */
        NEWROOT_PROC,   /* a /proc of the caller's pid namespace, in which a process finds only its user's */
};

struct newroot_entry {
        enum newroot_kind kind;
        const char *path; /* absolute */
        mode_t mode;
        gid_t group;
};

/** Replaces everything that the caller's mount namespace shows by a small file system in memory, read-only, with
 *  @entries. A symbolic link to be bound becomes the same link. The namespace must be the caller's own (unshare). @where
 *  is a directory that exists, and that no entry is in. -errno, and in @step what failed. */
int newroot_enter(const char *where, const struct newroot_entry *entries, size_t n, char step[JAIL_STEP_LEN]) attr_warn_unused;
