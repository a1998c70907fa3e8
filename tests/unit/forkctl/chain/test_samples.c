/* SPDX-License-Identifier: MIT */
/* What is said of measured values, and the contents that guests are checked against. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "forkctl/chain/content.h"
#include "forkctl/chain/samples.h"
#include "forkctl/chain/sha256.h"

static struct samples of(const double *v, size_t n) {
        struct samples s = { 0 };

        for (size_t i = 0; i < n; i++)
                samples_add(&s, v[i]);
        assert_false(s.failed);
        return s;
}

static void test_quantiles(void **state) {
        struct samples none = { 0 }, one = of((double[]){ 7 }, 1), few = of((double[]){ 3, 1, 2, NAN }, 4), many = { 0 };

        assert_true(isnan(samples_quantile(&none, 0.5)));
        assert_true(samples_quantile(&one, 0.5) == 7 && samples_quantile(&one, 0.99) == 7);
        assert_true(samples_quantile(&few, 0.5) == 2 && samples_quantile(&few, 0.99) == 3 && samples_quantile(&few, 0) == 1);
        for (unsigned i = 1000; i > 0; i--)
                samples_add(&many, i);
        assert_true(samples_quantile(&many, 0.5) == 500 && samples_quantile(&many, 0.95) == 950);
        assert_true(samples_quantile(&many, 0.99) == 990 && samples_quantile(&many, 1) == 1000);
        samples_add_all(&few, &one);
        assert_true(samples_quantile(&few, 1) == 7);
        samples_clear(&one);
        samples_clear(&few);
        samples_clear(&many);
}

static void test_medians(void **state) {
        assert_true(isnan(median_of(NULL, 0)));
        assert_true(median_of((double[]){ 3, 1, 2 }, 3) == 2);
        assert_true(median_of((double[]){ 4, 1, 2, 3 }, 4) == 2.5);
        assert_true(median_of((double[]){ NAN, 5, NAN }, 3) == 5);
}

static void test_line(void **state) {
        double y[20], first, last;

        assert_false(line_through((double[]){ 1 }, 1, &first, &last));
        assert_false(line_through((double[]){ 1, NAN }, 2, &first, &last));
        for (unsigned i = 0; i < 20; i++)
                y[i] = 2 + 0.5 * (i + 1);
        assert_true(line_through(y, 20, &first, &last));
        assert_true(fabs(first - 2.5) < 1e-9 && fabs(last - 12) < 1e-9);
        /* a fifth of the values far off, and one missing, do not bend it */
        y[3] = 900;
        y[8] = -50;
        y[13] = 1e6;
        y[19] = 4000;
        y[5] = NAN;
        assert_true(line_through(y, 20, &first, &last));
        assert_true(fabs(first - 2.5) < 0.3 && fabs(last - 12) < 0.6);
}

/* Ranks as tables of the sign test have them. */
static void test_interval(void **state) {
        double v[2000], low, high;

        for (unsigned i = 0; i < 2000; i++)
                v[i] = 2000 - i;
        assert_false(median_interval(v, 5, &low, &high));
        assert_true(median_interval(v + 1994, 6, &low, &high) && low == 1 && high == 6);
        assert_true(median_interval(v + 1991, 9, &low, &high) && low == 2 && high == 8);
        assert_true(median_interval(v + 1980, 20, &low, &high) && low == 6 && high == 15);
        assert_true(median_interval(v + 1900, 100, &low, &high) && low == 40 && high == 61);
        assert_true(median_interval(v, 2000, &low, &high) && low > 940 && low < 965 && high > 1035 && high < 1060);
}

/* ---- contents ---- */

static void test_sha256(void **state) {
        static const struct {
                const char *text, *sum;
        } known[] = {
                { "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
                { "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
                { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
        };
        char million[1000], sum[SHA256_HEX];
        struct sha256 s;

        for (size_t i = 0; i < ARRAY_LEN(known); i++) {
                sha256_init(&s);
                sha256_add(&s, known[i].text, strlen(known[i].text));
                sha256_end(&s, sum);
                assert_string_equal(sum, known[i].sum);
        }
        memset(million, 'a', sizeof(million));
        sha256_init(&s);
        for (unsigned i = 0; i < 1000;) { /* in pieces of all sizes */
                size_t n = 1 + i % 200;

                for (size_t k = 0; k < 1000; k += n)
                        sha256_add(&s, million + k, k + n > 1000 ? 1000 - k : n);
                i++;
        }
        sha256_end(&s, sum);
        assert_string_equal(sum, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static char *block(const struct content *c, uint64_t writer) {
        char *b;
        size_t len;

        assert_int_equal(content_block(c, writer, &b, &len), 0);
        assert_int_equal(len, c->slot_bytes < CONTENT_BLOCK ? c->slot_bytes : CONTENT_BLOCK);
        return b;
}

static void test_content(void **state) {
        struct content a, b;
        char sum[SHA256_HEX], before[SHA256_HEX];
        char *one, *two;

        content_init(&a, 1, 1 << 20, 256 << 20, true);
        assert_int_equal(a.n_slots, CONTENT_MAX_SLOTS);
        assert_int_equal(a.piece_bytes, CONTENT_DISK_PIECE);
        content_init(&b, 1, 40 << 20, 256 << 20, false);
        assert_int_equal(b.n_slots, 1);
        content_init(&b, 2, (64 << 10) + 5, 64 << 20, true);
        assert_int_equal(b.slot_bytes, 64 << 10); /* whole pages */
        assert_int_equal(b.piece_bytes, 64 << 10);

        /* the same seed and writer, the same bytes; else others */
        one = block(&a, 5);
        two = block(&a, 5);
        assert_memory_equal(one, two, 1 << 20);
        free(two);
        two = block(&a, 6);
        assert_memory_not_equal(one, two, 64);
        free(two);
        two = block(&b, 5);
        assert_memory_not_equal(one, two, 64);
        free(two);

        assert_int_equal(content_disk_sum(&a, before), 0); /* 4 MiB of zeros */
        assert_string_equal(before, "bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8");
        content_written(&a, 2, 3, 5, one, 1 << 20);
        assert_int_equal(content_disk_sum(&a, sum), 0);
        assert_string_not_equal(sum, before);
        free(one);
}

/* What is longer than a block is the block again, with another mark each time: the sum is that of the bytes put together by hand. */
static void test_long_content(void **state) {
        size_t size = (5 << 19) + 4096;
        char *want = malloc(size), *one, sum[SHA256_HEX];
        struct content c;
        struct sha256 s;

        content_init(&c, 3, size, 64 << 20, false);
        one = block(&c, 9);
        memcpy(want, one, 1 << 20);
        memcpy(want + (1 << 20), "0000000000000001", 16);
        memcpy(want + (1 << 20) + 16, one, (1 << 20) - 16);
        memcpy(want + (2 << 20), "0000000000000002", 16);
        memcpy(want + (2 << 20) + 16, one, size - (2 << 20) - 16);
        sha256_init(&s);
        sha256_add(&s, want, size);
        sha256_end(&s, sum);
        content_written(&c, 0, 0, 9, one, 1 << 20);
        assert_string_equal(c.sum[0], sum);
        free(one);
        free(want);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_quantiles),    cmocka_unit_test(test_medians), cmocka_unit_test(test_line),
                cmocka_unit_test(test_interval),     cmocka_unit_test(test_sha256),  cmocka_unit_test(test_content),
                cmocka_unit_test(test_long_content),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
