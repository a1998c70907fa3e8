/* SPDX-License-Identifier: MIT */
/* Sharing across generations: which pages of an image are found in an ancestor's memory. lineage.c tells how. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"

struct pager_image;
struct pager_lineage;

/** Whose memory holds @page of @img, borrowed: @img itself, or an ancestor that lives as long as @img. [*ret_first, +*ret_n) is
 *  the run around @page of which that is so; either may be NULL. @page is one of the image's. Any thread. */
struct pager_image *pager_image_owner(const struct pager_image *img, uint64_t page, uint64_t *ret_first, uint64_t *ret_n);

/** The same in one piece. */
struct pager_span {
        struct pager_image *img;
        uint64_t first, n;
};
static inline struct pager_span pager_image_span(const struct pager_image *img, uint64_t page) {
        struct pager_span span;

        span.img = pager_image_owner(img, page, &span.first, &span.n);
        return span;
}
/** What of [*@first, +*@n) lies in @span: *@n is 0 if nothing does. */
static inline void pager_span_clip(const struct pager_span *span, uint64_t *first, uint64_t *n) {
        uint64_t lo = MAX_OF(*first, span->first), hi = MIN_OF(*first + *n, span->first + span->n);

        *n = lo < hi ? hi - lo : 0;
        *first = lo;
}

/** Pages of @img whose bit in @own_bits (a bit a page, ascending) is clear have the same content in @base, and are taken from
 *  there, or from where @base has them. Some of them may stay @img's own: short runs, and what would be too many extents. Holds references
 *  on the images that own pages then. Once, and before anybody uses @img. -EINVAL: their sizes differ; -EALREADY; -ENOMEM. */
int pager_image_set_base(struct pager_image *img, struct pager_image *base, const uint64_t *own_bits) attr_warn_unused;

/** The same from a description: @owner[0] is @img, the others are ancestors; ascending extents that cover all pages, each
 *  with the index of its owner. Holds references on those. -EINVAL: it is not that. */
struct pager_extent {
        uint64_t first;
        uint32_t owner;
};
int pager_image_set_extents(struct pager_image *img, struct pager_image *const *owner, size_t n_owners,
                            const struct pager_extent *extent, size_t n) attr_warn_unused;

/** Did the file of @img begin as a copy of @base's? 1, 0, or -errno. */
int pager_image_descends(const struct pager_image *img, const struct pager_image *base) attr_warn_unused;
/** Sets in @bits (a bit a page, of whole regions, all clear) those pages of @img that are not the same in @base, of which it
 *  descends: more than that where there is much to compare. Reads index nodes. The errors of snap_image_diff. */
int pager_image_diff(const struct pager_image *img, const struct pager_image *base, uint64_t *bits) attr_warn_unused;

/** How many images own pages of @img or might, itself included: at least 1. */
size_t pager_image_n_owners(const struct pager_image *img);
/** The @i-th of them; 0 is @img. */
struct pager_image *pager_image_owner_at(const struct pager_image *img, size_t i);
/** How many extents it has (at least 1), and the @i-th of them. */
size_t pager_image_n_extents(const struct pager_image *img);
struct pager_extent pager_image_extent(const struct pager_image *img, size_t i);
/** Is some page of @img taken from @other, or are they the same? */
bool pager_image_uses(const struct pager_image *img, const struct pager_image *other);

/** Lets go of the ancestors. NULL is fine. */
void pager_lineage_free(struct pager_lineage *l);
