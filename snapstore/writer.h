/* SPDX-License-Identifier: MIT */
/* Writing a memory image: a base image, a child of an earlier one, or a compacted copy. */
#pragma once

#include "snapstore/image.h"

struct snap_writer_params {
        uint64_t ram_bytes; /* a multiple of SNAP_PAGE_SIZE, 1 page … SNAP_MAX_RAM; for a child: its parent's */
        enum snap_codec codec;
        int level; /* zstd only: 1 … 19, 0 is the default (1). Others: 0 */
};

struct snap_writer_stats {
        uint8_t uuid[SNAP_UUID_LEN];       /* of the new image */
        uint64_t put_pages;                /* pages handed to put, zero ones included */
        uint64_t zero_pages;               /* of which were zero, plus those of put_zero */
        uint64_t frames;                   /* frames appended */
        uint64_t frame_bytes, index_bytes; /* appended, by kind */
        uint64_t appended_bytes;           /* all, with footer and padding: file_bytes less the parent's */
        uint64_t file_bytes;
        bool reflinked; /* the parent's blocks are shared, not copied (true for a base image) */
};

struct snap_writer;

/** Starts an image in @out_fd (an empty regular file, open for reading and writing; stays the caller's and
 *  must stay open until snap_writer_free). @parent_fd: -1, or a readable descriptor of a complete image whose
 *  blocks the new file shares from now on; it is not needed after the call.
 *  -EINVAL: parameters out of range or another ram_bytes than the parent's; the errors of snap_image_open
 *  for the parent; -ENOSPC … */
int snap_writer_new(int out_fd, int parent_fd, const struct snap_writer_params *p, struct snap_writer **ret) attr_warn_unused;

/** Sets @n pages from @first on to @data (@n × SNAP_PAGE_SIZE). Pages that are all zero are found out and
 *  cost nothing. Ascending order packs best (frames hold pages of one region); every order is correct, and
 *  of several calls for one page the last counts. @data is not kept.
 *  -ERANGE: beyond RAM. After any other error the writer is broken: every later call returns that error. */
int snap_writer_put(struct snap_writer *w, uint64_t first, const void *data, uint64_t n) attr_warn_unused;

/** Sets @n pages from @first on to zero (memory the guest gave back). Cheap for whole regions. */
int snap_writer_put_zero(struct snap_writer *w, uint64_t first, uint64_t n) attr_warn_unused;

/** Writes index and footer; the file is a complete image when it returns (in the page cache: no fsync).
 *  The writer accepts nothing more. */
int snap_writer_finish(struct snap_writer *w, struct snap_writer_stats *ret) attr_warn_unused;
void snap_writer_free(struct snap_writer *w); /* NULL is fine; without finish the file is no image */
DEFINE_CLEANUP(struct snap_writer, snap_writer_free)
#define cleanup_snap_writer attr_cleanup(snap_writer_free_p)

/** Rewrites what is live in @img into @out_fd (empty, as above) as a base image with the same RAM content,
 *  a new uuid, full frames in page order, and no parent. */
int snap_image_compact(struct snap_image *img, int out_fd, enum snap_codec codec, int level,
                       struct snap_writer_stats *ret) attr_warn_unused;

/** Is the page all zero bytes? */
bool snap_page_is_zero(const void *page) attr_warn_unused;
