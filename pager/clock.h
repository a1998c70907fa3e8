/* SPDX-License-Identifier: MIT */
/* Which chunk of an image's decoded pages has been cold for longest: the ages and the hand of a clock. Pure
 * bookkeeping, for one image; pager/reclaim.c owns the hand and punches, clock.c tells why it works.
 *
 * A chunk is PAGER_CHUNK_PAGES aligned pages. It is resident while any of its stored pages is in the memfd. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "pager/limits.h"

struct pager_clock {
        uint64_t n_chunks;
        uint64_t hand; /* the next chunk to look at: whoever turns the hand owns it */
        _Atomic uint16_t *chunk;
        _Atomic uint64_t refaults; /* chunks that were needed again after they had been punched out */
};

/** How a page came into the memfd. */
enum pager_clock_why {
        PAGER_CLOCK_AHEAD,  /* nobody has asked for it yet */
        PAGER_CLOCK_DEMAND, /* a guest waits for it */
};

/** For an image of @n_pages. -ENOMEM. */
int pager_clock_init(struct pager_clock *c, uint64_t n_pages) attr_warn_unused;
void pager_clock_clear(struct pager_clock *c);

/** Pages of @chunk were inserted. Any thread that has claimed the chunk's frame. */
void pager_clock_inserted(struct pager_clock *c, uint64_t chunk, enum pager_clock_why why);

/** All pages of @chunk are gone. Any thread that has claimed the chunk's frames. */
void pager_clock_evicted(struct pager_clock *c, uint64_t chunk);

bool pager_clock_resident(const struct pager_clock *c, uint64_t chunk);

/** Turns the hand, over *steps chunks at most, and takes from *steps what it used. True: *ret_chunk is to be
 *  punched out; it stays resident until pager_clock_evicted() is called, so one that cannot be had at the moment
 *  is found again in the next turn. False: *steps is 0, or the hand has come to the image's end. In both cases
 *  c->hand is 0 when the turn is complete. One thread at a time. */
bool pager_clock_turn(struct pager_clock *c, uint64_t *steps, uint64_t *ret_chunk);
