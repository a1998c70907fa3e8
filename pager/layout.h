/* SPDX-License-Identifier: MIT */
/* Where guest memory lies in a VMM's address space, as its handshake told and as it moved it since. Pure: no
 * descriptors, no threads. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "pager/limits.h"

/** How the VMM's faults are answered. */
enum pager_mode {
        PAGER_MODE_MEMFD, /* its memory is a private mapping of the image's memfd */
        PAGER_MODE_COPY,  /* its memory is its own, anonymous: each page is copied into it */
};
const char *pager_mode_name(enum pager_mode mode);

/** The offset of a region that holds no guest memory any more: what was there moved away, and it reads zero. */
#define PAGER_READS_ZERO UINT64_MAX

/** A part of the VMM's address space. All in bytes, all multiples of the layout's page size. */
struct pager_region {
        uint64_t base; /* address in the VMM */
        uint64_t size;
        uint64_t offset; /* in guest RAM, or PAGER_READS_ZERO */
};

struct pager_layout {
        enum pager_mode mode;
        uint64_t page_size; /* of the VMM's memory: PAGER_PAGE, in copy mode also PAGER_HUGE_PAGE */
        size_t n, cap;
        struct pager_region region[]; /* ascending by base, without overlaps */
};

/** An empty layout with room for @cap regions; to be freed with free(). NULL: out of memory. */
struct pager_layout *pager_layout_new(size_t cap);

/** To be freed with free(). NULL: out of memory. */
struct pager_layout *pager_layout_copy(const struct pager_layout *l);

/** Above every user address of 64-bit Linux, and far from overflow. */
#define PAGER_MAX_ADDRESS (1ull << 57)

/** What is wrong with @g as a part of guest RAM of @ram_bytes in pages of @page_size, or NULL: a sentence's end. */
const char *pager_region_check(const struct pager_region *g, uint64_t page_size, uint64_t ram_bytes);

/** Sorts the regions and checks them against each other. 0, or -EBADMSG with a sentence in @why: two overlap, by
 *  address or by offset. */
int pager_layout_finish(struct pager_layout *l, char *why, size_t why_size) attr_warn_unused;

/** The region that holds @addr, or NULL. */
const struct pager_region *pager_layout_find(const struct pager_layout *l, uint64_t addr);

/** The region that holds the guest page at @offset in RAM, or NULL. */
const struct pager_region *pager_layout_find_offset(const struct pager_layout *l, uint64_t offset);

/** mremap moved [@from, @from + @len) to @to: guest memory is found at its new address from now on, the old one
 *  reads zero, and what was known of the new one is forgotten. A part of the old range that the layout does not
 *  know stays unknown at the new address. *l may be replaced by another allocation.
 *  -EINVAL: no such move can be (overlaps, misaligned, beyond the address space); -E2BIG: more than
 *  PAGER_MAX_PIECES regions; -ENOMEM. Then *l is as it was. */
int pager_layout_move(struct pager_layout **l, uint64_t from, uint64_t to, uint64_t len) attr_warn_unused;
