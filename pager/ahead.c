/* SPDX-License-Identifier: MIT */
/* Theory of operation. Decoding and mapping are two cursors over one list of units, in the order of need.
 *
 *   decoding  from session.open on, so while the VMM starts: the filling thread takes unit after unit (`next`),
 *             and so does a worker that has nothing to map. Each unit is decoded by one of them
 *   mapping   from the attachment on, by the session's worker, between faults: UFFDIO_CONTINUE (in copy mode
 *             UFFDIO_COPY, see copy.c) for stored pages, UFFDIO_ZEROPAGE for others. A unit that is not decoded
 *             yet is decoded on the spot, or waited for where another thread is at it: it is the next one to be
 *             needed
 *
 * A worker does this only when no fault waits, and one unit at a time: a fault that comes meanwhile waits for
 * one unit's mapping, or its decode, at the most. What turns out to be mapped already (EEXIST) was faulted
 * in, with the pages around it, by a guest that was faster: the rest of that aligned window is skipped. */
#include "pager/ahead.h"

#include <errno.h>
#include <stdlib.h>

#include "pager/copy.h"
#include "pager/lineage.h"
#include "pager/session.h"
#include "pager/uffd.h"

struct pager_ahead *pager_ahead_new(struct pager_image *img, const struct snap_workingset *set) {
        size_t n = 0;
        struct pager_ahead *a;

        for (size_t i = 0; i < set->n_runs; i++)
                n += (size_t) ((set->run[i].n + PAGER_AHEAD_UNIT - 1) / PAGER_AHEAD_UNIT);
        a = calloc(1, sizeof(*a) + n * sizeof(a->unit[0]));
        if (!a)
                return NULL;
        a->refs = 1;
        a->job.image = img;
        a->job.ahead = a;
        a->n_pages = set->n_pages;
        for (size_t i = 0; i < set->n_runs; i++)
                for (uint64_t at = 0; at < set->run[i].n; at += PAGER_AHEAD_UNIT)
                        a->unit[a->n_units++] =
                                (struct snap_run){ set->run[i].first + at, MIN_OF(set->run[i].n - at, PAGER_AHEAD_UNIT) };
        return a;
}

struct pager_ahead *pager_ahead_ref(struct pager_ahead *a) {
        (void) atomic_fetch_add_explicit(&a->refs, 1, memory_order_relaxed);
        return a;
}

void pager_ahead_unref(struct pager_ahead *a) {
        if (a && atomic_fetch_sub_explicit(&a->refs, 1, memory_order_acq_rel) == 1)
                free(a);
}

/* ---- decoding ---- */

int pager_ahead_decode(struct pager_ahead *a, struct pager_image *img, struct pager_scratch *s) {
        size_t i = atomic_load_explicit(&a->next, memory_order_relaxed);
        const struct snap_run *u;

        do
                if (i >= a->n_units)
                        return 0;
        while (!atomic_compare_exchange_weak_explicit(&a->next, &i, i + 1, memory_order_relaxed, memory_order_relaxed));
        u = &a->unit[i];
        for (uint64_t page = u->first; page < u->first + u->n; page++) {
                struct pager_span span = pager_image_span(img, page);
                struct pager_fill_result res;

                if (pager_image_present(span.img, page))
                        continue;
                int r = pager_image_fill_nowait(span.img, s, page, &res);
                if (r == -EBUSY) /* a guest is as far as we are: be ahead of it */
                        continue;
                if (r < 0)
                        return r;
                if (res.kind == PAGER_PAGE_ZERO) {
                        uint64_t end = MIN_OF(u->first + u->n, span.first + span.n);

                        page += MAX_OF(pager_image_zero_run(span.img, s, page, end - page), 1u) - 1;
                }
        }
        return 1;
}

/* ---- mapping ---- */

static int map_pages(struct pager_session *s, uint64_t addr, uint64_t n, bool zero, uint64_t *ret_done) {
        int r = zero ? uffd_zeropage(s->uffd, addr, n * PAGER_PAGE, ret_done)
                     : uffd_continue(s->uffd, addr, n * PAGER_PAGE, ret_done);

        *ret_done /= PAGER_PAGE;
        (void) atomic_fetch_add_explicit(zero ? &s->zero_ahead : &s->pages_ahead, *ret_done, memory_order_relaxed);
        return r;
}

/** From @page on, at most @max pages that can be mapped with one request: present ones, or zero ones. 0: @page
 *  has to be decoded first. */
static uint64_t mappable(struct pager_session *s, struct pager_scratch *scratch, uint64_t page, uint64_t max, bool *ret_zero) {
        struct pager_span span = pager_session_span(s, page);
        uint64_t n = 0;

        max = MIN_OF(max, span.first + span.n - page);
        while (n < max && pager_image_present(span.img, page + n) && !pager_session_removed(s, page + n))
                n++;
        *ret_zero = n == 0;
        if (n > 0)
                return n;
        max = pager_image_zero_run(span.img, scratch, page, max);
        while (n < max && !pager_session_removed(s, page + n))
                n++;
        return n;
}

/** Maps what it can of [@page, @end), which lies in region @g. Returns how many pages are settled, or an error:
 *  -ENODATA: @page is not decoded. */
static int64_t map_some(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t page,
                        uint64_t end) {
        uint64_t n, done;
        bool zero;
        int r;

        if (pager_session_removed(s, page))
                return 1;
        if (s->layout->page_size == PAGER_HUGE_PAGE)
                return pager_copy_ahead_huge(s, g, scratch, page, end - page);
        n = mappable(s, scratch, page, end - page, &zero);
        if (n == 0)
                return -ENODATA;
        if (!zero && s->layout->mode == PAGER_MODE_COPY)
                return pager_copy_ahead(s, g, scratch, page, n);
        r = map_pages(s, g->base + page * PAGER_PAGE - g->offset, n, zero, &done);
        if (r == 0)
                return (int64_t) n;
        if (r == -EEXIST || r == -EFAULT) {
                uint64_t at = page + done;

                /* There already, or punched out again in this very moment. */
                return (int64_t) (MIN_OF(at - at % SNAP_FRAME_PAGES + SNAP_FRAME_PAGES, end) - page);
        }
        return r;
}

static const struct pager_region *region_of(const struct pager_layout *l, uint64_t page) {
        for (size_t i = 0; i < l->n; i++)
                if (l->region[i].offset != PAGER_READS_ZERO && page * PAGER_PAGE >= l->region[i].offset &&
                    page * PAGER_PAGE - l->region[i].offset < l->region[i].size)
                        return &l->region[i];
        return NULL;
}

static int decode_here(struct pager_session *s, struct pager_scratch *scratch, uint64_t page) {
        struct pager_fill_result res;
        int r = pager_ahead_decode(s->ahead, s->image, scratch);

        if (r == 0) /* all are begun: another thread is at this one, or it was punched out since */
                r = pager_image_fill(pager_session_span(s, page).img, scratch, page, PAGER_AHEAD, &res);
        return r < 0 ? r : 0;
}

int pager_ahead_step(struct pager_session *s, struct pager_scratch *scratch) {
        struct pager_ahead *a = s->ahead;
        const struct snap_run *u;
        const struct pager_region *g;

        if (!a || s->ahead_unit >= a->n_units)
                return 0;
        u = &a->unit[s->ahead_unit];
        while (s->ahead_at < u->n) {
                uint64_t page = u->first + s->ahead_at;
                int64_t n = 1;

                g = region_of(s->layout, page);
                if (g)
                        n = map_some(s, g, scratch, page, MIN_OF(u->first + u->n, (g->offset + g->size) / PAGER_PAGE));
                if (n == -ENODATA)
                        return decode_here(s, scratch, page) < 0 ? 0 : 1;
                if (n == -EAGAIN)
                        return -EAGAIN;
                if (n == -ENOENT) /* unmapped; its event is on the way */
                        n = 1;
                if (n < 0)
                        return 0;
                s->ahead_at += (uint64_t) n;
        }
        s->ahead_unit++;
        s->ahead_at = 0;
        return s->ahead_unit < a->n_units;
}
