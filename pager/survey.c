/* SPDX-License-Identifier: MIT */
/* Theory of operation. An image's memory may have been filled by another pager, which is dead, or has handed it over, or
 * even goes on with it for other guests. Each page in it is complete, whoever put it there and however he ended: the kernel
 * inserts a page when it has all of its content, and punches whole pages. So what another pager has put there can be mapped
 * at once, and no guest waits until we know of it: a fault on such a page does not even reach us, and where two pagers decode
 * the same frame the later one finds the page there, and that it is the same (frames.c).
 *
 * What does need to know which pages are there is our reclaim, and the audit. A survey asks the kernel (SEEK_DATA), in the
 * background. And it looks at what it finds, in place of the audit that the other pager has not come to: a stranger who
 * touches a hole makes the kernel put a zero page there. A page that the image stores is hardly ever all zero, so only
 * such pages are compared with their frame. Nobody but pagers can put anything else there: others have the memory read-only.
 *
 * An image that was once shared may get pages from another pager at any time later: then there are more pages than we know
 * of, which is what the audit is about. It has them surveyed instead of blaming somebody, and reclaim leaves a chunk alone
 * that has such pages.
 *
 * Quiet is an image of which sessions were released: another pager is about to take it. It is set before claims are looked
 * at, and whoever works ahead of demand looks at it after he has his claim: so when no claim is left, and nobody is served,
 * nothing touches the memory any more. */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "pager/bits.h"
#include "pager/image_internal.h"

#define SAMPLES 4u
#define HOLDS_TRIES 64u
#define PEEK_BYTES 64u

void pager_image_set_quiet(struct pager_image *img, bool quiet) {
        atomic_store(&img->quiet, quiet);
}

bool pager_image_is_quiet(const struct pager_image *img) {
        return atomic_load(&img->quiet);
}

void pager_image_share(struct pager_image *img) {
        atomic_store(&img->shared, true);
}

bool pager_image_is_shared(const struct pager_image *img) {
        return atomic_load_explicit(&img->shared, memory_order_relaxed);
}

bool pager_image_claimed(struct pager_image *img) {
        bool claimed = false;

        for (unsigned i = 0; i < PAGER_CLAIM_SHARDS; i++) {
                (void) pthread_mutex_lock(&img->shard[i].lock);
                claimed |= img->shard[i].n > 0;
                (void) pthread_mutex_unlock(&img->shard[i].lock);
        }
        return claimed;
}

static bool all_zero(const uint8_t *page) {
        return page[0] == 0 && memcmp(page, page + 1, SNAP_PAGE_SIZE - 1) == 0;
}

/** The first page in the memory at or after @page; n_pages: there is none. */
static uint64_t next_data(const struct pager_image *img, uint64_t page) {
        off_t at = page < img->n_pages ? lseek(img->memfd, (off_t) (page * PAGER_PAGE), SEEK_DATA) : -1;

        return at < 0 ? img->n_pages : (uint64_t) at / PAGER_PAGE;
}

int pager_image_holds(const struct pager_image *img, uint64_t page, const uint8_t *data) {
        uint8_t there[SNAP_PAGE_SIZE];

        /* A hole reads as zeros, too, and whoever punched it may fill it again before we ask for it: but not each time. */
        for (unsigned i = 0; i < HOLDS_TRIES; i++) {
                int r = io_pread_full(img->memfd, there, sizeof(there), page * PAGER_PAGE);

                if (r < 0)
                        return r;
                if (memcmp(there, data, sizeof(there)) == 0)
                        return 0;
                if (!all_zero(there))
                        return -EUCLEAN;
                if (next_data(img, page) != page)
                        return -ENODATA;
                if (!pager_image_is_shared(img))
                        return -EUCLEAN;
                (void) sched_yield();
        }
        return -EUCLEAN;
}

/** Does the memory have in @page what the image has? As pager_image_holds, or the errors of snap_image_decode. Overwrites
 *  s->frame. */
static int compare(struct pager_image *img, struct snap_image *snap, struct pager_scratch *s, uint64_t page) {
        static const uint8_t zero[SNAP_PAGE_SIZE];
        struct snap_frame f;
        struct snap_loc loc;
        int r;

        pager_scratch_reading(s, true);
        r = snap_image_lookup(snap, page, &loc);
        if (r == 0 && !loc.zero)
                r = snap_image_decode(snap, s->decoder, &loc, s->frame, &f);
        pager_scratch_reading(s, false);
        if (r < 0)
                return r;
        if (loc.zero)
                return pager_image_holds(img, page, zero);
        for (unsigned i = 0; i < f.n_pages; i++)
                if (f.page[i] == page && f.live_mask >> i & 1)
                        return pager_image_holds(img, page, s->frame + (size_t) i * SNAP_PAGE_SIZE);
        return -EBADMSG;
}

/* ---- before it is taken ---- */

int pager_image_sample(struct pager_image *img, struct snap_image *snap) {
        struct pager_scratch s = { 0 };
        uint8_t there[SNAP_PAGE_SIZE];
        int r = pager_scratch_init(&s);

        for (unsigned i = 0; i < SAMPLES && (r == 0 || r == -ENODATA); i++) {
                uint64_t page = next_data(img, img->n_pages / SAMPLES * i);

                if (page == img->n_pages)
                        continue;
                r = io_pread_full(img->memfd, there, sizeof(there), page * PAGER_PAGE);
                /* Zeros are a stranger's, if they are wrong: the survey has to find those anyway. */
                if (r == 0 && !all_zero(there))
                        r = compare(img, snap, &s, page);
        }
        pager_scratch_clear(&s);
        return r == -ENODATA ? 0 : r;
}

/* ---- in the background ---- */

/** Which of the pages [@first, @end), of one word of the bitmap, are in the memory, as bits. */
static uint64_t data_mask(const struct pager_image *img, uint64_t first, uint64_t end) {
        uint64_t mask = 0;

        while ((first = next_data(img, first)) < end) {
                off_t hole = lseek(img->memfd, (off_t) (first * PAGER_PAGE), SEEK_HOLE);
                uint64_t stop = hole < 0 ? first + 1 : MIN_OF((uint64_t) hole / PAGER_PAGE, end);

                if (stop <= first) /* punched in between */
                        stop = first + 1;
                else
                        mask |= pager_word_mask(first, stop);
                first = stop;
        }
        return mask;
}

/** Is the page all zero? 1, 0, or -errno. Most tell by their first bytes. */
static int reads_zero(const struct pager_image *img, uint64_t page) {
        static const uint8_t zero[PEEK_BYTES];
        uint8_t there[SNAP_PAGE_SIZE];
        int r = io_pread_full(img->memfd, there, PEEK_BYTES, page * PAGER_PAGE);

        if (r < 0 || memcmp(there, zero, PEEK_BYTES) != 0)
                return r;
        r = io_pread_full(img->memfd, there, sizeof(there), page * PAGER_PAGE);
        return r < 0 ? r : all_zero(there);
}

/** Looks at the pages in *@fresh, which we did not put there; those that are gone by now leave it. Under the claim. */
static int look(struct pager_image *img, struct pager_scratch *s, uint64_t word, uint64_t *fresh) {
        for (uint64_t left = *fresh; left; left &= left - 1) {
                unsigned at = (unsigned) __builtin_ctzll(left);
                int r = reads_zero(img, word * 64 + at);

                if (r > 0)
                        r = compare(img, pager_image_snap(img), s, word * 64 + at);
                /* Corrupt: a page that is stored and all zero is a stranger's, if nobody can tell otherwise. */
                if (r == -EUCLEAN || r == -EBADMSG)
                        pager_image_taint(img);
                else if (r == -ENODATA)
                        *fresh &= ~(1ull << at);
                else if (r < 0)
                        return r;
        }
        return 0;
}

/** Brings one word of the bitmap up to date. Under the claim. */
static int update_word(struct pager_image *img, struct pager_scratch *s, uint64_t word) {
        uint64_t first = word * 64, ours = atomic_load_explicit(&img->present[word], memory_order_acquire);
        uint64_t there = data_mask(img, first, MIN_OF(first + 64, img->n_pages)), fresh = there & ~ours, gone = ours & ~there;
        int r = look(img, s, word, &fresh);

        if (r < 0)
                return r;
        while (fresh) {
                unsigned at = (unsigned) __builtin_ctzll(fresh), n = 1;

                while (at + n < 64 && fresh >> (at + n) & 1)
                        n++;
                pager_image_inserted(img, first + at, n, PAGER_NOT_DEMANDED);
                fresh &= ~pager_word_mask(at, at + n);
        }
        if (gone) {
                (void) atomic_fetch_and_explicit(&img->present[word], ~gone, memory_order_acq_rel);
                (void) pager_image_removed(img, word, gone);
        }
        return 0;
}

static int survey_word(struct pager_image *img, struct pager_scratch *s, uint64_t word) {
        struct pager_claim claim = { word * 64 / SNAP_REGION_PAGES, PAGER_WHOLE_REGION };
        int r;

        pager_scratch_reading(s, true);
        pager_image_claim(img, &claim);
        pager_scratch_reading(s, false);
        r = pager_image_is_quiet(img) ? -ECANCELED : update_word(img, s, word);
        pager_image_release(img, &claim);
        return r;
}

int pager_image_survey_step(struct pager_image *img, struct pager_scratch *s, uint64_t *page) {
        uint64_t word = *page / 64, words = (img->n_pages + 63) / 64, data = next_data(img, *page) / 64;
        int r;

        while (word < words && word < data && atomic_load_explicit(&img->present[word], memory_order_relaxed) == 0)
                word++;
        if (word >= words)
                return 0;
        r = survey_word(img, s, word);
        if (r < 0)
                return r;
        *page = (word + 1) * 64;
        return word + 1 < words;
}
