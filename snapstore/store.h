/* SPDX-License-Identifier: MIT */
/* The snapshot store, a directory:
 *
 *      <store>/snapshots/<id>/   manifest, memory.img, vmstate, disk-<n>.img, durable, workingset
 *      <store>/tmp/              transactions under way and directories being removed
 *
 * A published snapshot never changes, but for the marker `durable`, which appears when it has been synced, and
 * for `workingset`, a hint that may appear and be replaced (atomically) at any time.
 * Functions take ids, never paths; an id that is malformed is -EINVAL, one that is not there -ENOENT.
 * A store may be used by several threads and processes at once. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/cleanup.h"
#include "common/ids.h"
#include "snapstore/manifest.h"
#include "snapstore/workingset.h"

#define SNAP_FILE_MANIFEST "manifest"
#define SNAP_FILE_MEMORY "memory.img"
#define SNAP_FILE_VMSTATE "vmstate"
#define SNAP_FILE_DURABLE "durable"
#define SNAP_FILE_WORKINGSET "workingset"
#define SNAP_STORE_MAX_SNAPSHOTS 65536u

struct snap_store;

/** Opens the store at @path; missing folders are made (0700). */
int snap_store_open(const char *path, struct snap_store **ret) attr_warn_unused;
void snap_store_close(struct snap_store *s); /* NULL is fine */
DEFINE_CLEANUP(struct snap_store, snap_store_close)
#define cleanup_snap_store attr_cleanup(snap_store_close_p)

/** Removes what crashed transactions and removals left in tmp/; those that live (their directory is locked
 *  by a process) are left alone. Both may be NULL: how many were removed, and left. */
int snap_store_sweep(struct snap_store *s, unsigned *ret_removed, unsigned *ret_left) attr_warn_unused;

/* ---- reading ---- */

struct snap_list {
        size_t n;
        id_str *ids; /* sorted by id */
};
void snap_list_clear(struct snap_list *l);
#define cleanup_snap_list attr_cleanup(snap_list_clear)

/** The published snapshots. -EMFILE beyond SNAP_STORE_MAX_SNAPSHOTS. */
int snap_store_list(struct snap_store *s, struct snap_list *ret) attr_warn_unused;

/** *ret_durable may be NULL. -EBADMSG: the manifest is corrupt, or is another snapshot's. */
int snap_store_load(struct snap_store *s, const char *id, struct snap_manifest *ret, bool *ret_durable) attr_warn_unused;

/** "<store>/snapshots/<id>", with "/<file>" behind it if @file is not NULL. -ENAMETOOLONG. Need not exist. */
int snap_store_path(struct snap_store *s, const char *id, const char *file, char *buf, size_t size) attr_warn_unused;

/** Opens one of the snapshot's files read-only (O_NOFOLLOW, regular files only). */
int snap_store_open_file(struct snap_store *s, const char *id, const char *file, int *ret_fd) attr_warn_unused;

/** Opens memory.img and checks that it is the image the manifest names. @m may be NULL (then it is loaded). */
int snap_store_open_image(struct snap_store *s, const char *id, const struct snap_manifest *m,
                          struct snap_image **ret) attr_warn_unused;

/** Writes the device state, decompressed and verified first, to @out_fd (a file, pipe or memfd, at its
 *  position). -ENODATA: the snapshot has none; -EBADMSG: corrupt. */
int snap_store_read_vmstate(struct snap_store *s, const char *id, int out_fd) attr_warn_unused;

/** The recorded working set, of the snapshot that @m describes. -ENODATA: none was recorded; -EBADMSG, -ESTALE,
 *  -EPROTONOSUPPORT as snap_workingset_decode: there is one, and it is of no use. */
int snap_store_read_workingset(struct snap_store *s, const struct snap_manifest *m, struct snap_workingset *ret) attr_warn_unused;

/** Bytes that would be free if the snapshot were removed: extents no other file shares. Where the file
 *  system cannot tell, all of its bytes. */
int snap_store_unique_bytes(struct snap_store *s, const char *id, uint64_t *ret) attr_warn_unused;

/** Checks everything that has a checksum or a recorded size. As snap_image_verify. */
int snap_store_verify(struct snap_store *s, const char *id, snap_verify_fn *on_error, void *arg,
                      uint64_t *ret_frames) attr_warn_unused;

/* ---- changing ---- */

/** Crash safe: after a crash the snapshot is there as before, or gone. */
int snap_store_remove(struct snap_store *s, const char *id) attr_warn_unused;

/** Syncs a snapshot that was published without it, then marks it durable. Already durable is no error. */
int snap_store_make_durable(struct snap_store *s, const char *id) attr_warn_unused;

/** After a crash of the host: every snapshot without the marker `durable` is verified, made durable if it is sound and
 *  removed if it is torn. What can be neither (the disk cannot be read, or is full; something that is no snapshot) is left
 *  as it is, and does not keep the others from it: *ret_left tells how many. Both may be NULL. */
int snap_store_recover(struct snap_store *s, unsigned *ret_removed, unsigned *ret_left) attr_warn_unused;

/** Merges a new recording, @n_runs runs in the order of need, into the snapshot's working set (snap_workingset_merge)
 *  and replaces the file, or leaves it alone if little was learned (SNAP_WORKINGSET_NEWS_PART): *ret_new (may be NULL) is
 *  the number of pages that were added to it. A file that is of no use is replaced. The new content is on disk before it has the name: a reader sees
 *  the old one or the new one, also after a crash. Two at the same time: one of them is lost.
 *  -ENOENT: the snapshot is gone; -EINVAL: a page outside its RAM; -ENOSPC, -EROFS … */
int snap_store_learn_workingset(struct snap_store *s, const char *id, const struct snap_run *run, size_t n_runs,
                                uint64_t *ret_new) attr_warn_unused;

struct snap_txn;

/** Begins snapshot @id: a directory in tmp/, locked for this process. -EEXIST: @id is published. */
int snap_txn_begin(struct snap_store *s, const char *id, struct snap_txn **ret) attr_warn_unused;

/** Creates memory.img, open for reading and writing, the caller's. For snap_writer_new(). */
int snap_txn_create_image(struct snap_txn *t, int *ret_fd) attr_warn_unused;

/** Reflinks (or copies: *ret_reflinked, may be NULL) the disk at @src_path as the next disk: @n counts
 *  from 0. Nobody may write to the source meanwhile. */
int snap_txn_add_disk(struct snap_txn *t, unsigned n, const char *src_path, bool *ret_reflinked) attr_warn_unused;

/** Opens disk @n of those added, to be read by others meanwhile: also when it has got its place. -EINVAL: there is none. */
int snap_txn_open_disk(struct snap_txn *t, unsigned n, int *ret_fd) attr_warn_unused;

/** Stores the device state, compressed. -EFBIG beyond SNAP_MAX_VMSTATE, -EINVAL if empty or set before. */
int snap_txn_set_vmstate(struct snap_txn *t, const void *raw, size_t len) attr_warn_unused;
/** The same from a file or memfd, from its beginning to its end; its position does not matter. */
int snap_txn_set_vmstate_fd(struct snap_txn *t, int fd) attr_warn_unused;

/** Gives the snapshot a working set before it has ever been restored: that of snapshot @from (if it is there and of use),
 *  from which the guest came, and behind it the @n_runs runs that were recorded since. For after snap_writer_finish().
 *  It counts as no recording of this snapshot. 0 too when there is nothing to give; on failure the snapshot has none. */
int snap_txn_inherit_workingset(struct snap_txn *t, const char *from, const struct snap_run *run, size_t n_runs) attr_warn_unused;

/** Hands the files written so far to the disk without waiting, so that a publish with @sync waits less.
 *  For after snap_writer_finish(), when something else is still to be done. Errors show at publish. */
void snap_txn_start_writeback(struct snap_txn *t);

/** Fills the second half of @m, writes the manifest and makes the snapshot visible under its id. With @sync
 *  it survives a crash of the host from then on, and is marked so. -EEXIST: @id has been published
 *  meanwhile; -EBADMSG: no complete image; -EINVAL: @m contradicts the image. On failure nothing is
 *  visible. The transaction is over in any case but must still be freed. */
int snap_txn_publish(struct snap_txn *t, struct snap_manifest *m, bool sync) attr_warn_unused;

/** Frees the transaction; what was not published is removed. NULL is fine. */
void snap_txn_free(struct snap_txn *t);
DEFINE_CLEANUP(struct snap_txn, snap_txn_free)
#define cleanup_snap_txn attr_cleanup(snap_txn_free_p)
