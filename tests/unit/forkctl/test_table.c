/* SPDX-License-Identifier: MIT */
/* What people get to see: aligned, and never a terminal's control sequence. */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "common/json.h"
#include "forkctl/table.h"

static void printed_is(struct table *t, const char *want) {
        cleanup_free char *text = NULL;
        size_t size;
        FILE *f = open_memstream(&text, &size);

        assert_non_null(f);
        assert_int_equal(table_print(t, f), 0);
        assert_int_equal(fclose(f), 0);
        assert_string_equal(text, want);
}

static void test_alignment(void **state) {
        static const char *const head[] = { "NAME", ">SIZE", "EMPTY", "STATE" };
        cleanup_table struct table t = { 0 };

        table_init(&t, head, 4);
        printed_is(&t, "NAME  SIZE  EMPTY  STATE\n"); /* no rows: the heads tell that there are none */
        table_cell(&t, "für");
        table_cell(&t, "1");
        table_cell(&t, "%s", "");
        table_cell(&t, "running");
        table_cell(&t, "b");
        table_cell(&t, "%d", 12345);
        table_cell(&t, "%s", "");
        table_cell(&t, "-");
        printed_is(&t, "NAME   SIZE  STATE\n"
                       "für       1  running\n"
                       "b     12345  -\n");
}

static void test_safe(void **state) {
        char buf[64], tiny[4];

        assert_string_equal(text_safe("a\x1b[31mb\n\t\x7f", buf, sizeof(buf)), "a?[31mb???");
        assert_string_equal(text_safe("\xc2\x9b"
                                      "31m ü",
                                      buf, sizeof(buf)),
                            "?31m ü"); /* C1's CSI */
        assert_string_equal(text_safe("a\u202eb\u200bc\u2066d\ufeffe\u2013", buf, sizeof(buf)), "a?b?c?d?e\u2013");
        assert_string_equal(text_safe("\xe2\x80", buf, sizeof(buf)), "\xe2\x80"); /* the end of it */
        assert_string_equal(text_safe("abcdef", tiny, sizeof(tiny)), "abc");
        assert_string_equal(text_safe("ab\xe2\x82\xac", tiny, sizeof(tiny)), "ab"); /* not half a character */
}

static void test_values(void **state) {
        cleanup_json json_t *map = json_loads("{\"b\":1536,\"s\":\"x\",\"big\":1e300,\"neg\":-1}", 0, NULL);
        char buf[64];

        assert_string_equal(text_ms(-1, buf, sizeof(buf)), "-");
        assert_string_equal(text_ms(1.26, buf, sizeof(buf)), "1.3 ms");
        assert_string_equal(text_ms(123.4, buf, sizeof(buf)), "123 ms");
        assert_string_equal(text_ms(1234, buf, sizeof(buf)), "1.23 s");
        assert_string_equal(text_size(map, "b", buf, sizeof(buf)), "1.5 KiB");
        assert_string_equal(text_size(map, "s", buf, sizeof(buf)), "-");
        assert_string_equal(text_size(map, "big", buf, sizeof(buf)), "-");
        assert_string_equal(text_size(map, "neg", buf, sizeof(buf)), "-");
}

static void time_is(const char *json, const char *want) {
        cleanup_json json_t *v = json_loads(json, JSON_DECODE_ANY, NULL);
        char buf[64];

        assert_string_equal(text_time(v, buf, sizeof(buf)), want);
}

static void test_time(void **state) {
        (void) setenv("TZ", "UTC", 1);
        time_is("1700000000", "2023-11-14 22:13:20");
        time_is("1700000000.5", "2023-11-14 22:13:20");
        time_is("1700000000000", "2023-11-14 22:13:20");
        time_is("1700000000000000000", "2023-11-14 22:13:20");
        time_is("\"2023-11-14\\u001b\"", "2023-11-14?");
        time_is("0", "-");
        time_is("-5", "-");
        time_is("1e300", "-");
        time_is("null", "-");
}

static void test_fields(void **state) {
        cleanup_json json_t *map =
                json_loads("{\"name\":\"a\\u001bb\",\"mem_bytes\":1048576,\"boot_ms\":12.3,\"reason\":null,\"agent\":true,"
                           "\"totals\":{\"a\":1,\"b_bytes\":1024,\"c\":3,\"d\":4,\"faults\":{\"zero\":5}},\"pages\":{\"zero\":1,"
                           "\"stored\":2},\"disks\":[],\"ids\":[1,2],"
                           "\"sessions\":[{\"id\":\"x\",\"present_bytes\":2048,\"\\u001b]0;\":1},{\"id\":\"yy\",\"extra\":1}]}",
                           0, NULL);
        cleanup_free char *text = NULL;
        size_t size;
        FILE *f = open_memstream(&text, &size);

        assert_non_null(map);
        assert_int_equal(print_fields(map, f), 0);
        assert_int_equal(fclose(f), 0);
        assert_string_equal(text, "name       a?b\n"
                                  "mem_bytes  1 MiB\n"
                                  "boot_ms    12 ms\n"
                                  "reason     -\n"
                                  "agent      yes\n"
                                  "pages      zero 1, stored 2\n"
                                  "disks      -\n"
                                  "ids        [1, 2]\n"
                                  "\n"
                                  "totals:\n"
                                  "  a        1\n"
                                  "  b_bytes  1 KiB\n"
                                  "  c        3\n"
                                  "  d        4\n"
                                  "  faults   zero 5\n"
                                  "\n"
                                  "sessions:\n"
                                  "id  present_bytes  ?]0;\n"
                                  "x   2 KiB          1\n"
                                  "yy                 \n");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_alignment), cmocka_unit_test(test_safe),   cmocka_unit_test(test_values),
                cmocka_unit_test(test_time),      cmocka_unit_test(test_fields),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
