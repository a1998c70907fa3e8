/* SPDX-License-Identifier: MIT */
/* Theory of operation. Images of one family have the same offset for the same guest page, each in a memory of its own. Most
 * pages of a snapshot are as they were in its ancestors, whose memories may be there already: VMs live on them. So an image
 * may have *extents*, runs that cover all its pages, each with the image that owns it: the image itself or an ancestor. A VMM
 * maps each extent from its owner's memory (pager/segments.c), and a fault is answered out of there. An ancestor's memory
 * is filled from the ancestor's own file, with its own index: the child needs nothing but its pages.
 *
 * Extents are flat: they name the image that really owns a page, never one that has it from another. So an image holds on to
 * no more than PAGER_MAX_OWNERS images, however long its chain is, and nobody walks a chain to answer a fault.
 *
 * An image's file is complete, so each page may be its own even if an ancestor has it: that costs memory where
 * it is used, and nothing else. That is how extents are kept few: a run of less than PAGER_MIN_SHARED pages is not worth a
 * mapping, and where there are too many runs, or owners, those with fewest pages are given up.
 *
 * All of it is set before anybody uses the image, and never changes: there are no locks. */
#include "pager/lineage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "pager/image_internal.h"

struct pager_lineage {
        size_t n_owners, n;
        struct pager_image *owner[PAGER_MAX_OWNERS]; /* [0]: the image, no reference */
        struct pager_extent extent[];
};

/* ---- questions ---- */

struct pager_image *pager_image_owner(const struct pager_image *img, uint64_t page, uint64_t *ret_first, uint64_t *ret_n) {
        const struct pager_lineage *l = img->lineage;
        size_t lo = 0, hi = l ? l->n : 0;
        uint64_t end;

        if (!l) {
                if (ret_first)
                        *ret_first = 0;
                if (ret_n)
                        *ret_n = img->n_pages;
                return (struct pager_image *) img;
        }
        while (hi - lo > 1) { /* the page is in one of [lo, hi) */
                size_t mid = lo + (hi - lo) / 2;

                if (page < l->extent[mid].first)
                        hi = mid;
                else
                        lo = mid;
        }
        end = lo + 1 < l->n ? l->extent[lo + 1].first : img->n_pages;
        if (ret_first)
                *ret_first = l->extent[lo].first;
        if (ret_n)
                *ret_n = end - l->extent[lo].first;
        return l->owner[l->extent[lo].owner];
}

size_t pager_image_n_owners(const struct pager_image *img) {
        return img->lineage ? img->lineage->n_owners : 1;
}

struct pager_image *pager_image_owner_at(const struct pager_image *img, size_t i) {
        return img->lineage ? img->lineage->owner[i] : (struct pager_image *) img;
}

size_t pager_image_n_extents(const struct pager_image *img) {
        return img->lineage ? img->lineage->n : 1;
}

struct pager_extent pager_image_extent(const struct pager_image *img, size_t i) {
        return img->lineage ? img->lineage->extent[i] : (struct pager_extent){ 0, 0 };
}

bool pager_image_uses(const struct pager_image *img, const struct pager_image *other) {
        for (size_t i = 0; i < pager_image_n_owners(img); i++)
                if (pager_image_owner_at(img, i) == other)
                        return true;
        return false;
}

void pager_lineage_free(struct pager_lineage *l) {
        if (!l)
                return;
        for (size_t i = 1; i < l->n_owners; i++)
                pager_image_unref(l->owner[i]);
        free(l);
}

int pager_image_descends(const struct pager_image *img, const struct pager_image *base) {
        return snap_image_descends(pager_image_snap(img), pager_image_snap(base));
}

int pager_image_diff(const struct pager_image *img, const struct pager_image *base, uint64_t *bits) {
        return snap_image_diff(pager_image_snap(img), pager_image_snap(base), PAGER_MAX_COMPARED, bits);
}

/* ---- from a description ---- */

static bool is_described(const struct pager_image *img, struct pager_image *const *owner, size_t n_owners,
                         const struct pager_extent *extent, size_t n) {
        if (n_owners == 0 || n_owners > PAGER_MAX_OWNERS || owner[0] != img || n == 0 || n > PAGER_MAX_EXTENTS ||
            extent[0].first != 0)
                return false;
        for (size_t i = 1; i < n_owners; i++) {
                if (owner[i]->n_pages != img->n_pages)
                        return false;
                for (size_t k = 0; k < i; k++)
                        if (owner[k] == owner[i])
                                return false;
        }
        for (size_t i = 0; i < n; i++)
                if (extent[i].owner >= n_owners || extent[i].first >= img->n_pages ||
                    (i > 0 && extent[i].first <= extent[i - 1].first))
                        return false;
        return true;
}

int pager_image_set_extents(struct pager_image *img, struct pager_image *const *owner, size_t n_owners,
                            const struct pager_extent *extent, size_t n) {
        struct pager_lineage *l;

        if (img->lineage)
                return -EALREADY;
        if (!is_described(img, owner, n_owners, extent, n))
                return -EINVAL;
        if (n_owners == 1)
                return 0;
        l = malloc(sizeof(*l) + n * sizeof(l->extent[0]));
        if (!l)
                return -ENOMEM;
        l->n_owners = n_owners;
        l->n = n;
        memcpy(l->extent, extent, n * sizeof(*extent));
        for (size_t i = 0; i < n_owners; i++)
                l->owner[i] = i > 0 ? pager_image_ref(owner[i]) : img;
        img->lineage = l;
        return 0;
}

/* ---- from a base ---- */

/** A run of pages that is worth being taken from an ancestor. */
struct shared_run {
        uint64_t first, n;
        struct pager_image *owner;
};

struct shared_runs {
        struct shared_run *run;
        size_t n, cap;
};

static int add_run(struct shared_runs *s, uint64_t first, uint64_t n, struct pager_image *owner) {
        if (n < PAGER_MIN_SHARED)
                return 0;
        if (s->n == s->cap) {
                size_t cap = s->cap ? s->cap * 2 : 256;
                struct shared_run *run = reallocarray(s->run, cap, sizeof(*run));

                if (!run)
                        return -ENOMEM;
                s->run = run;
                s->cap = cap;
        }
        s->run[s->n++] = (struct shared_run){ first, n, owner };
        return 0;
}

/** The first page in [@page, @end) whose bit is @set; @end: there is none. */
static uint64_t find_bit(const uint64_t *bits, uint64_t page, uint64_t end, bool set) {
        while (page < end) {
                uint64_t word = (set ? bits[page / 64] : ~bits[page / 64]) >> (page % 64);

                if (word)
                        return MIN_OF(page + (uint64_t) __builtin_ctzll(word), end);
                page = (page | 63) + 1;
        }
        return end;
}

static int collect_runs(const struct pager_image *base, const uint64_t *own_bits, struct shared_runs *s) {
        uint64_t end, page = find_bit(own_bits, 0, base->n_pages, false);

        for (; page < base->n_pages; page = find_bit(own_bits, end, base->n_pages, false)) {
                end = find_bit(own_bits, page, base->n_pages, true);
                for (uint64_t first, n; page < end; page = first + n) {
                        struct pager_image *owner = pager_image_owner(base, page, &first, &n);
                        int r = add_run(s, page, MIN_OF(first + n, end) - page, owner);

                        if (r < 0)
                                return r;
                }
        }
        return 0;
}

/** Gives up the owner with the fewest pages, if there are too many: a base may have as many as an image may, and comes on top. */
static void limit_owners(struct shared_runs *s, const struct pager_image *base) {
        uint64_t pages[PAGER_MAX_OWNERS] = { 0 };
        size_t n_owners = pager_image_n_owners(base), used = 0, least = 0, kept = 0;

        for (size_t i = 0; i < s->n; i++)
                for (size_t k = 0; k < n_owners; k++)
                        if (pager_image_owner_at(base, k) == s->run[i].owner)
                                pages[k] += s->run[i].n;
        for (size_t k = 0; k < n_owners; k++) {
                used += pages[k] > 0;
                if (pages[k] < pages[least])
                        least = k;
        }
        if (used < PAGER_MAX_OWNERS)
                return;
        for (size_t i = 0; i < s->n; i++)
                if (s->run[i].owner != pager_image_owner_at(base, least))
                        s->run[kept++] = s->run[i];
        s->n = kept;
}

static int longest_first(const void *a, const void *b) {
        uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

        return (x < y) - (x > y);
}

/** Gives up the shortest runs. Between two runs there may be an extent of the image's own. */
static int limit_runs(struct shared_runs *s) {
        size_t max = (PAGER_MAX_EXTENTS - 1) / 2, kept = 0, ties = 0;
        cleanup_free uint64_t *len = NULL;
        uint64_t least;

        if (s->n <= max)
                return 0;
        len = calloc(s->n, sizeof(*len));
        if (!len)
                return -ENOMEM;
        for (size_t i = 0; i < s->n; i++)
                len[i] = s->run[i].n;
        qsort(len, s->n, sizeof(*len), longest_first);
        least = len[max - 1];
        for (size_t i = max; i-- > 0 && len[i] == least;)
                ties++;
        for (size_t i = 0; i < s->n; i++) {
                if (s->run[i].n < least || (s->run[i].n == least && ties == 0))
                        continue;
                ties -= s->run[i].n == least;
                s->run[kept++] = s->run[i];
        }
        s->n = kept;
        return 0;
}

static uint32_t number_of(struct pager_image **owner, size_t *n, struct pager_image *img) {
        for (size_t i = 0; i < *n; i++)
                if (owner[i] == img)
                        return (uint32_t) i;
        owner[*n] = img;
        return (uint32_t) (*n)++;
}

static int describe(struct pager_image *img, const struct shared_runs *s) {
        cleanup_free struct pager_extent *extent = calloc(2 * s->n + 1, sizeof(*extent));
        struct pager_image *owner[PAGER_MAX_OWNERS] = { img };
        size_t n_owners = 1, n = 0;
        uint64_t at = 0;

        if (!extent)
                return -ENOMEM;
        for (size_t i = 0; i < s->n; i++) {
                const struct shared_run *run = &s->run[i];
                uint32_t number = number_of(owner, &n_owners, run->owner);

                if (run->first > at)
                        extent[n++] = (struct pager_extent){ at, 0 };
                if (n == 0 || run->first > at || extent[n - 1].owner != number)
                        extent[n++] = (struct pager_extent){ run->first, number };
                at = run->first + run->n;
        }
        if (at < img->n_pages)
                extent[n++] = (struct pager_extent){ at, 0 };
        return pager_image_set_extents(img, owner, n_owners, extent, n);
}

int pager_image_set_base(struct pager_image *img, struct pager_image *base, const uint64_t *own_bits) {
        struct shared_runs s = { 0 };
        int r;

        if (img->lineage)
                return -EALREADY;
        if (img == base || img->n_pages != base->n_pages)
                return -EINVAL;
        r = collect_runs(base, own_bits, &s);
        if (r == 0) {
                limit_owners(&s, base);
                r = limit_runs(&s);
        }
        if (r == 0)
                r = describe(img, &s);
        free(s.run);
        return r;
}
