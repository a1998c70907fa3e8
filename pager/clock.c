/* SPDX-License-Identifier: MIT */
/* Theory of operation. The pager learns nothing of a guest's access to a page that is in the memfd: the kernel
 * answers it, and keeps no record that we could read. So the only way to ask whether a chunk is needed is to
 * punch it out and see who comes back. The clock makes that question rare for those who always come back.
 *
 * A resident chunk has credits. The hand takes one whenever it passes, and a chunk without any is punched out. A
 * chunk that is needed again afterwards (a refault) has gained strength, and comes with 2^strength credits: so
 * many turns it is left in peace. Each turn of the hand that finds it still absent costs it one strength. Hence
 *
 *   a page that was decoded ahead and that nobody has asked for leaves at the hand's first pass;
 *   one that was needed once leaves at the second: a sweep through cold memory replaces itself;
 *   one in steady use faults once in 2^CLOCK_MAX_STRENGTH turns in the long run: with a hot set of H chunks that
 *   is H / 2^CLOCK_MAX_STRENGTH faults a turn, which is the price of asking;
 *   what was hot and is no more is gone after as many turns, which are the faster the more memory is wanted.
 *
 * A frame brings pages of several chunks; only the chunk of the page that was asked for is "needed", the others
 * come as if ahead. If they are needed, too, nobody may see it: they pay with their first punch.
 *
 * A chunk's word is changed by compare and exchange: the hand turns while workers insert. */
#include "pager/clock.h"

#include <errno.h>
#include <stdlib.h>

#define CLOCK_MAX_STRENGTH 6u

#define RESIDENT 0x8000u
#define PUNCHED 0x4000u /* at least once in its life */
#define STRENGTH_SHIFT 8
#define STRENGTH_MASK 0x0f00u
#define CREDITS_MASK 0x00ffu
#define STRENGTH_ONE (1u << STRENGTH_SHIFT)

_Static_assert(CLOCK_MAX_STRENGTH <= STRENGTH_MASK >> STRENGTH_SHIFT && 1u << CLOCK_MAX_STRENGTH <= CREDITS_MASK,
               "a chunk's word has room for the strongest");

static unsigned strength_of(uint16_t v) {
        return (v & STRENGTH_MASK) >> STRENGTH_SHIFT;
}

static uint16_t load(const struct pager_clock *c, uint64_t chunk) {
        return atomic_load_explicit(&c->chunk[chunk], memory_order_relaxed);
}

static bool swap(struct pager_clock *c, uint64_t chunk, uint16_t *seen, unsigned to) {
        return atomic_compare_exchange_weak_explicit(&c->chunk[chunk], seen, (uint16_t) to, memory_order_relaxed,
                                                     memory_order_relaxed);
}

int pager_clock_init(struct pager_clock *c, uint64_t n_pages) {
        uint64_t n = (n_pages + PAGER_CHUNK_PAGES - 1) / PAGER_CHUNK_PAGES;
        _Atomic uint16_t *chunk = calloc(n, sizeof(*chunk));

        if (!chunk)
                return -ENOMEM;
        *c = (struct pager_clock){ .n_chunks = n, .chunk = chunk };
        return 0;
}

void pager_clock_clear(struct pager_clock *c) {
        free(c->chunk);
        *c = (struct pager_clock){ 0 };
}

/** What @v becomes by an insertion. */
static unsigned inserted(uint16_t v, enum pager_clock_why why) {
        unsigned strength = strength_of(v), credits = v & CREDITS_MASK;

        if (why == PAGER_CLOCK_DEMAND && !(v & RESIDENT) && v & PUNCHED) {
                strength += strength < CLOCK_MAX_STRENGTH;
                credits = 1u << strength;
        } else if (why == PAGER_CLOCK_DEMAND && credits == 0) {
                credits = 1;
        }
        return RESIDENT | (v & PUNCHED) | strength << STRENGTH_SHIFT | credits;
}

void pager_clock_inserted(struct pager_clock *c, uint64_t chunk, enum pager_clock_why why) {
        uint16_t v = load(c, chunk);

        while (!swap(c, chunk, &v, inserted(v, why))) {
        }
        if (why == PAGER_CLOCK_DEMAND && !(v & RESIDENT) && v & PUNCHED)
                (void) atomic_fetch_add_explicit(&c->refaults, 1, memory_order_relaxed);
}

void pager_clock_evicted(struct pager_clock *c, uint64_t chunk) {
        uint16_t v = load(c, chunk);

        while (!swap(c, chunk, &v, (v & STRENGTH_MASK) | PUNCHED)) {
        }
}

bool pager_clock_resident(const struct pager_clock *c, uint64_t chunk) {
        return load(c, chunk) & RESIDENT;
}

/** One chunk under the hand. True: it has to go. */
static bool pass(struct pager_clock *c, uint64_t chunk) {
        uint16_t v = load(c, chunk);

        for (;;) {
                unsigned to;

                if (v & RESIDENT && !(v & CREDITS_MASK))
                        return true;
                if (v & RESIDENT)
                        to = v - 1u;
                else if (strength_of(v) > 0)
                        to = v - STRENGTH_ONE;
                else
                        return false;
                if (swap(c, chunk, &v, to))
                        return false;
        }
}

bool pager_clock_turn(struct pager_clock *c, uint64_t *steps, uint64_t *ret_chunk) {
        while (*steps > 0) {
                uint64_t chunk = c->hand;
                bool victim = pass(c, chunk);

                (*steps)--;
                c->hand = chunk + 1 < c->n_chunks ? chunk + 1 : 0;
                if (victim) {
                        *ret_chunk = chunk;
                        return true;
                }
                if (c->hand == 0)
                        return false;
        }
        return false;
}
