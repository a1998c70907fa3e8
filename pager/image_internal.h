/* SPDX-License-Identifier: MIT */
/* Inside an image: shared by image.c (its life) and frames.c (how pages get into its memory). */
#pragma once

#include <pthread.h>

#include "pager/image.h"
#include "pager/lineage.h"
#include "pager/reclaim.h"

#define PAGER_CLAIM_SHARDS 16u
#define PAGER_MAX_CLAIMS (PAGER_MAX_WORKERS + PAGER_MAX_FILLERS + PAGER_MAX_RECLAIMERS)

/** A claim on one frame, or on a whole region: whoever has it is the only one that changes which of its pages
 *  are in the memfd. */
struct pager_claim {
        uint64_t region; /* of SNAP_REGION_PAGES pages; a frame lies in one */
        uint64_t frame;  /* its offset in the file, or PAGER_WHOLE_REGION */
};
#define PAGER_WHOLE_REGION UINT64_MAX

/** Regions are spread over the shards, so that faults in different places do not meet at one lock. */
struct pager_claim_shard {
        pthread_mutex_t lock;
        pthread_cond_t released;
        struct pager_claim claim[PAGER_MAX_CLAIMS]; /* each thread has one at the most: there is room */
        unsigned n, waiting;
} __attribute__((aligned(64)));

struct pager_image {
        _Atomic unsigned refs;
        struct pager_image_key key;
        _Atomic(struct snap_image *) snap; /* NULL: nascent, and not published yet */
        struct snap_image_info info;       /* the control thread's */
        struct pager_nascent *nascent;     /* NULL: it came from a file */
        uint64_t n_pages;
        struct pager_lineage *lineage; /* which pages ancestors own; NULL: none */

        int memfd, readonly_fd, uffd;
        uint64_t memory_id;
        uint8_t *map;              /* PROT_NONE: an address for UFFDIO_COPY, not for us */
        _Atomic uint64_t *present; /* a bit a page */
        struct pager_resident resident;

        _Atomic bool bad, cancel_fill;
        _Atomic bool tainted;  /* bad, because its memory holds a page that is not ours: who maps it may have read it */
        _Atomic unsigned pins; /* while there are, nothing is punched out */
        _Atomic bool quiet;    /* handed over, in part or as a whole: left alone but for demand */
        _Atomic bool shared;   /* another pager puts pages into its memory, too: what is not ours is compared, not blamed */
        _Atomic uint64_t decodes, compressed_bytes, pages[PAGER_N_CAUSES];
        struct pager_fill_job job, survey;

        struct pager_image *next_dead; /* where it waits for its end */

        struct pager_claim_shard shard[PAGER_CLAIM_SHARDS];
};

/** An image without a file, and without pages. */
int pager_image_new_empty(uint64_t ram_bytes, struct pager_reclaim *reclaim, struct pager_image **ret) attr_warn_unused;
/** Its file; NULL while it is nascent. */
static inline struct snap_image *pager_image_snap(const struct pager_image *img) {
        return atomic_load_explicit(&img->snap, memory_order_acquire);
}

/** The end of an image that nobody refers to. */
void pager_image_destroy(struct pager_image *img);

/* ---- frames.c, for those that look at what is in the memory ---- */

/** Compares some of the pages in a memory that we have not filled with the image @snap: -EUCLEAN, or what keeps us from it. */
int pager_image_sample(struct pager_image *img, struct snap_image *snap) attr_warn_unused;
bool pager_image_is_quiet(const struct pager_image *img);
/** Its memory holds, or held, a page that is not ours: the audit ends whoever maps it. */
void pager_image_taint(struct pager_image *img);
/** Does the memory have @data in @page? -ENODATA: it has no page there any more; -EUCLEAN: it has something else, and that was
 *  not just another pager who took the page away while we read it; -EIO. */
int pager_image_holds(const struct pager_image *img, uint64_t page, const uint8_t *data) attr_warn_unused;
/** Under a claim: puts @n pages into the memory, of which @page was asked for. */
int pager_image_insert(struct pager_image *img, uint64_t first, uint64_t n, const uint8_t *data, enum pager_cause cause,
                       uint64_t page) attr_warn_unused;
/** Under a claim: @n pages from @first on are in the memory, or (of one word: @gone) are not any more. */
void pager_image_inserted(struct pager_image *img, uint64_t first, uint64_t n, uint64_t demanded);
uint64_t pager_image_removed(struct pager_image *img, uint64_t word, uint64_t gone);
/** Tells that the thread of @s is in a read of an image's file, or waits for one that may be, or is back. */
static inline void pager_scratch_reading(struct pager_scratch *s, bool reading) {
        atomic_store_explicit(&s->reading, reading, memory_order_relaxed);
}
