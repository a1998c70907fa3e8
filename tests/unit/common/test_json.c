/* SPDX-License-Identifier: MIT */
/* MessagePack to JSON, whatever the bytes are. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "common/json.h"

static void test_text(void **state) {
        cleanup_json json_t *a = json_text("a\xff\xe2\x82z", 5), *b = json_text("\0x", 2), *c = json_text(NULL, 0);

        assert_string_equal(json_string_value(a), "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz");
        assert_int_equal(json_string_length(b), 2);
        assert_int_equal(json_string_length(c), 0);
}

static void bytes_are(const char *data, size_t len, const char *key, const char *want) {
        cleanup_json json_t *map = json_object();

        assert_int_equal(json_set_bytes(map, "data", data, len), 0);
        assert_int_equal(json_object_size(map), 1);
        assert_string_equal(json_str(map, key, "(absent)"), want);
}

static void test_bytes(void **state) {
        bytes_are("", 0, "data", "");
        bytes_are("plain ü", 8, "data", "plain ü");
        bytes_are("\xff", 1, "data_base64", "/w==");
        bytes_are("\xff\xfe", 2, "data_base64", "//4=");
        bytes_are("\xff\xfe\xfd", 3, "data_base64", "//79");
        bytes_are("\0", 1, "data_base64", "AA==");
}

/* Writes @b as JSON and compares. */
static void json_is(const struct mp_buf *b, const char *want) {
        cleanup_mp_doc struct mp_doc doc = { 0 };
        cleanup_json json_t *j = NULL;
        cleanup_free char *text = NULL;

        assert_int_equal(mp_parse(b->sb.data, b->sb.size, &doc), 0);
        j = json_from_mp(&doc.root);
        assert_non_null(j);
        text = json_dumps(j, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
        assert_string_equal(text, want);
}

static void test_values(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 9);
        mp_kv_i64(&b, "neg", -5);
        mp_kv_u64(&b, "max", INT64_MAX);
        mp_kv_u64(&b, "huge", UINT64_MAX);
        mp_kv_double(&b, "nan", NAN);
        mp_kv_bool(&b, "t", true);
        mp_kv_str(&b, "nil", NULL);
        mp_kv_bin(&b, "bin", "\0\1", 2);
        mp_kv_str(&b, "bad\xff", "\xff");
        mp_key(&b, "list");
        mp_array(&b, 2);
        mp_map(&b, 0);
        mp_array(&b, 0);
        json_is(&b, "{\"bad\xef\xbf\xbd\":\"\xef\xbf\xbd\",\"bin\":\"AAE=\",\"huge\":1.8446744073709552e19,\"list\":[{},[]],"
                    "\"max\":9223372036854775807,\"nan\":null,\"neg\":-5,\"nil\":null,\"t\":true}");
}

static void test_keys(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 4);
        mp_u64(&b, 7);
        mp_str(&b, "number");
        mp_i64(&b, -7);
        mp_str(&b, "negative");
        mp_strn(&b, "a\0b", 3);
        mp_str(&b, "cut");
        mp_nil(&b); /* no key for JSON: the pair is dropped */
        mp_str(&b, "dropped");
        json_is(&b, "{\"-7\":\"negative\",\"7\":\"number\",\"a\":\"cut\"}");
}

static void test_getters(void **state) {
        cleanup_json json_t *j = json_loads("{\"s\":\"x\",\"n\":1.5,\"i\":-1,\"u\":7,\"b\":true,\"l\":[1]}", 0, NULL);

        assert_string_equal(json_str(j, "s", "?"), "x");
        assert_string_equal(json_str(j, "n", "?"), "?");
        assert_string_equal(json_str(NULL, "s", "?"), "?");
        assert_true(json_num(j, "n", 0) == 1.5 && json_num(j, "s", 2) == 2 && json_num(j, "u", 0) == 7);
        assert_int_equal(json_u64(j, "u", 0), 7);
        assert_int_equal(json_u64(j, "i", 9), 9);
        assert_true(json_flag(j, "b"));
        assert_false(json_flag(j, "s"));
        assert_non_null(json_list(j, "l"));
        assert_null(json_list(j, "s"));
        assert_null(json_list(NULL, "s"));
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_text), cmocka_unit_test(test_bytes),   cmocka_unit_test(test_values),
                cmocka_unit_test(test_keys), cmocka_unit_test(test_getters),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
