/* SPDX-License-Identifier: MIT */
/* Running programs, and the check for free space. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/io.h"
#include "setup/run.h"
#include "setup/space.h"

#define SH(script)                       \
        (const char *[]) {               \
                "sh", "-c", script, NULL \
        }

static void test_output(void **state) {
        const struct run_params p = { .argv = SH("echo out; echo err >&2"), .timeout_ms = 10000 };
        cleanup_free char *out = NULL;
        struct err e = { 0 };

        assert_int_equal(run_program(&p, &out, &e), 0);
        assert_string_equal(out, "out\n");
}

/* More than a pipe holds, and the end of it when it is too much. */
static void test_much_output(void **state) {
        const struct run_params p = {
                .argv = SH("head -c 5000000 /dev/zero | tr '\\0' x; echo end"),
                .timeout_ms = 20000,
        };
        cleanup_free char *out = NULL;
        struct err e = { 0 };

        assert_int_equal(run_program(&p, &out, &e), 0);
        assert_int_equal(strlen(out), RUN_MAX_OUTPUT);
        assert_string_equal(out + strlen(out) - 4, "end\n");
}

static void test_failures(void **state) {
        struct err e = { 0 };
        cleanup_free char *out = NULL;

        struct run_params p = { .argv = SH("echo first >&2; echo 'the reason' >&2; exit 7"), .timeout_ms = 10000 };
        assert_int_equal(run_program(&p, &out, &e), -EIO);
        assert_non_null(strstr(e.message, "sh failed (exit 7): the reason"));
        assert_null(out);

        p.argv = SH("kill -9 $$");
        assert_int_equal(run_program(&p, NULL, &e), -EIO);
        assert_non_null(strstr(e.message, "killed by signal 9"));

        p.argv = (const char *[]){ "no-such-program-anywhere", NULL };
        assert_int_equal(run_program(&p, NULL, &e), -ENOENT);
        assert_non_null(strstr(e.message, "no-such-program-anywhere"));
}

static void count(void *arg) {
        ++*(unsigned *) arg;
}

static void test_deadline(void **state) {
        unsigned ticks = 0;
        const struct run_params p = {
                .argv = (const char *[]){ "tail", "-f", "/dev/null", NULL },
                .timeout_ms = 900,
                .tick = count,
                .tick_arg = &ticks,
        };
        struct err e = { 0 };
        uint64_t start = now_ns();

        assert_int_equal(run_program(&p, NULL, &e), -ETIMEDOUT);
        assert_true(ms_since(start) >= 890);
        assert_true(ticks >= 2);
}

static void test_parent(void **state) {
        char buf[64];

        assert_int_equal(space_existing_parent("/proc/self/no/such", buf, sizeof(buf)), 0);
        assert_string_equal(buf, "/proc/self");
        assert_int_equal(space_existing_parent("/no-such-dir-here", buf, sizeof(buf)), 0);
        assert_string_equal(buf, "/");
        assert_int_equal(space_existing_parent("no-such-dir-here", buf, sizeof(buf)), 0);
        assert_string_equal(buf, ".");
        assert_int_equal(space_existing_parent("/proc/self/exe-or-a-longer-name", buf, 8), -ENAMETOOLONG);
}

static void test_space(void **state) {
        uint64_t avail;
        struct err e = { 0 };

        assert_int_equal(io_free_bytes("/tmp", &avail), 0);
        const struct space_need small = { "/tmp/not/there/yet", 1, "a byte", "delete something" };
        assert_int_equal(space_check(&small, 1, &e), 0);

        /* Each fits alone, not both; the one with no need is not blamed. */
        const struct space_need both[] = {
                { "/tmp", 0, "nothing", "advice zero" },
                { "/tmp/a", avail / 4 * 3, "the first", "advice one" },
                { "/tmp/b", avail / 4 * 3, "the second", "advice two" },
        };
        assert_int_equal(space_check(both + 1, 1, &e), 0);
        assert_int_equal(space_check(both, 3, &e), -ENOSPC);
        assert_string_equal(e.code, ERR_NO_SPACE);
        assert_non_null(strstr(e.message, "the first in /tmp/a"));
        assert_non_null(strstr(e.message, "missing"));
        assert_string_equal(e.hint, "advice one");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_output),   cmocka_unit_test(test_much_output), cmocka_unit_test(test_failures),
                cmocka_unit_test(test_deadline), cmocka_unit_test(test_parent),      cmocka_unit_test(test_space),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
