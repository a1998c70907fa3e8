/* SPDX-License-Identifier: MIT */
/* Theory of operation. After a live fork what the source had written is there twice: in its own anonymous pages, and in the new
 * image's memory. Where it has not written since, it is the same; so the source may as well map it from there, as the clones do.
 * Then each page is held once, the source's next write to it is an ordinary copy-on-write, and nothing of it stays protected.
 *
 *      holding    writes to protected pages wait (answer_write in fault.c); the worker is asked to catch up, so that none
 *                 is being answered any more. The image is pinned: what it has in memory stays there
 *      asked      what is noted in the image, not written since and in its memory goes to the VMM, as runs; its attach library
 *                 maps them over what is there (attach/rebase.c)
 *      answered   the new mappings are registered. The worker catches up again: it may have read that the old ones are gone, and
 *                 not come to it yet. Then writes go on
 *
 * While it is under way the content of these pages is the same on both sides, and nobody can write them: so it does not matter when
 * a vCPU looks. The new mappings have no holes, until they are registered: a hole that is touched before would be filled
 * with zeros, for all clones.
 *
 * The kernel tells that the old mappings are gone (UNMAP). These pages were not discarded: events about runs that are being
 * replaced are known by their addresses.
 *
 * From then on these runs are the new image's in the session's view (session.h); before those that its own image tells.
 *
 * A VMM that does not answer keeps its own writes waiting. When that takes too long the session fails. */
#include "pager/rebase.h"

#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "common/pagemap.h"
#include "pager/attach/segments.h"
#include "pager/mapping.h"
#include "pager/nascent.h"
#include "pager/pager_internal.h"
#include "pager/segments.h"
#include "pager/uffd.h"

#define MIN_RUN_PAGES 16u /* a mapping for less is not worth it */
#define MAX_RUNS 512u     /* in one rebase: each costs the VMM a mapping, and some microseconds */
#define MAX_VIEW 4096u    /* of all; a process may have 65,530 mappings (vm.max_map_count) */

_Static_assert(MAX_RUNS <= SEGMENTS_MAX, "all runs fit into one message");

struct pager_rebase {
        struct pager_image *img; /* a reference, and a pin */
        int pagemap_fd;
        bool answered;
        struct pager_view *fresh; /* what is being replaced */
        uint64_t pages, begun_ns;
        struct event *deadline;
        struct pager_waiter unprotect; /* session.unprotect, to be done when it is over */
};

static void free_rebase(struct pager_rebase *o) {
        pager_image_unpin(o->img);
        pager_image_unref(o->img);
        (void) close_fd(o->pagemap_fd);
        pager_view_free(o->fresh);
        if (o->deadline)
                event_free(o->deadline);
        if (o->unprotect.conn)
                rpc_conn_unref(o->unprotect.conn);
        free(o);
}

/** It is over, for good or bad. */
static void finish(struct pager_session *s) {
        struct pager_rebase *o = TAKE_PTR(s->rebase);
        cleanup_mp_buf struct mp_buf b = { 0 };

        pager_session_set_replaced(s, NULL);
        atomic_store_explicit(&s->holds_writes, false, memory_order_release);
        if (s->attached && s->uffd >= 0)
                for (size_t i = 0; i < s->layout->n; i++) /* whoever waits asks again */
                        best_effort(uffd_wake(s->uffd, s->layout->region[i].base, s->layout->region[i].size));
        pager_nascent_shed(o->img, o->fresh);
        if (o->pages > 0)
                log_debug("session %s: %llu pages are the new image's, %.1f ms", s->id, (unsigned long long) o->pages,
                          ms_since(o->begun_ns));
        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_str(&b, "session", s->id);
        mp_kv_u64(&b, "pages", o->pages);
        mp_kv_double(&b, "ms", ms_since(o->begun_ns));
        pager_notify(s->pager, "session.rebased", &b, NULL, 0);
        if (o->unprotect.conn) {
                pager_live_unprotect(s);
                (void) rpc_reply(o->unprotect.conn, o->unprotect.msgid, NULL, NULL, 0);
        }
        free_rebase(o);
        pager_live_go_on(s);
}

int pager_rebase_unprotect(struct pager_session *s, struct rpc_conn *conn, uint32_t msgid, struct err *e) {
        if (s->rebase->unprotect.conn)
                return err_set(e, ERR_BUSY, -EBUSY, "session.unprotect of session %s is under way", s->id);
        s->rebase->unprotect = (struct pager_waiter){ rpc_conn_ref(conn), msgid };
        return 0;
}

static void on_deadline(evutil_socket_t fd, short what, void *arg) {
        static const struct timeval again = { .tv_sec = 1 };
        struct pager_session *s = arg;
        uint64_t oldest = atomic_load_explicit(&s->oldest_ns, memory_order_relaxed);

        if (oldest && now_ns() > oldest && (now_ns() - oldest) / 1000000 > PAGER_REBASE_SECONDS * 1000ull)
                pager_fail_session(s->pager, s,
                                   "the VMM does not map its memory anew, as it was told, and its writes wait for it");
        else
                (void) event_add(s->rebase->deadline, &again);
}

int pager_rebase_begin(struct pager_session *s, struct pager_image *img, int pagemap_fd) {
        static const struct timeval soon = { .tv_sec = 1 };
        cleanup_fd int pagemap = pagemap_fd;
        struct pager_rebase *o;

        if (!s->peer || pager_peer_is_process(pager_peer_fd(s->peer)) || s->failed || s->ending || s->moving || s->rebase)
                return -EOPNOTSUPP;
        o = calloc(1, sizeof(*o));
        if (!o)
                return -ENOMEM;
        o->deadline = evtimer_new(s->pager->base, on_deadline, s);
        if (!o->deadline || event_add(o->deadline, &soon) < 0) {
                if (o->deadline)
                        event_free(o->deadline);
                free(o);
                return -ENOMEM;
        }
        o->img = pager_image_ref(img);
        o->pagemap_fd = TAKE_FD(pagemap);
        o->begun_ns = now_ns();
        pager_image_pin(img);
        s->rebase = o;
        atomic_store_explicit(&s->holds_writes, true, memory_order_release);
        pager_live_sync(s); /* whatever the worker has in hand is done then; it stays with this one: balance.c */
        return 0;
}

/* ---- which pages ---- */

static bool bit(const uint64_t *bits, uint64_t page) {
        return bits[page / 64] >> (page % 64) & 1;
}

struct search {
        struct pager_session *s;
        const struct pager_region *g;
        uint64_t *bits; /* of pages that may be replaced */
};

static int on_written(uint64_t addr, uint64_t n, void *arg) {
        struct search *f = arg;
        uint64_t first = (addr - f->g->base + f->g->offset) / PAGER_PAGE;

        for (uint64_t p = first; p < first + n; p++)
                f->bits[p / 64] &= ~(1ull << (p % 64));
        return 0;
}

/** Noted, and neither written nor discarded, and in the image's memory. The caller frees *ret. */
static int find_pages(struct pager_session *s, uint64_t **ret) {
        struct pager_image *img = s->rebase->img;
        uint64_t n_pages = pager_image_pages(img), words = (n_pages + 63) / 64;
        cleanup_free uint64_t *bits = calloc(words, sizeof(*bits));
        struct search f = { .s = s, .bits = bits };
        int r = 0;

        if (!bits)
                return -ENOMEM;
        memcpy(bits, pager_nascent_noted(img), words * sizeof(*bits));
        for (size_t i = 0; r == 0 && i < s->layout->n; i++) {
                f.g = &s->layout->region[i];
                if (f.g->offset != PAGER_READS_ZERO)
                        r = pagemap_written(s->rebase->pagemap_fd, PAGEMAP_ANY, f.g->base, f.g->base + f.g->size, on_written, &f);
        }
        for (uint64_t p = 0; r == 0 && p < n_pages; p++) {
                if (bits[p / 64] == 0) {
                        p |= 63;
                        continue;
                }
                if (bit(bits, p) && (pager_session_removed(s, p) || !pager_image_present(img, p)))
                        bits[p / 64] &= ~(1ull << (p % 64));
        }
        if (r == 0)
                *ret = TAKE_PTR(bits);
        return r;
}

/** The run of pages at or after @page that is in one region: its length, 0 at the end; *ret_first. */
static uint64_t next_run(const struct pager_session *s, const uint64_t *bits, uint64_t page, uint64_t *ret_first) {
        uint64_t n_pages = pager_image_pages(s->image), n = 0;
        const struct pager_region *g;

        while (page < n_pages && !bit(bits, page))
                page = bits[page / 64] >> (page % 64) ? page + 1 : (page | 63) + 1;
        if (page >= n_pages)
                return 0;
        g = pager_layout_find_offset(s->layout, page * PAGER_PAGE);
        if (!g)
                return 0; /* noted pages lie in a region */
        while (page + n < n_pages && bit(bits, page + n) && (page + n) * PAGER_PAGE < g->offset + g->size)
                n++;
        *ret_first = page;
        return n;
}

/** The runs of at least @min pages; @v NULL: only counts them. */
static size_t collect(const struct pager_session *s, const uint64_t *bits, uint64_t min, struct pager_view *v) {
        uint64_t first, n;
        size_t count = 0;

        for (uint64_t page = 0; (n = next_run(s, bits, page, &first)) > 0; page = first + n) {
                if (n < min)
                        continue;
                count++;
                if (v)
                        pager_view_add(v, first, n, s->rebase->img);
        }
        return count;
}

static struct pager_view *find_runs(struct pager_session *s) {
        cleanup_free uint64_t *bits = NULL;
        uint64_t min = MIN_RUN_PAGES;
        struct pager_view *v;
        size_t count;

        if (find_pages(s, &bits) < 0)
                return NULL;
        while ((count = collect(s, bits, min, NULL)) > MAX_RUNS)
                min *= 2;
        v = count > 0 ? pager_view_new(count) : NULL;
        if (v)
                (void) collect(s, bits, min, v);
        return v;
}

/** What is left of @old in [@first, @end) goes to @v. */
static void keep_old(struct pager_view *v, const struct pager_view *old, uint64_t first, uint64_t end) {
        for (size_t i = 0; old && i < old->n; i++) {
                uint64_t lo = MAX_OF(first, old->run[i].first), hi = MIN_OF(end, old->run[i].first + old->run[i].n);

                if (lo < hi && v->n < v->cap)
                        pager_view_add(v, lo, hi - lo, old->run[i].img);
        }
}

/** The session's view with @fresh over it. NULL: it would have too many runs. */
static struct pager_view *overlay(const struct pager_session *s, const struct pager_view *fresh) {
        size_t n_old = s->view ? s->view->n : 0, cap = 2 * fresh->n + n_old + 1;
        struct pager_view *v = cap <= MAX_VIEW ? pager_view_new(cap) : NULL;
        uint64_t at = 0;

        for (size_t i = 0; v && i < fresh->n; i++) {
                keep_old(v, s->view, at, fresh->run[i].first);
                pager_view_add(v, fresh->run[i].first, fresh->run[i].n, fresh->run[i].img);
                at = fresh->run[i].first + fresh->run[i].n;
        }
        if (v)
                keep_old(v, s->view, at, UINT64_MAX);
        return v;
}

/* ---- asking ---- */

void pager_rebase_synced(struct pager_session *s) {
        struct pager_rebase *o = s->rebase;
        struct pager_view *view = NULL;

        if (o->answered) {
                finish(s);
                return;
        }
        if (!s->failed && !s->ending && s->peer)
                o->fresh = find_runs(s);
        if (o->fresh)
                view = overlay(s, o->fresh);
        if (!view) {
                finish(s);
                return;
        }
        /* Before it is so: until then none of these pages is missing, so nobody asks. */
        pager_session_set_view(s, view);
        pager_session_pin_view(s->pager, s);
        pager_session_set_replaced(s, o->fresh);
        if (pager_segments_send_anew(pager_peer_fd(s->peer), o->img, o->fresh) < 0) {
                finish(s);
                return;
        }
        for (size_t i = 0; i < o->fresh->n; i++)
                o->pages += o->fresh->run[i].n;
        pager_peer_ask(s->peer);
}

/** The new mappings are registered as the others are. */
static int watch(const struct pager_session *s, const struct pager_view *v) {
        int r = 0;

        for (size_t i = 0; r == 0 && i < v->n; i++) {
                uint64_t at = v->run[i].first * PAGER_PAGE;
                const struct pager_region *g = pager_layout_find_offset(s->layout, at);

                if (g)
                        r = uffd_register_as(s->uffd, g->base + (at - g->offset), v->run[i].n * PAGER_PAGE, true, true);
        }
        return r;
}

void pager_rebase_answered(struct pager_session *s) {
        if (!s->rebase || !s->rebase->fresh || s->rebase->answered)
                return;
        if (watch(s, s->rebase->fresh) < 0) {
                /* Holes must not come to be in what nobody watches: the image stays pinned. */
                pager_fail_session(s->pager, s, "what the VMM has mapped anew is not there, or cannot be watched");
                return;
        }
        s->rebase->answered = true;
        pager_live_sync(s);
}

void pager_rebase_forget(struct pager_session *s) {
        if (!s->rebase)
                return;
        pager_session_set_replaced(s, NULL);
        free_rebase(TAKE_PTR(s->rebase));
}
