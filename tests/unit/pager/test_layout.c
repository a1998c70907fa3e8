/* SPDX-License-Identifier: MIT */
/* The layout against a model of it: an array with what each page of a small address space holds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "pager/layout.h"
#include "tests/unit/pager/content.h"

#define MODEL_PAGES 512u
#define FIRST 16u /* addresses begin at this page */

enum { UNKNOWN = -1, ZERO = -2 };

struct model {
        int at[MODEL_PAGES]; /* a guest page, or one of the above */
};

static void add(struct pager_layout *l, struct model *m, uint64_t page, uint64_t n, uint64_t guest) {
        l->region[l->n++] = (struct pager_region){ (FIRST + page) * l->page_size, n * l->page_size, guest * l->page_size };
        for (uint64_t i = 0; i < n; i++)
                m->at[page + i] = (int) (guest + i);
}

static void check(const struct pager_layout *l, const struct model *m) {
        uint64_t end = 0;

        assert_true(l->n <= l->cap);
        for (size_t i = 0; i < l->n; i++) {
                assert_true(l->region[i].size > 0 && l->region[i].base >= end);
                end = l->region[i].base + l->region[i].size;
        }
        for (uint64_t p = 0; p < MODEL_PAGES; p++) {
                uint64_t addr = (FIRST + p) * l->page_size;
                const struct pager_region *g = pager_layout_find(l, addr);

                assert_ptr_equal(g, pager_layout_find(l, addr + l->page_size - 1));
                if (!g)
                        assert_int_equal(m->at[p], UNKNOWN);
                else if (g->offset == PAGER_READS_ZERO)
                        assert_int_equal(m->at[p], ZERO);
                else
                        assert_int_equal(m->at[p], (int) ((addr - g->base + g->offset) / l->page_size));
        }
        assert_null(pager_layout_find(l, 0));
        assert_null(pager_layout_find(l, UINT64_MAX));
}

static int move(struct pager_layout **l, struct model *m, uint64_t from, uint64_t to, uint64_t n) {
        uint64_t page = (*l)->page_size;
        int r = pager_layout_move(l, (FIRST + from) * page, (FIRST + to) * page, n * page);

        if (r == 0) {
                for (uint64_t i = 0; i < n; i++) {
                        m->at[to + i] = m->at[from + i];
                        m->at[from + i] = m->at[from + i] == UNKNOWN ? UNKNOWN : ZERO;
                }
        }
        return r;
}

static struct pager_layout *make(struct model *m, uint64_t page_size, size_t cap) {
        struct pager_layout *l = pager_layout_new(cap);

        assert_non_null(l);
        l->mode = PAGER_MODE_COPY;
        l->page_size = page_size;
        for (unsigned i = 0; i < MODEL_PAGES; i++)
                m->at[i] = UNKNOWN;
        return l;
}

static void test_moves(void **state) {
        cleanup_free struct pager_layout *l = NULL;
        struct model m;
        char why[128];

        l = make(&m, PAGER_PAGE, 3);
        add(l, &m, 100, 10, 50);
        add(l, &m, 20, 10, 10);
        add(l, &m, 30, 10, 20); /* continues the one before it in both */
        assert_int_equal(pager_layout_finish(l, why, sizeof(why)), 0);
        check(l, &m);
        /* up, out of the middle of two; down again; onto its own old place; onto others */
        assert_int_equal(move(&l, &m, 25, 200, 10), 0);
        check(l, &m);
        assert_int_equal(move(&l, &m, 200, 25, 10), 0);
        check(l, &m);
        assert_int_equal(move(&l, &m, 105, 0, 5), 0);
        check(l, &m);
        assert_int_equal(move(&l, &m, 25, 100, 5), 0);
        check(l, &m);
        assert_int_equal(move(&l, &m, 100, 22, 4), 0);
        check(l, &m);
        /* with a part that is not known */
        assert_int_equal(move(&l, &m, 15, 300, 10), 0);
        check(l, &m);
        assert_int_equal(l->mode, PAGER_MODE_COPY);
}

static void test_to_and_fro(void **state) {
        cleanup_free struct pager_layout *l = NULL;
        struct model m;

        l = make(&m, PAGER_HUGE_PAGE, 1);
        add(l, &m, 0, 64, 0);
        for (unsigned i = 0; i < 1000; i++) {
                assert_int_equal(move(&l, &m, 7, 300, 20), 0);
                assert_int_equal(move(&l, &m, 300, 7, 20), 0);
        }
        check(l, &m);
        assert_int_equal(l->n, 2); /* guest memory in one piece, and the zeros that stayed elsewhere */
}

static void test_impossible_moves(void **state) {
        static const struct {
                uint64_t from, to, len;
        } cases[] = {
                { 16384, 32768, 0 },          { 16384, 20480, 8192 },
                { 20480, 16384, 8192 },       { 16384, 16384, 4096 },
                { 16385, 32768, 4096 },       { 16384, 32769, 4096 },
                { 16384, 32768, 4097 },       { 16384, UINT64_MAX - 4095, 4096 },
                { 1ull << 63, 32768, 4096 },  { 16384, 32768, UINT64_MAX - 4095 },
                { 16384, 1ull << 57, 4096 },  { 16384, (1ull << 57) - 4096, 8192 },
                { 16384, 32768, 1ull << 58 },
        };
        cleanup_free struct pager_layout *l = NULL;
        struct model m;

        l = make(&m, PAGER_PAGE, 1);
        add(l, &m, 0, 8, 0);
        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                const struct pager_layout *before = l;

                assert_int_equal(pager_layout_move(&l, cases[i].from, cases[i].to, cases[i].len), -EINVAL);
                assert_ptr_equal(l, before);
                check(l, &m);
        }
        /* the highest that can be */
        assert_int_equal(pager_layout_move(&l, FIRST * PAGER_PAGE, (1ull << 57) - 4096, 4096), 0);
}

static void test_too_many_pieces(void **state) {
        cleanup_free struct pager_layout *l = NULL;
        struct model m;
        uint64_t page = 0;
        int r = 0;

        l = make(&m, PAGER_PAGE, 1);
        l->region[l->n++] = (struct pager_region){ 1ull << 30, 1ull << 30, 0 };
        /* every other page goes somewhere else, to places that do not touch */
        while (r == 0 && page < 10 * PAGER_MAX_PIECES) {
                r = pager_layout_move(&l, (1ull << 30) + page * PAGER_PAGE, (4ull << 30) + page * PAGER_PAGE, PAGER_PAGE);
                page += r == 0 ? 2 : 0;
        }
        assert_int_equal(r, -E2BIG);
        assert_true(l->n <= PAGER_MAX_PIECES && l->n > PAGER_MAX_PIECES - 4);
        /* as it was: the page that could not be moved is where it was, its neighbours where they went */
        assert_int_equal(pager_layout_find(l, (1ull << 30) + page * PAGER_PAGE)->offset, (page - 1) * PAGER_PAGE);
        assert_int_equal(pager_layout_find(l, (4ull << 30) + (page - 2) * PAGER_PAGE)->offset, (page - 2) * PAGER_PAGE);
        assert_null(pager_layout_find(l, (4ull << 30) + page * PAGER_PAGE));
}

static void test_random_moves(void **state) {
        for (uint64_t seed = 1; seed <= 300; seed++) {
                cleanup_free struct pager_layout *l = NULL;
                uint64_t x = mix64(seed), guest = 0, page = 0;
                struct model m;
                char why[128];

                l = make(&m, seed % 2 ? PAGER_PAGE : PAGER_HUGE_PAGE, 32);
                while (l->n < 1 + seed % 32 && page + 16 < MODEL_PAGES) {
                        uint64_t n = 1 + (x = mix64(x)) % 15;

                        add(l, &m, page, n, guest);
                        page += n + (x = mix64(x)) % 3;
                        guest += n + (x = mix64(x)) % 2;
                }
                assert_int_equal(pager_layout_finish(l, why, sizeof(why)), 0);
                for (unsigned i = 0; i < 60; i++) {
                        uint64_t n = 1 + (x = mix64(x)) % 40, from = (x = mix64(x)) % (MODEL_PAGES - n),
                                 to = (x = mix64(x)) % (MODEL_PAGES - n);
                        bool overlap = from < to + n && to < from + n;

                        assert_int_equal(move(&l, &m, from, to, n), overlap ? -EINVAL : 0);
                        check(l, &m);
                }
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_moves),
                cmocka_unit_test(test_to_and_fro),
                cmocka_unit_test(test_impossible_moves),
                cmocka_unit_test(test_too_many_pieces),
                cmocka_unit_test(test_random_moves),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
