/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include "common/utf8.h"

static void test_valid(void **state) {
        static const char *const good[] = { "", "a", "ü", "€", "😀", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf", "\xee\x80\x80" };
        static const char *const bad[] = {
                "\x80",         "\xc3",         "\xc0\xaf",         "\xc1\xbf",
                "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
                "\xf5\x80\x80", "\xff",         "a\xe2\x82",        "\xe2\x82z",
        };

        for (size_t i = 0; i < ARRAY_LEN(good); i++)
                assert_true(utf8_valid(good[i], strlen(good[i])));
        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                if (utf8_valid(bad[i], strlen(bad[i])))
                        fail_msg("bad sequence %zu was taken", i);
}

static void test_whole(void **state) {
        assert_int_equal(utf8_whole("abc", 3), 3);
        assert_int_equal(utf8_whole("", 0), 0);
        assert_int_equal(utf8_whole("a\xe2\x82\xac", 4), 4);
        assert_int_equal(utf8_whole("a\xe2\x82", 3), 1);
        assert_int_equal(utf8_whole("a\xe2", 2), 1);
        assert_int_equal(utf8_whole("\xf0\x9f\x98", 3), 0);
        assert_int_equal(utf8_whole("\xff\xff", 2), 2);         /* no sequence will come of it */
        assert_int_equal(utf8_whole("\x82\x82\x82\x82", 4), 4); /* nor of that */
        assert_int_equal(utf8_whole("\xed\xa0", 2), 2);         /* a surrogate: bad already */
}

static void test_sequence(void **state) {
        static const unsigned char text[] = "a\xe2\x82\xac";

        assert_int_equal(utf8_sequence(text, 4), 1);
        assert_int_equal(utf8_sequence(text + 1, 3), 3);
        assert_int_equal(utf8_sequence(text + 1, 2), -1);
        assert_int_equal(utf8_sequence(text + 2, 2), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_valid),
                cmocka_unit_test(test_whole),
                cmocka_unit_test(test_sequence),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
