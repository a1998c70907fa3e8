/* SPDX-License-Identifier: MIT */
/* From forkd's documents to the screen of `top`: rates, order, filters, and a layout for every size. */
#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "common/json.h"
#include "forkctl/top.h"

/* A document whose VMs are @rows: "id name health cpu waits waiting_ms", one a line. */
static json_t *document(double uptime_ms, const char *rows) {
        json_t *doc = json_pack("{s:f, s:s, s:f, s:{s:b, s:s}, s:{s:b, s:i, s:i, s:{s:i}}, s:[]}", "uptime_ms", uptime_ms,
                                "version", "1.2.3", "window_ms", 5000.0, "probes", "ok", true, "method", "sched_switch", "pager",
                                "up", true, "pid", 77, "sessions", 2, "faults", "missing", (int) uptime_ms, "vms");
        char id[32], name[128], health[32];
        double cpu, waiting;
        int waits, used;

        for (; sscanf(rows, "%31s %127s %31s %lf %d %lf %n", id, name, health, &cpu, &waits, &waiting, &used) == 6; rows += used)
                (void) json_array_append_new(
                        json_object_get(doc, "vms"),
                        json_pack("{s:s, s:s, s:s, s:s, s:f, s:i, s:{s:i, s:f, s:f}, s:[{s:f, s:b, s:b, s:s}]}", "id", id, "name",
                                  name, "state", "running", "health", health, "waiting_ms", waiting, "mem_bytes", 1 << 20, "wait",
                                  "count", waits, "p50_s", 0.001, "p99_s", 0.002, "vcpus", "oncpu", cpu, "spinning",
                                  strcmp(health, "spinning") == 0, "stuck", strcmp(health, "stuck") == 0, "why", "because"));
        return doc;
}

static void take(struct top *t, double uptime_ms, const char *rows) {
        cleanup_json json_t *doc = document(uptime_ms, rows);

        assert_int_equal(top_update(t, doc), 0);
}

static const struct top_vm *named(const struct top *t, const char *name) {
        for (size_t i = 0; i < t->n; i++)
                if (strcmp(t->vms[i].name, name) == 0)
                        return &t->vms[i];
        fail_msg("no VM %s", name);
        return NULL;
}

static void order_is(struct top *t, const char *want) {
        char got[256] = "";

        for (size_t i = 0; i < t->n_shown; i++)
                (void) snprintf(got + strlen(got), sizeof(got) - strlen(got), "%s%s", i ? " " : "", t->shown[i]->name);
        assert_string_equal(got, want);
}

static void test_rates(void **state) {
        cleanup_top struct top t;

        top_init(&t);
        take(&t, 1000, "1 a ok 0.5 100 0  2 b ok 0.25 7 0");
        assert_true(isnan(named(&t, "a")->waits_per_s)); /* one document has no rate */
        assert_true(isnan(t.head.faults_per_s));
        take(&t, 3000, "1 a ok 0.5 150 0  2 b ok 0.25 7 0");
        assert_true(named(&t, "a")->waits_per_s == 25);
        assert_true(named(&t, "b")->waits_per_s == 0);
        assert_true(t.head.faults_per_s == 1000);
        /* a counter that went back, beside one that went on */
        take(&t, 4000, "1 a ok 0.5 10 0  2 b ok 0.25 9 0");
        assert_true(isnan(named(&t, "a")->waits_per_s));
        assert_true(named(&t, "b")->waits_per_s == 2);
        take(&t, 5000, "1 a ok 0.5 30 0  2 b ok 0.25 9 0");
        assert_true(named(&t, "a")->waits_per_s == 20);
        /* another forkd: its age went back */
        take(&t, 100, "1 a ok 0.5 1000 0");
        assert_true(isnan(named(&t, "a")->waits_per_s));
        assert_true(isnan(t.head.faults_per_s));
        take(&t, 600, "1 a ok 0.5 1010 0");
        assert_true(named(&t, "a")->waits_per_s == 20);
        /* the same document twice: no time went by */
        take(&t, 600, "1 a ok 0.5 1010 0");
        assert_true(isnan(named(&t, "a")->waits_per_s));
        assert_int_equal(named(&t, "a")->n_history, 7);
        assert_true(named(&t, "a")->waits_history[5] == 20);
}

/* One ends between two documents, and another has its name. */
static void test_coming_and_going(void **state) {
        cleanup_top struct top t;

        top_init(&t);
        take(&t, 1000, "1 a ok 0.5 100 0  2 b ok 0.1 1 0  3 c ok 0.1 1 0");
        take(&t, 2000, "1 a ok 0.5 110 0  2 b ok 0.1 2 0  3 c ok 0.1 3 0");
        (void) strcpy(t.selected, "2");
        take(&t, 3000, "3 c ok 0.1 5 0  4 a ok 0.9 5000 0  1 old ok 0.5 120 0");
        assert_int_equal(t.n, 3);
        assert_true(isnan(named(&t, "a")->waits_per_s));
        assert_int_equal(named(&t, "a")->n_history, 1);
        assert_true(named(&t, "old")->waits_per_s == 10); /* renamed, by whoever: the id counts */
        assert_int_equal(named(&t, "c")->n_history, 3);
        top_move(&t, 1); /* what was selected is gone */
        assert_string_equal(t.selected, t.shown[0]->id);
        take(&t, 4000, "");
        assert_int_equal(t.n, 0);
        top_move(&t, 1);
        take(&t, 5000, "7 x ok 0 0 0  7 y ok 0 0 0"); /* an id twice */
        assert_int_equal(t.n, 2);
        take(&t, 6000, "7 x ok 0 0 0  7 y ok 0 0 0  7 z ok 0 0 0");
        assert_int_equal(t.n, 2);
}

static void test_history(void **state) {
        cleanup_top struct top t;
        const struct top_vm *vm;

        top_init(&t);
        for (unsigned i = 1; i <= TOP_HISTORY + 10; i++) {
                char rows[64];

                (void) snprintf(rows, sizeof(rows), "1 a ok %u 0 0", i);
                take(&t, i * 1000.0, rows);
        }
        top_gap(&t);
        vm = named(&t, "a");
        assert_int_equal(vm->n_history, TOP_HISTORY);
        assert_true(isnan(vm->cpu_history[TOP_HISTORY - 1]));
        assert_true(vm->cpu_history[TOP_HISTORY - 2] == TOP_HISTORY + 10);
        assert_true(vm->cpu_history[0] == 12);
}

static void test_order(void **state) {
        cleanup_top struct top t;
        enum top_key key;

        top_init(&t);
        take(&t, 1000,
             "1 d ok 0.5 0 0  2 c ok 0.9 0 9  3 b spinning 0.1 0 0  4 a unknown 0 0 0  5 e stuck 0 0 50  6 f orphan 1 0 0");
        order_is(&t, "f e b c d a");
        take(&t, 2000,
             "1 d ok 0.5 5 0  2 c ok 0.9 9 9  3 b spinning 0.1 1 0  4 a unknown 0 0 0  5 e stuck 0 0 50  6 f orphan 1 0 0");
        t.key = TOP_BY_CPU;
        top_arrange(&t);
        order_is(&t, "f c d b a e");
        t.key = TOP_BY_WAITS;
        top_arrange(&t);
        order_is(&t, "c d b a e f");
        t.key = TOP_BY_LONGEST;
        top_arrange(&t);
        order_is(&t, "e c a b d f");
        t.key = TOP_BY_NAME;
        t.reversed = true;
        top_arrange(&t);
        order_is(&t, "f e d c b a");
        for (unsigned i = 0; i < TOP_N_KEYS; i++) {
                assert_int_equal(top_key_parse(top_key_name((enum top_key) i), &key), 0);
                assert_int_equal(key, i);
        }
        assert_int_equal(top_key_parse("size", &key), -EINVAL);
}

static void test_filter(void **state) {
        cleanup_top struct top t;

        top_init(&t);
        (void) strcpy(t.filter, "WEB");
        take(&t, 1000, "1 web-1 ok 0.1 0 0  2 db spinning 0.9 0 0  3 my-web ok 0.2 0 0");
        order_is(&t, "my-web web-1");
        (void) strcpy(t.filter, "spin");
        top_arrange(&t);
        order_is(&t, "db");
        (void) strcpy(t.filter, "nothing");
        top_arrange(&t);
        order_is(&t, "");
        top_move(&t, 1);
        t.filter[0] = '\0';
        top_arrange(&t);
        top_move(&t, INT_MAX);
        assert_string_equal(t.selected, t.shown[2]->id);
        top_move(&t, 5);
        assert_string_equal(t.selected, t.shown[2]->id);
        top_move(&t, -1);
        assert_string_equal(t.selected, t.shown[1]->id);
        top_move(&t, INT_MIN);
        assert_string_equal(t.selected, t.shown[0]->id);
}

/* Whatever an answer is, it is taken or refused, and never half taken. */
static void test_odd_documents(void **state) {
        static const char *const refused[] = { "{}",
                                               "[]",
                                               "{\"vms\":[]}",
                                               "{\"uptime_ms\":1}",
                                               "{\"vms\":{},\"uptime_ms\":1}",
                                               "3",
                                               "{\"vms\":[],\"uptime_ms\":-5}" };
        static const char *const taken[] = {
                "{\"vms\":[null, 3, [], {}, {\"id\":7}, {\"name\":null}],\"uptime_ms\":5000}",
                "{\"vms\":[{\"id\":\"0123456789012345678901234567890\",\"name\":\"a\\u001bb\",\"vcpus\":[null,{\"oncpu\":\"x\"}],"
                "\"wait\":[],\"health\":\"dancing\",\"waiting_ms\":-4,\"ended_ms\":\"x\"}],\"uptime_ms\":6000,\"pager\":7,"
                "\"host\":[],\"probes\":\"\"}",
                "{\"vms\":[{\"id\":\"a\",\"mem_bytes\":-1,\"wait\":{\"count\":-1,\"p50_s\":\"x\"},\"vcpus\":{}}],\"uptime_ms\":"
                "7000,"
                "\"pager\":{\"faults\":{\"a\":-1,\"b\":\"x\"},\"service\":3}}",
        };
        cleanup_canvas struct canvas cv = { .utf8 = true };
        cleanup_top struct top t;

        top_init(&t);
        take(&t, 1000, "1 a ok 0.5 100 0");
        for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
                cleanup_json json_t *doc = json_loads(refused[i], JSON_DECODE_ANY, NULL);

                assert_non_null(doc);
                assert_int_equal(top_update(&t, doc), -EBADMSG);
                assert_string_equal(t.shown[0]->name, "a");
        }
        for (size_t i = 0; i < ARRAY_LEN(taken); i++) {
                cleanup_json json_t *doc = json_loads(taken[i], 0, NULL);

                assert_non_null(doc);
                assert_int_equal(top_update(&t, doc), 0);
                assert_int_equal(canvas_resize(&cv, 24, 120), 0);
                top_draw(&t, &cv);
        }
}

/* ---- the screen ---- */

static bool screen_has(const struct canvas *cv, const char *text) {
        char row[CANVAS_MAX_COLS * 4 + 8];

        for (unsigned i = 0; i < cv->rows; i++)
                if (strstr(canvas_row(cv, i, row, sizeof(row)), text))
                        return true;
        return false;
}

static void draw(struct top *t, struct canvas *cv, unsigned rows, unsigned cols) {
        assert_int_equal(canvas_resize(cv, rows, cols), 0);
        top_draw(t, cv);
}

/* From nothing to a wall of screens: the worst VM and its health are always to be seen where there are two rows for them. */
static void test_every_size(void **state) {
        static const unsigned rows[] = { 1, 2, 3, 4, 5, 9, 10, 14, 24, 80, 1000 },
                              cols[] = { 1, 5, 18, 20, 40, 60, 80, 100, 200, 300, 1000 };
        cleanup_canvas struct canvas cv = { 0 };
        cleanup_top struct top t;
        char text[32];

        top_init(&t);
        take(&t, 1000,
             "1 calm-one ok 0.1 5 0  2 worst spinning 0.99 0 0  3 "
             "a-name-that-takes-all-63-characters-of-a-name-0123456789012345678 ok 0 0 0");
        take(&t, 2000,
             "1 calm-one ok 0.1 9 0  2 worst spinning 0.99 0 0  3 "
             "a-name-that-takes-all-63-characters-of-a-name-0123456789012345678 ok 0 0 0");
        for (int utf8 = 0; utf8 < 2; utf8++)
                for (size_t r = 0; r < ARRAY_LEN(rows); r++)
                        for (size_t c = 0; c < ARRAY_LEN(cols); c++) {
                                cv.utf8 = utf8;
                                draw(&t, &cv, rows[r], cols[c]);
                                if (rows[r] >= 4 && cols[c] >= 20) {
                                        assert_true(screen_has(&cv, "worst"));
                                        assert_true(screen_has(&cv, "SPINNING"));
                                }
                                t.help = true;
                                draw(&t, &cv, rows[r], cols[c]);
                                t.help = false;
                        }
        draw(&t, &cv, 5, 20);
        assert_string_equal(canvas_row(&cv, 0, text, sizeof(text)), "1 SPINNING; 3 VMs: …");
        assert_string_equal(canvas_row(&cv, 1, text, sizeof(text)), "  NAME      HEALTH");
        assert_string_equal(canvas_row(&cv, 2, text, sizeof(text)), "  worst     SPINNING");
        draw(&t, &cv, 24, 300);
        assert_true(screen_has(&cv, "because"));
        assert_true(screen_has(&cv, "a-name-that-takes-all-63-character"));
}

static void test_no_utf8(void **state) {
        cleanup_canvas struct canvas cv = { .utf8 = false };
        cleanup_top struct top t;

        top_init(&t);
        take(&t, 1000, "1 a ok 0.5 5 0");
        take(&t, 2000, "1 a ok 1 9 0");
        draw(&t, &cv, 24, 120);
        for (size_t i = 0; i < (size_t) cv.rows * cv.cols; i++)
                assert_in_range(cv.cells[i].c, 0x20, 0x7e);
        assert_true(screen_has(&cv, "=#"));
}

/* What stands out does so without colours, too. */
static void test_marks(void **state) {
        cleanup_canvas struct canvas cv = { .utf8 = true };
        cleanup_top struct top t;

        top_init(&t);
        take(&t, 1000, "1 a spinning 0.99 5 0  2 b stuck 0 5 7000  3 c orphan 1 0 0  4 d ok 0.5 0 0");
        (void) strcpy(t.selected, "4");
        draw(&t, &cv, 24, 120);
        assert_true(screen_has(&cv, "1 ORPHAN, 1 STUCK, 1 SPINNING; 4 VMs: 4 running"));
        assert_true(screen_has(&cv, "> d "));
        assert_true(screen_has(&cv, "@"));
        assert_true(screen_has(&cv, "!"));
        assert_true(screen_has(&cv, "7.0 s"));
        assert_true(screen_has(&cv, "d: because"));
        t.selected[0] = '\0';
        draw(&t, &cv, 24, 120);
        assert_true(screen_has(&cv, "c: because")); /* the worst one */
        (void) strcpy(t.notice, "forkd is not there since 2.0 s");
        draw(&t, &cv, 5, 60);
        assert_true(screen_has(&cv, "forkd is not there since 2.0 s"));
        assert_true(screen_has(&cv, "ORPHAN"));
}

static void test_scrolling(void **state) {
        cleanup_canvas struct canvas cv = { .utf8 = true };
        cleanup_free char *rows = NULL;
        cleanup_top struct top t;
        size_t size;
        FILE *f = open_memstream(&rows, &size);

        for (unsigned i = 0; i < 500; i++)
                (void) fprintf(f, "%u vm-%03u ok 0 0 0 ", i, i);
        assert_int_equal(fclose(f), 0);
        top_init(&t);
        t.key = TOP_BY_NAME;
        take(&t, 1000, rows);
        draw(&t, &cv, 20, 80);
        assert_true(screen_has(&cv, "vm-000") && !screen_has(&cv, "vm-400"));
        top_move(&t, INT_MAX);
        draw(&t, &cv, 20, 80);
        assert_true(screen_has(&cv, "> vm-499") && !screen_has(&cv, "vm-000"));
        top_move(&t, -3); /* still in sight: nothing scrolls */
        draw(&t, &cv, 20, 80);
        assert_true(screen_has(&cv, "> vm-496") && screen_has(&cv, "vm-499"));
        draw(&t, &cv, 6, 80); /* the selected one stays in sight */
        assert_true(screen_has(&cv, "> vm-496"));
        assert_int_equal(canvas_resize(&cv, 100, 80), 0);
        top_draw_list(&t, &cv); /* 5 lines above, 94 VMs */
        assert_true(screen_has(&cv, "vm-093") && !screen_has(&cv, "vm-094") && screen_has(&cv, "406 more"));
        assert_int_equal(canvas_resize(&cv, top_list_rows(&t), 80), 0);
        top_draw_list(&t, &cv);
        assert_true(screen_has(&cv, "vm-499") && !screen_has(&cv, "more"));
        take(&t, 2000, "1 vm-001 ok 0 0 0"); /* all others went */
        draw(&t, &cv, 6, 80);
        assert_true(screen_has(&cv, "vm-001"));
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_rates),      cmocka_unit_test(test_coming_and_going), cmocka_unit_test(test_history),
                cmocka_unit_test(test_order),      cmocka_unit_test(test_filter),           cmocka_unit_test(test_odd_documents),
                cmocka_unit_test(test_every_size), cmocka_unit_test(test_no_utf8),          cmocka_unit_test(test_marks),
                cmocka_unit_test(test_scrolling),
        };

        if (!setlocale(LC_CTYPE, "C.UTF-8"))
                return 77;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
