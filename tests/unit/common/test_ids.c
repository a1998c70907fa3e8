/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <errno.h>
#include <locale.h>
#include <stdio.h>

#include "common/ids.h"

static void test_ids(void **state) {
        id_str a, b;

        for (unsigned i = 0; i < 100; i++) {
                id_new(a);
                id_new(b);
                assert_true(id_valid(a));
                assert_string_not_equal(a, b);
        }
        assert_false(id_valid(NULL));
        assert_false(id_valid(""));
        assert_false(id_valid("0123456789abcde"));
        assert_false(id_valid("0123456789abcdef0"));
        assert_false(id_valid("0123456789abcdeF"));
        assert_false(id_valid("0123456789abcd/."));
}

/* Every byte changes between fills: nothing is left as it was. */
static void test_random(void **state) {
        uint8_t acc[1000] = { 0 }, one[1000];

        for (unsigned i = 0; i < 20; i++) {
                random_bytes(one, sizeof(one));
                for (size_t k = 0; k < sizeof(one); k++)
                        acc[k] |= one[k];
        }
        for (size_t k = 0; k < sizeof(acc); k++)
                assert_int_not_equal(acc[k], 0);
        random_bytes(one, 0);
        assert_true(random_u64() != random_u64());
}

static void test_names(void **state) {
        static const char *const good[] = { "a", "A", "0", "web-1", "a.b_c-d", "x..y" };
        static const char *const bad[] = { "",    ".",   "..",       ".x",        "-x",  "_x", "a/b", "/",
                                           "a b", "a\n", "\xc3\xa4", "a\xc3\xa4", "a:b", "a*", "a\\b" };
        char longest[NAME_MAX_LEN + 2];

        for (size_t i = 0; i < ARRAY_LEN(good); i++)
                assert_true(name_valid(good[i]));
        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                assert_false(name_valid(bad[i]));
        assert_false(name_valid(NULL));
        memset(longest, 'n', sizeof(longest));
        longest[NAME_MAX_LEN + 1] = '\0';
        assert_false(name_valid(longest));
        longest[NAME_MAX_LEN] = '\0';
        assert_true(name_valid(longest));
}

static void test_hex(void **state) {
        uint8_t data[4] = { 0x00, 0x9f, 0xa0, 0xff }, back[4];
        char hex[9];

        hex_encode(data, 4, hex);
        assert_string_equal(hex, "009fa0ff");
        assert_ok(hex_decode(hex, back, 4));
        assert_memory_equal(back, data, 4);
        assert_ok(hex_decode("009FA0fF", back, 4));
        assert_memory_equal(back, data, 4);
        memset(back, 7, 4);
        assert_fails(hex_decode("009fa0f", back, 4), EINVAL);
        assert_fails(hex_decode("009fa0ff0", back, 4), EINVAL);
        assert_fails(hex_decode("009fa0fg", back, 4), EINVAL);
        assert_fails(hex_decode("", back, 4), EINVAL);
        for (size_t i = 0; i < 4; i++)
                assert_int_equal(back[i], 7); /* a failure leaves the output alone */
        hex_encode(data, 0, hex);
        assert_string_equal(hex, "");
}

static void test_size_parse(void **state) {
        static const struct {
                const char *s;
                uint64_t v;
        } good[] = {
                { "0", 0 },
                { "4096", 4096 },
                { "1b", 1 },
                { "1B", 1 },
                { "1k", 1024 },
                { "1KiB", 1024 },
                { "1kb", 1024 },
                { "256M", 256u << 20 },
                { "256m", 256u << 20 },
                { "8GiB", 8ull << 30 },
                { "1.5G", 3ull << 29 },
                { "0.5k", 512 },
                { "2T", 2ull << 40 },
                { "1P", 1ull << 50 },
                { "007", 7 },
                { "0.3k", 307 },
                { "1.3G", 1395864371 },
                { "0.75k", 768 },
                { "0.000000001P", 1125899 },
                { "9007199254740993", 9007199254740993u }, /* beyond a double's 53 bits */
        };
        static const char *const bad[] = { "",    " 1",    "1 ",   "-1",    "+1",  "x",    "1x",   "1kk",
                                           "1ki", "1MiBx", "0x10", "00x10", "1e3", "1e3M", "1E",   ".5",
                                           "1.",  "1.2.3", "inf",  "nan",   "1,5", "1.5",  "1.5b", "1.0000000000k",
                                           "M" };
        uint64_t v;

        for (size_t i = 0; i < ARRAY_LEN(good); i++) {
                v = 12345;
                if (size_parse(good[i].s, &v) < 0 || v != good[i].v)
                        fail_msg("'%s' is %llu, not %llu", good[i].s, (unsigned long long) v, (unsigned long long) good[i].v);
        }
        v = 5;
        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                if (size_parse(bad[i], &v) != -EINVAL)
                        fail_msg("'%s' is accepted, or not -EINVAL", bad[i]);
        assert_fails(size_parse(NULL, &v), EINVAL);
        assert_fails(size_parse("99999999999999999999", &v), ERANGE);
        assert_fails(size_parse("16777216T", &v), ERANGE);
        assert_fails(size_parse("9223372036854775808", &v), ERANGE);
        assert_fails(size_parse("18446744073709551616k", &v), ERANGE);
        assert_int_equal(v, 5);
}

static void test_size_format(void **state) {
        static const struct {
                uint64_t v;
                const char *s;
        } want[] = {
                { 0, "0 B" },
                { 1023, "1023 B" },
                { 1024, "1 KiB" },
                { 1536, "1.5 KiB" },
                { 512 << 10, "512 KiB" },
                { 1503238554, "1.4 GiB" },
                { (1 << 20) - 1, "1.0 MiB" },
                { 104858 * 1024, "102 MiB" },
                { 102399, "100 KiB" },
                { UINT64_MAX, "16384 PiB" },
        };
        char buf[32];

        for (size_t i = 0; i < ARRAY_LEN(want); i++)
                assert_string_equal(size_format(want[i].v, buf, sizeof(buf)), want[i].s);
        assert_string_equal(size_format(1536, buf, 4), "1.5");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_ids), cmocka_unit_test(test_random),     cmocka_unit_test(test_names),
                cmocka_unit_test(test_hex), cmocka_unit_test(test_size_parse), cmocka_unit_test(test_size_format),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
