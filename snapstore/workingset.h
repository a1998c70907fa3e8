/* SPDX-License-Identifier: MIT */
/* The order in which a guest's pages were first needed after restores of a snapshot: the optional file `workingset`
 * in its directory (docs/snapshot-format.md). Whoever restores the snapshot next fetches these pages first, in this
 * order. It is a hint: with a wrong one, or none, the guest's memory is the same, only later. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "snapstore/image.h"

#define SNAP_WORKINGSET_VERSION 1u
#define SNAP_WORKINGSET_MAX_RUNS 65536u
#define SNAP_WORKINGSET_MIN_BYTES (16ull << 20) /* a working set may have this much of any RAM, and of large RAM */
#define SNAP_WORKINGSET_RAM_PART 4u             /* this part: see snap_workingset_max_pages() */
#define SNAP_WORKINGSET_FORGET_PART 16u         /* a child does not inherit this part of it, of what was needed last */
#define SNAP_WORKINGSET_NEWS_PART 64u           /* news are worth a new file when they add at least this part to it */

/* @n (at least 1) pages from page @first on. */
struct snap_run {
        uint64_t first, n;
};

struct snap_workingset {
        uint32_t restores; /* recordings that are merged in it */
        size_t n_runs;
        uint64_t n_pages;     /* in all runs */
        struct snap_run *run; /* malloc'ed; in the order of need; no page twice; NULL if n_runs is 0 */
};

void snap_workingset_clear(struct snap_workingset *w);
#define cleanup_snap_workingset attr_cleanup(snap_workingset_clear)

/** Encodes @w for the image @uuid of @ram_pages pages; *ret_data is malloc'ed. -EINVAL: a page outside the RAM or named
 *  twice, too many runs, or n_pages is not their sum. */
int snap_workingset_encode(const struct snap_workingset *w, const uint8_t uuid[SNAP_UUID_LEN], uint64_t ram_pages,
                           void **ret_data, size_t *ret_len) attr_warn_unused;

/** -EBADMSG: torn, corrupt or malformed; -EPROTONOSUPPORT: another version; -ESTALE: sound, but of another image than
 *  @uuid with @ram_pages pages. What it returns is whole: no page twice, all inside the RAM. */
int snap_workingset_decode(const void *data, size_t len, const uint8_t uuid[SNAP_UUID_LEN], uint64_t ram_pages,
                           struct snap_workingset *ret) attr_warn_unused;

/** The same from a file, whose position does not matter; @fd stays the caller's. Nothing but a regular file is read
 *  (-EBADMSG). Errors as decode, and -EIO, -ENOMEM. */
int snap_workingset_read(int fd, const uint8_t uuid[SNAP_UUID_LEN], uint64_t ram_pages,
                         struct snap_workingset *ret) attr_warn_unused;

/** How many of @ram_pages pages a working set has room for: a part of the RAM, but never less than a small one. */
uint64_t snap_workingset_max_pages(uint64_t ram_pages);

/** What a new recording, @run[0 … @n_runs - 1] in the order of need, adds to @old (NULL: nothing recorded before). First
 *  @old, as it is; then the recording's pages that @old lacks. Pages named twice count once, neighbours are joined, the
 *  end is cut at @max_pages pages or SNAP_WORKINGSET_MAX_RUNS runs. @ret is the caller's to clear; *ret_new (may be NULL)
 *  is the number of pages it has beyond @old's. -EINVAL: a page outside the RAM, or more pages than RAM. */
int snap_workingset_merge(const struct snap_workingset *old, const struct snap_run *run, size_t n_runs, uint64_t ram_pages,
                          uint64_t max_pages, struct snap_workingset *ret, uint64_t *ret_new) attr_warn_unused;
