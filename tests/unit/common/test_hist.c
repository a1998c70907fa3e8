/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/hist.h"

static void buckets_meet_without_gap(void **state) {
        for (unsigned i = 0; i + 1 < HIST_BUCKETS; i++) {
                uint64_t upper = hist_upper_ns(i);

                assert_int_equal(hist_bucket(upper - 1), i);
                assert_int_equal(hist_bucket(upper), i + 1);
        }
        assert_int_equal(hist_bucket(0), 0);
        assert_int_equal(hist_bucket(UINT64_MAX), HIST_BUCKETS - 1);
        assert_true(hist_upper_ns(HIST_BUCKETS - 1) == UINT64_MAX);
}

static void a_bucket_is_narrow(void **state) {
        for (unsigned i = HIST_SUB; i + 1 < HIST_BUCKETS; i++) {
                uint64_t lower = hist_upper_ns(i - 1);

                assert_true((hist_upper_ns(i) - lower) * HIST_SUB <= lower);
        }
}

static int by_value(const void *a, const void *b) {
        uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

        return (x > y) - (x < y);
}

static void quantiles_are_close(void **state) {
        enum { N = 5000 };
        uint64_t *v = calloc(N, sizeof(*v)), x = 88172645463325252u;
        struct hist *h = calloc(1, sizeof(*h));
        struct hist_copy c = { 0 };

        assert_non_null(v);
        assert_non_null(h);
        for (unsigned i = 0; i < N; i++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                v[i] = 1000 + (x >> 40) * (x >> 60); /* spread over several octaves */
                hist_add(h, v[i]);
        }
        hist_collect(h, &c);
        qsort(v, N, sizeof(*v), by_value);
        assert_int_equal(c.count, N);
        for (double q = 0.05; q < 1; q += 0.05) {
                uint64_t exact = v[(unsigned) (q * N) - 1], got = hist_quantile_ns(&c, q);

                assert_true(got >= exact && got <= exact + exact / HIST_SUB + 32);
        }
        assert_true(hist_quantile_ns(&c, 1) == v[N - 1]);
        free(v);
        free(h);
}

static void sums(void **state) {
        struct hist *h = calloc(1, sizeof(*h));
        struct hist_copy a = { 0 }, b = { 0 };

        assert_non_null(h);
        assert_int_equal(hist_quantile_ns(&a, 0.5), 0);
        hist_add(h, 100);
        hist_add(h, 5000);
        hist_collect(h, &a);
        hist_collect(h, &b);
        hist_merge(&a, &b);
        assert_int_equal(a.count, 4);
        assert_int_equal(a.sum_ns, 10200);
        assert_int_equal(a.max_ns, 5000);
        assert_int_equal(hist_quantile_ns(&a, 0.01), 128);
        free(h);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(buckets_meet_without_gap),
                cmocka_unit_test(a_bucket_is_narrow),
                cmocka_unit_test(quantiles_are_close),
                cmocka_unit_test(sums),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
