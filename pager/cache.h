/* SPDX-License-Identifier: MIT */
/* The open images, by file. An image that no session uses any more is kept for a while: the next fork of the
 * same snapshot finds its pages decoded. Control thread only. */
#pragma once

#include <event2/event.h>

#include "common/err.h"
#include "common/ids.h"
#include "pager/image.h"

struct pager_cache;

struct pager_cached {
        struct pager_cached *next;
        struct pager_image *image;
        struct pager_cache *cache;
        unsigned n_sessions;
        unsigned n_users;       /* its sessions, and those of images with pages in its memory */
        uint64_t idle_since_ns; /* valid while n_users is 0 */
        struct event *expiry;
        bool expired;                                        /* it goes when no image refers to it any more */
        id_str label;                                        /* the snapshot's id; empty: not told */
        struct pager_cached *ancestor[PAGER_MAX_OWNERS - 1]; /* whose memories have pages of it */
        unsigned n_ancestors, n_descendants;                 /* of those that are open */
        struct pager_ahead *ahead;                           /* its working set, NULL: none was given */
        struct pager_image_key ahead_key;
        unsigned n_released; /* of its sessions: another pager takes, or has taken, them */
        bool stale;          /* found by no one any more; goes with its last session */
};

/** @reclaim keeps the images' pages within the budget, and outlives the cache; it may be NULL. */
int pager_cache_new(struct event_base *base, struct pager_reclaim *reclaim, unsigned idle_seconds,
                    struct pager_cache **ret) attr_warn_unused;
/** No entry may be in use. */
void pager_cache_free(struct pager_cache *c);

/** What is known of an image's descent: it is @id's, and those of @chain are its ancestors, the nearest first. */
struct pager_descent {
        const char *id; /* empty: not told */
        const id_str *chain;
        size_t n_chain;
};
#define PAGER_MAX_DESCENT 256u

/** The image in @fd (stays the caller's), opened if it is not there; busy while sessions of it are released. What an ancestor
 *  that is open has the same is not had twice. The entry is in use until put. */
int pager_cache_get(struct pager_cache *c, int fd, const struct pager_descent *d, struct pager_cached **ret,
                    struct err *e) attr_warn_unused;
/** The same, but its memory is @memfd (stays the caller's). An image of the same file with another memory is another one. */
int pager_cache_adopt(struct pager_cache *c, int fd, int memfd, struct pager_cached **ret, struct err *e) attr_warn_unused;
/** A nascent image (a reference is taken), which nobody finds before it has a file. In use until put. */
int pager_cache_add(struct pager_cache *c, struct pager_image *img, struct pager_cached **ret, struct err *e) attr_warn_unused;
/** In use once more. */
void pager_cache_use(struct pager_cached *entry);
void pager_cache_put(struct pager_cached *entry);

/** Adopted ahead of the sessions that will use it: it stays for as long as they may take to come. */
void pager_cache_put_later(struct pager_cached *entry);

/** The open image, or NULL: by itself; by its memory (pager_image_memory_id). */
struct pager_cached *pager_cache_of_image(const struct pager_cache *c, const struct pager_image *img);
struct pager_cached *pager_cache_of_memory(const struct pager_cache *c, uint64_t memory_id);

/** After the image of @entry was given a base: the images that own its pages stay as long as it does. */
void pager_cache_link(struct pager_cached *entry);

/** Lets go of the image that was idle for longest. False: none is. */
bool pager_cache_drop_idle(struct pager_cache *c);

struct pager_cached *pager_cache_first(const struct pager_cache *c);
unsigned pager_cache_count(const struct pager_cache *c);
/** What images did that are not open any more, so that totals never go back; what is a state is 0. */
const struct pager_image_stats *pager_cache_past(const struct pager_cache *c);
