/* SPDX-License-Identifier: MIT */
/* Theory of operation. A layout is a sorted array, searched by halves for each fault. A move is rare and may be slow:
 * it writes a new array in one pass from low to high addresses, out of three sources that do not overlap: the old
 * array without the two ranges of the move, the old range as zeros, and the moved pieces at their new place. The
 * writer joins neighbours that continue each other, so a layout does not grow when memory moves to and fro. */
#include "pager/layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *pager_mode_name(enum pager_mode mode) {
        return mode == PAGER_MODE_COPY ? "copy" : "memfd";
}

struct pager_layout *pager_layout_new(size_t cap) {
        struct pager_layout *l = calloc(1, sizeof(*l) + cap * sizeof(l->region[0]));

        if (l) {
                l->page_size = PAGER_PAGE;
                l->cap = cap;
        }
        return l;
}

const char *pager_region_check(const struct pager_region *g, uint64_t page_size, uint64_t ram_bytes) {
        if (g->base % page_size || g->size % page_size || g->offset % page_size)
                return "is not aligned to pages";
        if (g->size == 0)
                return "is empty";
        if (g->base < PAGER_PAGE || g->base >= PAGER_MAX_ADDRESS || g->size > PAGER_MAX_ADDRESS - g->base)
                return "is no address range of a process";
        if (g->offset > ram_bytes || g->size > ram_bytes - g->offset)
                return "lies outside of guest memory";
        return NULL;
}

static int by_base(const void *a, const void *b) {
        const struct pager_region *x = a, *y = b;

        return (x->base > y->base) - (x->base < y->base);
}

static int by_offset(const void *a, const void *b) {
        const struct pager_region *x = a, *y = b;

        return (x->offset > y->offset) - (x->offset < y->offset);
}

int pager_layout_finish(struct pager_layout *l, char *why, size_t why_size) {
        qsort(l->region, l->n, sizeof(l->region[0]), by_offset);
        for (size_t i = 1; i < l->n; i++)
                if (l->region[i].offset < l->region[i - 1].offset + l->region[i - 1].size) {
                        (void) snprintf(why, why_size, "the region at 0x%llx holds guest memory that another region holds too",
                                        (unsigned long long) l->region[i].base);
                        return -EBADMSG;
                }
        qsort(l->region, l->n, sizeof(l->region[0]), by_base);
        for (size_t i = 1; i < l->n; i++)
                if (l->region[i].base < l->region[i - 1].base + l->region[i - 1].size) {
                        (void) snprintf(why, why_size, "the region at 0x%llx overlaps another one",
                                        (unsigned long long) l->region[i].base);
                        return -EBADMSG;
                }
        return 0;
}

struct pager_layout *pager_layout_copy(const struct pager_layout *l) {
        struct pager_layout *copy = pager_layout_new(l->n);

        if (!copy)
                return NULL;
        copy->mode = l->mode;
        copy->page_size = l->page_size;
        copy->n = l->n;
        memcpy(copy->region, l->region, l->n * sizeof(l->region[0]));
        return copy;
}

const struct pager_region *pager_layout_find_offset(const struct pager_layout *l, uint64_t offset) {
        for (size_t i = 0; i < l->n; i++) {
                const struct pager_region *g = &l->region[i];

                if (g->offset != PAGER_READS_ZERO && offset >= g->offset && offset - g->offset < g->size)
                        return g;
        }
        return NULL;
}

const struct pager_region *pager_layout_find(const struct pager_layout *l, uint64_t addr) {
        size_t lo = 0, hi = l->n;

        while (lo < hi) {
                size_t mid = lo + (hi - lo) / 2;

                if (addr < l->region[mid].base)
                        hi = mid;
                else if (addr - l->region[mid].base >= l->region[mid].size)
                        lo = mid + 1;
                else
                        return &l->region[mid];
        }
        return NULL;
}

/** Appends a region behind all others. */
static void append(struct pager_layout *l, struct pager_region g) {
        struct pager_region *last = l->n > 0 ? &l->region[l->n - 1] : NULL;
        bool zero = g.offset == PAGER_READS_ZERO;

        if (g.size == 0)
                return;
        if (last && last->base + last->size == g.base && (last->offset == PAGER_READS_ZERO) == zero &&
            (zero || last->offset + last->size == g.offset))
                last->size += g.size;
        else
                l->region[l->n++] = g;
}

/** The part of @g in [@start, @end): size 0 if there is none. */
static struct pager_region part(const struct pager_region *g, uint64_t start, uint64_t end) {
        uint64_t lo = MAX_OF(g->base, start), hi = MIN_OF(g->base + g->size, end);

        if (lo >= hi)
                return (struct pager_region){ 0 };
        return (struct pager_region){ lo, hi - lo, g->offset == PAGER_READS_ZERO ? g->offset : g->offset + (lo - g->base) };
}

/** Appends what @l has in [@start, @end). */
static void append_parts(struct pager_layout *to, const struct pager_layout *l, uint64_t start, uint64_t end) {
        for (size_t i = 0; i < l->n; i++)
                append(to, part(&l->region[i], start, end));
}

static void append_zero(struct pager_layout *to, const struct pager_layout *l, uint64_t start, uint64_t end) {
        for (size_t i = 0; i < l->n; i++) {
                struct pager_region g = part(&l->region[i], start, end);

                g.offset = PAGER_READS_ZERO;
                append(to, g);
        }
}

static void append_moved(struct pager_layout *to, const struct pager_layout *l, uint64_t start, uint64_t end,
                         uint64_t new_start) {
        for (size_t i = 0; i < l->n; i++) {
                struct pager_region g = part(&l->region[i], start, end);

                g.base = new_start + (g.base - start);
                append(to, g);
        }
}

static bool range_ok(const struct pager_layout *l, uint64_t start, uint64_t len) {
        return start % l->page_size == 0 && start < PAGER_MAX_ADDRESS && len <= PAGER_MAX_ADDRESS - start;
}

int pager_layout_move(struct pager_layout **lp, uint64_t from, uint64_t to, uint64_t len) {
        struct pager_layout *l = *lp;
        /* Each of the four edges splits one region at the most, and no moved piece is new but for that. */
        cleanup_free struct pager_layout *new = pager_layout_new(2 * l->n + 4);

        if (len == 0 || len % l->page_size || !range_ok(l, from, len) || !range_ok(l, to, len))
                return -EINVAL;
        if (from < to + len && to < from + len)
                return -EINVAL;
        if (!new)
                return -ENOMEM;
        new->mode = l->mode;
        new->page_size = l->page_size;
        if (from < to) {
                append_parts(new, l, 0, from);
                append_zero(new, l, from, from + len);
                append_parts(new, l, from + len, to);
                append_moved(new, l, from, from + len, to);
                append_parts(new, l, to + len, UINT64_MAX);
        } else {
                append_parts(new, l, 0, to);
                append_moved(new, l, from, from + len, to);
                append_parts(new, l, to + len, from);
                append_zero(new, l, from, from + len);
                append_parts(new, l, from + len, UINT64_MAX);
        }
        if (new->n > PAGER_MAX_PIECES)
                return -E2BIG;
        free(l);
        *lp = TAKE_PTR(new);
        return 0;
}
