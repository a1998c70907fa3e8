/* SPDX-License-Identifier: MIT */
/* The index of a memory image in memory. Private to snapstore.
 *
 * The upper levels are kept as flat arrays of references, one array per level: level 0 has one reference
 * per region (to its leaf), level k one per 512 of level k - 1, the top level exactly one (the root). A
 * reference of 0 means that all below it is zero pages. Leaves are read one by one. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "snapstore/format.h"

/** Where records are read from. */
struct snap_source {
        int fd;
        uint64_t salt;
        uint64_t end; /* offset of the footer: records lie before it */
};

struct snap_index {
        uint64_t n_pages, n_regions;
        unsigned n_levels;
        uint64_t n[SNAP_MAX_LEVELS];
        uint64_t *ref[SNAP_MAX_LEVELS];
};

/** An index of zero pages only. @ram_bytes was checked (snap_ram_ok). */
int snap_index_init(struct snap_index *ix, uint64_t ram_bytes) attr_warn_unused;
void snap_index_clear(struct snap_index *ix);
bool snap_ram_ok(uint64_t ram_bytes);

/** Reads and verifies all upper nodes below @root; every reference left in @ix is in bounds. -EBADMSG … */
int snap_index_load(struct snap_index *ix, const struct snap_source *src, uint64_t root) attr_warn_unused;

static inline uint64_t snap_index_root(const struct snap_index *ix) {
        return ix->ref[ix->n_levels - 1][0];
}

/** Encodes node @i of @level (≥ 1) for offset @off into @buf (SNAP_NODE_MAX). Returns its length, a multiple
 *  of 8, or 0 if there is nothing below it. */
size_t snap_index_encode(const struct snap_index *ix, unsigned level, uint64_t i, uint64_t salt, uint64_t off, void *buf);

#define SNAP_ENTRY_ZERO 0xffffu

/** The pages of one region. */
struct snap_leaf {
        uint16_t n_frames, n_pages;
        uint16_t entry[SNAP_REGION_PAGES]; /* SNAP_ENTRY_ZERO, or frame number << 4 | slot */
        uint64_t frame[];                  /* references, in bounds; each is named by at least one entry */
};

static inline struct snap_leaf *snap_leaf_alloc(unsigned n_frames) {
        return malloc(sizeof(struct snap_leaf) + n_frames * sizeof(uint64_t));
}

/** Reads and verifies the leaf of @region at @ref. -EBADMSG, -EIO, -ENOMEM. */
int snap_leaf_read(const struct snap_source *src, uint64_t ref, uint64_t region, uint64_t n_pages_total,
                   struct snap_leaf **ret) attr_warn_unused;

/** Encodes @leaf (n_pages > 0) for offset @off into @buf (SNAP_NODE_MAX); returns the length. */
size_t snap_leaf_encode(const struct snap_leaf *leaf, uint64_t region, uint64_t salt, uint64_t off, void *buf);
