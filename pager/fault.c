/* SPDX-License-Identifier: MIT */
/* Theory of operation. A turn reads all that the userfaultfd has (the kernel hands out faults before layout
 * events), applies the events to the bitmap of removed pages, and then answers the faults that were read with
 * them: so no answer uses the state from before an event that stands beside it. The kernel helps: while an
 * event is unread or its cause still under way, every request is -EAGAIN.
 *
 * Faults are answered in the order of addresses, so that those in one frame are one answer; going on where the
 * last turn ended, like a lift, so that a guest with many vCPUs cannot starve its own high addresses. A turn is
 * bounded: a guest with a hundred faults waiting costs another guest's one fault a few answers, not a hundred.
 *
 *   page was removed      UFFDIO_ZEROPAGE; never the image's old content
 *   page not stored       UFFDIO_ZEROPAGE for the zero pages around it
 *   page stored           its frame is decoded into the memfd if it is not there, then UFFDIO_CONTINUE for the
 *                         whole run of the frame's pages; in copy mode UFFDIO_COPY, see copy.c
 *
 * The image that is asked for a page, and whose memory is mapped there, is the page's owner: the session's own one or an
 * ancestor of it (lineage.c). No request goes beyond the owner's run.
 *
 * What an errno of these requests tells:
 *   EEXIST  the page is mapped already, by another vCPU's fault or the kernel's fault-around. Nobody was woken
 *           for it: wake the range, or the waiter sleeps on
 *   EAGAIN  the layout changes: read the events, try again, a little later if need be
 *   ENOENT  (a part of) the range is not registered any more, its event is on the way. The one page that
 *           faulted is tried alone; if that is gone too its waiter is woken to find out for itself
 *   EFAULT  (continue) the page was punched out of the memfd since we looked: decode it again
 *   ESRCH   the process is gone
 * A fault that cannot be answered with verified content is not answered at all. */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "common/io.h"
#include "pager/copy.h"
#include "pager/fault_internal.h"
#include "pager/flight_writer.h"
#include "pager/lineage.h"
#include "pager/nascent.h"
#include "pager/record.h"
#include "pager/uffd.h"

/** A write to a protected page: it is copied first, if it is to be, and then it is the VMM's again. One that writes page after
 *  page gets ever more of them at once; one that writes here and there keeps its other pages unwritten in the eyes of the next
 *  fork. */
static int answer_write(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t addr,
                        uint64_t *ret_lo, uint64_t *ret_hi) {
        struct pager_image *img = pager_session_nascent(s);
        uint64_t page = (addr - g->base + g->offset) / PAGER_PAGE, n, max;
        int r = 0;

        if (atomic_load_explicit(&s->holds_writes, memory_order_acquire)) {
                pager_image_unref(img);
                return -EAGAIN;
        }
        s->write_span = addr == s->write_next ? MIN_OF(s->write_span * 2, PAGER_MAX_WRITE_SPAN) : 1;
        n = max = MIN_OF((uint64_t) s->write_span, (g->base + g->size - addr) / PAGER_PAGE);
        if (img && g->offset != PAGER_READS_ZERO) {
                r = pager_nascent_secure(img, scratch, page, max, &n);
                if (r == -EPIPE) { /* nobody needs the old content any more */
                        n = max;
                        r = 0;
                }
        }
        pager_image_unref(img);
        if (r == 0)
                r = uffd_protect(s->uffd, addr, n * PAGER_PAGE, false);
        *ret_lo = addr;
        *ret_hi = s->write_next = addr + n * PAGER_PAGE;
        return r == -ENOENT ? uffd_wake(s->uffd, addr, n * PAGER_PAGE) : r;
}

typedef int range_fn(int fd, uint64_t start, uint64_t len, uint64_t *ret_done);

/** Resolves [@lo, @hi), which holds the fault at @addr, with @fn. Returns 0 when the fault needs no more
 *  attention, and adds the pages that were mapped to *@count. *@ret_there (may be NULL): the kernel said that the faulting page is
 *  there already. */
static int resolve(struct pager_session *s, range_fn *fn, uint64_t lo, uint64_t hi, uint64_t addr, _Atomic uint64_t *count,
                   bool *ret_there) {
        uint64_t done;
        int r = fn(s->uffd, lo, hi - lo, &done);

        (void) atomic_fetch_add_explicit(count, done / PAGER_PAGE, memory_order_relaxed);
        if (r == 0)
                return 0;
        if (r == -EEXIST || r == -ENOENT) {
                bool before = addr > lo + done; /* the range stops before the fault, or at it */

                if (ret_there)
                        *ret_there = r == -EEXIST && addr == lo + done;
                if (addr >= lo + done && (before || r == -ENOENT) && (lo != addr || hi != addr + PAGER_PAGE)) {
                        r = fn(s->uffd, addr, PAGER_PAGE, &done);
                        (void) atomic_fetch_add_explicit(count, done / PAGER_PAGE, memory_order_relaxed);
                        if (ret_there)
                                *ret_there = r == -EEXIST;
                }
                if (r == -EEXIST || r == -ENOENT)
                        r = 0;
                if (r == 0)
                        (void) uffd_wake(s->uffd, lo, hi - lo);
        }
        return r;
}

/** The same with the zero page. Where there is no page the kernel may have a mark that it is protected, which is EEXIST for this
 *  request though the page is missing: it goes away as the protection of a page does. */
static int resolve_zero(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t lo,
                        uint64_t hi, uint64_t addr) {
        bool there = false;
        uint64_t from, to;
        int r = resolve(s, uffd_zeropage, lo, hi, addr, &s->zero_pages, &there);

        if (r < 0 || !there || !atomic_load_explicit(&s->protects, memory_order_relaxed) || g->offset == PAGER_READS_ZERO)
                return r;
        s->write_next = 0; /* of this page alone */
        return answer_write(s, g, scratch, addr, &from, &to);
}

/** The guest pages of [first, first + n) that lie in @g and were not removed, as addresses around @page. */
static void clip(const struct pager_session *s, const struct pager_region *g, uint64_t page, uint64_t first, uint64_t n,
                 uint64_t *ret_lo, uint64_t *ret_hi) {
        uint64_t region_first = g->offset / PAGER_PAGE, region_end = region_first + g->size / PAGER_PAGE;
        uint64_t lo = page, hi = page + 1, min = MAX_OF(first, region_first), max = MIN_OF(first + n, region_end);

        while (lo > min && !pager_session_removed(s, lo - 1))
                lo--;
        while (hi < max && !pager_session_removed(s, hi))
                hi++;
        *ret_lo = g->base + lo * PAGER_PAGE - g->offset;
        *ret_hi = g->base + hi * PAGER_PAGE - g->offset;
}

/** The zero pages around @page, within its window. Windows are aligned, so that a guest that goes down
 *  through its memory is served as well as one that goes up. */
static void zero_window(const struct pager_span *span, struct pager_scratch *scratch, uint64_t page, uint64_t *ret_first,
                        uint64_t *ret_n) {
        uint64_t start = page - page % PAGER_ZERO_WINDOW, width = PAGER_ZERO_WINDOW, end;

        pager_span_clip(span, &start, &width);
        end = start + width;
        for (uint64_t p = start; p <= page;) {
                uint64_t n = pager_image_zero_run(span->img, scratch, p, end - p);

                if (p + n > page) {
                        *ret_first = p;
                        *ret_n = n;
                        return;
                }
                p += n + 1; /* the page behind a run is stored */
        }
        *ret_first = page;
        *ret_n = 1;
}

/** The addresses around @addr in @g, within an aligned window, that have nothing to show any more. */
static void removed_window(const struct pager_session *s, const struct pager_region *g, uint64_t addr, uint64_t *ret_lo,
                           uint64_t *ret_hi) {
        uint64_t window = PAGER_ZERO_WINDOW * PAGER_PAGE, min = MAX_OF(addr - addr % window, g->base);
        uint64_t max = MIN_OF(addr - addr % window + window, g->base + g->size), lo = addr, hi = addr + PAGER_PAGE;
        bool all = g->offset == PAGER_READS_ZERO;

        while (lo > min && (all || pager_session_removed(s, (lo - PAGER_PAGE - g->base + g->offset) / PAGER_PAGE)))
                lo -= PAGER_PAGE;
        while (hi < max && (all || pager_session_removed(s, (hi - g->base + g->offset) / PAGER_PAGE)))
                hi += PAGER_PAGE;
        *ret_lo = lo;
        *ret_hi = hi;
}

static int answer_huge(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t addr,
                       uint64_t *ret_lo, uint64_t *ret_hi, enum pager_fault_kind *ret_kind) {
        bool image_error;
        int r = pager_copy_huge(s, g, scratch, addr, PAGER_DEMAND, ret_lo, ret_hi, ret_kind, &image_error);

        return image_error ? pager_fault_fail(s, r == -ESRCH || r == -EAGAIN ? -EIO : r, pager_image_reason(r)) : r;
}

/** The page of the fault can be mapped, the rest of its frame cannot yet. */
static void answer_early(void *arg) {
        struct pager_session *s = arg;
        uint64_t done;
        int r = uffd_continue(s->uffd, s->early_addr, PAGER_PAGE, &done);

        (void) atomic_fetch_add_explicit(&s->pages_installed, done / PAGER_PAGE, memory_order_relaxed);
        if (r == -EEXIST)
                r = uffd_wake(s->uffd, s->early_addr, PAGER_PAGE);
        if (r == 0)
                s->early_ns = now_ns();
}

/** The rest of [@lo, @hi), for which nobody waits. */
static void map_rest(struct pager_session *s, uint64_t lo, uint64_t hi) {
        uint64_t at = s->early_addr, before = 0, behind = 0;

        if (at > lo)
                best_effort(uffd_continue(s->uffd, lo, at - lo, &before));
        if (hi > at + PAGER_PAGE)
                best_effort(uffd_continue(s->uffd, at + PAGER_PAGE, hi - at - PAGER_PAGE, &behind));
        (void) atomic_fetch_add_explicit(&s->pages_installed, (before + behind) / PAGER_PAGE, memory_order_relaxed);
}

static int answer(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t page,
                  uint64_t addr, uint64_t *ret_lo, uint64_t *ret_hi, enum pager_fault_kind *ret_kind) {
        struct pager_fill_result fill;
        struct pager_span span;
        uint64_t first, n;
        int r;

        if (g->offset == PAGER_READS_ZERO || pager_session_removed(s, page)) {
                *ret_kind = PAGER_FAULT_REMOVED;
                removed_window(s, g, addr, ret_lo, ret_hi);
                return resolve_zero(s, g, scratch, *ret_lo, *ret_hi, addr);
        }
        span = pager_session_span(s, page); /* no request goes beyond it: it is one mapping */
        /* Where only one waits its page comes first: it runs while the rest of the frame is put there. */
        s->early_addr = addr;
        if (s->n_pending == 1 && s->layout->mode == PAGER_MODE_MEMFD)
                r = pager_image_fill_early(span.img, scratch, page, answer_early, s, &fill);
        else
                r = pager_image_fill(span.img, scratch, page, PAGER_DEMAND, &fill);
        if (r < 0)
                return pager_fault_fail(s, r == -ESRCH || r == -EAGAIN ? -EIO : r, pager_image_reason(r));
        if (fill.kind == PAGER_PAGE_ZERO) {
                *ret_kind = PAGER_FAULT_ZERO;
                zero_window(&span, scratch, page, &first, &n);
                clip(s, g, page, first, n, ret_lo, ret_hi);
                return resolve_zero(s, g, scratch, *ret_lo, *ret_hi, addr);
        }
        *ret_kind = fill.kind == PAGER_PAGE_DECODED ? PAGER_FAULT_MISSING : PAGER_FAULT_PRESENT;
        pager_span_clip(&span, &fill.first, &fill.n);
        if (s->layout->mode == PAGER_MODE_COPY)
                return pager_copy_pages(s, g, scratch, &fill, page, addr, ret_lo, ret_hi);
        clip(s, g, page, fill.first, fill.n, ret_lo, ret_hi);
        if (s->early_ns) {
                map_rest(s, *ret_lo, *ret_hi);
                return 0;
        }
        r = resolve(s, uffd_continue, *ret_lo, *ret_hi, addr, &s->pages_installed, NULL);
        if (r == -EFAULT) {
                pager_image_recheck(span.img, scratch, fill.first, fill.n);
                return -EAGAIN;
        }
        return r;
}

/** A page of a session that has failed and whose VMM could not be ended: the kernel ends it. */
static int poison(struct pager_session *s, uint64_t addr, uint64_t *ret_lo, uint64_t *ret_hi, enum pager_fault_kind *ret_kind) {
        uint64_t start = addr - addr % s->layout->page_size, done;
        int r = uffd_poison(s->uffd, start, s->layout->page_size, &done);

        if (r == -EEXIST || r == -ENOENT)
                r = uffd_wake(s->uffd, start, s->layout->page_size);
        *ret_lo = start;
        *ret_hi = start + s->layout->page_size;
        *ret_kind = PAGER_FAULT_REMOVED;
        return r;
}

/** Answers one fault. [*ret_lo, *ret_hi) is what was resolved, and its waiters
 *  woken. */
static int serve_fault(struct pager_session *s, struct pager_scratch *scratch, const struct pager_pending *fault,
                       uint64_t *ret_lo, uint64_t *ret_hi, enum pager_fault_kind *ret_kind) {
        uint64_t addr = fault->addr;
        const struct pager_region *g = pager_layout_find(s->layout, addr);
        int r;

        if (s->poison)
                return poison(s, addr, ret_lo, ret_hi, ret_kind);
        if (!g && s->layout->mode == PAGER_MODE_COPY && uffd_changing(s->uffd))
                return -EAGAIN; /* a move is under way, whose event tells of this address */
        if (!g)
                return pager_fault_fail(s, -EPROTO, "the VMM faulted at an address that it had not told of");
        pager_flight_begin(scratch->flight, s, g->offset == PAGER_READS_ZERO ? 0 : (addr - g->base + g->offset) / PAGER_PAGE);
        if (fault->write) {
                *ret_kind = PAGER_FAULT_WRITE;
                r = answer_write(s, g, scratch, addr, ret_lo, ret_hi);
        } else if (s->layout->page_size == PAGER_HUGE_PAGE)
                r = answer_huge(s, g, scratch, addr, ret_lo, ret_hi, ret_kind);
        else
                r = answer(s, g, scratch, (addr - g->base + g->offset) / PAGER_PAGE, addr, ret_lo, ret_hi, ret_kind);
        if (r == -ENOMEM && !s->fail_reason[0])
                return pager_fault_fail(s, r, "out of memory for the VMM's pages or page tables");
        if (r < 0 && r != -EAGAIN && r != -ESRCH && !s->fail_reason[0])
                return pager_fault_fail(s, r, "the kernel refused to put a page into the VMM");
        return r;
}

static void count(struct pager_session *s, enum pager_fault_kind kind, uint64_t read_ns, uint64_t begin_ns, uint64_t end_ns) {
        hist_add(&s->wait, begin_ns - read_ns);
        hist_add(&s->service, end_ns - begin_ns);
        (void) atomic_fetch_add_explicit(&s->faults[kind], 1, memory_order_relaxed);
}

/** A zero page was asked for and is answered: its neighbours cost less now than a fault each later. They wake
 *  nobody, so whatever stands in the way ends it. */
static void map_more_zeros(struct pager_session *s, const struct pager_region *g, struct pager_scratch *scratch, uint64_t page) {
        uint64_t end = page - page % PAGER_ZERO_WINDOW + PAGER_ZERO_WINDOW, lo, hi, done;
        uint64_t p = page - page % PAGER_ZERO_WINDOW;

        p = MAX_OF(p, g->offset / PAGER_PAGE);
        end = MIN_OF(end, (g->offset + g->size) / PAGER_PAGE);
        for (unsigned runs = 0; p < end && runs < PAGER_ZERO_RUNS;) {
                struct pager_span span = pager_session_span(s, p);
                uint64_t stop = MIN_OF(end, span.first + span.n);
                uint64_t n = pager_session_removed(s, p) ? 0 : pager_image_zero_run(span.img, scratch, p, stop - p);
                bool answered = page >= p && page < p + n;
                int r;

                if (n == 0) {
                        p++;
                        continue;
                }
                clip(s, g, p, p, n, &lo, &hi);
                n = (hi - lo) / PAGER_PAGE;
                if (!answered) {
                        runs++;
                        r = uffd_zeropage(s->uffd, lo, hi - lo, &done);
                        (void) atomic_fetch_add_explicit(&s->zero_pages, done / PAGER_PAGE, memory_order_relaxed);
                        if (r < 0 && r != -EEXIST)
                                return;
                        if (s->record && done > 0)
                                pager_record_add_gift(s->record, p, done / PAGER_PAGE);
                }
                p += n;
        }
}

/** Records what came with an answer. Of a decoded frame all pages: the kernel maps those around a fault that are
 *  in the memfd, and we never hear of them. */
static void note_need(struct pager_session *s, const struct pager_scratch *scratch, enum pager_fault_kind kind, uint64_t lo,
                      uint64_t hi) {
        const struct pager_region *g = pager_layout_find(s->layout, lo);

        if (!g || kind == PAGER_FAULT_REMOVED || kind == PAGER_FAULT_WRITE)
                return;
        if (kind == PAGER_FAULT_MISSING && s->layout->page_size == PAGER_PAGE) {
                struct pager_span span = pager_session_span(s, (lo - g->base + g->offset) / PAGER_PAGE);

                for (unsigned i = 0; i < scratch->n_runs; i++) {
                        uint64_t first = scratch->run[i].first, n = scratch->run[i].n;

                        pager_span_clip(&span, &first, &n);
                        if (n > 0)
                                pager_record_add(s->record, first, n);
                }
        } else {
                pager_record_add(s->record, (lo - g->base + g->offset) / PAGER_PAGE, (hi - lo) / PAGER_PAGE);
        }
}

/** The pending fault whose turn it is. */
static unsigned next_pending(const struct pager_session *s) {
        unsigned i = 0;

        while (i < s->n_pending && s->pending[i].addr < s->sweep)
                i++;
        return i < s->n_pending ? i : 0;
}

/** Gives up to PAGER_QUANTUM answers. */
static int serve_pending(struct pager_session *s, struct pager_scratch *scratch) {
        uint64_t begin = now_ns(), first = begin;
        int r = 0;

        for (unsigned n = 0; n < PAGER_QUANTUM && s->n_pending > 0; n++) {
                unsigned i = next_pending(s), end = i;
                enum pager_fault_kind kind;
                uint64_t lo, hi, now;

                s->early_ns = 0;
                if (atomic_load_explicit(&s->dropping, memory_order_relaxed))
                        r = -ECANCELED;
                else
                        r = serve_fault(s, scratch, &s->pending[i], &lo, &hi, &kind);
                if (r < 0)
                        break;
                now = s->early_ns ? s->early_ns : now_ns();
                while (i > 0 && s->pending[i - 1].addr >= lo)
                        i--;
                for (end = i; end < s->n_pending && s->pending[end].addr < hi; end++)
                        count(s, kind, s->pending[end].since_ns, begin, now);
                s->n_pending -= end - i;
                memmove(s->pending + i, s->pending + end, (s->n_pending - i) * sizeof(s->pending[0]));
                s->sweep = hi;
                if (s->record)
                        note_need(s, scratch, kind, lo, hi);
                if (kind == PAGER_FAULT_ZERO && s->layout->page_size == PAGER_PAGE) {
                        const struct pager_region *g = pager_layout_find(s->layout, lo);

                        map_more_zeros(s, g, scratch, (lo - g->base + g->offset) / PAGER_PAGE);
                }
                pager_flight_end(scratch->flight);
                begin = s->early_ns || kind == PAGER_FAULT_ZERO ? now_ns() : now;
        }
        if (r < 0)
                pager_flight_end(scratch->flight);
        (void) atomic_fetch_add_explicit(&s->busy_ns, begin - first, memory_order_relaxed);
        return r < 0 ? r : s->n_pending > 0;
}

static void set_oldest(struct pager_session *s) {
        uint64_t oldest = 0;

        for (unsigned i = 0; i < s->n_pending; i++)
                if (!oldest || s->pending[i].since_ns < oldest)
                        oldest = s->pending[i].since_ns;
        atomic_store_explicit(&s->oldest_ns, oldest, memory_order_relaxed);
}

int pager_session_serve(struct pager_session *s, struct pager_scratch *scratch) {
        int r = -EAGAIN;

        s->fail_reason[0] = '\0';
        s->reads = 0;
        s->turn_ns = now_ns();
        for (unsigned round = 0; r == -EAGAIN && round < PAGER_RETRY_ROUNDS; round++) {
                if (round > 0)
                        (void) sched_yield(); /* lets the thread whose event we read go on */
                r = pager_events_read(s);
                if (r == 0 && s->dropped && s->n_pending < PAGER_MAX_PENDING) /* nothing is left to be read */
                        pager_events_raise(s);
                if (r == 0)
                        r = serve_pending(s, scratch);
                if (r == -EAGAIN && s->n_pending == PAGER_MAX_PENDING)
                        pager_events_drop(s);
        }
        if (r != -ECANCELED && !s->dropped) /* those wait since then */
                set_oldest(s);
        return r;
}
