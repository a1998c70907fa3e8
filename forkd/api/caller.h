/* SPDX-License-Identifier: MIT */
/* Who asks: the credentials of a client of the control socket, as they were when it connected.
 *
 * Root may do everything. Others, members of the configured group, may do what the table of methods gives them, and what
 * forkd does with a path or a descriptor of theirs is done with their rights: a worker becomes them for that moment. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "common/cleanup.h"
#include "common/mp.h"

#define CALLER_MAX_GROUPS 65536 /* the kernel's NGROUPS_MAX */

struct caller {
        unsigned refs;
        uid_t uid;
        gid_t gid;
        size_t n_groups;
        gid_t groups[]; /* supplementary */
};

/** The peer of a connected unix socket (SO_PEERCRED, SO_PEERGROUPS). One reference belongs to the caller. */
int caller_of_socket(int fd, struct caller **ret) attr_warn_unused;
struct caller *caller_ref(struct caller *c);
/** NULL is fine. */
void caller_unref(struct caller *c);
static inline void caller_unrefp(struct caller **c) {
        caller_unref(*c);
}
#define cleanup_caller attr_cleanup(caller_unrefp)

/** Root, or the user that forkd itself is. */
bool caller_is_root(const struct caller *c);
bool caller_in_group(const struct caller *c, gid_t gid);

/** Adds the key "caller" to a map, for a worker; nil for who is root. */
void caller_encode(const struct caller *c, struct mp_buf *b);
/** Reads it. NULL in *ret: root. -EINVAL when it is missing or no such thing: an omission must not make anybody root. */
int caller_decode(const msgpack_object *params, struct caller **ret) attr_warn_unused;

/** Makes this process act as @c (effective user and groups; no effective capability is left) until caller_revert; NULL
 *  changes nothing. Real and saved user stay root's, so that the user cannot signal or trace the process. On failure nothing
 *  has changed. Supplementary groups are none afterwards; root needs none. Only for single-threaded processes. */
int caller_become(const struct caller *c) attr_warn_unused;
/** Back to root. A process that cannot go back is of no use any more, and ends. */
void caller_revert(const struct caller *c);
