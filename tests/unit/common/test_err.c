/* SPDX-License-Identifier: MIT */
/* Errors as people see them, and the log. */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/err.h"
#include "common/io.h"
#include "common/log.h"

static void test_set(void **state) {
        struct err e;

        assert_int_equal(err_set(&e, ERR_BUSY, -EBUSY, "'%s' is busy", "web"), -EBUSY);
        assert_int_equal(e.r, -EBUSY);
        assert_string_equal(e.code, ERR_BUSY);
        assert_string_equal(e.message, "'web' is busy");
        assert_string_equal(e.hint, "");
        assert_int_equal(err_hint(&e, "wait %d s", 5), -EBUSY);
        assert_string_equal(e.hint, "wait 5 s");
        assert_int_equal(err_prefix(&e, "starting %s", "x"), -EBUSY);
        assert_string_equal(e.message, "starting x: 'web' is busy");
        assert_string_equal(e.hint, "wait 5 s");
        assert_int_equal(err_set(&e, ERR_IO, 0, "zero"), -EIO); /* an error is never 0 */
        assert_string_equal(e.hint, "");
}

static void test_errno(void **state) {
        struct err e;

        assert_int_equal(err_errno(&e, -ENOSPC, "writing %s", "f"), -ENOSPC);
        assert_string_equal(e.code, ERR_NO_SPACE);
        assert_string_equal(e.message, "writing f: No space left on device");
        assert_int_equal(err_errno(&e, 0, "x"), -EIO);
        assert_string_equal(err_code_of(-ENOENT), ERR_NOT_FOUND);
        assert_string_equal(err_code_of(-ETIMEDOUT), ERR_TIMEOUT);
        assert_string_equal(err_code_of(-EBADMSG), ERR_CORRUPT);
        assert_string_equal(err_code_of(-EPIPE), ERR_IO);
        assert_string_equal(err_code_of(-99999), ERR_IO);
        assert_string_equal(err_code_of(0), ERR_IO);
}

static void test_nobody_wants_it(void **state) {
        assert_int_equal(err_set(NULL, ERR_IO, -EACCES, "x"), -EACCES);
        assert_int_equal(err_errno(NULL, -EACCES, "x"), -EACCES);
        assert_int_equal(err_errno(NULL, 0, "x"), -EIO);
        assert_true(err_prefix(NULL, "x") < 0);
        assert_true(err_hint(NULL, "x") < 0);
}

/* Everything is cut to fit, and remains a string. */
static void test_too_long(void **state) {
        char big[1000];
        struct err e;

        memset(big, 'm', sizeof(big) - 1);
        big[sizeof(big) - 1] = '\0';
        (void) err_set(&e, big, -EIO, "%s", big);
        assert_int_equal(strlen(e.code), sizeof(e.code) - 1);
        assert_int_equal(strlen(e.message), sizeof(e.message) - 1);
        (void) err_hint(&e, "%s", big);
        assert_int_equal(strlen(e.hint), sizeof(e.hint) - 1);
        (void) err_prefix(&e, "short");
        assert_int_equal(strlen(e.message), sizeof(e.message) - 1);
        assert_true(strncmp(e.message, "short: mmm", 10) == 0);
        (void) err_prefix(&e, "%s", big);
        (void) err_errno(&e, -EIO, "%s", big);
        assert_int_equal(strlen(e.message), sizeof(e.message) - 1);
}

/* ---- the log ---- */

/* What one call writes to stderr. */
static void capture(char *buf, size_t size, const char *journal, enum log_level limit, enum log_level level, const char *text) {
        int fd = memfd_create("stderr", MFD_CLOEXEC), old = dup(STDERR_FILENO);
        char stream[64];
        struct stat st;
        ssize_t n;

        assert_int_equal(fstat(fd, &st), 0);
        (void) snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long) st.st_dev, (unsigned long long) st.st_ino);
        assert_int_equal(dup2(fd, STDERR_FILENO), STDERR_FILENO);
        if (journal)
                (void) setenv("JOURNAL_STREAM", strcmp(journal, "ours") == 0 ? stream : journal, 1);
        else
                (void) unsetenv("JOURNAL_STREAM");
        log_init("prog", limit);
        log_msg(level, "%s", text);
        (void) dup2(old, STDERR_FILENO);
        (void) close(old);
        (void) unsetenv("JOURNAL_STREAM");
        n = pread(fd, buf, size - 1, 0);
        assert_ok(n);
        buf[n] = '\0';
        (void) close(fd);
}

static void test_log_lines(void **state) {
        char buf[4096], big[3000];

        capture(buf, sizeof(buf), NULL, LOG_LVL_INFO, LOG_LVL_INFO, "hello");
        assert_int_equal(strlen(buf), strlen("2026-01-01T00:00:00.000Z prog info: hello\n"));
        assert_non_null(strstr(buf, "Z prog info: hello\n"));
        capture(buf, sizeof(buf), NULL, LOG_LVL_INFO, LOG_LVL_DEBUG, "hello");
        assert_string_equal(buf, "");
        capture(buf, sizeof(buf), NULL, LOG_LVL_DEBUG, LOG_LVL_DEBUG, "hello");
        assert_non_null(strstr(buf, "prog debug: hello\n"));
        /* A guest's words cannot forge a line, nor drive the reader's terminal. */
        capture(buf, sizeof(buf), NULL, LOG_LVL_INFO, LOG_LVL_ERROR, "a\nb\r\x1b[31mc\x7f");
        assert_non_null(strstr(buf, "error: a b  [31mc \n"));
        memset(big, 'x', sizeof(big) - 1);
        big[sizeof(big) - 1] = '\0';
        capture(buf, sizeof(buf), NULL, LOG_LVL_INFO, LOG_LVL_ERROR, big);
        assert_in_range(strlen(buf), 1000, 1200);
        assert_int_equal(buf[strlen(buf) - 1], '\n');
}

/* Only if the journal reads this stderr: the variable is inherited by programs whose stderr is another. */
static void test_log_journal(void **state) {
        char buf[256];

        capture(buf, sizeof(buf), "ours", LOG_LVL_INFO, LOG_LVL_WARNING, "hello");
        assert_string_equal(buf, "<4>hello\n");
        capture(buf, sizeof(buf), "8:12345", LOG_LVL_INFO, LOG_LVL_WARNING, "hello");
        assert_non_null(strstr(buf, "prog warning: hello\n"));
        capture(buf, sizeof(buf), "nonsense", LOG_LVL_INFO, LOG_LVL_WARNING, "hello");
        assert_non_null(strstr(buf, "prog warning: hello\n"));
}

static void test_log_levels(void **state) {
        static const char *const names[] = { "error", "warning", "info", "debug" };
        enum log_level l = LOG_LVL_ERROR;

        for (size_t i = 0; i < ARRAY_LEN(names); i++) {
                assert_ok(log_level_parse(names[i], &l));
                log_init("prog", l);
                assert_string_equal(log_level_name(), names[i]);
        }
        assert_fails(log_level_parse("loud", &l), EINVAL);
        assert_fails(log_level_parse("", &l), EINVAL);
        assert_int_equal(l, LOG_LVL_DEBUG);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_set),        cmocka_unit_test(test_errno),     cmocka_unit_test(test_nobody_wants_it),
                cmocka_unit_test(test_too_long),   cmocka_unit_test(test_log_lines), cmocka_unit_test(test_log_journal),
                cmocka_unit_test(test_log_levels),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
