/* SPDX-License-Identifier: MIT */
/* Times as they are told: buckets by powers of two, quantiles between their ends, lists that end when a message is full. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "common/json.h"
#include "forkd/monitor/figures.h"
#include "forkd/monitor/stats_internal.h"

#define K(n) (1ull << (n))

static json_t *told(const struct figures *f) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        json_t *j;

        mp_buf_init(&b);
        figures_put(f, &b);
        assert_false(b.failed);
        assert_int_equal(mp_parse(b.sb.data, b.sb.size, &doc), 0);
        j = json_from_mp(&doc.root);
        assert_non_null(j);
        return j;
}

static void near(double got, double want) {
        if (got < want * 0.999999 || got > want * 1.000001)
                fail_msg("%.9f, not %.9f", got, want);
}

static void test_buckets(void **state) {
        struct figures f = { 0 };

        figures_add(&f, 0, 1);
        figures_add(&f, K(10), 1);
        figures_add(&f, K(10) + 1, 1);
        figures_add(&f, K(36), 1);
        figures_add(&f, K(36) + 1, 1);
        figures_add(&f, UINT64_MAX, 1);
        assert_int_equal(f.bucket[0], 2);
        assert_int_equal(f.bucket[1], 1);
        assert_int_equal(f.bucket[26], 1);
        assert_int_equal(f.bucket[27], 2);
        assert_int_equal(f.count, 6);
}

/* Each bucket of either kind ends up where its times belong. */
static void test_sources(void **state) {
        struct probes_sample waits = { .wait_ns = 5000, .longest_ns = 4000 };
        struct hist_copy copy = { 0 };
        struct hist h = { 0 };
        struct figures f;

        for (unsigned i = 0; i < PROBES_BUCKETS; i++)
                waits.wait[i] = i;
        figures_of_waits(&waits, &f);
        assert_int_equal(f.count, 27 * 28 / 2);
        assert_int_equal(f.sum_ns, 5000);
        for (unsigned i = 0; i < FIGURES_BUCKETS; i++)
                assert_int_equal(f.bucket[i], i);
        for (unsigned k = 0; k < 40; k++) {
                hist_add(&h, K(k) - 1);
                hist_add(&h, K(k));
        }
        hist_collect(&h, &copy);
        figures_of_hist(&copy, &f);
        assert_int_equal(f.count, 80);
        assert_int_equal(f.bucket[0], 21); /* up to 2^10 - 1 */
        for (unsigned i = 1; i < FIGURES_BUCKETS - 2; i++)
                assert_int_equal(f.bucket[i], 2);
        assert_int_equal(f.bucket[FIGURES_BUCKETS - 2], 1); /* hist's last bucket begins a little below 2^36 */
        assert_int_equal(f.bucket[FIGURES_BUCKETS - 1], 8);
}

static void test_quantiles(void **state) {
        struct figures f = { 0 };

        assert_true(figures_quantile(&f, 0.5) == 0);
        figures_add(&f, K(20), 100);
        f.max_ns = K(20) - 10;
        near(figures_quantile(&f, 0.5), 0.75 * (double) K(20) / 1e9); /* the middle of its bucket */
        near(figures_quantile(&f, 1), (double) f.max_ns / 1e9);       /* never more than the longest */
        figures_add(&f, K(24), 100);
        f.max_ns = K(24);
        near(figures_quantile(&f, 0.5), (double) K(20) / 1e9);
        near(figures_quantile(&f, 0.75), 0.75 * (double) K(24) / 1e9);
        f = (struct figures){ .max_ns = 100000000000 };
        figures_add(&f, UINT64_MAX, 1);
        near(figures_quantile(&f, 0.5), 100); /* above all bounds only the longest is known */
}

static void test_told(void **state) {
        cleanup_json json_t *none = told(&(struct figures){ 0 }), *j = NULL;
        struct figures f = { .sum_ns = 1500000000, .max_ns = 70000000000 };

        assert_int_equal(json_u64(none, "count", 9), 0);
        assert_int_equal(json_array_size(json_list(none, "buckets")), 0);
        figures_add(&f, K(14), 3);
        figures_add(&f, UINT64_MAX, 1);
        j = told(&f);
        near(json_num(j, "sum_s", 0), 1.5);
        near(json_num(j, "max_s", 0), 70);
        assert_int_equal(json_array_size(json_list(j, "buckets")), 2);
        near(json_number_value(json_array_get(json_array_get(json_list(j, "buckets"), 0), 0)), 16384e-9);
        assert_int_equal(json_integer_value(json_array_get(json_array_get(json_list(j, "buckets"), 0), 1)), 3);
        assert_true(json_is_null(json_array_get(json_array_get(json_list(j, "buckets"), 1), 0)));
}

static void test_lists_end(void **state) {
        cleanup_stats_list struct stats_list l;
        cleanup_mp_buf struct mp_buf item = { 0 }, out = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        char text[100];

        memset(text, 'x', sizeof(text));
        stats_list_init(&l, 1000);
        mp_buf_init(&item);
        mp_buf_init(&out);
        for (unsigned i = 0; i < 20; i++) {
                mp_strn(&item, text, sizeof(text));
                stats_list_add(&l, &item);
                assert_int_equal(item.sb.size, 0);
        }
        mp_strn(&item, text, 20); /* a small one still fits: whoever is left out is counted */
        stats_list_add(&l, &item);
        mp_map(&out, 1);
        mp_kv_list(&out, "items", &l.items, l.n);
        assert_int_equal(l.n, 10);
        assert_int_equal(l.left_out, 11);
        assert_in_range(l.items.sb.size, 900, 1000);
        assert_int_equal(mp_parse(out.sb.data, out.sb.size, &doc), 0);
        assert_non_null(mp_get_array(&doc.root, "items"));
        assert_int_equal(mp_get_array(&doc.root, "items")->via.array.size, 10);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_buckets), cmocka_unit_test(test_sources),   cmocka_unit_test(test_quantiles),
                cmocka_unit_test(test_told),    cmocka_unit_test(test_lists_end),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
