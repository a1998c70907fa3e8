/* SPDX-License-Identifier: MIT */
/* Theory of operation. At one moment, in which the VMM stands still, its written pages are protected against writes
 * (userfaultfd) and noted here, a bit each. From then on the VMM runs. Each page is copied once, by whoever comes first:
 *
 *      the fill thread, which goes through all of them
 *      a fault worker of a clone that needs the page
 *      the fault worker of the VMM itself, which wants to write it: copy before write, and only then may it go on
 *
 * So each page is copied while it is protected, and what is copied is what was there at that moment. It does not matter how fast the
 * VMM writes: it waits for the copy of what it writes, and for no other. Nothing is copied twice. (The kernel can also resolve such
 * faults by itself, UFFD_FEATURE_WP_ASYNC; but then the old content is gone, and all that is left is to copy again what was written
 * meanwhile, with a pause at the end that grows with the rate of writes.)
 *
 * The protection stays when the page has been copied. Where it is left, a page has not been written since that moment: the next
 * snapshot of the VMM need not look at it.
 *
 * A page's bit in `todo` is cleared when it is in the memory; both change under a claim on its chunk. Once all are clear nothing
 * is ever read from the VMM again. A page that was not noted is the base's; where the image owns it all the same (for the
 * sake of fewer mappings, lineage.h) it is taken from there.
 *
 * What the VMM discards while it is copied is gone. Discards of any noted page break the image, also when it seems to have been copied:
 * of some the pager hears after the fact. So it is not known to be good before it has settled: all that was discarded until the last page was
 * copied has been heard of. */
#include "pager/nascent.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "pager/bits.h"
#include "pager/image_internal.h"
#include "pager/lineage.h"
#include "pager/reclaim.h"
#include "pager/session.h"

#define STEP_CHUNKS 16u /* a megabyte, before the fill thread looks whether there is something more urgent */
#define BASE_TRIES 100u
/* Pages in a row that were written: data, rather than what a kernel and its processes write all the time. */
#define BULK_PAGES 64u

struct pager_nascent {
        int mem_fd;
        struct pager_image *base; /* a reference */
        struct pager_layout *layout;
        _Atomic int state;
        _Atomic bool settled;
        struct pager_fill_job job;
        uint64_t n_pages; /* noted to be copied */
        _Atomic uint64_t copied;
        uint64_t *noted;         /* constant once it is copying */
        uint64_t *zero;          /* likewise: discarded before, reads zero */
        _Atomic uint64_t todo[]; /* of `noted`, what is not copied yet */
};

static size_t words_of(uint64_t n_pages) {
        return (size_t) ((n_pages + 63) / 64);
}

int pager_nascent_new(uint64_t ram_bytes, const struct pager_layout *l, int mem_fd, struct pager_reclaim *reclaim,
                      struct pager_image **ret) {
        cleanup_pager_image struct pager_image *img = NULL;
        cleanup_fd int mem = mem_fd;
        struct pager_nascent *n;
        int r = pager_image_new_empty(ram_bytes, reclaim, &img);

        if (r < 0)
                return r;
        n = calloc(1, sizeof(*n) + words_of(img->n_pages) * sizeof(n->todo[0]));
        if (!n)
                return -ENOMEM;
        img->nascent = n;
        n->job = (struct pager_fill_job){ .image = img, .copy = true };
        n->mem_fd = TAKE_FD(mem);
        n->layout = pager_layout_copy(l);
        n->noted = calloc(words_of(img->n_pages), sizeof(*n->noted));
        n->zero = calloc(words_of(img->n_pages), sizeof(*n->zero));
        if (!n->layout || !n->noted || !n->zero)
                return -ENOMEM;
        *ret = TAKE_PTR(img);
        return 0;
}

void pager_nascent_free(struct pager_nascent *n) {
        if (!n)
                return;
        (void) close_fd(n->mem_fd);
        pager_image_unref(n->base);
        free(n->layout);
        free(n->noted);
        free(n->zero);
        free(n);
}

struct pager_fill_job *pager_nascent_job(struct pager_image *img) {
        return &img->nascent->job;
}

enum pager_nascent_state pager_nascent_state(const struct pager_image *img) {
        return (enum pager_nascent_state) atomic_load_explicit(&img->nascent->state, memory_order_acquire);
}

/** From @from only: whoever breaks it has the last word. */
static bool set_state(struct pager_nascent *n, enum pager_nascent_state from, enum pager_nascent_state to) {
        int expected = (int) from;

        return atomic_compare_exchange_strong(&n->state, &expected, (int) to);
}

static bool bit(const uint64_t *bits, uint64_t page) {
        return bits[page / 64] >> (page % 64) & 1;
}

static bool is_todo(const struct pager_nascent *n, uint64_t page) {
        return atomic_load_explicit(&n->todo[page / 64], memory_order_acquire) >> (page % 64) & 1;
}

static void set_bits(uint64_t *bits, uint64_t first, uint64_t n) {
        for (uint64_t p = first, end = first + n; p < end; p = (p | 63) + 1)
                bits[p / 64] |= pager_word_mask(p, end);
}

/* ---- its beginning and its end ---- */

void pager_nascent_add(struct pager_image *img, uint64_t first, uint64_t n) {
        set_bits(img->nascent->noted, first, n);
}

void pager_nascent_add_zero(struct pager_image *img, uint64_t first, uint64_t n) {
        struct pager_nascent *o = img->nascent;

        set_bits(o->zero, first, n);
        /* Written when it was noted, and discarded since: it is not protected, so a copy would show what is written later. */
        for (uint64_t p = first, end = first + n; p < end; p = (p | 63) + 1)
                o->noted[p / 64] &= ~pager_word_mask(p, end);
}

int pager_nascent_begin(struct pager_image *img, struct pager_image *base) {
        cleanup_free uint64_t *own = calloc(words_of(img->n_pages), sizeof(*own));
        struct pager_nascent *n = img->nascent;
        int r;

        if (!own)
                return -ENOMEM;
        for (size_t i = 0; i < words_of(img->n_pages); i++) {
                own[i] = n->noted[i] | n->zero[i];
                n->n_pages += (uint64_t) __builtin_popcountll(n->noted[i]);
                atomic_store_explicit(&n->todo[i], n->noted[i], memory_order_relaxed);
        }
        r = pager_image_set_base(img, base, own);
        if (r < 0)
                return r;
        n->base = pager_image_ref(base);
        return set_state(n, PAGER_NASCENT_ARMING, n->n_pages ? PAGER_NASCENT_COPYING : PAGER_NASCENT_COMPLETE) ? 0 : -EPIPE;
}

uint64_t pager_nascent_pages(const struct pager_image *img) {
        return img->nascent->n_pages;
}

uint64_t pager_nascent_copied(const struct pager_image *img) {
        return atomic_load_explicit(&img->nascent->copied, memory_order_relaxed);
}

void pager_nascent_break(struct pager_image *img) {
        if (set_state(img->nascent, PAGER_NASCENT_ARMING, PAGER_NASCENT_BROKEN) ||
            set_state(img->nascent, PAGER_NASCENT_COPYING, PAGER_NASCENT_BROKEN) ||
            (!pager_image_snap(img) && set_state(img->nascent, PAGER_NASCENT_COMPLETE, PAGER_NASCENT_BROKEN)))
                atomic_store_explicit(&img->bad, true, memory_order_relaxed);
}

int pager_nascent_publish(struct pager_image *img, int fd) {
        cleanup_snap_image struct snap_image *snap = NULL;
        struct pager_image_key key;
        int r;

        if (pager_image_snap(img) || pager_nascent_state(img) != PAGER_NASCENT_COMPLETE)
                return -EINVAL;
        r = snap_image_open(fd, &snap);
        if (r == 0 && snap_image_info(snap)->ram_bytes != img->info.ram_bytes)
                r = -EUCLEAN;
        if (r == 0)
                r = pager_image_key_of_fd(fd, &key);
        if (r == 0)
                r = pager_image_sample(img, snap);
        if (r < 0)
                return r;
        img->key = key;
        img->info = *snap_image_info(snap);
        /* From here on a page may be punched out, so whoever finds one missing must see the file. */
        atomic_store_explicit(&img->snap, TAKE_PTR(snap), memory_order_release);
        img->nascent->mem_fd = close_fd(img->nascent->mem_fd);
        return 0;
}

/** The end of the run of noted pages that @page is in, at most img->n_pages. */
static uint64_t run_end(const struct pager_image *img, uint64_t page) {
        while (page < img->n_pages && bit(img->nascent->noted, page))
                page++;
        return page;
}

static bool is_kept(const struct pager_view *keep, uint64_t first, uint64_t n) {
        for (size_t i = 0; keep && i < keep->n; i++)
                if (keep->run[i].first < first + n && first < keep->run[i].first + keep->run[i].n)
                        return true;
        return false;
}

const uint64_t *pager_nascent_noted(const struct pager_image *img) {
        return img->nascent->noted;
}

void pager_nascent_shed(struct pager_image *img, const struct pager_view *keep) {
        for (uint64_t p = 0, end; p < img->n_pages; p = end) {
                end = run_end(img, p);
                if (end == p) {
                        end++;
                        continue;
                }
                if (end - p < BULK_PAGES)
                        continue;
                for (uint64_t c = (p + PAGER_CHUNK_PAGES - 1) / PAGER_CHUNK_PAGES; (c + 1) * PAGER_CHUNK_PAGES <= end; c++)
                        if (!is_kept(keep, c * PAGER_CHUNK_PAGES, PAGER_CHUNK_PAGES))
                                (void) pager_image_evict(img, c * PAGER_CHUNK_PAGES, PAGER_CHUNK_PAGES);
        }
}

/* ---- copying ---- */

/** Reads @n pages from guest page @first on out of the VMM. */
static int read_source(const struct pager_nascent *n, uint64_t first, uint64_t count, uint8_t *buf) {
        for (uint64_t at = 0; at < count;) {
                uint64_t offset = (first + at) * PAGER_PAGE, len;
                const struct pager_region *g = pager_layout_find_offset(n->layout, offset);
                int r;

                if (!g)
                        return -EPIPE; /* noted pages lie in a region */
                len = MIN_OF((count - at) * PAGER_PAGE, g->offset + g->size - offset);
                r = io_pread_full(n->mem_fd, buf + at * PAGER_PAGE, len, g->base + (offset - g->offset));
                if (r < 0)
                        return -EPIPE; /* it has ended, or unmapped its memory */
                at += len / PAGER_PAGE;
        }
        return 0;
}

static void mark_done(struct pager_nascent *n, uint64_t first, uint64_t count) {
        for (uint64_t p = first, end = first + count; p < end; p = (p | 63) + 1)
                (void) atomic_fetch_and_explicit(&n->todo[p / 64], ~pager_word_mask(p, end), memory_order_acq_rel);
        if (atomic_fetch_add_explicit(&n->copied, count, memory_order_acq_rel) + count == n->n_pages)
                (void) set_state(n, PAGER_NASCENT_COPYING, PAGER_NASCENT_COMPLETE);
}

/** Under a claim on the chunk: copies what is left of it. */
static int copy_chunk(struct pager_image *img, struct pager_scratch *s, uint64_t first, enum pager_cause cause, uint64_t page) {
        struct pager_nascent *n = img->nascent;
        uint64_t end = MIN_OF(first + SNAP_FRAME_PAGES, img->n_pages);

        for (uint64_t p = first, run; p < end; p += run) {
                int r;

                for (run = 0; p + run < end && is_todo(n, p + run); run++)
                        ;
                if (run == 0) {
                        run = 1;
                        continue;
                }
                r = read_source(n, p, run, s->frame);
                if (r == 0)
                        r = pager_image_insert(img, p, run, s->frame, cause, page);
                if (r < 0)
                        return r;
                mark_done(n, p, run);
        }
        return 0;
}

/** Copies the chunk of @page. */
static int copy(struct pager_image *img, struct pager_scratch *s, uint64_t page, enum pager_cause cause) {
        struct pager_claim claim = { page / SNAP_REGION_PAGES, page - page % SNAP_FRAME_PAGES };
        int r = pager_reclaim_room(img->resident.r, PAGER_DEMAND); /* it has to be somewhere */

        if (r < 0)
                return r;
        pager_image_claim(img, &claim);
        r = copy_chunk(img, s, claim.frame, cause, page);
        if ((r == -ENOMEM || r == -ENOSPC)) {
                pager_image_release(img, &claim);
                if (!pager_reclaim_emergency(img->resident.r)) {
                        pager_nascent_break(img);
                        return r;
                }
                pager_image_claim(img, &claim);
                r = copy_chunk(img, s, claim.frame, cause, page);
        }
        pager_image_release(img, &claim);
        if (r == -EUCLEAN)
                pager_image_taint(img);
        if (r < 0)
                pager_nascent_break(img);
        return r;
}

int pager_nascent_step(struct pager_image *img, struct pager_scratch *s, uint64_t *page) {
        struct pager_nascent *n = img->nascent;

        for (unsigned chunks = 0; *page < img->n_pages; *page = (*page | (SNAP_FRAME_PAGES - 1)) + 1) {
                uint64_t left = atomic_load_explicit(&n->todo[*page / 64], memory_order_relaxed) >> (*page % 64);
                int r;

                _Static_assert(64 % SNAP_FRAME_PAGES == 0, "a chunk lies in one word");
                if (!left) {
                        *page |= 63;
                        continue;
                }
                if (!(left & ((1u << SNAP_FRAME_PAGES) - 1)))
                        continue;
                if (chunks++ == STEP_CHUNKS)
                        return 1;
                if (pager_nascent_state(img) == PAGER_NASCENT_BROKEN)
                        return -EPIPE;
                r = copy(img, s, *page, PAGER_AHEAD);
                if (r < 0)
                        return r;
        }
        /* Somebody may have the last one in hand. */
        if (pager_nascent_state(img) == PAGER_NASCENT_COPYING) {
                *page = 0;
                return 1;
        }
        return pager_nascent_state(img) == PAGER_NASCENT_COMPLETE ? 0 : -EPIPE;
}

int pager_nascent_secure(struct pager_image *img, struct pager_scratch *s, uint64_t page, uint64_t max, uint64_t *ret_n) {
        enum pager_nascent_state state = pager_nascent_state(img);
        uint64_t k = 1;
        int r = 0;

        if (state == PAGER_NASCENT_ARMING)
                return -EAGAIN;
        if (state == PAGER_NASCENT_COPYING && is_todo(img->nascent, page))
                r = copy(img, s, page, PAGER_DEMAND);
        if (r < 0)
                return r == -EUCLEAN ? r : -EPIPE;
        while (k < max && page + k < img->n_pages && !is_todo(img->nascent, page + k))
                k++;
        *ret_n = k;
        return 0;
}

bool pager_nascent_settle(struct pager_image *img) {
        if (pager_nascent_state(img) != PAGER_NASCENT_COMPLETE)
                return false;
        atomic_store_explicit(&img->nascent->settled, true, memory_order_release);
        return pager_nascent_state(img) == PAGER_NASCENT_COMPLETE;
}

void pager_nascent_discarded(struct pager_image *img, uint64_t first, uint64_t n) {
        struct pager_nascent *o = img->nascent;

        if (pager_nascent_state(img) < PAGER_NASCENT_COPYING || atomic_load_explicit(&o->settled, memory_order_acquire))
                return;
        for (uint64_t p = first, end = MIN_OF(first + n, img->n_pages); p < end; p = (p | 63) + 1)
                if (o->noted[p / 64] & pager_word_mask(p, end)) {
                        pager_nascent_break(img);
                        return;
                }
}

/* ---- answering a clone ---- */

/** A page that is the base's, though the image owns it: from there. */
static int fill_from_base(struct pager_image *img, struct pager_scratch *s, uint64_t page, struct pager_fill_result *ret) {
        struct pager_claim claim = { page / SNAP_REGION_PAGES, page - page % SNAP_FRAME_PAGES };
        struct pager_image *owner = pager_image_owner(img->nascent->base, page, NULL, NULL);
        struct pager_fill_result run;
        int r = -EAGAIN;

        for (unsigned tries = 0; r == -EAGAIN && tries < BASE_TRIES; tries++) {
                r = pager_image_fill(owner, s, page, PAGER_DEMAND, &run);
                if (r == 0 && run.kind == PAGER_PAGE_ZERO) {
                        *ret = run;
                        ret->first = page;
                        ret->n = 1;
                        return 0;
                }
                if (r == 0)
                        r = pager_image_read(owner, s, page, &run); /* -EAGAIN: punched out since */
        }
        if (r == 0)
                r = pager_reclaim_room(img->resident.r, PAGER_DEMAND);
        if (r < 0)
                return r == -EAGAIN ? -EIO : r;
        pager_image_claim(img, &claim);
        if (!pager_image_present(img, page))
                r = pager_image_insert(img, page, 1, s->frame + (page - run.first) * PAGER_PAGE, PAGER_DEMAND, page);
        pager_image_release(img, &claim);
        if (r == 0)
                *ret = (struct pager_fill_result){ PAGER_PAGE_DECODED, page, 1 };
        return r;
}

static void tell(const struct pager_image *img, struct pager_scratch *s, uint64_t page, struct pager_fill_result *ret) {
        uint64_t first = page, end = page + 1, window = page - page % SNAP_FRAME_PAGES;

        while (first > window && pager_image_present(img, first - 1))
                first--;
        while (end < window + SNAP_FRAME_PAGES && pager_image_present(img, end))
                end++;
        *ret = (struct pager_fill_result){ PAGER_PAGE_DECODED, first, end - first };
        s->run[0] = (struct pager_run){ first, end - first, NULL }; /* a recording is told of these */
        s->n_runs = 1;
}

int pager_nascent_fill(struct pager_image *img, struct pager_scratch *s, uint64_t page, struct pager_fill_result *ret) {
        struct pager_nascent *n = img->nascent;
        enum pager_nascent_state state = pager_nascent_state(img);
        int r;

        if (page >= img->n_pages)
                return -ERANGE;
        if (state == PAGER_NASCENT_BROKEN || state == PAGER_NASCENT_ARMING)
                return -EPIPE;
        if (bit(n->zero, page)) {
                *ret = (struct pager_fill_result){ PAGER_PAGE_ZERO, page, 1 };
                return 0;
        }
        if (!bit(n->noted, page)) {
                s->n_runs = 0;
                return fill_from_base(img, s, page, ret);
        }
        r = is_todo(n, page) ? copy(img, s, page, PAGER_DEMAND) : 0;
        if (r < 0)
                return r;
        if (pager_image_present(img, page)) {
                tell(img, s, page, ret);
                return 0;
        }
        /* Copied, and not here: then it has been published, and punched out. */
        return pager_image_snap(img) ? -EAGAIN : -EIO;
}

uint64_t pager_nascent_zero_run(const struct pager_image *img, uint64_t page, uint64_t max) {
        uint64_t n = 0;

        while (n < max && page + n < img->n_pages && bit(img->nascent->zero, page + n))
                n++;
        return n;
}
