/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "pager/record.h"

static void assert_run(const struct pager_record *rec, uint64_t i, uint64_t first, uint64_t n) {
        struct snap_run run = pager_record_get(rec, i);

        assert_int_equal(run.first, first);
        assert_int_equal(run.n, n);
}

static void joins_neighbours_and_repeats(void **state) {
        struct pager_record *rec = pager_record_new(1 << 20);

        assert_non_null(rec);
        assert_int_equal(pager_record_runs(rec), 0);
        pager_record_add(rec, 100, 16);
        pager_record_add(rec, 100, 16); /* the same */
        pager_record_add(rec, 104, 4);  /* within it */
        pager_record_add(rec, 110, 10); /* over its end */
        pager_record_add(rec, 120, 1);  /* behind it */
        assert_int_equal(pager_record_runs(rec), 1);
        assert_run(rec, 0, 100, 21);
        pager_record_add(rec, 99, 1); /* before it: another one */
        pager_record_add(rec, 7, 3);
        assert_int_equal(pager_record_runs(rec), 3);
        assert_run(rec, 1, 99, 1);
        assert_run(rec, 2, 7, 3);
        assert_int_equal(rec->n_pages, 25);
        pager_record_free(rec);
        pager_record_free(NULL);
}

static void gifts_come_last(void **state) {
        struct pager_record *rec = pager_record_new(1 << 20);

        assert_non_null(rec);
        pager_record_add_gift(rec, 500, 5);
        pager_record_add(rec, 100, 1);
        pager_record_add_gift(rec, 505, 5);
        pager_record_add(rec, 50, 1);
        pager_record_add_gift(rec, 100, 1);
        assert_int_equal(pager_record_runs(rec), 4);
        assert_run(rec, 0, 100, 1);
        assert_run(rec, 1, 50, 1);
        assert_run(rec, 2, 500, 10);
        assert_run(rec, 3, 100, 1);
        for (uint64_t i = 0; i < SNAP_WORKINGSET_MAX_RUNS; i++)
                pager_record_add_gift(rec, 1000 + 3 * i, 1);
        assert_false(pager_record_is_full(rec)); /* of gifts only */
        pager_record_add(rec, 20, 1);
        assert_int_equal(pager_record_runs(rec), SNAP_WORKINGSET_MAX_RUNS);
        assert_run(rec, 2, 20, 1);
        pager_record_free(rec);
}

static void ends(void **state) {
        struct pager_record *rec = pager_record_new(1 << 20);
        uint64_t runs;

        assert_non_null(rec);
        for (uint64_t i = 0; i < 2 * SNAP_WORKINGSET_MAX_RUNS; i++)
                pager_record_add(rec, 3 * i, 1);
        assert_true(pager_record_is_full(rec));
        runs = pager_record_runs(rec);
        assert_int_equal(runs, SNAP_WORKINGSET_MAX_RUNS);
        assert_run(rec, runs - 1, 3 * (runs - 1), 1);
        pager_record_free(rec);

        rec = pager_record_new(1 << 20);
        assert_non_null(rec);
        pager_record_add(rec, 0, snap_workingset_max_pages(1 << 20));
        assert_true(pager_record_is_full(rec));
        pager_record_add(rec, 1 << 19, 1);
        assert_int_equal(pager_record_runs(rec), 1);
        pager_record_free(rec);

        rec = pager_record_new(1 << 20);
        assert_non_null(rec);
        rec->closed = true;
        pager_record_add(rec, 1, 1);
        assert_int_equal(pager_record_runs(rec), 0);
        pager_record_free(rec);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(joins_neighbours_and_repeats), cmocka_unit_test(gifts_come_last),
                                            cmocka_unit_test(ends) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
