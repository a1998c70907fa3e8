/* SPDX-License-Identifier: MIT */
#include "pager/session.h"

#include <errno.h>
#include <string.h>

#include "pager/ahead.h"
#include "pager/bits.h"
#include "pager/record.h"

const char *const pager_fault_names[PAGER_N_FAULTS] = { "missing", "zero", "present", "removed", "write" };

int pager_session_new(const char *id, struct pager_image *image, struct pager_session **ret) {
        __attribute__((cleanup(pager_session_free_p))) struct pager_session *s = calloc(1, sizeof(*s));
        uint64_t pages = pager_image_pages(image);

        if (!s)
                return -ENOMEM;
        s->uffd = -1;
        (void) pthread_mutex_init(&s->lock, NULL);
        s->removed = calloc((pages + 63) / 64, sizeof(*s->removed));
        if (!s->removed)
                return -ENOMEM;
        (void) snprintf(s->id, sizeof(s->id), "%s", id);
        s->image = pager_image_ref(image);
        *ret = TAKE_PTR(s);
        return 0;
}

void pager_session_free(struct pager_session *s) {
        if (!s)
                return;
        (void) close_fd(s->uffd);
        pager_image_unref(s->image);
        pager_image_unref(s->nascent);
        pager_view_free(s->view);
        pager_view_free(s->old_view);
        (void) pthread_mutex_destroy(&s->lock);
        pager_ahead_unref(s->ahead);
        pager_record_free(s->record);
        free(s->layout);
        free(s->removed);
        free(s->copied);
        free(s);
}

int pager_session_attach(struct pager_session *s, struct pager_layout *layout, int uffd) {
        uint64_t pages = pager_image_pages(s->image);

        if (layout->mode == PAGER_MODE_COPY) {
                s->copied = calloc((pages + 63) / 64, sizeof(*s->copied));
                if (!s->copied)
                        return -ENOMEM;
        }
        s->layout = layout;
        s->mode = layout->mode;
        s->attached = true;
        s->uffd = uffd;
        return 0;
}

/* ---- what it maps ---- */

struct pager_view *pager_view_new(size_t cap) {
        struct pager_view *v = calloc(1, sizeof(*v) + cap * sizeof(v->run[0]));

        if (v)
                v->cap = cap;
        return v;
}

void pager_view_free(struct pager_view *v) {
        if (!v)
                return;
        for (size_t i = 0; i < v->n; i++)
                pager_image_unref(v->run[i].img);
        free(v);
}

void pager_view_add(struct pager_view *v, uint64_t first, uint64_t n, struct pager_image *img) {
        v->run[v->n++] = (struct pager_view_run){ first, n, pager_image_ref(img) };
}

/** How many of the runs begin at or before @page. */
static size_t runs_before(const struct pager_view *v, uint64_t page) {
        size_t lo = 0, hi = v->n;

        while (lo < hi) {
                size_t mid = lo + (hi - lo) / 2;

                if (v->run[mid].first <= page)
                        lo = mid + 1;
                else
                        hi = mid;
        }
        return lo;
}

static void apply_view(const struct pager_view *v, uint64_t page, struct pager_span *span) {
        size_t i = runs_before(v, page);
        const struct pager_view_run *before = i > 0 ? &v->run[i - 1] : NULL, *behind = i < v->n ? &v->run[i] : NULL;
        uint64_t end = span->first + span->n;

        if (before && page - before->first < before->n) {
                *span = (struct pager_span){ before->img, before->first, before->n };
                return;
        }
        if (before)
                span->first = MAX_OF(span->first, before->first + before->n);
        if (behind)
                end = MIN_OF(end, behind->first);
        span->n = end - span->first;
}

struct pager_span pager_session_span(struct pager_session *s, uint64_t page) {
        struct pager_span span = pager_image_span(s->image, page);

        (void) pthread_mutex_lock(&s->lock);
        if (s->view)
                apply_view(s->view, page, &span);
        (void) pthread_mutex_unlock(&s->lock);
        return span;
}

void pager_session_set_view(struct pager_session *s, struct pager_view *v) {
        pager_view_free(s->old_view);
        (void) pthread_mutex_lock(&s->lock);
        s->old_view = s->view;
        s->view = v;
        (void) pthread_mutex_unlock(&s->lock);
}

void pager_session_set_replaced(struct pager_session *s, const struct pager_view *v) {
        (void) pthread_mutex_lock(&s->lock);
        s->replaced = v;
        (void) pthread_mutex_unlock(&s->lock);
}

bool pager_session_replaces(struct pager_session *s, uint64_t start, uint64_t end) {
        const struct pager_region *g = pager_layout_find(s->layout, start);
        bool yes = false;

        if (!g || g->offset == PAGER_READS_ZERO || end - start > g->base + g->size - start)
                return false;
        (void) pthread_mutex_lock(&s->lock);
        if (s->replaced) {
                uint64_t page = (start - g->base + g->offset) / PAGER_PAGE;
                size_t i = runs_before(s->replaced, page);

                yes = i > 0 && page + (end - start) / PAGER_PAGE <= s->replaced->run[i - 1].first + s->replaced->run[i - 1].n;
        }
        (void) pthread_mutex_unlock(&s->lock);
        return yes;
}

struct pager_image *pager_session_nascent(struct pager_session *s) {
        struct pager_image *img;

        (void) pthread_mutex_lock(&s->lock);
        img = s->nascent ? pager_image_ref(s->nascent) : NULL;
        (void) pthread_mutex_unlock(&s->lock);
        return img;
}

void pager_session_set_nascent(struct pager_session *s, struct pager_image *img) {
        struct pager_image *old;

        (void) pthread_mutex_lock(&s->lock);
        old = s->nascent;
        s->nascent = img;
        (void) pthread_mutex_unlock(&s->lock);
        pager_image_unref(old);
}

bool pager_session_removed(const struct pager_session *s, uint64_t page) {
        return atomic_load_explicit(&s->removed[page / 64], memory_order_relaxed) >> (page % 64) & 1;
}

void pager_session_mark_pages(struct pager_session *s, uint64_t first, uint64_t end) {
        uint64_t fresh = 0;

        for (; first < end; first = (first | 63) + 1) {
                _Atomic uint64_t *word = &s->removed[first / 64];
                uint64_t mask = pager_word_mask(first, end);

                if (mask & ~atomic_load_explicit(word, memory_order_relaxed))
                        fresh += (uint64_t) __builtin_popcountll(mask &
                                                                 ~atomic_fetch_or_explicit(word, mask, memory_order_relaxed));
        }
        (void) atomic_fetch_add_explicit(&s->removed_pages, fresh, memory_order_relaxed);
}

void pager_session_mark_removed(struct pager_session *s, uint64_t start, uint64_t end) {
        for (size_t i = 0; i < s->layout->n; i++) {
                const struct pager_region *g = &s->layout->region[i];
                uint64_t from = MAX_OF(start, g->base), to = MIN_OF(end, g->base + g->size);

                if (from >= to || g->offset == PAGER_READS_ZERO)
                        continue;
                uint64_t page = (from - g->base + g->offset) / PAGER_PAGE;

                pager_session_mark_pages(s, page, page + (to - from + PAGER_PAGE - 1) / PAGER_PAGE);
        }
}

/** The first page in [@page, @end) that was discarded, or (@removed false) was not; @end: there is none. */
static uint64_t find_page(const struct pager_session *s, uint64_t page, uint64_t end, bool removed) {
        while (page < end) {
                uint64_t word = atomic_load_explicit(&s->removed[page / 64], memory_order_relaxed);

                word = (removed ? word : ~word) >> (page % 64);
                if (word)
                        return MIN_OF(page + (uint64_t) __builtin_ctzll(word), end);
                page = (page | 63) + 1;
        }
        return end;
}

bool pager_session_next_removed(const struct pager_session *s, uint64_t page, uint64_t *ret_first, uint64_t *ret_n) {
        uint64_t pages = pager_image_pages(s->image), first = find_page(s, page, pages, true);

        if (page >= pages || first == pages)
                return false;
        *ret_first = first;
        *ret_n = find_page(s, first, pages, false) - first;
        return true;
}
