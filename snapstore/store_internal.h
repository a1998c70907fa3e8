/* SPDX-License-Identifier: MIT */
/* What the parts of the store share. Private to snapstore. */
#pragma once

#include "snapstore/store.h"

#define SNAP_STORE_MAX_PATH 3072

struct snap_store {
        char path[SNAP_STORE_MAX_PATH];
        int dir_fd, snapshots_fd, tmp_fd;
};

/* A name in tmp/: "<kind>-<id>-<random>" */
typedef char snap_tmp_name[64];
void snap_tmp_name_new(const char *kind, const char *id, snap_tmp_name ret);

/** Creates directory @name in tmp/ (0700) and locks it, so that sweeps leave it alone while *ret_fd is open.
 *  Locks go with the descriptor: a crash of the process frees them. */
int snap_tmp_mkdir(struct snap_store *s, const char *name, int *ret_fd) attr_warn_unused;

/** Opens the directory of snapshot @id. -EINVAL, -ENOENT. */
int snap_store_open_dir(struct snap_store *s, const char *id, int *ret_fd) attr_warn_unused;

/* ---- learn.c ---- */

/** What a snapshot of @ram_pages pages, whose guest came from snapshot @from, begins with: see
 *  snap_txn_inherit_workingset(). May be empty. */
int snap_workingset_succeed(struct snap_store *s, const char *from, const struct snap_run *run, size_t n_runs, uint64_t ram_pages,
                            struct snap_workingset *ret) attr_warn_unused;

/* ---- sync.c ---- */

/** Starts writing out the regular files in @dir_fd, without waiting; best effort. */
void snap_sync_start(int dir_fd);

/** Makes the regular files in @dir_fd safe to be marked durable: see sync.c for what is left for
 *  snap_sync_finish() to do. */
int snap_sync_files(int dir_fd) attr_warn_unused;

/** Creates the marker in @dir_fd. Only after snap_sync_files(). */
int snap_sync_mark(int dir_fd) attr_warn_unused;

/** When it returns, everything done in the directories @last_fd and @other_fd is on disk, with all that the
 *  marker vouches for. The most recent change must have been one in @last_fd. */
int snap_sync_finish(int last_fd, int other_fd) attr_warn_unused;
