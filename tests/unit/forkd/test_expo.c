/* SPDX-License-Identifier: MIT */
/* The text format: what is written is what Prometheus reads, whatever a label says. */
#include "common_test.h"

#include <math.h>
#include <stdlib.h>

#include "forkd/monitor/expo.h"

static void is(const struct expo *x, const char *want) {
        cleanup_free char *text = strndup(x->text ? x->text : "", x->len);

        assert_false(x->failed);
        assert_string_equal(text, want);
}

static void test_family(void **state) {
        struct expo_labels l = { 0 };
        struct expo x = { 0 };

        expo_label(&l, "vm", "web");
        expo_label_u64(&l, "vcpu", 12);
        expo_family(&x, "a_total", "counter", "What.");
        expo_u64(&x, NULL, 0);
        expo_u64(&x, &l, UINT64_MAX);
        expo_one(&x, "b", "gauge", "Else.", 7);
        is(&x, "# HELP a_total What.\n# TYPE a_total counter\na_total 0\na_total{vm=\"web\",vcpu=\"12\"} 18446744073709551615\n"
               "# HELP b Else.\n# TYPE b gauge\nb 7\n");
        expo_clear(&x);
}

static void test_seconds_are_exact(void **state) {
        static const struct {
                uint64_t ns;
                const char *want;
        } cases[] = {
                { 0, "s 0\n" },
                { 1, "s 0.000000001\n" },
                { 1000000000, "s 1\n" },
                { 1500000000, "s 1.5\n" },
                { 10000000000, "s 10\n" },
                { 123000000045, "s 123.000000045\n" },
                { UINT64_MAX, "s 18446744073.709551615\n" },
        };

        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                struct expo x = { .name = "s" };

                expo_seconds(&x, NULL, cases[i].ns);
                is(&x, cases[i].want);
                expo_clear(&x);
        }
}

static void test_doubles(void **state) {
        struct expo x = { .name = "d" };

        expo_double(&x, NULL, 0.1);
        expo_double(&x, NULL, NAN);
        expo_double(&x, NULL, INFINITY);
        expo_double(&x, NULL, -INFINITY);
        is(&x, "d 0.1\nd NaN\nd +Inf\nd -Inf\n");
        expo_clear(&x);
}

static void test_labels_cannot_break_out(void **state) {
        static const struct {
                const char *value, *want;
        } cases[] = {
                { "", "l=\"\"" },
                { "a\"} 1\nevil 2", "l=\"a\\\"} 1\\nevil 2\"" },
                { "back\\slash", "l=\"back\\\\slash\"" },
                { "gr\xc3\xbc\xc3\x9f", "l=\"gr\xc3\xbc\xc3\x9f\"" },
                { "\xf0\x9f\x90\x91", "l=\"\xf0\x9f\x90\x91\"" },
                { "\xff", "l=\"\xef\xbf\xbd\"" },                 /* no character */
                { "\xc3", "l=\"\xef\xbf\xbd\"" },                 /* cut off */
                { "\xc0\xaf", "l=\"\xef\xbf\xbd\xef\xbf\xbd\"" }, /* longer than it must be */
                { "\xe0\x9f\xbf", "l=\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"" },
                { "\xed\xa0\x80", "l=\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"" }, /* half of a pair */
                { "\xf4\x90\x80\x80", "l=\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"" },
        };

        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                struct expo_labels l = { 0 };
                cleanup_free char *text = NULL;

                expo_label(&l, "l", cases[i].value);
                text = strndup(l.text, l.len);
                assert_string_equal(text, cases[i].want);
        }
}

static void test_a_label_that_does_not_fit_is_left_out(void **state) {
        char big[2 * EXPO_LABELS_LEN];
        struct expo_labels l = { 0 };
        size_t before;

        memset(big, '"', sizeof(big));
        big[sizeof(big) - 1] = '\0';
        expo_label(&l, "a", "b");
        before = l.len;
        expo_label(&l, "big", big);
        assert_int_equal(l.len, before);
        expo_label(&l, "c", "d");
        assert_memory_equal(l.text, "a=\"b\",c=\"d\"", l.len);
        /* One that just fits, and one that just does not. */
        for (size_t n = EXPO_LABELS_LEN - 8; n < EXPO_LABELS_LEN; n++) {
                struct expo_labels full = { 0 };

                memset(big, 'x', n);
                big[n] = '\0';
                expo_label(&full, "n", big);
                assert_int_equal(full.len, n + 4 <= EXPO_LABELS_LEN ? n + 4 : 0);
        }
}

static void test_hist(void **state) {
        struct expo_hist h = { 0 };
        struct hist from = { 0 };
        struct hist_copy copy = { 0 };
        struct expo x = { .name = "h" };
        char *at, want[64];

        /* A microsecond, exactly a bound (which is in the next bucket, for a bucket ends before it), and an hour. */
        hist_add(&from, 1000);
        hist_add(&from, 1u << 20);
        hist_add(&from, 3600ull * 1000000000);
        hist_collect(&from, &copy);
        expo_hist_from(&h, &copy);
        assert_int_equal(h.n[0], 1);
        assert_int_equal(h.n[20 - EXPO_FIRST_LOG2 + 1], 1);
        assert_int_equal(h.n[EXPO_BOUNDS], 1);
        expo_hist(&x, NULL, &h);
        assert_true(x.len + 1 < x.size);
        x.text[x.len] = '\0';
        at = strstr(x.text, "h_bucket{le=\"0.000016384\"} 1\n");
        assert_ptr_equal(at, x.text);
        assert_non_null(strstr(x.text, "\nh_bucket{le=\"0.001048576\"} 1\n"));
        assert_non_null(strstr(x.text, "\nh_bucket{le=\"0.002097152\"} 2\n"));
        assert_non_null(strstr(x.text, "\nh_bucket{le=\"17.179869184\"} 2\nh_bucket{le=\"+Inf\"} 3\n"));
        (void) snprintf(want, sizeof(want), "\nh_sum 3600.0010495%u\nh_count 3\n", 76);
        assert_non_null(strstr(x.text, want));
        expo_clear(&x);
}

/* Whatever was counted, the buckets grow to the count. */
static void test_hist_adds_up(void **state) {
        struct rng rng = { 4 };

        for (int round = 0; round < 50; round++) {
                struct hist from = { 0 };
                struct hist_copy copy = { 0 };
                struct expo_hist h;
                uint64_t sum = 0;

                for (int i = 0; i < 200; i++)
                        hist_add(&from, rng_next(&rng) >> rng_below(&rng, 64));
                hist_collect(&from, &copy);
                expo_hist_from(&h, &copy);
                for (unsigned i = 0; i <= EXPO_BOUNDS; i++)
                        sum += h.n[i];
                assert_int_equal(sum, 200);
        }
}

static void test_grows(void **state) {
        struct expo x = { .name = "n" };

        for (uint64_t i = 0; i < 100000; i++)
                expo_u64(&x, NULL, i);
        assert_false(x.failed);
        assert_memory_equal(x.text, "n 0\nn 1\n", 8);
        assert_memory_equal(x.text + x.len - 8, "n 99999\n", 8);
        expo_clear(&x);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_family),
                cmocka_unit_test(test_seconds_are_exact),
                cmocka_unit_test(test_doubles),
                cmocka_unit_test(test_labels_cannot_break_out),
                cmocka_unit_test(test_a_label_that_does_not_fit_is_left_out),
                cmocka_unit_test(test_hist),
                cmocka_unit_test(test_hist_adds_up),
                cmocka_unit_test(test_grows),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
