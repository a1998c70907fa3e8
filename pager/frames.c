/* SPDX-License-Identifier: MIT */
/* Theory of operation. An image owns a sparse memfd of the guest's RAM size, maps it shared, and has registered
 * its own userfaultfd on that mapping. A frame's pages are put into the memfd by UFFDIO_COPY on the mapping,
 * and by nothing else: it inserts a page into the page cache already complete, so a clone that maps the memfd
 * sees all of a page or none of it. The mapping is PROT_NONE, so that no stray store can go another way.
 *
 * One decode of a frame at a time: whoever needs a frame claims it; others wait, and then find their page's bit
 * set. Claims are kept in shards by region, each with a leaf lock that is held for the bookkeeping only, never
 * while decoding: two faults meet at a lock only if they fall into regions of one shard.
 *
 * A page that UFFDIO_COPY finds there already (EEXIST) must have come from us. The bitmap of pages that we
 * inserted tells: while a frame is claimed nobody else of us inserts or removes its pages, so an EEXIST for a
 * page whose bit is clear means that a process touched a hole without a userfaultfd, and the kernel put a zero
 * page there. Its content is compared; where it differs the image is bad, and the session fails instead of
 * seeing it.
 *
 * The bit of a page is set after the page is in the memfd (release) and read before it is relied upon
 * (acquire). */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "pager/bits.h"
#include "pager/image_internal.h"
#include "pager/nascent.h"
#include "pager/uffd.h"

#define INSERT_TRIES 10000u

/* ---- which pages are there ---- */

bool pager_image_present(const struct pager_image *img, uint64_t page) {
        return page < img->n_pages && atomic_load_explicit(&img->present[page / 64], memory_order_acquire) >> (page % 64) & 1;
}

/** Returns how many were not marked before. */
static uint64_t mark_present(struct pager_image *img, uint64_t first, uint64_t n) {
        uint64_t end = first + n, fresh = 0;

        for (uint64_t p = first; p < end; p = (p | 63) + 1) {
                uint64_t mask = pager_word_mask(p, end);

                fresh += (uint64_t) __builtin_popcountll(
                        mask & ~atomic_fetch_or_explicit(&img->present[p / 64], mask, memory_order_release));
        }
        return fresh;
}

/** The present pages around @page, within its aligned window of a frame's size. */
static struct pager_fill_result present_run(const struct pager_image *img, uint64_t page) {
        uint64_t start = page - page % SNAP_FRAME_PAGES, bits;
        unsigned at = (unsigned) (page % SNAP_FRAME_PAGES), lo = at, hi = at + 1;

        _Static_assert(64 % SNAP_FRAME_PAGES == 0, "a window lies in one word");
        bits = atomic_load_explicit(&img->present[start / 64], memory_order_acquire) >> (start % 64);
        while (lo > 0 && bits >> (lo - 1) & 1)
                lo--;
        while (hi < SNAP_FRAME_PAGES && bits >> hi & 1)
                hi++;
        return (struct pager_fill_result){ PAGER_PAGE_PRESENT, start + lo, hi - lo };
}

uint64_t pager_image_zero_run(struct pager_image *img, struct pager_scratch *s, uint64_t page, uint64_t max) {
        uint64_t n;
        int r;

        if (!pager_image_snap(img))
                return pager_nascent_zero_run(img, page, max);
        pager_scratch_reading(s, true); /* the index of a region is read when it is first needed */
        r = snap_image_zero_run(pager_image_snap(img), page, max, &n);
        pager_scratch_reading(s, false);
        return r == 0 ? n : 0;
}

static int lookup(struct pager_image *img, struct pager_scratch *s, uint64_t page, struct snap_loc *ret) {
        int r;

        pager_scratch_reading(s, true);
        r = snap_image_lookup(pager_image_snap(img), page, ret);
        pager_scratch_reading(s, false);
        return r;
}

int pager_image_next_region(struct pager_image *img, uint64_t region, uint64_t *ret) {
        return pager_image_snap(img) ? snap_image_next_region(pager_image_snap(img), region, ret) : -ENOENT;
}

/* ---- claims ---- */

static bool conflicts(const struct pager_claim_shard *sh, const struct pager_claim *c) {
        for (unsigned i = 0; i < sh->n; i++)
                if (sh->claim[i].region == c->region &&
                    (sh->claim[i].frame == c->frame || sh->claim[i].frame == PAGER_WHOLE_REGION ||
                     c->frame == PAGER_WHOLE_REGION))
                        return true;
        return false;
}

static struct pager_claim_shard *shard_of(struct pager_image *img, uint64_t region) {
        return &img->shard[region % PAGER_CLAIM_SHARDS];
}

void pager_image_claim(struct pager_image *img, const struct pager_claim *c) {
        struct pager_claim_shard *sh = shard_of(img, c->region);

        (void) pthread_mutex_lock(&sh->lock);
        while (conflicts(sh, c)) {
                sh->waiting++;
                (void) pthread_cond_wait(&sh->released, &sh->lock);
                sh->waiting--;
        }
        sh->claim[sh->n++] = *c;
        (void) pthread_mutex_unlock(&sh->lock);
}

static bool try_claim(struct pager_image *img, const struct pager_claim *c) {
        struct pager_claim_shard *sh = shard_of(img, c->region);
        bool ours;

        (void) pthread_mutex_lock(&sh->lock);
        ours = !conflicts(sh, c);
        if (ours)
                sh->claim[sh->n++] = *c;
        (void) pthread_mutex_unlock(&sh->lock);
        return ours;
}

void pager_image_release(struct pager_image *img, const struct pager_claim *c) {
        struct pager_claim_shard *sh = shard_of(img, c->region);

        (void) pthread_mutex_lock(&sh->lock);
        for (unsigned i = 0; i < sh->n; i++)
                if (sh->claim[i].region == c->region && sh->claim[i].frame == c->frame) {
                        sh->claim[i] = sh->claim[--sh->n];
                        break;
                }
        if (sh->waiting > 0)
                (void) pthread_cond_broadcast(&sh->released);
        (void) pthread_mutex_unlock(&sh->lock);
}

/* ---- filling ---- */

void pager_image_taint(struct pager_image *img) {
        atomic_store_explicit(&img->tainted, true, memory_order_relaxed);
        atomic_store_explicit(&img->bad, true, memory_order_relaxed);
}

/** Somebody else has a page where we wanted to put ours. */
static int check_foreign(struct pager_image *img, uint64_t page, const uint8_t *data) {
        if (pager_image_present(img, page)) /* ours, from an earlier decode of this frame */
                return 0;
        return pager_image_holds(img, page, data);
}

void pager_image_inserted(struct pager_image *img, uint64_t first, uint64_t n, uint64_t demanded) {
        uint64_t fresh;

        if (n == 0)
                return;
        fresh = mark_present(img, first, n);
        pager_resident_inserted(&img->resident, first, n, demanded);
        if (fresh < n) /* we had put them there, and somebody else has taken them away */
                pager_resident_lost(&img->resident, n - fresh);
}

int pager_image_insert(struct pager_image *img, uint64_t first, uint64_t n, const uint8_t *data, enum pager_cause cause,
                       uint64_t page) {
        uint64_t demanded = cause == PAGER_DEMAND ? page : PAGER_NOT_DEMANDED;
        uint64_t at = 0;
        unsigned tries = 0;

        while (at < n) {
                uint64_t done;
                int r = uffd_copy(img->uffd, (uintptr_t) img->map + (first + at) * PAGER_PAGE, data + at * PAGER_PAGE,
                                  (n - at) * PAGER_PAGE, &done);

                (void) atomic_fetch_add_explicit(&img->pages[cause], done / PAGER_PAGE, memory_order_relaxed);
                pager_image_inserted(img, first + at, done / PAGER_PAGE, demanded);
                at += done / PAGER_PAGE;
                if (r == 0)
                        break;
                if (r == -EAGAIN && tries++ < INSERT_TRIES) {
                        /* A page table of our own mapping is being freed: pager_image_trim, or its like in the kernel. */
                        (void) sched_yield();
                        continue;
                }
                if (r != -EEXIST)
                        return r;
                r = check_foreign(img, first + at, data + at * PAGER_PAGE);
                if (r == -ENODATA && tries++ < INSERT_TRIES) /* another pager has punched it out since */
                        continue;
                if (r < 0)
                        return r;
                if (!pager_image_present(img, first + at))
                        pager_image_inserted(img, first + at, 1, demanded);
                at++;
        }
        return 0;
}

/** What a fill is for. */
struct want {
        uint64_t page;
        enum pager_cause cause;
        pager_early_fn *early; /* NULL: nobody wants to know before the end */
        void *arg;
        bool nowait; /* -EBUSY where another thread is at the frame */
};

/** Inserts slots [@i, @i + @n) of the decoded frame, which are neighbours. */
static int insert_slots(struct pager_image *img, struct pager_scratch *s, const struct snap_frame *f, unsigned i, unsigned n,
                        const struct want *w) {
        return pager_image_insert(img, f->page[i], n, s->frame + (size_t) i * SNAP_PAGE_SIZE, w->cause, w->page);
}

/** Inserts the asked page, says so, and leaves the others for later. */
static int insert_asked(struct pager_image *img, struct pager_scratch *s, const struct snap_frame *f, const struct want *w) {
        for (unsigned i = 0; i < f->n_pages; i++)
                if (f->page[i] == w->page && f->live_mask >> i & 1) {
                        int r = insert_slots(img, s, f, i, 1, w);

                        if (r == 0)
                                w->early(w->arg);
                        return r;
                }
        return -EBADMSG;
}

/** Inserts a run of slots; the asked page, if it is among them, is there already where it was wanted early. */
static int insert_rest(struct pager_image *img, struct pager_scratch *s, const struct snap_frame *f, unsigned i, unsigned n,
                       const struct want *w) {
        unsigned asked;
        int r;

        if (!w->early || w->page < f->page[i] || w->page >= f->page[i] + n)
                return insert_slots(img, s, f, i, n, w);
        asked = (unsigned) (w->page - f->page[i]);
        r = asked > 0 ? insert_slots(img, s, f, i, asked, w) : 0;
        if (r == 0 && asked + 1 < n)
                r = insert_slots(img, s, f, i + asked + 1, n - asked - 1, w);
        return r;
}

/** Decodes the claimed frame at @loc and inserts what is live of it. *ret gets the run that holds the page. */
static int fill_frame(struct pager_image *img, struct pager_scratch *s, const struct snap_loc *loc, const struct want *w,
                      struct pager_fill_result *ret) {
        struct snap_frame f;
        bool found = false;
        int r;

        s->n_runs = 0;
        pager_scratch_reading(s, true);
        r = snap_image_decode(pager_image_snap(img), s->decoder, loc, s->frame, &f);
        pager_scratch_reading(s, false);
        if (r < 0)
                return r;
        (void) atomic_fetch_add_explicit(&img->decodes, 1, memory_order_relaxed);
        (void) atomic_fetch_add_explicit(&img->compressed_bytes, f.comp_len, memory_order_relaxed);
        for (unsigned i = 0; i < f.n_pages; i++) /* ascending, all of one region: the last decides, but be sure */
                if (f.page[i] >= img->n_pages)
                        return -EBADMSG;
        if (w->early) {
                r = insert_asked(img, s, &f, w);
                if (r < 0)
                        return r;
        }
        for (unsigned i = 0, n; i < f.n_pages; i += n) {
                n = 1;
                if (!(f.live_mask >> i & 1))
                        continue;
                while (i + n < f.n_pages && f.live_mask >> (i + n) & 1 && f.page[i + n] == f.page[i] + n)
                        n++;
                r = insert_rest(img, s, &f, i, n, w);
                if (r < 0)
                        return r;
                s->run[s->n_runs++] = (struct pager_run){ f.page[i], n, s->frame + (size_t) i * SNAP_PAGE_SIZE };
                if (w->page >= f.page[i] && w->page < f.page[i] + n) {
                        *ret = (struct pager_fill_result){ PAGER_PAGE_DECODED, f.page[i], n };
                        found = true;
                }
        }
        return found ? 0 : -EBADMSG;
}

/** Who has the claim may be in a read. */
static void claim_frame(struct pager_image *img, struct pager_scratch *s, const struct pager_claim *c) {
        pager_scratch_reading(s, true);
        pager_image_claim(img, c);
        pager_scratch_reading(s, false);
}

/** Decodes the frame at @loc, unless the page is there by then. */
static int fill_claimed(struct pager_image *img, struct pager_scratch *s, const struct snap_loc *loc, const struct want *w,
                        struct pager_fill_result *ret) {
        struct pager_claim claim = { w->page / SNAP_REGION_PAGES, loc->frame_off };
        int r = pager_reclaim_room(img->resident.r, w->cause);

        if (r < 0)
                return r;
        if (!w->nowait)
                claim_frame(img, s, &claim);
        else if (!try_claim(img, &claim))
                return -EBUSY;
        if (w->cause == PAGER_AHEAD && pager_image_is_quiet(img)) /* from here on we would be waited for */
                r = -ESHUTDOWN;
        else if (pager_image_present(img, w->page))
                *ret = present_run(img, w->page);
        else
                r = fill_frame(img, s, loc, w, ret);
        pager_image_release(img, &claim);
        return r;
}

static int fill(struct pager_image *img, struct pager_scratch *s, const struct want *w, struct pager_fill_result *ret) {
        struct snap_loc loc;
        int r = -EAGAIN;

        if (pager_image_present(img, w->page)) {
                *ret = present_run(img, w->page);
                return 0;
        }
        if (!pager_image_snap(img))
                r = pager_nascent_fill(img, s, w->page, ret);
        if (r != -EAGAIN) /* it has been published by now */
                return r;
        r = lookup(img, s, w->page, &loc);
        if (r == 0 && loc.zero) {
                *ret = (struct pager_fill_result){ PAGER_PAGE_ZERO, w->page, 1 };
                return 0;
        }
        if (r == 0) {
                r = fill_claimed(img, s, &loc, w, ret);
                /* The host, or our cgroup, has no memory left; what is cold may go at once. */
                if ((r == -ENOMEM || r == -ENOSPC) && pager_reclaim_emergency(img->resident.r))
                        r = fill_claimed(img, s, &loc, w, ret);
        }
        if (r == -EUCLEAN)
                pager_image_taint(img);
        else if (r == -EBADMSG)
                atomic_store_explicit(&img->bad, true, memory_order_relaxed);
        return r;
}

int pager_image_fill(struct pager_image *img, struct pager_scratch *s, uint64_t page, enum pager_cause cause,
                     struct pager_fill_result *ret) {
        return fill(img, s, &(struct want){ .page = page, .cause = cause }, ret);
}

int pager_image_fill_nowait(struct pager_image *img, struct pager_scratch *s, uint64_t page, struct pager_fill_result *ret) {
        return fill(img, s, &(struct want){ .page = page, .cause = PAGER_AHEAD, .nowait = true }, ret);
}

int pager_image_fill_early(struct pager_image *img, struct pager_scratch *s, uint64_t page, pager_early_fn *early, void *arg,
                           struct pager_fill_result *ret) {
        return fill(img, s, &(struct want){ page, PAGER_DEMAND, early, arg, false }, ret);
}

int pager_image_read(struct pager_image *img, struct pager_scratch *s, uint64_t page, struct pager_fill_result *ret) {
        struct pager_fill_result run;
        struct snap_loc loc;
        int r = pager_image_snap(img) ? lookup(img, s, page, &loc) : -EPIPE; /* nobody copies out of a nascent one */

        if (r < 0)
                return r;
        if (loc.zero)
                return -EAGAIN;
        struct pager_claim claim = { page / SNAP_REGION_PAGES, loc.frame_off };

        /* Whoever punches pages out has claimed their whole region: what is there now stays until we let go. */
        claim_frame(img, s, &claim);
        if (pager_image_present(img, page)) {
                run = present_run(img, page);
                r = io_pread_full(img->memfd, s->frame, run.n * PAGER_PAGE, run.first * PAGER_PAGE);
        } else {
                r = -EAGAIN;
        }
        pager_image_release(img, &claim);
        if (r == 0)
                *ret = run;
        return r;
}

/* ---- and out again ---- */

/** Of @gone, one word of the bitmap, counts the pages. */
uint64_t pager_image_removed(struct pager_image *img, uint64_t word, uint64_t gone) {
        _Static_assert(64 % PAGER_CHUNK_PAGES == 0, "a chunk lies in one word");
        const uint64_t chunk_mask = (1ull << PAGER_CHUNK_PAGES) - 1;

        for (unsigned i = 0; i < 64 / PAGER_CHUNK_PAGES; i++) {
                uint64_t bits = gone >> (i * PAGER_CHUNK_PAGES) & chunk_mask;

                if (bits)
                        pager_resident_removed(&img->resident, word * (64 / PAGER_CHUNK_PAGES) + i,
                                               (uint64_t) __builtin_popcountll(bits));
        }
        return (uint64_t) __builtin_popcountll(gone);
}

/** Is there a page in [@first, @end) that is not ours? Under a claim on their region. The hole would take it away with
 *  the others before anybody has counted, but a clone may have read it. */
static bool has_foreign(const struct pager_image *img, uint64_t first, uint64_t end) {
        while (first < end) {
                off_t data;

                if (pager_image_present(img, first)) {
                        first++;
                        continue;
                }
                data = lseek(img->memfd, (off_t) (first * PAGER_PAGE), SEEK_DATA);
                if (data < 0) /* ENXIO: nothing but holes from here on */
                        return false;
                first = (uint64_t) data / PAGER_PAGE;
                if (first < end && !pager_image_present(img, first))
                        return true;
        }
        return false;
}

void pager_image_pin(struct pager_image *img) {
        (void) atomic_fetch_add_explicit(&img->pins, 1, memory_order_relaxed);
        /* Who punches has claimed the region: whoever has not seen the pin is waited for. */
        for (uint64_t region = 0; region * SNAP_REGION_PAGES < img->n_pages; region++) {
                struct pager_claim claim = { region, PAGER_WHOLE_REGION };

                pager_image_claim(img, &claim);
                pager_image_release(img, &claim);
        }
}

void pager_image_unpin(struct pager_image *img) {
        (void) atomic_fetch_sub_explicit(&img->pins, 1, memory_order_relaxed);
}

uint64_t pager_image_evict(struct pager_image *img, uint64_t first, uint64_t n) {
        struct pager_claim claim = { first / SNAP_REGION_PAGES, PAGER_WHOLE_REGION };
        uint64_t old[SNAP_REGION_PAGES / 64] = { 0 }, base = first / 64, end = MIN_OF(first + n, img->n_pages), count = 0;
        bool foreign;

        /* What a nascent one has is nowhere else. */
        if (!pager_image_snap(img) || !try_claim(img, &claim))
                return 0;
        if (atomic_load_explicit(&img->pins, memory_order_relaxed) > 0) {
                pager_image_release(img, &claim);
                return 0;
        }
        foreign = has_foreign(img, first, end);
        if (pager_image_is_quiet(img) || (foreign && pager_image_is_shared(img))) {
                /* It is another pager's, or may be: to be compared before it goes. */
                pager_image_release(img, &claim);
                return 0;
        }
        if (foreign)
                pager_image_taint(img);
        /* The bits first: who reads a set bit from now on either maps the page before it goes, and loses it with all
         * others, or is told EFAULT by the kernel. */
        for (uint64_t p = first; p < end; p = (p | 63) + 1) {
                uint64_t mask = pager_word_mask(p, end);

                old[p / 64 - base] = mask & atomic_fetch_and_explicit(&img->present[p / 64], ~mask, memory_order_acq_rel);
        }
        if (fallocate(img->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t) (first * PAGER_PAGE),
                      (off_t) ((end - first) * PAGER_PAGE)) == 0) {
                for (unsigned i = 0; i < ARRAY_LEN(old); i++)
                        count += pager_image_removed(img, base + i, old[i]);
        } else {
                for (unsigned i = 0; i < ARRAY_LEN(old); i++)
                        if (old[i])
                                (void) atomic_fetch_or_explicit(&img->present[base + i], old[i], memory_order_release);
        }
        pager_image_release(img, &claim);
        return count;
}

void pager_image_recheck(struct pager_image *img, struct pager_scratch *s, uint64_t first, uint64_t n) {
        struct pager_claim claim = { first / SNAP_REGION_PAGES, PAGER_WHOLE_REGION };

        claim_frame(img, s, &claim);
        for (uint64_t p = first; p < first + n; p++) {
                off_t at = (off_t) (p * PAGER_PAGE);
                uint64_t bit = 1ull << (p % 64);

                if (!pager_image_present(img, p) || lseek(img->memfd, at, SEEK_DATA) == at)
                        continue;
                (void) atomic_fetch_and_explicit(&img->present[p / 64], ~bit, memory_order_acq_rel);
                (void) pager_image_removed(img, p / 64, bit);
        }
        pager_image_release(img, &claim);
}
