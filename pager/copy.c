/* SPDX-License-Identifier: MIT */
/* Theory of operation. A VMM in copy mode has anonymous (or hugetlbfs) memory, and gets each page by UFFDIO_COPY. What
 * is copied comes out of the same images: a frame is decoded once per host, into the memfd, and every other VMM's copy
 * is read from there.
 *
 * The source of a copy is always this worker's scratch memory, never a mapping of the memfd: touching a hole of that
 * would put a zero page into it for everybody. The scratch holds verified bytes, for one of two reasons: the frame was
 * decoded into it just now; or it was read from the memfd while the frame was claimed and the pages' bits, looked at
 * under that claim, said that they are there, so that nobody could punch them out meanwhile.
 *
 * One answer is a whole frame: all its pages that lie in the region, were not discarded, and are not there yet as far as
 * we know (`copied`, a hint that saves requests: who is wrong about it gets EEXIST, or another fault).
 *
 * Huge pages are put together from the frames of their 2 MiB, which is exactly one region of the image, and copied as
 * one: the kernel takes no less. They have no zero page, so zeros are copied, too. When the host has no huge page left
 * the kernel says EEXIST, as if it were there already (hugetlb_mfill_atomic_pte of Linux 6.18 finds the slot in the page
 * table, and does not look whether it is empty), and the guest would fault again for ever: so many in a row, which
 * cannot be otherwise, are taken for what they are. */
#include "pager/copy.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "pager/bits.h"
#include "pager/lineage.h"
#include "pager/uffd.h"

_Static_assert(PAGER_HUGE_PAGE == SNAP_REGION_PAGES * PAGER_PAGE, "a huge page is a region of the image");

int pager_copy_prepare(const struct pager_session *s, struct pager_scratch *scratch) {
        void *p;

        if (s->layout->page_size != PAGER_HUGE_PAGE || scratch->huge)
                return 0;
        p = mmap(NULL, PAGER_HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (p == MAP_FAILED)
                return -errno;
        scratch->huge = p;
        return 0;
}

int pager_copy_moved(struct pager_session *s, uint64_t from, uint64_t to, uint64_t len) {
        return pager_layout_move(&s->layout, from, to, len);
}

static bool is_copied(const struct pager_session *s, uint64_t page) {
        return s->copied[page / 64] >> (page % 64) & 1;
}

static void mark_copied(struct pager_session *s, uint64_t first, uint64_t n) {
        for (uint64_t p = first, end = first + n; p < end; p = (p | 63) + 1)
                s->copied[p / 64] |= pager_word_mask(p, end);
}

/** Copies @n pages from @first on to @addr. A page that is there already, or not registered (any more), is passed over,
 *  and whoever waits for it is woken to look again. *@count grows by what was copied. */
static int install(struct pager_session *s, uint64_t first, uint64_t n, uint64_t addr, const uint8_t *data,
                   _Atomic uint64_t *count) {
        uint64_t at = 0, step = n, done;
        bool wake = false;
        int r = 0;

        while (at < n) {
                r = uffd_copy(s->uffd, addr + at * PAGER_PAGE, data + at * PAGER_PAGE, MIN_OF(step, n - at) * PAGER_PAGE, &done);
                (void) atomic_fetch_add_explicit(count, done / PAGER_PAGE, memory_order_relaxed);
                mark_copied(s, first + at, done / PAGER_PAGE);
                at += done / PAGER_PAGE;
                if (r == -ENOENT && step > 1) {
                        step = 1; /* a range that is not all of one mapping is refused as a whole */
                } else if (r == -EEXIST || r == -ENOENT) {
                        wake = true;
                        if (r == -EEXIST)
                                mark_copied(s, first + at, 1);
                        at++;
                } else if (r < 0) {
                        break;
                }
        }
        if (wake)
                (void) uffd_wake(s->uffd, addr, n * PAGER_PAGE);
        return r == -EEXIST || r == -ENOENT ? 0 : r;
}

static bool wanted(const struct pager_session *s, uint64_t page) {
        return !pager_session_removed(s, page) && !is_copied(s, page);
}

/** Copies what is wanted of [@lo, @hi) of the run. */
static int install_wanted(struct pager_session *s, const struct pager_region *g, const struct pager_run *run, uint64_t lo,
                          uint64_t hi, _Atomic uint64_t *count) {
        for (uint64_t p = lo, end; p < hi; p = end) {
                int r;

                for (end = p + 1; end < hi && wanted(s, end) == wanted(s, p); end++) {
                }
                if (!wanted(s, p))
                        continue;
                r = install(s, p, end - p, g->base + p * PAGER_PAGE - g->offset, run->data + (p - run->first) * PAGER_PAGE,
                            count);
                if (r < 0)
                        return r;
        }
        return 0;
}

/** Copies the run that holds the fault's page: first what is around that. */
static int install_main(struct pager_session *s, const struct pager_region *g, const struct pager_run *run, uint64_t page,
                        uint64_t *ret_lo, uint64_t *ret_hi) {
        uint64_t region_first = g->offset / PAGER_PAGE, min = MAX_OF(run->first, region_first);
        uint64_t max = MIN_OF(run->first + run->n, region_first + g->size / PAGER_PAGE), lo = page, hi = page + 1;
        int r;

        while (lo > min && wanted(s, lo - 1))
                lo--;
        while (hi < max && wanted(s, hi))
                hi++;
        *ret_lo = g->base + lo * PAGER_PAGE - g->offset;
        *ret_hi = g->base + hi * PAGER_PAGE - g->offset;
        r = install(s, lo, hi - lo, *ret_lo, run->data + (lo - run->first) * PAGER_PAGE, &s->pages_installed);
        if (r == 0)
                r = install_wanted(s, g, run, min, lo, &s->pages_installed);
        return r == 0 ? install_wanted(s, g, run, hi, max, &s->pages_installed) : r;
}

/** Leaves of the runs in the scratch what lies in @span: around it the image has other pages than their owner has. */
static void clip_runs(struct pager_scratch *scratch, const struct pager_span *span) {
        unsigned kept = 0;

        for (unsigned i = 0; i < scratch->n_runs; i++) {
                struct pager_run run = scratch->run[i];
                uint64_t before = run.first;

                pager_span_clip(span, &run.first, &run.n);
                run.data += (run.first - before) * PAGER_PAGE;
                if (run.n > 0)
                        scratch->run[kept++] = run;
        }
        scratch->n_runs = kept;
}

/** What a fill brought, as runs. -EAGAIN: it was given back meanwhile. */
static int content(struct pager_session *s, struct pager_scratch *scratch, const struct pager_fill_result *fill, uint64_t page,
                   const struct pager_run **ret, unsigned *ret_n) {
        struct pager_span span = pager_image_span(s->image, page);
        struct pager_fill_result there;
        int r;

        if (fill->kind != PAGER_PAGE_DECODED) {
                r = pager_image_read(span.img, scratch, page, &there);
                if (r < 0)
                        return r;
                scratch->run[0] = (struct pager_run){ there.first, there.n, scratch->frame };
                scratch->n_runs = 1;
        }
        clip_runs(scratch, &span);
        *ret = scratch->run;
        *ret_n = scratch->n_runs;
        return 0;
}

static bool holds(const struct pager_run *run, uint64_t page) {
        return page >= run->first && page - run->first < run->n;
}

int pager_copy_pages(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch,
                     const struct pager_fill_result *fill, uint64_t page, uint64_t addr, uint64_t *ret_lo, uint64_t *ret_hi) {
        uint64_t region_first = g->offset / PAGER_PAGE, region_end = region_first + g->size / PAGER_PAGE;
        const struct pager_run *run;
        unsigned n, main_run = 0;
        int r = content(s, scratch, fill, page, &run, &n);

        if (r < 0)
                return r;
        while (main_run < n && !holds(&run[main_run], page))
                main_run++;
        if (main_run == n)
                return -EBADMSG; /* cannot be: the fill brought it */
        r = install_main(s, g, &run[main_run], page, ret_lo, ret_hi);
        if (r < 0)
                return r;
        /* The fault is answered. What else came with it is a gift: whatever stands in its way is met again. */
        for (unsigned i = 0; i < n; i++) {
                uint64_t lo = MAX_OF(run[i].first, region_first), hi = MIN_OF(run[i].first + run[i].n, region_end);

                if (i != main_run && lo < hi && install_wanted(s, g, &run[i], lo, hi, &s->pages_installed) < 0)
                        break;
        }
        return 0;
}

int64_t pager_copy_ahead(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t page,
                         uint64_t n) {
        struct pager_span span = pager_image_span(s->image, page);
        struct pager_fill_result there;
        struct pager_run run;
        uint64_t end;
        int r;

        if (is_copied(s, page))
                return 1;
        r = pager_image_read(span.img, scratch, page, &there);
        if (r < 0)
                return r == -EAGAIN ? -ENODATA : r;
        pager_span_clip(&span, &page, &n);
        run = (struct pager_run){ there.first, there.n, scratch->frame };
        end = MIN_OF(page + n, run.first + run.n);
        r = install_wanted(s, g, &run, page, end, &s->pages_ahead);
        return r < 0 ? r : (int64_t) (end - page);
}

/* ---- huge pages ---- */

/** Puts the stored pages among the 512 from @first on into the scratch, where they are not discarded. *ret_n: how
 *  many. */
static int assemble(struct pager_session *s, struct pager_scratch *scratch, uint64_t first, enum pager_cause cause,
                    uint64_t *ret_n, enum pager_fault_kind *ret_kind) {
        uint64_t done[SNAP_REGION_PAGES / 64] = { 0 }, n_stored = 0;

        memset(scratch->huge, 0, PAGER_HUGE_PAGE);
        for (uint64_t i = 0; i < SNAP_REGION_PAGES;) {
                const struct pager_run *run = NULL;
                struct pager_fill_result fill;
                struct pager_span span;
                unsigned n;
                int r;

                if (done[i / 64] >> (i % 64) & 1 || pager_session_removed(s, first + i)) {
                        i++;
                        continue;
                }
                span = pager_image_span(s->image, first + i);
                r = pager_image_fill(span.img, scratch, first + i, cause, &fill);
                if (r == 0 && fill.kind == PAGER_PAGE_ZERO) {
                        uint64_t end = MIN_OF(first + SNAP_REGION_PAGES, span.first + span.n);

                        i += MAX_OF(1u, pager_image_zero_run(span.img, scratch, first + i, end - first - i));
                        continue;
                }
                if (r == 0)
                        r = content(s, scratch, &fill, first + i, &run, &n);
                if (r == -EAGAIN)
                        continue; /* given back between the two: decode it again */
                if (r < 0)
                        return r;
                if (fill.kind == PAGER_PAGE_DECODED)
                        *ret_kind = PAGER_FAULT_MISSING;
                else if (*ret_kind != PAGER_FAULT_MISSING)
                        *ret_kind = PAGER_FAULT_PRESENT;
                for (unsigned k = 0; k < n; k++)
                        for (uint64_t p = 0; p < run[k].n; p++) {
                                uint64_t at = run[k].first + p - first;

                                if (pager_session_removed(s, first + at) || done[at / 64] >> (at % 64) & 1)
                                        continue;
                                memcpy(scratch->huge + at * PAGER_PAGE, run[k].data + p * PAGER_PAGE, PAGER_PAGE);
                                done[at / 64] |= 1ull << (at % 64);
                                n_stored++;
                        }
        }
        *ret_n = n_stored;
        return 0;
}

int pager_copy_huge(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t addr,
                    enum pager_cause cause, uint64_t *ret_lo, uint64_t *ret_hi, enum pager_fault_kind *ret_kind,
                    bool *ret_image_error) {
        uint64_t start = addr - addr % PAGER_HUGE_PAGE, n_stored = 0, done;
        bool zero = g->offset == PAGER_READS_ZERO;
        uint64_t first = zero ? 0 : (start - g->base + g->offset) / PAGER_PAGE;
        int r;

        *ret_image_error = false;
        *ret_lo = start;
        *ret_hi = start + PAGER_HUGE_PAGE;
        if (zero || pager_session_removed(s, first)) {
                *ret_kind = PAGER_FAULT_REMOVED;
                memset(scratch->huge, 0, PAGER_HUGE_PAGE);
        } else {
                *ret_kind = PAGER_FAULT_ZERO;
                r = assemble(s, scratch, first, cause, &n_stored, ret_kind);
                if (r < 0) {
                        *ret_image_error = true;
                        return r;
                }
        }
        r = uffd_copy(s->uffd, start, scratch->huge, PAGER_HUGE_PAGE, &done);
        if (r == -EEXIST && cause == PAGER_DEMAND && ++s->stuck > PAGER_MAX_STUCK)
                return -ENOMEM;
        if (r == -EEXIST || r == -ENOENT) {
                (void) uffd_wake(s->uffd, start, PAGER_HUGE_PAGE);
                return 0;
        }
        if (r < 0)
                return r;
        s->stuck = 0;
        if (!zero)
                mark_copied(s, first, SNAP_REGION_PAGES);
        (void) atomic_fetch_add_explicit(cause == PAGER_AHEAD ? &s->pages_ahead : &s->pages_installed, n_stored,
                                         memory_order_relaxed);
        (void) atomic_fetch_add_explicit(cause == PAGER_AHEAD ? &s->zero_ahead : &s->zero_pages, SNAP_REGION_PAGES - n_stored,
                                         memory_order_relaxed);
        return 0;
}

int64_t pager_copy_ahead_huge(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t page,
                              uint64_t n) {
        uint64_t lo, hi;
        enum pager_fault_kind kind;
        bool image_error;
        int r = 0;

        if (!is_copied(s, page))
                r = pager_copy_huge(s, g, scratch, g->base + page * PAGER_PAGE - g->offset, PAGER_AHEAD, &lo, &hi, &kind,
                                    &image_error);
        return r < 0 ? r : (int64_t) MIN_OF(n, SNAP_REGION_PAGES - page % SNAP_REGION_PAGES);
}
