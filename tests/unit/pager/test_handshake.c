/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "pager/handshake.h"

#define RAM (64ull << 20)
#define EXT ",\"forkd\":{\"mode\":\"memfd\",\"version\":1}"

static struct pager_layout *layout; /* of the last one that was good */
static char why[256];

static int parse_bytes(const char *json, size_t len) {
        why[0] = '\0';
        free(TAKE_PTR(layout));
        return pager_handshake_parse(json, len, RAM, &layout, why, sizeof(why));
}

static int parse(const char *json) {
        return parse_bytes(json, strlen(json));
}

static int parse_one(const char *base, const char *size, const char *offset, const char *rest) {
        char json[512];

        (void) snprintf(json, sizeof(json), "[{\"base_host_virt_addr\":%s,\"size\":%s,\"offset\":%s%s}]", base, size, offset,
                        rest);
        return parse(json);
}

static void test_good(void **state) {
        assert_int_equal(parse("[{\"base_host_virt_addr\":1048576,\"size\":67108864,\"offset\":0,\"page_size\":4096,"
                               "\"page_size_kib\":4096" EXT "}]"),
                         0);
        assert_int_equal(layout->n, 1);
        assert_int_equal(layout->region[0].base, 1048576);
        assert_int_equal(layout->region[0].size, RAM);
        assert_int_equal(layout->region[0].offset, 0);

        /* the old name alone; regions in any order come out by address */
        assert_int_equal(parse(" [ {\"base_host_virt_addr\":8388608,\"size\":4096,\"offset\":0,\"page_size_kib\":4096" EXT
                               "},\n{\"base_host_virt_addr\":4194304,\"size\":8192,\"offset\":4096,\"page_size\":4096" EXT
                               ",\"unknown\":[]}]"),
                         0);
        assert_int_equal(layout->n, 2);
        assert_int_equal(layout->region[0].base, 4194304);
        assert_int_equal(layout->region[1].base, 8388608);

        assert_null(pager_layout_find(layout, 4194303));
        assert_ptr_equal(pager_layout_find(layout, 4194304), &layout->region[0]);
        assert_ptr_equal(pager_layout_find(layout, 4194304 + 8191), &layout->region[0]);
        assert_null(pager_layout_find(layout, 4194304 + 8192));
        assert_ptr_equal(pager_layout_find(layout, 8388608), &layout->region[1]);
        assert_null(pager_layout_find(layout, 8388608 + 4096));
        assert_null(pager_layout_find(layout, UINT64_MAX));
}

static void test_bad_regions(void **state) {
        static const char good[] = ",\"page_size\":4096" EXT;
        static const struct {
                const char *base, *size, *offset, *rest, *why;
        } cases[] = {
                { "1048577", "4096", "0", good, "aligned" },
                { "1048576", "4097", "0", good, "aligned" },
                { "1048576", "4096", "1", good, "aligned" },
                { "1048576", "0", "0", good, "empty" },
                { "0", "4096", "0", good, "address range" },
                { "-4096", "4096", "0", good, "not a number" },
                { "1048576", "-4096", "0", good, "not a number" },
                { "1048576", "4096", "-4096", good, "not a number" },
                { "1.5", "4096", "0", good, "not a number" },
                { "\"1048576\"", "4096", "0", good, "not a number" },
                { "null", "4096", "0", good, "not a number" },
                { "9223372036854771712", "4096", "0", good, "address range" },
                { "99999999999999999999", "4096", "0", good, "JSON" },
                { "1048576", "9223372036854771712", "0", good, "address range" },
                { "1048576", "67112960", "0", good, "outside" },
                { "1048576", "4096", "67108864", good, "outside" },
                { "1048576", "67108864", "4096", good, "outside" },
                { "1048576", "4096", "9223372036854771712", good, "outside" },
                { "1048576", "4096", "0", ",\"page_size\":2097152" EXT, "4096" },
                { "1048576", "4096", "0", EXT, "page_size" },
                { "1048576", "4096", "0", ",\"page_size\":8192", "neither" },
                { "1048576", "4096", "0", ",\"page_size\":4", "neither" },
                { "1048576", "4096", "0", ",\"page_size\":\"4096\"", "page_size is not" },
                { "1048576", "4096", "0", ",\"page_size_kib\":null", "page_size_kib is not" },
                { "1048576", "4096", "0", ",\"page_size\":4096,\"page_size_kib\":2097152", "differ" },
                { "1048576", "2097152", "0", ",\"page_size\":2097152", "aligned" },
                { "2097152", "1048576", "0", ",\"page_size\":2097152", "aligned" },
                { "2097152", "2097152", "1048576", ",\"page_size\":2097152", "aligned" },
                { "2097152", "69206016", "0", ",\"page_size\":2097152", "outside" },
                { "1048576", "4096", "0", ",\"page_size\":4096,\"forkd\":1", "mode" },
                { "1048576", "4096", "0", ",\"page_size\":4096,\"forkd\":{\"mode\":\"x\",\"version\":1}", "mode" },
                { "1048576", "4096", "0", ",\"page_size\":4096,\"forkd\":{\"mode\":\"memfd\",\"version\":2}", "version" },
                { "1048576", "4096", "0", ",\"page_size\":4096,\"size\":4096" EXT, "JSON" },
        };

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                assert_int_equal(parse_one(cases[i].base, cases[i].size, cases[i].offset, cases[i].rest), -EBADMSG);
                if (!strstr(why, cases[i].why))
                        fail_msg("case %zu: \"%s\" does not tell of \"%s\"", i, why, cases[i].why);
        }
}

static void test_overlaps(void **state) {
#define R(base, size, off) "{\"base_host_virt_addr\":" #base ",\"size\":" #size ",\"offset\":" #off ",\"page_size\":4096" EXT "}"
        assert_int_equal(parse("[" R(1048576, 8192, 0) "," R(1052672, 8192, 8192) "]"), -EBADMSG);
        assert_non_null(strstr(why, "overlaps"));
        assert_int_equal(parse("[" R(1048576, 8192, 0) "," R(2097152, 8192, 4096) "]"), -EBADMSG);
        assert_non_null(strstr(why, "holds too"));
        assert_int_equal(parse("[" R(1048576, 8192, 0) "," R(1048576, 8192, 0) "]"), -EBADMSG);
        assert_int_equal(parse("[" R(1048576, 8192, 0) "," R(1056768, 8192, 8192) "]"), 0);
}

/** What Firecracker has sent over its versions. */
static void test_copy_mode(void **state) {
        static const char *const ordinary[] = { "", ",\"page_size_kib\":4096", ",\"page_size\":4096,\"page_size_kib\":4096" };

        for (size_t i = 0; i < ARRAY_LEN(ordinary); i++) {
                assert_int_equal(parse_one("1048576", "67108864", "0", ordinary[i]), 0);
                assert_int_equal(layout->mode, PAGER_MODE_COPY);
                assert_int_equal(layout->page_size, 4096);
        }
        assert_int_equal(parse_one("4194304", "67108864", "0", ",\"page_size\":2097152,\"page_size_kib\":2097152"), 0);
        assert_int_equal(layout->mode, PAGER_MODE_COPY);
        assert_int_equal(layout->page_size, 2097152);
        assert_int_equal(parse_one("4194304", "2097152", "65011712", ",\"page_size_kib\":2097152"), 0);
        assert_int_equal(layout->page_size, 2097152);
        assert_int_equal(parse_one("1048576", "4096", "0", ",\"page_size\":4096" EXT), 0);
        assert_int_equal(layout->mode, PAGER_MODE_MEMFD);

        /* a hole in the addresses, as for MMIO, and one in guest memory */
        assert_int_equal(parse("[{\"base_host_virt_addr\":8388608,\"size\":8192,\"offset\":0},"
                               "{\"base_host_virt_addr\":4096,\"size\":4096,\"offset\":12288}]"),
                         0);
        assert_int_equal(layout->n, 2);
        assert_int_equal(layout->region[0].offset, 12288);
}

static void test_all_alike(void **state) {
#define C(base, rest) "{\"base_host_virt_addr\":" #base ",\"size\":2097152,\"offset\":" #base rest "}"
        assert_int_equal(parse("[" C(2097152, "") "," C(4194304, ",\"page_size\":4096" EXT) "]"), -EBADMSG);
        assert_non_null(strstr(why, "others have not"));
        assert_int_equal(parse("[" C(2097152, ",\"page_size\":4096" EXT) "," C(4194304, ",\"page_size\":4096") "]"), -EBADMSG);
        assert_non_null(strstr(why, "others have not"));
        assert_int_equal(parse("[" C(2097152, "") "," C(4194304, ",\"page_size\":2097152") "]"), -EBADMSG);
        assert_non_null(strstr(why, "first region"));
        assert_int_equal(parse("[" C(2097152, "") "," C(4194304, ",\"page_size\":4096") "]"), 0);
}

static void test_bad_json(void **state) {
        static const char *const cases[] = { "",         "[",
                                             "{}",       "[]",
                                             "[1]",      "[[]]",
                                             "[{}]",     "[{\"a\":1]}",
                                             "x[]",      "[]x",
                                             "[null]",   "[[[[[[]]]]]]",
                                             "[\"\\\"]", "[{\"base_host_virt_addr\":1}" };

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                assert_int_equal(parse(cases[i]), -EBADMSG);
                assert_true(why[0]);
        }
}

static void test_too_many(void **state) {
        static char json[PAGER_MAX_HANDSHAKE + 64];
        size_t n = 0;
        size_t len = 0;

        json[len++] = '[';
        for (; n <= PAGER_MAX_REGIONS; n++)
                len += (size_t) snprintf(json + len, sizeof(json) - len,
                                         "%s{\"base_host_virt_addr\":%zu,\"size\":4096,\"offset\":%zu,\"page_size\":4096" EXT "}",
                                         n ? "," : "", (n + 16) * 8192, n * 4096);
        json[len++] = ']';
        assert_int_equal(parse_bytes(json, len), -EBADMSG);
        assert_non_null(strstr(why, "1025 regions"));

        /* exactly the limit is fine */
        len = (size_t) (strrchr(json, '{') - json);
        len = (size_t) ((char *) memrchr(json, '{', len) - json); /* the last region's start: its extension nests */
        json[len - 1] = ']';
        assert_int_equal(parse_bytes(json, len), 0);
        assert_int_equal(layout->n, PAGER_MAX_REGIONS);

        memset(json, ' ', sizeof(json));
        json[0] = '[';
        json[sizeof(json) - 1] = ']';
        assert_int_equal(parse_bytes(json, sizeof(json)), -EBADMSG);
}

static void test_scan_by_bytes(void **state) {
        static const char json[] = " [{\"a\":\"]}\\\"[\"},[]] tail";
        struct pager_handshake_scan scan = { 0 };
        size_t len = 0;

        for (size_t i = 1; i <= sizeof(json) - 6; i++) {
                int r = pager_handshake_scan(&scan, json, i, &len);

                assert_int_equal(r, i == sizeof(json) - 6);
        }
        assert_int_equal(len, sizeof(json) - 6);
        /* once found it stays found */
        assert_int_equal(pager_handshake_scan(&scan, json, sizeof(json) - 1, &len), 1);
        assert_int_equal(len, sizeof(json) - 6);

        scan = (struct pager_handshake_scan){ 0 };
        assert_int_equal(pager_handshake_scan(&scan, "{", 1, &len), -EBADMSG);
        scan = (struct pager_handshake_scan){ 0 };
        assert_int_equal(pager_handshake_scan(&scan, "7", 1, &len), -EBADMSG);
        scan = (struct pager_handshake_scan){ 0 };
        assert_int_equal(pager_handshake_scan(&scan, "[[[[[", 5, &len), -EBADMSG);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_good),      cmocka_unit_test(test_bad_regions),   cmocka_unit_test(test_overlaps),
                cmocka_unit_test(test_copy_mode), cmocka_unit_test(test_all_alike),     cmocka_unit_test(test_bad_json),
                cmocka_unit_test(test_too_many),  cmocka_unit_test(test_scan_by_bytes),
        };

        int r = cmocka_run_group_tests(tests, NULL, NULL);
        free(layout);
        return r;
}
