/* SPDX-License-Identifier: MIT */
/* A memory image: the RAM of one snapshot as compressed frames, and the index that finds them.
 * docs/snapshot-format.md has the layout on disk. Writing is snapstore/writer.h.
 *
 * A page's number is its offset in guest RAM (as QEMU and Firecracker lay it out in their RAM file)
 * divided by SNAP_PAGE_SIZE. A region is SNAP_REGION_PAGES pages, 2 MiB. A page that the image does not
 * store is zero. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"

#define SNAP_PAGE_SIZE 4096u
#define SNAP_FRAME_PAGES 16u /* most pages in a frame */
#define SNAP_FRAME_BYTES (SNAP_FRAME_PAGES * SNAP_PAGE_SIZE)
#define SNAP_REGION_PAGES 512u /* a frame holds pages of one region only */
#define SNAP_UUID_LEN 16u
#define SNAP_MAX_RAM (1ull << 40)         /* forkd's own limit, VMM_MAX_MEM */
#define SNAP_MAX_IMAGE_BYTES (1ull << 44) /* of one memory.img: sixteen times the largest RAM */

enum snap_codec { SNAP_CODEC_NONE = 0, SNAP_CODEC_LZ4 = 1, SNAP_CODEC_ZSTD = 2 };

/** "none", "lz4", "zstd"; NULL for no codec of ours. */
const char *snap_codec_name(unsigned codec);
/** Parses "none", "lz4", "zstd" or "zstd:N" (N 1 … 19; without it 0, the default level). -EINVAL. */
int snap_codec_parse(const char *s, enum snap_codec *ret_codec, int *ret_level) attr_warn_unused;

struct snap_image_info {
        uint8_t uuid[SNAP_UUID_LEN];        /* random, of this image */
        uint8_t parent_uuid[SNAP_UUID_LEN]; /* all zero: a base image */
        uint64_t ram_bytes;
        uint64_t file_bytes;                   /* size of memory.img, shared blocks included */
        uint64_t appended_bytes;               /* of which this image added to its parent's (all, for a base) */
        uint64_t n_stored_pages, n_zero_pages; /* together ram_bytes / SNAP_PAGE_SIZE */
        uint64_t live_frames, live_bytes;      /* frames with at least one page that the index still names */
        uint64_t dead_frames, dead_bytes;      /* frames that only ancestors use, carried along */
        uint64_t index_bytes;                  /* index nodes in use */
        uint32_t depth;                        /* 0 for a base image or after compaction, else parent's + 1 */
        enum snap_codec codec;                 /* what the last writer was asked to use; each frame has its own */
};

/** Dead frames outweigh the live ones: worth snap_image_compact(). */
static inline bool snap_image_info_bloated(const struct snap_image_info *i) {
        return i->dead_bytes > i->live_bytes && i->dead_bytes > (1u << 20);
}

struct snap_image;

/** Opens the image in @fd (any readable descriptor of a regular file; the image keeps a duplicate, the
 *  caller keeps @fd). Header, footer and the upper index are read and verified here, each region's index
 *  node when it is first needed. Everything but open and close may be called from many threads at once.
 *  -EBADMSG: torn, truncated, corrupt or no image; -EPROTONOSUPPORT: another version of the format;
 *  -EINVAL: not a regular file; -ENOMEM; -EIO. */
int snap_image_open(int fd, struct snap_image **ret) attr_warn_unused;
void snap_image_close(struct snap_image *img); /* NULL is fine */
DEFINE_CLEANUP(struct snap_image, snap_image_close)
#define cleanup_snap_image attr_cleanup(snap_image_close_p)

/** Its file's descriptor, which stays the image's. */
int snap_image_fd(const struct snap_image *img);

/** Lives as long as the image. */
const struct snap_image_info *snap_image_info(const struct snap_image *img);

/** Where a page lives. For a zero page only @page and @zero are meaningful. Two pages with equal
 *  @frame_off come with one decode. */
struct snap_loc {
        uint64_t page;      /* the page that was looked up */
        uint64_t frame_off; /* offset in the file; identifies the frame */
        uint32_t frame_len; /* bytes in the file */
        uint8_t slot;       /* which of the frame's pages */
        bool zero;
};

/** -ERANGE: @page is beyond the RAM; -EBADMSG: the region's index node is corrupt; -EIO, -ENOMEM. */
int snap_image_lookup(struct snap_image *img, uint64_t page, struct snap_loc *ret) attr_warn_unused;

/** From @page, how many consecutive pages (1 … @max) are zero: *ret_n, which is 0 if @page is stored.
 *  Stops at the end of RAM. Errors as lookup, for @page itself; a corrupt node further on ends the run. */
int snap_image_zero_run(struct snap_image *img, uint64_t page, uint64_t max, uint64_t *ret_n) attr_warn_unused;

/** The first region at or after @region that stores any page. -ENOENT: none. Reads nothing. */
int snap_image_next_region(struct snap_image *img, uint64_t region, uint64_t *ret) attr_warn_unused;

/** The live frames of @region, in the order in which the region's pages name them first: at most
 *  SNAP_REGION_PAGES. In each loc, page is the lowest that the frame has. For prefetch and walks. */
int snap_image_region_frames(struct snap_image *img, uint64_t region, struct snap_loc ret[SNAP_REGION_PAGES],
                             unsigned *ret_n) attr_warn_unused;

/** Is @img a descendant of @base, whose file began with all that is in @base's? 1, 0, or -errno. */
int snap_image_descends(const struct snap_image *img, const struct snap_image *base) attr_warn_unused;

/** Sets the bits of those pages whose content may differ between @img and @base, of which it descends; the others have the same.
 *  @bits: a bit a page, all clear, of whole regions. Where more than @max_regions regions differ the rest of them count as
 *  different as a whole: to compare one costs a read of both leaves, if they were not read before. The errors of lookup. */
int snap_image_diff(struct snap_image *img, struct snap_image *base, uint64_t max_regions, uint64_t *bits) attr_warn_unused;

/** A decoder is one thread's scratch memory: after snap_decoder_new no decode allocates. */
struct snap_decoder;
int snap_decoder_new(struct snap_decoder **ret) attr_warn_unused;
void snap_decoder_free(struct snap_decoder *d); /* NULL is fine */
DEFINE_CLEANUP(struct snap_decoder, snap_decoder_free)
#define cleanup_snap_decoder attr_cleanup(snap_decoder_free_p)

struct snap_frame {
        unsigned n_pages;                /* 1 … SNAP_FRAME_PAGES */
        uint64_t page[SNAP_FRAME_PAGES]; /* guest page in each slot: all of one region, none twice, ascending */
        uint16_t live_mask;              /* bit i: the image's content of page[i] is this slot. Others are stale:
                                          * never show them to the guest */
        uint32_t comp_len;               /* of the payload */
        enum snap_codec codec;
};

/** Reads, verifies and decompresses the frame at @loc (of lookup or region_frames) into @buf, which has
 *  SNAP_FRAME_BYTES: slot i at @buf + i × SNAP_PAGE_SIZE. Nothing is written to @buf before the checksum
 *  was verified; after an error @buf's content is undefined, *ret untouched. After success the frame holds
 *  @loc's page in @loc's slot, live: a frame that does not is -EBADMSG, like a corrupt one.
 *  -EBADMSG: corrupt; -EINVAL: @loc is a zero page or none of this image; -EIO and other errors of pread. */
int snap_image_decode(struct snap_image *img, struct snap_decoder *d, const struct snap_loc *loc, void *buf,
                      struct snap_frame *ret) attr_warn_unused;

/** Reads one page into @buf (SNAP_PAGE_SIZE), whatever it is. For tools and tests; a pager decodes frames. */
int snap_image_read_page(struct snap_image *img, struct snap_decoder *d, uint64_t page, void *buf) attr_warn_unused;

/** Called with one sentence per problem; a result other than 0 ends the walk. */
typedef int snap_verify_fn(const char *what, void *arg);

/** Reads everything: all index nodes, all live frames, all counts. 0: the image is sound; -EBADMSG: at
 *  least one problem was told to @on_error (may be NULL); others: could not look (-ENOMEM …).
 *  *ret_frames (may be NULL) is how many frames were good, set for 0 and -EBADMSG. */
int snap_image_verify(struct snap_image *img, snap_verify_fn *on_error, void *arg, uint64_t *ret_frames) attr_warn_unused;

/** Writes the RAM to @out_fd, an empty regular file, as a raw sparse file of ram_bytes. -EINVAL: not that. */
int snap_image_dump(struct snap_image *img, int out_fd) attr_warn_unused;
