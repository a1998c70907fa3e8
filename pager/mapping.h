/* SPDX-License-Identifier: MIT */
/* Of which images' memories a session's guest memory is made, told from one pager to another: docs/protocol.md, section 2.
 * Control thread. */
#pragma once

#include "common/err.h"
#include "common/mp.h"
#include "pager/limits.h"
#include "pager/lineage.h"

struct pager;
struct pager_image;
struct pager_session;

#define PAGER_MAX_MAPPED 128u     /* images of one session */
#define PAGER_MAX_REMAPPED 16384u /* runs that it maps from others than its image tells */

/** As it comes over the wire, checked as far as that can be without the images. */
struct pager_mapping {
        size_t n_images, n_extents, n_runs;
        uint64_t image[PAGER_MAX_MAPPED];              /* by pager_image_memory_id; the session's own image first */
        struct pager_extent extent[PAGER_MAX_EXTENTS]; /* of that image: the first n_owners images own its pages */
        size_t n_owners;
        struct pager_mapped_run {
                uint64_t first, n, image;
        } run[PAGER_MAX_REMAPPED];
        uint64_t since; /* which image the session's next live fork is based on; 0: its own */
};

/** Adds the keys images, extents, view and since. */
#define PAGER_MAPPING_KEYS 4u
void pager_mapping_put(struct mp_buf *b, const struct pager_session *s);
/** Reads them; without `images` there is but the session's own image. The caller frees *ret. */
int pager_mapping_get(const msgpack_object *params, uint64_t n_pages, struct pager_mapping **ret, struct err *e) attr_warn_unused;
/** Gives it to a session that nobody serves yet. All of its images must be open. */
int pager_mapping_apply(struct pager *p, struct pager_session *s, const struct pager_mapping *m, struct err *e) attr_warn_unused;

/** Calls @fn for each image that @s maps, or may, until it returns true. Returns what the last call has. */
bool pager_mapping_any(const struct pager_session *s, bool (*fn)(struct pager_image *img, void *arg), void *arg);
/** Does it map pages of @img? */
bool pager_session_maps(const struct pager_session *s, const struct pager_image *img);

/** After pager_session_set_view: the images of its view are in use, and those of the one before are not any more. */
void pager_session_pin_view(struct pager *p, struct pager_session *s);
/** It ends. */
void pager_session_unpin_view(struct pager_session *s);
