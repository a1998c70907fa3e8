/* SPDX-License-Identifier: MIT */
/* What a session's userfaultfd tells: fault.c has the theory. */
#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "pager/copy.h"
#include "pager/fault_internal.h"
#include "pager/nascent.h"
#include "pager/uffd.h"

int pager_fault_fail(struct pager_session *s, int r, const char *reason) {
        (void) snprintf(s->fail_reason, sizeof(s->fail_reason), "%s", reason);
        return r;
}

static void add_fault(struct pager_session *s, uint64_t addr, bool write, uint64_t now) {
        unsigned at = s->n_pending++;

        addr &= ~(PAGER_PAGE - 1);
        for (; at > 0 && s->pending[at - 1].addr > addr; at--)
                s->pending[at] = s->pending[at - 1];
        s->pending[at] = (struct pager_pending){ addr, now, write };
        if (!atomic_load_explicit(&s->oldest_ns, memory_order_relaxed))
                atomic_store_explicit(&s->oldest_ns, now, memory_order_relaxed);
}

/** Memory that moves keeps its guest pages; those who wait at the old place look again. */
static int apply_move(struct pager_session *s, uint64_t from, uint64_t to, uint64_t len) {
        int r;

        if (s->layout->mode != PAGER_MODE_COPY)
                return pager_fault_fail(s, -EPROTO, "the VMM moved guest memory to another address");
        r = pager_copy_moved(s, from, to, len);
        if (r == -E2BIG)
                return pager_fault_fail(s, -EPROTO, "the VMM has moved its memory about until it lies in too many pieces");
        if (r < 0)
                return pager_fault_fail(s, r == -ENOMEM ? r : -EPROTO, "a move of the VMM's memory cannot be followed");
        (void) uffd_wake(s->uffd, from, len);
        return 0;
}

/** What was to be copied of [@start, @end) is gone. */
static void tell_nascent(struct pager_session *s, uint64_t start, uint64_t end) {
        struct pager_image *img = pager_session_nascent(s);

        for (size_t i = 0; img && i < s->layout->n; i++) {
                const struct pager_region *g = &s->layout->region[i];
                uint64_t from = MAX_OF(start, g->base), to = MIN_OF(end, g->base + g->size);

                if (from < to && g->offset != PAGER_READS_ZERO)
                        pager_nascent_discarded(img, (from - g->base + g->offset) / PAGER_PAGE,
                                                (to - from + PAGER_PAGE - 1) / PAGER_PAGE);
        }
        pager_image_unref(img);
}

static int apply_message(struct pager_session *s, const struct uffd_msg *m, uint64_t now) {
        bool write;

        switch (m->event) {
        case UFFD_EVENT_PAGEFAULT:
                write = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP;
                if (m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR ||
                    (write && !atomic_load_explicit(&s->protects, memory_order_acquire)))
                        return pager_fault_fail(s, -EPROTO,
                                                "the VMM registered its memory in another mode than for missing pages");
                add_fault(s, m->arg.pagefault.address, write, now);
                return 0;
        case UFFD_EVENT_REMOVE:
        case UFFD_EVENT_UNMAP:
                if (m->arg.remove.start >= m->arg.remove.end)
                        return pager_fault_fail(s, -EPROTO, "the kernel reported an empty range");
                if (m->event == UFFD_EVENT_UNMAP && pager_session_replaces(s, m->arg.remove.start, m->arg.remove.end))
                        return 0; /* who waits there is woken when what has come in its place is registered */
                pager_session_mark_removed(s, m->arg.remove.start, m->arg.remove.end);
                tell_nascent(s, m->arg.remove.start, m->arg.remove.end);
                /* Whoever waits for a page of the old mapping is not woken by its end. */
                (void) uffd_wake(s->uffd, m->arg.remove.start, m->arg.remove.end - m->arg.remove.start);
                return 0;
        case UFFD_EVENT_REMAP:
                return apply_move(s, m->arg.remap.from, m->arg.remap.to, m->arg.remap.len);
        case UFFD_EVENT_FORK:
                (void) close_fd((int) m->arg.fork.ufd); /* reading the event has put it among ours */
                return pager_fault_fail(s, -EPROTO, "the VMM forked with its guest's memory");
        default:
                return pager_fault_fail(s, -EPROTO, "the VMM's userfaultfd sent an event that was not agreed on");
        }
}

int pager_events_read(struct pager_session *s) {
        struct uffd_msg msgs[PAGER_EVENT_BATCH];
        int failed = 0;

        while (s->n_pending < PAGER_MAX_PENDING) {
                unsigned room = MIN_OF((unsigned) ARRAY_LEN(msgs), PAGER_MAX_PENDING - s->n_pending);
                int n;

                if (s->reads++ == PAGER_MAX_READS)
                        return 1;
                n = uffd_read(s->uffd, msgs, room);
                if (n == -EAGAIN)
                        return 0;
                if (n < 0)
                        return pager_fault_fail(s, n, "the VMM's userfaultfd cannot be read");
                uint64_t now = now_ns();
                for (int i = 0; i < n; i++) {
                        /* Those behind a bad one are applied, too: some bring a descriptor. */
                        int r = apply_message(s, &msgs[i], now);
                        failed = failed < 0 ? failed : r;
                }
                if (failed < 0)
                        return failed;
                if ((unsigned) n < room)
                        return 0;
                if (now_ns() - s->turn_ns > PAGER_TURN_US * 1000ull)
                        return 1;
        }
        return 0;
}

/** Whoever waits where we know of no memory finds out for himself: pager_events_raise() will not reach him. */
static void forget_pending(struct pager_session *s) {
        for (unsigned i = 0; i < s->n_pending; i++)
                if (!pager_layout_find(s->layout, s->pending[i].addr))
                        (void) uffd_wake(s->uffd, s->pending[i].addr, PAGER_PAGE);
        s->n_pending = 0;
}

void pager_events_drop(struct pager_session *s) {
        forget_pending(s);
        s->dropped = true;
}

void pager_events_raise(struct pager_session *s) {
        const struct pager_region *first = &s->layout->region[0], *last = &s->layout->region[s->layout->n - 1];

        forget_pending(s);
        s->dropped = false;
        (void) uffd_wake(s->uffd, first->base, last->base + last->size - first->base);
}
