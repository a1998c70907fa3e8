/* SPDX-License-Identifier: MIT */
/* memory.img on disk: private to snapstore (and its tests). docs/snapshot-format.md explains it.
 *
 * Everything is little-endian and naturally aligned. Records (frames and index nodes) start at multiples
 * of 8 and are named by a reference, which holds their offset and length, so that one read fetches one.
 * Each record begins with the XXH3-64 of the rest of it, padding included, seeded with the image family's
 * salt and the record's own offset: a good record in the wrong place, or of another family, is a bad one. */
#pragma once

#include <stdint.h>
#include <xxhash.h>

#include "snapstore/image.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "memory.img is little-endian");

#define SNAP_IMAGE_VERSION 1u
#define SNAP_HEADER_MAGIC "FORKDMEM"
#define SNAP_FOOTER_MAGIC "FORKDEND"
#define SNAP_FRAME_MAGIC 0x314d5246u /* "FRM1" */
#define SNAP_NODE_MAGIC 0x3145444eu  /* "NDE1" */

/* The file's size is a multiple of this, and so is where a child starts to append: reflinks share whole
 * blocks, and no block is then shared and written. 4096 is the block size of XFS and Btrfs as mkfs makes them. */
#define SNAP_BLOCK 4096u

#define SNAP_NODE_FANOUT 512u
#define SNAP_MAX_LEVELS 4u /* 512^4 pages would be 256 TiB; SNAP_MAX_RAM needs 2^19 regions */
#define SNAP_MAX_LINKS 1000000u

/* At offset 0, the same in all images of a family (a base image and what descends from it by reflink).
 * Magic, version and checksum keep their places in every version of the format. */
struct snap_disk_header {
        uint8_t magic[8];
        uint32_t version;
        uint32_t page_size;
        uint64_t salt; /* random per family */
        uint8_t reserved[32];
        uint64_t checksum; /* of what is before it */
};
_Static_assert(sizeof(struct snap_disk_header) == 64, "layout");

struct snap_disk_frame {
        uint64_t checksum;
        uint32_t magic;
        uint8_t codec;
        uint8_t n_pages;
        uint16_t reserved;
        uint32_t region;
        uint32_t comp_len;
        /* uint16_t page_in_region[n_pages], ascending; then comp_len bytes; then zeros up to a multiple of 8 */
};
_Static_assert(sizeof(struct snap_disk_frame) == 24, "layout");

struct snap_disk_node {
        uint64_t checksum;
        uint32_t magic;
        uint8_t level; /* 0: a leaf, the pages of one region */
        uint8_t reserved0;
        uint16_t n_frames; /* leaf only */
        uint64_t index;    /* which node of its level; of a leaf: the region */
        uint16_t n_entries;
        uint16_t reserved[3];
        uint64_t bitmap[SNAP_NODE_FANOUT / 64]; /* which of the 512 places have an entry */
        /* leaf: uint64_t frame_ref[n_frames]; uint16_t entry[n_entries] = frame number << 4 | slot
         * else: uint64_t node_ref[n_entries]
         * then zeros up to a multiple of 8 */
};
_Static_assert(sizeof(struct snap_disk_node) == 96, "layout");

/* The last bytes of the file. */
struct snap_disk_footer {
        uint8_t magic[8];
        uint32_t version;
        uint32_t depth;
        uint8_t uuid[SNAP_UUID_LEN];
        uint8_t parent_uuid[SNAP_UUID_LEN];
        uint64_t ram_bytes;
        uint64_t salt;
        uint64_t root_ref; /* 0: all pages are zero */
        uint64_t file_bytes;
        uint64_t appended_bytes;
        uint64_t n_stored_pages;
        uint64_t live_frames, live_bytes;
        uint64_t dead_frames, dead_bytes;
        uint64_t index_bytes;
        uint32_t codec;
        uint32_t reserved0;
        uint8_t reserved[104];
        uint64_t checksum; /* seeded with salt and offset, like a record's */
};
_Static_assert(sizeof(struct snap_disk_footer) == 256, "layout");

#define SNAP_FRAME_HEAD_MAX (sizeof(struct snap_disk_frame) + SNAP_FRAME_PAGES * sizeof(uint16_t))
#define SNAP_FRAME_MAX (SNAP_FRAME_HEAD_MAX + SNAP_FRAME_BYTES) /* a multiple of 8 */
#define SNAP_NODE_MAX (sizeof(struct snap_disk_node) + SNAP_NODE_FANOUT * (sizeof(uint64_t) + sizeof(uint16_t)))
_Static_assert(SNAP_FRAME_MAX % 8 == 0 && SNAP_NODE_MAX % 8 == 0, "records are padded to 8");

static inline uint64_t snap_align8(uint64_t n) {
        return (n + 7) & ~7ull;
}

/* A reference: offset / 8 in the upper 48 bits, length / 8 in the lower 16. */
static inline uint64_t snap_ref(uint64_t off, uint32_t len) {
        return (off / 8) << 16 | len / 8;
}
static inline uint64_t snap_ref_off(uint64_t ref) {
        return (ref >> 16) * 8;
}
static inline uint32_t snap_ref_len(uint64_t ref) {
        return (uint32_t) (ref & 0xffff) * 8;
}

/** Is @ref a record of @min … @max bytes between the header and @end (the footer's offset)? */
static inline bool snap_ref_ok(uint64_t ref, uint64_t end, size_t min, size_t max) {
        uint64_t off = snap_ref_off(ref);
        uint32_t len = snap_ref_len(ref);
        return off >= sizeof(struct snap_disk_header) && len >= min && len <= max && off <= end && len <= end - off;
}

/** The checksum of a record of @len bytes at offset @off: over all but its first 8 bytes. */
static inline uint64_t snap_record_sum(const void *rec, size_t len, uint64_t salt, uint64_t off) {
        return XXH3_64bits_withSeed((const uint8_t *) rec + 8, len - 8, salt ^ off);
}
