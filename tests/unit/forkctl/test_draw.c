/* SPDX-License-Identifier: MIT */
/* Small pictures of characters, and the canvas that they stand on. */
#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "forkctl/canvas.h"
#include "forkctl/draw.h"

static void test_spark(void **state) {
        const float v[] = { 0, 1, 2, 3, 4, 5, 6, 7 }, odd[] = { NAN, 0, 0.001f, 5, -1 };
        char buf[64], tiny[4];

        assert_string_equal(draw_spark(buf, sizeof(buf), v, 8, 8, 7, true), "▁▂▃▄▅▆▇█");
        assert_string_equal(draw_spark(buf, sizeof(buf), v, 8, 8, 7, false), "_.:-=+*#");
        assert_string_equal(draw_spark(buf, sizeof(buf), v, 8, 3, 7, true), "▆▇█"); /* the newest */
        assert_string_equal(draw_spark(buf, sizeof(buf), v, 2, 4, 1, true), "  ▁█");
        /* unknown is a blank; nothing is lowest, a little is not; more than all is all */
        assert_string_equal(draw_spark(buf, sizeof(buf), odd, 5, 5, 1, true), " ▁▂█▁");
        assert_string_equal(draw_spark(buf, sizeof(buf), v, 3, 3, 0, true), "▁▁▁");
        assert_string_equal(draw_spark(buf, sizeof(buf), v, 3, 3, NAN, true), "▁▁▁");
        assert_string_equal(draw_spark(buf, sizeof(buf), NULL, 0, 2, 1, true), "  ");
        assert_string_equal(draw_spark(tiny, sizeof(tiny), v, 8, 8, 7, true), "▁"); /* not half a character */
        assert_string_equal(draw_spark(buf, sizeof(buf), v, 8, 0, 7, true), "");
}

static void test_bar(void **state) {
        char buf[64];

        assert_string_equal(draw_bar(buf, sizeof(buf), 0, 4, true), "    ");
        assert_string_equal(draw_bar(buf, sizeof(buf), 1, 4, true), "████");
        assert_string_equal(draw_bar(buf, sizeof(buf), 7, 4, true), "████");
        assert_string_equal(draw_bar(buf, sizeof(buf), -1, 4, true), "    ");
        assert_string_equal(draw_bar(buf, sizeof(buf), NAN, 4, true), "    ");
        assert_string_equal(draw_bar(buf, sizeof(buf), 0.5, 4, true), "██  ");
        assert_string_equal(draw_bar(buf, sizeof(buf), 0.53125, 4, true), "██▏ ");
        assert_string_equal(draw_bar(buf, sizeof(buf), 1e-9, 4, true), "▏   "); /* not nothing */
        assert_string_equal(draw_bar(buf, sizeof(buf), 1e-9, 4, false), "#   ");
        assert_string_equal(draw_bar(buf, sizeof(buf), 0.6, 4, false), "##  ");
        assert_string_equal(draw_bar(buf, sizeof(buf), 1, 4, false), "####");
        assert_string_equal(draw_bar(buf, sizeof(buf), 0.5, 0, true), "");
}

static void test_share(void **state) {
        assert_string_equal(draw_share(0, true), "▁");
        assert_string_equal(draw_share(0.009, true), "▁"); /* idle */
        assert_string_equal(draw_share(0.01, true), "▂");
        assert_string_equal(draw_share(1, true), "█");
        assert_string_equal(draw_share(9, true), "█");
        assert_string_equal(draw_share(NAN, true), "·");
        assert_string_equal(draw_share(0, false), "0");
        assert_string_equal(draw_share(0.55, false), "5");
        assert_string_equal(draw_share(1, false), "9");
        assert_string_equal(draw_share(NAN, false), ".");
}

static void seconds_are(double s, const char *want) {
        char buf[32];

        assert_string_equal(draw_seconds(buf, sizeof(buf), s, true), want);
}

static void test_seconds(void **state) {
        char buf[32];

        seconds_are(0, "0");
        seconds_are(-1, "-");
        seconds_are(NAN, "-");
        seconds_are(INFINITY, "-");
        seconds_are(1e-6, "1.0 µs");
        seconds_are(16384e-9, "16 µs");
        seconds_are(0.0009996, "1.0 ms");
        seconds_are(0.0012, "1.2 ms");
        seconds_are(0.9996, "1.0 s");
        seconds_are(9.96, "10 s");
        seconds_are(99.6, "1m39s");
        seconds_are(3599.9, "59m59s");
        seconds_are(3600, "1h00m");
        seconds_are(86400 * 5 + 3600 * 6, "5d06h");
        assert_string_equal(draw_seconds(buf, sizeof(buf), 2e-6, false), "2.0 us");
}

static void test_counts(void **state) {
        static const struct {
                double n;
                const char *count, *percent;
        } rows[] = {
                { 0, "0", "0%" },        { 0.44, "0.4", "44%" },   { 12, "12", "1200%" },    { 999, "999", "99900%" },
                { 1000, "1.0k", NULL },  { 999499, "999k", NULL }, { 999500, "1.0M", NULL }, { 12.34e6, "12M", NULL },
                { 1.8e19, "18E", NULL }, { -1, "-", "-" },         { NAN, "-", "-" },        { 0.004, "0.0", "0.4%" },
                { 9.96, "10", "996%" },
        };
        char buf[32];

        for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
                assert_string_equal(draw_count(buf, sizeof(buf), rows[i].n), rows[i].count);
                if (rows[i].percent)
                        assert_string_equal(draw_percent(buf, sizeof(buf), rows[i].n), rows[i].percent);
        }
}

/* ---- the canvas ---- */

static void row_is(const struct canvas *cv, unsigned row, const char *want) {
        char buf[256];

        assert_string_equal(canvas_row(cv, row, buf, sizeof(buf)), want);
}

static void test_text(void **state) {
        cleanup_canvas struct canvas cv = { .utf8 = true };

        assert_int_equal(canvas_resize(&cv, 3, 10), 0);
        assert_int_equal(canvas_text(&cv, 0, 2, 8, LOOK_BOLD, "für"), 3);
        row_is(&cv, 0, "  für");
        assert_int_equal(cv.cells[2].look, LOOK_BOLD);
        assert_int_equal(cv.cells[5].look, LOOK_PLAIN);
        assert_int_equal(canvas_text(&cv, 1, 0, 5, 0, "abcdefgh"), 5);
        row_is(&cv, 1, "abcd…");
        canvas_right(&cv, 1, 5, 5, 0, "x");
        row_is(&cv, 1, "abcd…    x");
        assert_int_equal(canvas_text(&cv, 2, 7, 99, 0, "abc"), 3); /* to the edge, and not over it */
        row_is(&cv, 2, "       abc");
        assert_int_equal(canvas_text(&cv, 2, 7, 99, 0, "abcd"), 3);
        row_is(&cv, 2, "       ab…");
        assert_int_equal(canvas_text(&cv, 3, 0, 5, 0, "outside"), 0);
        assert_int_equal(canvas_text(&cv, 0, 10, 5, 0, "outside"), 0);
        assert_int_equal(canvas_text(&cv, 0, 0, 0, 0, "no room"), 0);
}

static void test_wide(void **state) {
        cleanup_canvas struct canvas cv = { .utf8 = true };

        assert_int_equal(canvas_resize(&cv, 4, 7), 0);
        assert_int_equal(canvas_width(&cv, "日本"), 4);
        assert_int_equal(canvas_text(&cv, 0, 0, 7, 0, "日本語"), 6);
        row_is(&cv, 0, "日本語");
        assert_int_equal(cv.cells[1].c, 0);
        assert_int_equal(canvas_text(&cv, 1, 0, 5, 0, "日本語"), 5);
        row_is(&cv, 1, "日本…");
        assert_int_equal(canvas_text(&cv, 2, 0, 4, 0, "日本語"), 4); /* no half of one */
        row_is(&cv, 2, "日……");
        canvas_right(&cv, 3, 0, 7, 0, "日");
        row_is(&cv, 3, "     日");
}

/* What a guest, or a file that somebody made, could have in a name. */
static void test_hostile(void **state) {
        static const char *const bad[] = {
                "\x1b[2J",      "\x07\x08\r\n\t", "\x7f",         "\xc2\x9b", /* CSI as one character */
                "\xe2\x80\xae",                                               /* from right to left from here on */
                "\xe2\x80\x8b",                                               /* no width */
                "\xcc\x81",                                                   /* goes onto the one before */
                "\xff\xfe\x80", "\xf0\x9f\x98",   "\xed\xa0\x80", "\xc0\x9b", "\xf4\x90\x80\x80", "\xe2\x80\xa8",
        };
        char text[64], row[64];

        for (int utf8 = 0; utf8 < 2; utf8++)
                for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                        cleanup_canvas struct canvas cv = { .utf8 = utf8 };
                        unsigned used;

                        assert_int_equal(canvas_resize(&cv, 1, 30), 0);
                        (void) snprintf(text, sizeof(text), "a%sz", bad[i]);
                        used = canvas_text(&cv, 0, 0, 30, 0, text);
                        assert_in_range(used, 3, 10);
                        (void) canvas_row(&cv, 0, row, sizeof(row));
                        for (unsigned k = 0; k < cv.cols; k++) {
                                wchar_t c = cv.cells[k].c;

                                assert_true(c >= 0x20 && c != 0x7f && !(c >= 0x80 && c < 0xa0) && (utf8 || c < 0x80));
                                assert_true(c < 0x80 || wcwidth(c) > 0);
                        }
                        assert_int_equal(row[0], 'a');
                }
}

static void test_sizes(void **state) {
        cleanup_canvas struct canvas cv = { 0 };
        cleanup_free char *text = NULL;
        size_t size;
        FILE *f;

        assert_int_equal(canvas_resize(&cv, 0, 0), 0);
        assert_int_equal(cv.rows * cv.cols, 1);
        assert_int_equal(canvas_resize(&cv, UINT_MAX, UINT_MAX), 0);
        assert_int_equal(cv.rows, CANVAS_MAX_ROWS);
        assert_int_equal(cv.cols, CANVAS_MAX_COLS);
        assert_int_equal(canvas_resize(&cv, 4, 5), 0);
        canvas_printf(&cv, 0, 0, 5, 0, "%d", 12);
        (void) canvas_text(&cv, 2, 1, 5, 0, "日"); /* no UTF-8 here */
        canvas_look(&cv, 3, LOOK_REVERSE);
        canvas_look(&cv, 4, LOOK_REVERSE);
        f = open_memstream(&text, &size);
        assert_int_equal(canvas_print(&cv, f), 0);
        assert_int_equal(fclose(f), 0);
        assert_string_equal(text, "12\n\n ?\n");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_spark),   cmocka_unit_test(test_bar),     cmocka_unit_test(test_share),
                cmocka_unit_test(test_seconds), cmocka_unit_test(test_counts),  cmocka_unit_test(test_text),
                cmocka_unit_test(test_wide),    cmocka_unit_test(test_hostile), cmocka_unit_test(test_sizes),
        };

        if (!setlocale(LC_CTYPE, "C.UTF-8"))
                return 77;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
