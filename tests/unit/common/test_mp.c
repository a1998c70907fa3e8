/* SPDX-License-Identifier: MIT */
/* mp_scan is what stands between a peer's bytes and msgpack-c: its answers are checked against every prefix of
 * generated messages, so that no length and no lower bound is taken on trust. */
#include "common_test.h"

#include <errno.h>
#include <stdlib.h>

#include "common/mp.h"

static void put_type(struct mp_buf *b, struct rng *r, unsigned depth);

/* Bytes of a header that msgpack-c's packer would not choose, but that are valid: longer than needed. */
static void put_wide(struct mp_buf *b, struct rng *r, unsigned depth) {
        static const struct {
                uint8_t type, len_bytes, container;
        } wide[] = { { 0xc4, 1, 0 }, { 0xc5, 2, 0 }, { 0xc6, 4, 0 }, { 0xd9, 1, 0 }, { 0xda, 2, 0 },
                     { 0xdb, 4, 0 }, { 0xdc, 2, 1 }, { 0xdd, 4, 1 }, { 0xde, 2, 2 }, { 0xdf, 4, 2 } };
        unsigned k = (unsigned) rng_below(r, depth > 0 ? ARRAY_LEN(wide) : 6);
        uint8_t n = (uint8_t) rng_below(r, wide[k].container ? 4 : 40), head[5] = { wide[k].type };

        head[wide[k].len_bytes] = n;
        mp_raw(b, head, 1u + wide[k].len_bytes);
        for (unsigned i = 0; i < n; i++) {
                if (!wide[k].container)
                        mp_raw(b, "x", 1);
                for (unsigned j = 0; j < wide[k].container; j++)
                        put_type(b, r, depth - 1);
        }
}

static void put_type(struct mp_buf *b, struct rng *r, unsigned depth) {
        char text[70];
        size_t n;

        memset(text, 'a', sizeof(text));
        switch (rng_below(r, depth > 0 ? 10 : 8)) {
        case 0:
                mp_nil(b);
                break;
        case 1:
                mp_bool(b, rng_below(r, 2));
                break;
        case 2:
                mp_u64(b, rng_next(r) >> rng_below(r, 64));
                break;
        case 3:
                mp_i64(b, -(int64_t) (rng_next(r) >> (1 + rng_below(r, 63))));
                break;
        case 4:
                mp_double(b, 1.5);
                break;
        case 5:
                mp_strn(b, text, rng_below(r, sizeof(text)));
                break;
        case 6:
                mp_bin(b, text, rng_below(r, sizeof(text)));
                break;
        case 7:
                put_wide(b, r, depth);
                break;
        case 8:
                n = rng_below(r, 5);
                mp_array(b, n);
                while (n--)
                        put_type(b, r, depth - 1);
                break;
        default:
                n = rng_below(r, 4);
                mp_map(b, n);
                for (size_t i = 0; i < 2 * n; i++)
                        put_type(b, r, depth - 1);
        }
}

static void test_scan_every_prefix(void **state) {
        struct rng r = { 1 };

        for (unsigned round = 0; round < 4000; round++) {
                cleanup_mp_buf struct mp_buf b = { 0 };
                size_t len, bound;

                mp_buf_init(&b);
                put_type(&b, &r, 5);
                for (size_t i = 0; i < b.sb.size; i++) {
                        /* In a buffer of exactly this size, so that ASan sees a read behind it. */
                        cleanup_free char *part = malloc(i ? i : 1);

                        memcpy(part, b.sb.data, i);
                        assert_int_equal(mp_scan(part, i, &bound), 0);
                        if (bound <= i || bound > b.sb.size)
                                fail_msg("round %u: %zu of %zu bytes, %zu said to be needed", round, i, b.sb.size, bound);
                }
                assert_int_equal(mp_scan(b.sb.data, b.sb.size, &len), 1);
                assert_int_equal(len, b.sb.size);
                mp_raw(&b, "\x93\x01", 2); /* the start of a next message is none of its business */
                assert_int_equal(mp_scan(b.sb.data, b.sb.size, &len), 1);
                assert_int_equal(len, b.sb.size - 2);
        }
}

/* A header cut before its length: the element is counted once, not twice. */
static void test_scan_cut_length(void **state) {
        static const struct {
                const char *bytes;
                size_t len;
        } whole[] = { { "\xd9\x00", 2 },
                      { "\xc4\x00", 2 },
                      { "\xdc\x00\x00", 3 },
                      { "\x91\xd9\x00", 3 },
                      { "\x92\xc0\xdb\x00\x00\x00\x00", 7 } };
        size_t bound;

        for (size_t i = 0; i < ARRAY_LEN(whole); i++) {
                for (size_t n = 1; n < whole[i].len; n++) {
                        assert_int_equal(mp_scan(whole[i].bytes, n, &bound), 0);
                        assert_in_range(bound, n + 1, whole[i].len);
                }
                assert_int_equal(mp_scan(whole[i].bytes, whole[i].len, &bound), 1);
        }
}

static void test_scan_huge_counts(void **state) {
        size_t bound = 0;

        /* 4 Gi pairs, each at least two bytes: no multiplication may wrap. */
        assert_int_equal(mp_scan("\xdf\xff\xff\xff\xff", 5, &bound), 0);
        assert_int_equal(bound, 5 + 2ull * 0xffffffffu);
        assert_int_equal(mp_scan("\xdb\xff\xff\xff\xff", 5, &bound), 0);
        assert_int_equal(bound, 5 + 0xffffffffull);
        assert_int_equal(mp_scan("\xdd\xff\xff\xff\xff\xc0", 6, &bound), 0);
        assert_int_equal(bound, 5 + 0xffffffffull);
        assert_int_equal(mp_scan("", 0, &bound), 0);
        assert_int_equal(bound, 1);
}

static void test_scan_depth(void **state) {
        uint8_t deep[MP_MAX_DEPTH + 2];
        size_t len = 77;

        memset(deep, 0x91, sizeof(deep));
        deep[MP_MAX_DEPTH] = 0xc0;
        assert_int_equal(mp_scan(deep, MP_MAX_DEPTH + 1, &len), 1);
        deep[MP_MAX_DEPTH] = 0x90; /* empty: holds nothing, so it is no level */
        assert_int_equal(mp_scan(deep, MP_MAX_DEPTH + 1, &len), 1);
        len = 77;
        memset(deep, 0x91, sizeof(deep));
        assert_fails(mp_scan(deep, MP_MAX_DEPTH + 1, &len), EBADMSG);
        assert_int_equal(len, 77);
}

static void test_scan_refuses(void **state) {
        static const uint8_t bad[] = { 0xc1, 0xc7, 0xc8, 0xc9, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8 };
        struct mp_doc doc;
        size_t len;

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                uint8_t msg[24] = { 0x91, bad[i], 0 };

                assert_fails(mp_scan(msg, sizeof(msg), &len), EBADMSG);
                assert_fails(mp_parse(msg, sizeof(msg), &doc), EBADMSG);
        }
}

static void test_scanner_resumes(void **state) {
        struct rng r = { 2 };

        for (unsigned round = 0; round < 500; round++) {
                cleanup_mp_buf struct mp_buf b = { 0 };
                struct mp_scanner s = MP_SCANNER_INIT;
                size_t have = 0, len = 0, steps = 0;

                mp_buf_init(&b);
                mp_array(&b, 3);
                for (unsigned i = 0; i < 3; i++)
                        put_type(&b, &r, 4);
                while (mp_scan_more(&s, b.sb.data, have, &len) == 0) {
                        assert_in_range(len, have + 1, b.sb.size);
                        assert_true(s.pos <= have);
                        have = rng_below(&r, 3) ? len : have + 1; /* as asked for, or slower */
                        steps++;
                }
                assert_int_equal(have, b.sb.size);
                assert_int_equal(len, b.sb.size);
                assert_true(steps > 0);
        }
}

/* A message that comes in small pieces is walked once, not once per piece: else a peer could make forkd walk
 * through megabytes for every few bytes it sends. */
static void test_scanner_goes_on_where_it_was(void **state) {
        enum { N = 1000 };
        struct mp_scanner s = MP_SCANNER_INIT;
        cleanup_mp_buf struct mp_buf b = { 0 };
        size_t len;

        mp_buf_init(&b);
        mp_array(&b, N);
        for (unsigned i = 0; i < N; i++)
                mp_nil(&b);
        for (size_t have = 3; have < b.sb.size; have++) {
                assert_int_equal(mp_scan_more(&s, b.sb.data, have, &len), 0);
                assert_int_equal(len, b.sb.size);
                assert_int_equal(s.pos, have);
                b.sb.data[have - 1] = (char) 0xc1; /* what was seen is not looked at again */
        }
        assert_int_equal(mp_scan_more(&s, b.sb.data, b.sb.size, &len), 1);
}

static void test_parse_exactly_one(void **state) {
        struct mp_doc doc = { 0 };

        assert_fails(mp_parse("", 0, &doc), EBADMSG);
        assert_fails(mp_parse("\x92\x01", 2, &doc), EBADMSG);
        assert_fails(mp_parse("\x01\x02", 2, &doc), EBADMSG);
        assert_null(doc.zone);
        assert_ok(mp_parse("\x92\x01\xa1x", 4, &doc));
        assert_int_equal(doc.root.via.array.size, 2);
        mp_doc_clear(&doc);
        assert_null(doc.zone);
        mp_doc_clear(&doc);
}

static void test_parse_deepest(void **state) {
        struct mp_doc doc;
        uint8_t deep[MP_MAX_DEPTH + 1];

        memset(deep, 0x91, sizeof(deep));
        deep[MP_MAX_DEPTH] = 0xc0;
        assert_ok(mp_parse(deep, sizeof(deep), &doc));
        mp_doc_clear(&doc);
}

static void fill_sample(struct mp_buf *b) {
        mp_map(b, 14);
        mp_kv_str(b, "s", "text");
        mp_kv_str(b, "nil", NULL);
        mp_kv_u64(b, "u", UINT64_MAX);
        mp_kv_i64(b, "i", INT64_MIN);
        mp_kv_i64(b, "pos", 7);
        mp_kv_double(b, "d", 2.5);
        mp_kv_bool(b, "b", true);
        mp_kv_bin(b, "bin", "a\0b", 3);
        mp_key(b, "nul");
        mp_strn(b, "a\0b", 3);
        mp_key(b, "arr");
        mp_array(b, 1);
        mp_u64(b, 1);
        mp_kv_str(b, "empty", "");
        mp_kv_u64(b, "twice", 1);
        mp_kv_u64(b, "twice", 2);
        mp_u64(b, 5); /* a key that is no string */
        mp_u64(b, 6);
}

static void test_reading(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        const msgpack_object *m = &doc.root;
        char text[5] = "old", *dup = NULL;
        uint64_t u = 1;
        int64_t i = 1;
        double d = 1;
        bool v = false;

        mp_buf_init(&b);
        fill_sample(&b);
        assert_false(b.failed);
        assert_ok(mp_parse(b.sb.data, b.sb.size, &doc));

        assert_ok(mp_get_str(m, "s", text, sizeof(text)));
        assert_string_equal(text, "text");
        assert_ok(mp_get_str(m, "empty", text, sizeof(text)));
        assert_string_equal(text, "");
        assert_ok(mp_get_u64(m, "u", &u));
        assert_true(u == UINT64_MAX);
        assert_ok(mp_get_i64(m, "i", &i));
        assert_true(i == INT64_MIN);
        assert_ok(mp_get_i64(m, "pos", &i));
        assert_int_equal(i, 7);
        assert_ok(mp_get_double(m, "d", &d));
        assert_true(d == 2.5);
        assert_ok(mp_get_double(m, "i", &d));
        assert_true(d == (double) INT64_MIN);
        assert_ok(mp_get_bool(m, "b", &v));
        assert_true(v);
        assert_ok(mp_get_u64(m, "twice", &u));
        assert_int_equal(u, 1);
        assert_non_null(mp_get_array(m, "arr"));
        assert_null(mp_get_array(m, "s"));
        assert_ok(mp_get_strdup(m, "s", 4, &dup));
        assert_string_equal(dup, "text");
        free(dup);
}

static void test_list(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 }, elements = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        const msgpack_object *a;

        mp_buf_init(&b);
        mp_buf_init(&elements);
        mp_map(&b, 2);
        mp_kv_list(&b, "none", &elements, 0);
        mp_str(&elements, "first");
        mp_u64(&elements, 2);
        mp_kv_list(&b, "two", &elements, 2);
        assert_false(b.failed);
        assert_ok(mp_parse(b.sb.data, b.sb.size, &doc));
        a = mp_get_array(&doc.root, "none");
        assert_non_null(a);
        assert_int_equal(a->via.array.size, 0);
        a = mp_get_array(&doc.root, "two");
        assert_non_null(a);
        assert_int_equal(a->via.array.size, 2);
        assert_int_equal(a->via.array.ptr[1].via.u64, 2);
        /* A list that lacks an element is none. */
        elements.failed = true;
        mp_kv_list(&b, "two", &elements, 2);
        assert_true(b.failed);
}

static void test_reading_refuses(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        const msgpack_object *m = &doc.root;
        char text[4] = "old", *dup = text;
        const void *data = text;
        uint64_t u = 1;
        int64_t i = 1;
        bool v = false;
        size_t len = 1;

        mp_buf_init(&b);
        fill_sample(&b);
        assert_ok(mp_parse(b.sb.data, b.sb.size, &doc));

        assert_fails(mp_get_str(m, "s", text, sizeof(text)), ENAMETOOLONG);
        assert_fails(mp_get_str(m, "nul", text, sizeof(text)), EBADMSG);
        assert_fails(mp_get_str(m, "u", text, sizeof(text)), EBADMSG);
        assert_fails(mp_get_str(m, "nil", text, sizeof(text)), ENOENT);
        assert_fails(mp_get_str(m, "none", text, sizeof(text)), ENOENT);
        assert_fails(mp_get_strdup(m, "s", 3, &dup), ENAMETOOLONG);
        assert_fails(mp_get_strdup(m, "nul", 9, &dup), EBADMSG);
        assert_fails(mp_get_u64(m, "i", &u), EBADMSG);
        assert_fails(mp_get_u64(m, "d", &u), EBADMSG);
        assert_fails(mp_get_i64(m, "u", &i), EBADMSG); /* does not fit */
        assert_fails(mp_get_bool(m, "u", &v), EBADMSG);
        assert_fails(mp_get_bin(m, "u", &data, &len), EBADMSG);
        assert_fails(mp_get_u64(NULL, "u", &u), ENOENT);
        assert_fails(mp_get_u64(mp_get(m, "arr"), "u", &u), ENOENT);
        /* Outputs are untouched by all of that. */
        assert_string_equal(text, "old");
        assert_ptr_equal(dup, text);
        assert_ptr_equal(data, text);
        assert_true(u == 1 && i == 1 && !v && len == 1);
        assert_ok(mp_get_bin(m, "bin", &data, &len));
        assert_int_equal(len, 3);
        assert_memory_equal(data, "a\0b", 3);
}

/* msgpack-c gives empty strings and blobs no address; our readers do. */
static void test_empty(void **state) {
        cleanup_mp_doc struct mp_doc doc = { 0 };
        const void *data = NULL;
        char text[2] = "x", *dup;
        size_t len = 1;

        assert_ok(mp_parse("\x83\xa0\x07\xa1s\xa0\xa1"
                           "b\xc4\x00",
                           10, &doc));
        assert_true(mp_is_str(&doc.root.via.map.ptr[0].key, ""));
        assert_non_null(mp_get(&doc.root, ""));
        assert_ok(mp_get_str(&doc.root, "s", text, sizeof(text)));
        assert_string_equal(text, "");
        assert_ok(mp_get_strdup(&doc.root, "s", 0, &dup));
        assert_string_equal(dup, "");
        free(dup);
        assert_ok(mp_get_bin(&doc.root, "b", &data, &len));
        assert_true(data && len == 0);
        data = NULL;
        assert_ok(mp_get_bin(&doc.root, "s", &data, &len));
        assert_true(data && len == 0);
}

/* A struct that was moved must not write through its old address. */
static void test_buf_moved(void **state) {
        struct mp_buf a, b;

        mp_buf_init(&a);
        mp_u64(&a, 1);
        b = a;
        memset(&a, 0xff, sizeof(a));
        mp_u64(&b, 2);
        assert_int_equal(b.sb.size, 2);
        assert_memory_equal(b.sb.data, "\x01\x02", 2);
        mp_buf_clear(&b);
        mp_u64(&b, 3);
        assert_int_equal(b.sb.size, 1);
        mp_buf_clear(&b);
}

static void test_obj_roundtrip(void **state) {
        struct rng r = { 3 };

        for (unsigned round = 0; round < 300; round++) {
                cleanup_mp_buf struct mp_buf a = { 0 }, b = { 0 };
                cleanup_mp_doc struct mp_doc x = { 0 }, y = { 0 };

                mp_buf_init(&a);
                mp_buf_init(&b);
                put_type(&a, &r, 4);
                assert_ok(mp_parse(a.sb.data, a.sb.size, &x));
                mp_obj(&b, &x.root);
                assert_ok(mp_parse(b.sb.data, b.sb.size, &y));
                assert_true(msgpack_object_equal(x.root, y.root));
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_scan_every_prefix),
                cmocka_unit_test(test_scan_cut_length),
                cmocka_unit_test(test_scan_huge_counts),
                cmocka_unit_test(test_scan_depth),
                cmocka_unit_test(test_scan_refuses),
                cmocka_unit_test(test_scanner_resumes),
                cmocka_unit_test(test_scanner_goes_on_where_it_was),
                cmocka_unit_test(test_parse_exactly_one),
                cmocka_unit_test(test_parse_deepest),
                cmocka_unit_test(test_reading),
                cmocka_unit_test(test_reading_refuses),
                cmocka_unit_test(test_empty),
                cmocka_unit_test(test_list),
                cmocka_unit_test(test_buf_moved),
                cmocka_unit_test(test_obj_roundtrip),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
