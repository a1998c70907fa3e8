/* SPDX-License-Identifier: MIT */
/* What the pager tells of its threads is true, so that who looks at them from the scheduler (bpf/) can tell want of work from
 * waiting. */
#include "tests/unit/pager/takeover.h"

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "common/io.h"

static struct other pager;

static int setup(void **state) {
        other_start(&pager, "64M");
        return 0;
}

struct thread {
        char name[32], role[32];
        pid_t tid;
};

static size_t told_threads(struct thread *ret, size_t max) {
        struct answer a = harness_call(&pager.h, "status", NULL, NULL, 0);
        const msgpack_object *list = mp_get_array(&a.doc.root, "threads");
        size_t n;

        assert_int_equal(a.r, 0);
        assert_non_null(list);
        n = list->via.array.size;
        assert_true(n <= max);
        for (size_t i = 0; i < n; i++) {
                const msgpack_object *o = &list->via.array.ptr[i];
                int64_t tid;

                assert_int_equal(mp_get_str(o, "name", ret[i].name, sizeof(ret[i].name)), 0);
                assert_int_equal(mp_get_str(o, "role", ret[i].role, sizeof(ret[i].role)), 0);
                assert_int_equal(mp_get_i64(o, "tid", &tid), 0);
                ret[i].tid = (pid_t) tid;
        }
        answer_clear(&a);
        return n;
}

static void read_task(pid_t tid, const char *file, char *ret, size_t size) {
        cleanup_free char *text = NULL;
        char path[64];

        (void) snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", (int) pager.pid, (int) tid, file);
        assert_int_equal(io_read_file(AT_FDCWD, path, 256, &text, NULL), 0);
        text[strcspn(text, "\n")] = '\0';
        (void) snprintf(ret, size, "%s", text);
}

static void test_names(void **state) {
        static const struct thread expected[] = { { "control", "control", 0 },
                                                  { "fault-0", "fault", 0 },
                                                  { "fault-1", "fault", 0 },
                                                  { "fill-0", "fill", 0 },
                                                  { "reclaim", "other", 0 } };
        struct thread t[16];
        size_t n = told_threads(t, ARRAY_LEN(t));
        char comm[256];

        assert_int_equal(n, ARRAY_LEN(expected));
        for (size_t i = 0; i < n; i++) {
                assert_string_equal(t[i].name, expected[i].name);
                assert_string_equal(t[i].role, expected[i].role);
                read_task(t[i].tid, "comm", comm, sizeof(comm));
                assert_string_equal(comm, i == 0 ? "uffd-pager" : t[i].name);
        }
        assert_int_equal(t[0].tid, pager.pid);
        other_stop(&pager);
}

/** A thread may run, or hold up another for a moment, when it is looked at; for want of work it sleeps soon. */
static void test_want_of_work(void **state) {
        struct thread t[16];
        size_t n = told_threads(t, ARRAY_LEN(t));
        uint64_t begin = now_ns();

        for (size_t i = 0; i < n; i++) {
                char call[256], *end;
                long nr = SYS_futex;

                while (nr == SYS_futex) {
                        if (ms_since(begin) > 10000)
                                fail_msg("%s sleeps at a futex", t[i].name);
                        (void) sched_yield();
                        read_task(t[i].tid, "syscall", call, sizeof(call));
                        nr = strtol(call, &end, 10);
                        if (end == call || nr < 0) /* "running" */
                                nr = SYS_futex;
                }
        }
        other_stop(&pager);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup(test_names, setup),
                cmocka_unit_test_setup(test_want_of_work, setup),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
