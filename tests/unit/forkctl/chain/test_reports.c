/* SPDX-License-Identifier: MIT */
/* What becomes of a result: the document, the table, the page, a comparison, limits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "common/json.h"
#include "fixture.h"

static const char *const quantiles[] = { "p50", "p95", "p99", "max", "n" };

static json_t *document(unsigned depth, double step) {
        struct chain_result *r = calloc(1, sizeof(*r));
        struct chain_plan plan;
        json_t *doc;

        made_up(r, &plan, depth, step);
        doc = chain_document(r);
        assert_non_null(doc);
        chain_result_clear(r);
        free(r);
        return doc;
}

static void near(double a, double b) {
        if (!(fabs(a - b) < 1e-6 * fabs(b) + 1e-9))
                fail_msg("%.9g is not %.9g", a, b);
}

static void has(const char *text, const char *want) {
        if (!strstr(text, want))
                fail_msg("'%s' is not in:\n%s", want, text);
}

static char *printed(int (*fn)(const json_t *, FILE *), const json_t *doc) {
        char *text;
        size_t len;
        FILE *f = open_memstream(&text, &len);

        assert_non_null(f);
        assert_int_equal(fn(doc, f), 0);
        assert_int_equal(fclose(f), 0);
        return text;
}

/* ---- the document ---- */

static void is_times(const json_t *map, const char *key) {
        const json_t *t = json_object_get(map, key);

        assert_int_equal(json_object_size(t), ARRAY_LEN(quantiles));
        for (size_t i = 0; i < ARRAY_LEN(quantiles); i++)
                assert_non_null(json_object_get(t, quantiles[i]));
}

static void test_shape(void **state) {
        static const char *const sizes[] = {
                "dirty_bytes", "stored_bytes", "raw_bytes", "private_bytes", "held_bytes", "verified"
        };
        cleanup_json json_t *doc = document(8, 0);
        const json_t *overall = json_object_get(doc, "overall"), *d;
        size_t i;

        assert_string_equal(json_str(doc, "format", ""), "forkd-chain");
        assert_int_equal(json_array_size(json_list(doc, "depths")), 8);
        assert_int_equal(json_array_size(json_list(doc, "failures")), 0);
        json_array_foreach (json_list(doc, "depths"), i, d) {
                assert_int_equal(json_u64(d, "depth", 0), i + 1);
                for (size_t s = 0; s < N_STEPS; s++) {
                        char key[40];

                        (void) snprintf(key, sizeof(key), "%s_ms", chain_steps[s].name);
                        is_times(d, key);
                        is_times(overall, key);
                        is_times(json_object_get(d, "reference"), key);
                }
                for (size_t k = 0; k < ARRAY_LEN(sizes); k++)
                        assert_true(json_is_number(json_object_get(d, sizes[k])));
        }
        near(json_num(json_object_get(overall, "fork_ms"), "p50", 0), 101);
        near(json_num(json_object_get(overall, "fork_ms"), "n", 0), 32);
        near(json_num(overall, "stored_bytes", 0), (10 + 8 * 2) << 20);
        near(json_num(overall, "disk_ratio", 0), (10 + 8 * 2) / (9 * 256.0));
        near(json_num(overall, "held_growth", 0), 6 / 4.0);
        near(json_num(overall, "verified", 0), 32);
        near(json_num(json_object_get(overall, "faults"), "missing", 0), 80);
        assert_true(json_is_null(json_object_get(json_object_get(overall, "load_ms"), "p50")));
}

static void test_slopes(void **state) {
        cleanup_json json_t *flat = document(8, 0), *steep = document(11, 5.05), *one = document(1, 0);

        near(json_num(json_object_get(flat, "overall"), "fork_slope", 0), 1);
        near(json_num(json_object_get(flat, "overall"), "standby_slope", 0), 1);
        assert_true(json_is_null(json_object_get(json_object_get(flat, "overall"), "source_pause_slope")));
        near(json_num(json_object_get(steep, "overall"), "fork_slope", 0), 1.5); /* 101 at depth 1, 50.5 more at depth 11 */
        assert_true(json_is_null(json_object_get(json_object_get(one, "overall"), "fork_slope")));
}

static void test_failures(void **state) {
        struct chain_result *r = calloc(1, sizeof(*r));
        cleanup_json json_t *doc = NULL;
        cleanup_free char *table = NULL, *page = NULL;
        struct chain_plan plan;
        struct err e;

        made_up(r, &plan, 2, 0);
        (void) err_set(&e, ERR_AGENT, -1, "what a guest said: \x1b[31m<script>alert(1)</script>");
        for (unsigned i = 0; i < CHAIN_MAX_FAILURES + 5; i++)
                chain_fail(r, 2, "verify", &e);
        doc = chain_document(r);
        assert_int_equal(json_array_size(json_list(doc, "failures")), CHAIN_MAX_FAILURES);
        assert_int_equal(json_u64(json_object_get(doc, "overall"), "failures", 0), CHAIN_MAX_FAILURES + 5);
        assert_string_equal(json_str(json_array_get(json_list(doc, "failures"), 0), "step", ""), "verify");
        table = printed(chain_table, doc);
        has(table, "FAILED at depth 2, verify: what a guest said: ?[31m<script>");
        has(table, "FAILED 5 times more\n");
        page = printed(chain_html, doc);
        has(page, "&lt;script&gt;alert(1)&lt;/script&gt;");
        assert_null(strstr(page, "<script"));
        assert_null(strchr(page, '\x1b'));
        chain_result_clear(r);
        free(r);
}

/* ---- the table and the page ---- */

static void test_table(void **state) {
        cleanup_json json_t *doc = document(8, 0);
        cleanup_free char *text = printed(chain_table, doc);

        has(text, "standby chain of 8, 4 forks each, 1 MiB dirtied before each standby; guest of 256 MiB, seed 7\n");
        has(text, "fork     101 ms  103 ms  \u2264 103 ms  103 ms  32\n"); /* of 32 values */
        has(text, "fork at the last depth against the first: 1.00 \u00d7\n");
        has(text, "memory held grows by 1.50 \u00d7 what a link dirties\n");
        has(text, "faults served: missing 80, zero 8\n");
        assert_null(strstr(text, "LOAD")); /* never measured: a column without a value is left out */
}

static void test_page(void **state) {
        static const char *const outside[] = { "http:",   "https:",  "src=",  "href=", "url(",
                                               "@import", "<script", "<link", "<img",  "<iframe" };
        cleanup_json json_t *doc = document(40, 1), *none = document(1, 0);
        cleanup_free char *page = printed(chain_html, doc), *small = NULL;

        for (size_t i = 0; i < ARRAY_LEN(outside); i++)
                if (strstr(page, outside[i]))
                        fail_msg("the page needs something from elsewhere: %s", outside[i]);
        has(page, "<!doctype html>");
        has(page, "prefers-color-scheme:dark");
        has(page, "<svg class=\"plot\"");
        has(page, "a &lt;fast&gt; &amp; &quot;odd&quot; one");
        has(page, "fork, median");
        assert_null(strstr(page, "nan"));
        assert_null(strstr(page, "inf "));
        (void) json_array_clear(json_list(none, "depths"));
        small = printed(chain_html, none);
        assert_null(strstr(small, "<svg class=\"plot\""));
        has(small, "</html>");
}

/* ---- comparing ---- */

static const json_t *row(const json_t *cmp, const char *name) {
        const json_t *o;
        size_t i;

        json_array_foreach (json_list(cmp, "rows"), i, o)
                if (strcmp(json_str(o, "name", ""), name) == 0)
                        return o;
        fail_msg("no row %s", name);
        return NULL;
}

static void test_compare(void **state) {
        cleanup_json json_t *a = document(12, 0), *b = document(12, 10), *few = document(3, 10), *cmp = chain_compare(a, b);
        cleanup_json json_t *back = chain_compare(b, a), *same = chain_compare(a, a), *little = chain_compare(a, few);
        cleanup_free char *text = printed(chain_compare_table, cmp), *less = printed(chain_compare_table, little);

        near(json_num(row(cmp, "fork_ms"), "a", 0), 101);
        near(json_num(row(cmp, "fork_ms"), "ratio", 0), 1 + 55 / 101.0); /* the median of 0 … 110 more */
        near(json_num(row(cmp, "fork_ms"), "n", 0), 12);
        assert_string_equal(json_str(row(cmp, "fork_ms"), "verdict", ""), "slower");
        assert_string_equal(json_str(row(back, "fork_ms"), "verdict", ""), "faster");
        assert_string_equal(json_str(row(same, "fork_ms"), "verdict", ""), "alike");
        assert_string_equal(json_str(row(cmp, "standby_ms"), "verdict", ""), "alike");
        assert_string_equal(json_str(row(little, "fork_ms"), "verdict", ""), "too few");
        assert_true(json_is_null(json_object_get(row(little, "fork_ms"), "low")));
        assert_int_equal(json_array_size(json_list(same, "notes")), 0);
        has(text, "slower");
        has(less, "mind: depth differs: 12 and 3\n");
}

/* ---- limits ---- */

static void test_limits(void **state) {
        cleanup_json json_t *doc = document(8, 0), *list = NULL;
        struct failover f;
        struct err e;
        double v;
        bool ok;

        assert_int_equal(failover_parse("fork_p99_ms=80, slope=1.1,private_bytes=2M", &f, &e), 0);
        assert_int_equal(f.n, 3);
        near(f.limit[2].most, 2 << 20);
        list = failover_check(&f, doc, &ok);
        assert_false(ok);
        assert_false(json_flag(json_array_get(list, 0), "ok"));
        near(json_num(json_array_get(list, 0), "value", 0), 103);
        assert_true(json_flag(json_array_get(list, 1), "ok"));
        assert_true(json_flag(json_array_get(list, 2), "ok")); /* exactly the limit */
        json_decref(list);
        /* what was not measured guards nothing */
        assert_int_equal(failover_parse("load_p50_ms=1e9", &f, &e), 0);
        list = failover_check(&f, doc, &ok);
        assert_false(ok);
        assert_true(json_is_null(json_object_get(json_array_get(list, 0), "value")));
        assert_true(failover_figure(doc, "standby_max_ms", &v) && v == 20);
        assert_false(failover_figure(doc, "pause_p50_ms", &v));
        assert_false(failover_figure(doc, "nothing", &v));
}

static void refused(const char *s, const char *says) {
        struct failover f;
        struct err e = { 0 };
        char all[700];

        if (failover_parse(s, &f, &e) == 0)
                fail_msg("'%s' was taken", s);
        (void) snprintf(all, sizeof(all), "%s; %s", e.message, e.hint);
        has(all, says);
        assert_string_equal(e.code, ERR_USAGE);
}

static void test_bad_limits(void **state) {
        char many[2000] = "";

        refused("", "no limit");
        refused(",", "no limit");
        refused("fork_p99_ms", "no limit");
        refused("fork_p99=80", "did you mean fork_p99_ms?");
        refused("fork_p98_ms=80", "did you mean");
        refused("zebra=1", "no figure is called 'zebra'");
        refused("=1", "no figure");
        refused("slope=", "at most ''");
        refused("slope=-1", "at most '-1'");
        refused("slope=nan", "at most 'nan'");
        refused("slope=inf", "at most 'inf'");
        refused("slope=1e999", "at most");
        refused("slope=1x", "at most '1x'");
        refused("slope=1,slope=2", "twice");
        refused("slope=1,", "no limit");
        for (unsigned i = 0; i < 100; i++)
                (void) strcat(many, "slope=1,");
        refused(many, "twice");
}

/* ---- files ---- */

static void parse_fails(const char *text, const char *says) {
        json_t *doc;
        struct err e = { 0 };

        assert_true(chain_document_parse(text, strlen(text), "a file", &doc, &e) < 0);
        has(e.message, says);
}

static void test_files(void **state) {
        cleanup_json json_t *doc = document(2, 0);
        cleanup_free char *text = json_dumps(doc, JSON_INDENT(1));
        json_t *back = NULL;
        char deep[64];
        struct err e;

        assert_int_equal(chain_document_parse(text, strlen(text), "x", &back, &e), 0);
        assert_true(json_equal(doc, back));
        json_decref(back);
        parse_fails("", "no JSON");
        parse_fails("{", "no JSON");
        parse_fails("[]", "no result");
        parse_fails("{\"format\":\"forkd-chain\"}", "no result");
        parse_fails("{\"format\":\"forkd-chain\",\"overall\":{},\"version\":2}", "version 2");
        parse_fails("{\"format\":\"forkd-chain\",\"overall\":{},\"overall\":{},\"version\":1}", "no JSON");
        memset(deep, '[', sizeof(deep));
        deep[sizeof(deep) - 1] = '\0';
        parse_fails(deep, "too deep");
        parse_fails("{\"a\":\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[[[\"}", "no result"); /* a string nests nothing */
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_shape),  cmocka_unit_test(test_slopes),     cmocka_unit_test(test_failures),
                cmocka_unit_test(test_table),  cmocka_unit_test(test_page),       cmocka_unit_test(test_compare),
                cmocka_unit_test(test_limits), cmocka_unit_test(test_bad_limits), cmocka_unit_test(test_files),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
