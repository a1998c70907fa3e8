/* SPDX-License-Identifier: MIT */
/* The reflink store: <state-dir>/store must lie on a file system that can share extents (XFS, Btrfs), or
 * every standby copies its parent's image.
 *
 * Where the state directory's own file system can, store/ is a plain directory. Where it cannot,
 * `forkctl setup` makes <state-dir>/store.img, a sparse file that holds an XFS, and forkd mounts it on
 * store/ through a loop device. forkd owns the mount; the loop device goes with it (autoclear). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define STORE_IMAGE "store.img" /* in the state directory */
#define STORE_DIR "store"
#define STORE_DEFAULT_BYTES (8ull << 30)
#define STORE_MIN_BYTES (512ull << 20) /* mkfs.xfs refuses below 300 MiB; a store that small holds no guest */
#define STORE_MAX_BYTES (64ull << 40)
#define STORE_MAX_PATH 512

enum store_kind {
        STORE_NONE,    /* nothing prepared yet */
        STORE_NATIVE,  /* the state directory's file system shares extents by itself */
        STORE_LOOP,    /* store.img */
        STORE_COPYING, /* store/ exists on a file system without reflink, and there is no store.img */
};

struct store_info {
        enum store_kind kind;
        bool reflink;              /* of store/ as it is now, or will be when mounted */
        bool attached;             /* STORE_LOOP: mounted at this moment; STORE_NATIVE: true */
        uint64_t size_bytes;       /* STORE_LOOP: of the image; else 0 */
        uint64_t free_bytes;       /* what can still be written to it */
        char path[STORE_MAX_PATH]; /* <state-dir>/store */
};

/** Looks; changes nothing. */
int store_inspect(const char *state_dir, struct store_info *ret, struct err *e) attr_warn_unused;

/** Makes what store_attach needs, once: the directory, or an image of @size_bytes (only if there is none
 *  yet; an existing one keeps its size). Free space is checked first. *ret_created tells whether something
 *  was made. Preparing, attaching and detaching take turns by a lock file in the state directory.
 *  -ENOTEMPTY when store/ has files already and its file system has no reflink. */
int store_prepare(const char *state_dir, uint64_t size_bytes, bool *ret_created, struct err *e) attr_warn_unused;

/** If <state-dir>/store.img exists, mounts it on <state-dir>/store (made if missing); without an image the
 *  directory is made if missing. Nothing to do, or done already: 0. Needs root for a mount. Refuses a
 *  directory that already has files in it (-ENOTEMPTY; empty subdirectories do not count, and are hidden by
 *  the mount: make them again, and reopen descriptors of the directory), and a mount point that carries
 *  something else (-EBUSY). Blocking: 20-50 ms, longer when XFS replays its log after a crash. */
int store_attach(const char *state_dir, struct err *e) attr_warn_unused;

/** What store_prepare would have to find free on the state directory's file system: the size of the image
 *  that it would make, or 0 if it would make none. */
int store_needed_bytes(const char *state_dir, uint64_t size_bytes, uint64_t *ret, struct err *e) attr_warn_unused;

/** Unmounts what store_attach mounted; 0 too when it was not mounted. -EBUSY while files in it are open. */
int store_detach(const char *state_dir, struct err *e) attr_warn_unused;

/** 1 when <state-dir>/store is a mount of <state-dir>/store.img, 0 when not, -errno. */
int store_is_attached(const char *state_dir) attr_warn_unused;
