/* SPDX-License-Identifier: MIT */
/* Manifests: all fields come back, every damaged byte and every field out of bounds is refused. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "common/mp.h"
#include "snap_test.h"

static void fill_all(struct snap_manifest *m) {
        struct model ram = { .n_pages = 1000 };

        manifest_fill(m, &ram);
        (void) strcpy(m->id, "0123456789abcdef");
        m->depth = 3;
        m->n_chain = 2; /* fewer than depth: the oldest may be cut off */
        (void) strcpy(m->chain[0], "1111111111111111");
        (void) strcpy(m->chain[1], "2222222222222222");
        (void) strcpy(m->parent, m->chain[0]);
        (void) strcpy(m->machine, "microvm,acpi=on");
        memset(m->kernel, 'a', 64);
        memset(m->initrd, 'b', 64);
        memset(m->image_uuid, 0xc3, sizeof(m->image_uuid));
        m->pages_stored = 600;
        m->pages_zero = 400;
        m->image_bytes = 1 << 20;
        m->stored_bytes = 12345;
        m->n_disks = 2;
        m->disk_bytes[0] = 1 << 30;
        m->disk_bytes[1] = SNAP_MAX_DISK_BYTES;
        m->vmstate_raw_bytes = 58000;
        m->vmstate_bytes = 15000;
        m->vmstate_xxh3 = UINT64_MAX;
        m->vmstate_codec = SNAP_CODEC_ZSTD;
        m->created_ns = -1; /* clocks can be wrong */
}

static void encode(const struct snap_manifest *m, uint8_t **ret, size_t *ret_len) {
        void *data;

        assert_ok(snap_manifest_encode(m, &data, ret_len));
        *ret = data;
}

/* Encodes, decodes and compares. */
static void check_roundtrip(const struct snap_manifest *m) {
        struct snap_manifest *got = calloc(1, sizeof(*got));
        uint8_t *data;
        size_t len;

        encode(m, &data, &len);
        assert_ok(snap_manifest_decode(data, len, got));
        assert_memory_equal(got, m, sizeof(*m));
        free(data);
        free(got);
}

static void test_roundtrip(void **state) {
        struct snap_manifest *m = calloc(1, sizeof(*m));

        fill_all(m);
        check_roundtrip(m);
        m->depth = 0;
        m->n_chain = 0;
        memset(m->chain, 0, sizeof(m->chain));
        memset(m->parent, 0, sizeof(m->parent));
        memset(m->tag, 0, sizeof(m->tag));
        m->n_disks = 0;
        memset(m->disk_bytes, 0, sizeof(m->disk_bytes));
        m->vmstate_bytes = m->vmstate_raw_bytes = 0;
        check_roundtrip(m);
        memset(m->cpu, '~', sizeof(m->cpu) - 1);
        memset(m->tag, 'x', NAME_MAX_LEN);
        check_roundtrip(m);
        free(m);
}

static void test_every_byte(void **state) {
        struct snap_manifest *m = calloc(1, sizeof(*m)), *got = calloc(1, sizeof(*got));
        uint8_t *data, *cut;
        size_t len;

        fill_all(m);
        encode(m, &data, &len);
        for (size_t i = 0; i < len; i++)
                for (unsigned bit = 0; bit < 8; bit++) {
                        data[i] ^= (uint8_t) (1u << bit);
                        assert_true(snap_manifest_decode(data, len, got) < 0);
                        data[i] ^= (uint8_t) (1u << bit);
                }
        for (size_t n = 0; n < len; n++) {
                cut = malloc(n ? n : 1); /* exactly so long, for ASan */
                memcpy(cut, data, n);
                assert_int_equal(snap_manifest_decode(cut, n, got), -EBADMSG);
                free(cut);
        }
        cut = calloc(1, len + 1);
        memcpy(cut, data, len);
        assert_int_equal(snap_manifest_decode(cut, len + 1, got), -EBADMSG);
        free(cut);
        assert_ok(snap_manifest_decode(data, len, got));
        free(data);
        free(m);
        free(got);
}

/* Puts a head and a checksum around @map. */
static int decode_map(const void *map, size_t map_len, uint32_t version, struct snap_manifest *ret) {
        size_t len = 16 + map_len + 8;
        uint8_t *data = malloc(len);
        uint32_t map_len32 = (uint32_t) map_len;
        uint64_t sum;
        int r;

        memcpy(data, "FORKDMAN", 8);
        memcpy(data + 8, &version, 4);
        memcpy(data + 12, &map_len32, 4);
        memcpy(data + 16, map, map_len);
        sum = XXH3_64bits(data, len - 8);
        memcpy(data + len - 8, &sum, 8);
        r = snap_manifest_decode(data, len, ret);
        free(data);
        return r;
}

/* A good manifest with the value of @key replaced by @value (NULL: left out), sealed. */
static int decode_with(const char *key, const struct mp_buf *value) {
        struct snap_manifest *m = calloc(1, sizeof(*m));
        cleanup_mp_doc struct mp_doc doc = {};
        cleanup_mp_buf struct mp_buf b = { 0 };
        const msgpack_object_map *map;
        bool found = false;
        uint8_t *data;
        size_t len;
        int r;

        fill_all(m);
        encode(m, &data, &len);
        assert_ok(mp_parse(data + 16, len - 24, &doc));
        map = &doc.root.via.map;
        mp_buf_init(&b);
        mp_map(&b, map->size - (value ? 0 : 1));
        for (uint32_t i = 0; i < map->size; i++) {
                bool hit = mp_is_str(&map->ptr[i].key, key);

                found |= hit;
                if (hit && !value)
                        continue;
                mp_obj(&b, &map->ptr[i].key);
                if (hit)
                        mp_raw(&b, value->sb.data, value->sb.size);
                else
                        mp_obj(&b, &map->ptr[i].val);
        }
        assert_true(found);
        r = decode_map(b.sb.data, b.sb.size, SNAP_MANIFEST_VERSION, m);
        free(data);
        free(m);
        return r;
}

static int with_str(const char *key, const char *s) {
        cleanup_mp_buf struct mp_buf v = { 0 };

        mp_buf_init(&v);
        mp_str(&v, s);
        return decode_with(key, &v);
}

static int with_u64(const char *key, uint64_t n) {
        cleanup_mp_buf struct mp_buf v = { 0 };

        mp_buf_init(&v);
        mp_u64(&v, n);
        return decode_with(key, &v);
}

static void test_fields(void **state) {
        static const char *const strings[] = { "id",  "tag",     "source", "parent", "vmm", "vmm_version",  "accel",
                                               "cpu", "machine", "kernel", "initrd", "net", "vmstate_codec" };
        static const char *const numbers[] = {
                "depth",      "vcpus",       "mem_bytes",    "dirty_bytes",       "pages_stored",
                "pages_zero", "image_bytes", "stored_bytes", "vmstate_raw_bytes", "vmstate_bytes"
        };
        char text[4096];

        memset(text, 'x', sizeof(text) - 1);
        text[sizeof(text) - 1] = '\0';
        assert_ok(with_str("tag", "other-tag")); /* the method itself works */
        assert_ok(with_u64("vcpus", 7));
        for (size_t i = 0; i < ARRAY_LEN(strings); i++) {
                assert_int_equal(decode_with(strings[i], NULL), -EBADMSG);
                assert_int_equal(with_str(strings[i], text), -EBADMSG);
                assert_int_equal(with_str(strings[i], "new\nline"), -EBADMSG);
                assert_int_equal(with_str(strings[i], "\x7f"), -EBADMSG);
                assert_int_equal(with_str(strings[i], NULL), -EBADMSG);
                assert_int_equal(with_u64(strings[i], 1), -EBADMSG);
        }
        for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
                assert_int_equal(decode_with(numbers[i], NULL), -EBADMSG);
                assert_int_equal(with_u64(numbers[i], UINT64_MAX), -EBADMSG);
                assert_int_equal(with_str(numbers[i], "1"), -EBADMSG);
        }
        assert_int_equal(with_str("id", "0123456789ABCDEF"), -EBADMSG);
        assert_int_equal(with_str("id", ""), -EBADMSG);
        assert_int_equal(with_str("id", "../../etc/passwd"), -EBADMSG);
        assert_int_equal(with_str("source", ""), -EBADMSG);
        assert_int_equal(with_str("source", "a/b"), -EBADMSG);
        assert_int_equal(with_str("parent", ""), -EBADMSG);
        assert_int_equal(with_str("parent", "3333333333333333"), -EBADMSG); /* not the chain's first */
        assert_int_equal(with_u64("depth", 0), -EBADMSG);
        assert_int_equal(with_u64("depth", 1), -EBADMSG); /* less than the chain has */
        assert_int_equal(with_u64("depth", (1ull << 32) + 3), -EBADMSG);
        assert_int_equal(with_u64("vcpus", 0), -EBADMSG);
        assert_int_equal(with_u64("mem_bytes", 1000 * SNAP_PAGE_SIZE + 1), -EBADMSG);
        assert_int_equal(with_u64("mem_bytes", 1001 * SNAP_PAGE_SIZE), -EBADMSG); /* not stored + zero */
        assert_int_equal(with_u64("vmstate_bytes", 0), -EBADMSG);
        assert_int_equal(with_str("vmstate_codec", "gzip"), -EBADMSG);
}

static void test_arrays(void **state) {
        cleanup_mp_buf struct mp_buf v = { 0 };

        mp_buf_init(&v);
        assert_int_equal(decode_with("chain", NULL), -EBADMSG);
        assert_int_equal(decode_with("disk_bytes", NULL), -EBADMSG);
        assert_int_equal(decode_with("image_uuid", NULL), -EBADMSG);
        assert_int_equal(with_str("image_uuid", "short"), -EBADMSG);
        assert_int_equal(with_u64("chain", 1), -EBADMSG);
        assert_int_equal(with_u64("disk_bytes", 1), -EBADMSG);
        for (unsigned n = 0; n <= SNAP_MAX_CHAIN + 1; n++) { /* all equal to the parent, any number but 1 … 3 */
                v.sb.size = 0;
                mp_array(&v, n);
                for (unsigned i = 0; i < n; i++)
                        mp_str(&v, "1111111111111111");
                assert_int_equal(decode_with("chain", &v), n >= 1 && n <= 3 ? 0 : -EBADMSG);
        }
        v.sb.size = 0;
        mp_array(&v, 2);
        mp_str(&v, "1111111111111111");
        mp_u64(&v, 5);
        assert_int_equal(decode_with("chain", &v), -EBADMSG);
        v.sb.size = 0;
        mp_array(&v, 2);
        mp_str(&v, "1111111111111111");
        mp_str(&v, "111111111111111/");
        assert_int_equal(decode_with("chain", &v), -EBADMSG);
        for (unsigned n = 0; n <= SNAP_MAX_DISKS + 1; n++) {
                v.sb.size = 0;
                mp_array(&v, n);
                for (unsigned i = 0; i < n; i++)
                        mp_u64(&v, 4096);
                assert_int_equal(decode_with("disk_bytes", &v), n <= SNAP_MAX_DISKS ? 0 : -EBADMSG);
        }
        v.sb.size = 0;
        mp_array(&v, 1);
        mp_u64(&v, SNAP_MAX_DISK_BYTES + 1);
        assert_int_equal(decode_with("disk_bytes", &v), -EBADMSG);
        v.sb.size = 0;
        mp_array(&v, 1);
        mp_i64(&v, -1);
        assert_int_equal(decode_with("disk_bytes", &v), -EBADMSG);
}

static void test_versions_and_unknown_keys(void **state) {
        struct snap_manifest *m = calloc(1, sizeof(*m)), *got = calloc(1, sizeof(*got));
        cleanup_mp_doc struct mp_doc doc = {};
        cleanup_mp_buf struct mp_buf b = { 0 };
        const msgpack_object_map *map;
        uint8_t *data;
        size_t len;

        fill_all(m);
        encode(m, &data, &len);
        assert_int_equal(decode_map(data + 16, len - 24, SNAP_MANIFEST_VERSION + 1, got), -EPROTONOSUPPORT);
        assert_int_equal(decode_map("\xc0", 1, SNAP_MANIFEST_VERSION, got), -EBADMSG); /* nil */
        assert_int_equal(decode_map("\x80", 1, SNAP_MANIFEST_VERSION, got), -EBADMSG); /* an empty map */
        assert_int_equal(decode_map("\x80\x80", 2, SNAP_MANIFEST_VERSION, got), -EBADMSG);
        assert_int_equal(decode_map("\xc1", 1, SNAP_MANIFEST_VERSION, got), -EBADMSG); /* no MessagePack */
        assert_int_equal(decode_map("", 0, SNAP_MANIFEST_VERSION, got), -EBADMSG);

        assert_ok(mp_parse(data + 16, len - 24, &doc));
        map = &doc.root.via.map;
        mp_buf_init(&b);
        mp_map(&b, map->size + 1);
        mp_kv_str(&b, "of_a_later_minor_version", "ignored");
        for (uint32_t i = 0; i < map->size; i++) {
                mp_obj(&b, &map->ptr[i].key);
                mp_obj(&b, &map->ptr[i].val);
        }
        assert_ok(decode_map(b.sb.data, b.sb.size, SNAP_MANIFEST_VERSION, got));
        assert_memory_equal(got, m, sizeof(*m));
        free(data);
        free(m);
        free(got);
}

static void test_bad_fields_are_not_written(void **state) {
        struct snap_manifest *m = calloc(1, sizeof(*m));
        void *data = NULL;
        size_t len;

        fill_all(m);
        m->n_chain = SNAP_MAX_CHAIN + 1;
        assert_int_equal(snap_manifest_encode(m, &data, &len), -EINVAL);
        fill_all(m);
        m->n_disks = SNAP_MAX_DISKS + 1;
        assert_int_equal(snap_manifest_encode(m, &data, &len), -EINVAL);
        fill_all(m);
        memset(m->cpu, 'x', sizeof(m->cpu)); /* no end */
        assert_int_equal(snap_manifest_encode(m, &data, &len), -EINVAL);
        fill_all(m);
        m->vmstate_codec = (enum snap_codec) 9;
        assert_int_equal(snap_manifest_encode(m, &data, &len), -EINVAL);
        assert_null(data);
        free(m);
}

/* Lines of descent longer than a manifest can name keep the nearest ancestors. */
static void test_long_chain(void **state) {
        struct snap_manifest *m = calloc(1, sizeof(*m)), *parent = calloc(1, sizeof(*parent));
        struct model ram = { .n_pages = 1000 };

        for (uint32_t i = 0; i < SNAP_MAX_CHAIN + 50; i++) {
                manifest_fill(m, &ram);
                (void) snprintf(m->id, sizeof(m->id), "%016x", i);
                m->pages_zero = 1000;
                if (i)
                        snap_manifest_set_parent(m, parent);
                check_roundtrip(m);
                assert_int_equal(m->depth, i);
                assert_int_equal(m->n_chain, MIN_OF(i, SNAP_MAX_CHAIN));
                for (uint32_t k = 0; k < m->n_chain; k++)
                        assert_int_equal(strtoul(m->chain[k], NULL, 16), i - 1 - k);
                *parent = *m;
        }
        free(m);
        free(parent);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_roundtrip),
                cmocka_unit_test(test_every_byte),
                cmocka_unit_test(test_fields),
                cmocka_unit_test(test_arrays),
                cmocka_unit_test(test_versions_and_unknown_keys),
                cmocka_unit_test(test_bad_fields_are_not_written),
                cmocka_unit_test(test_long_chain),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
