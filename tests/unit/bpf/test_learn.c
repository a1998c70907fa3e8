/* SPDX-License-Identifier: MIT */
#include "bpf/learn.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/cleanup.h"

static void test_bounds(void **state) {
        uint64_t start, end;

        assert_int_equal(learn_parse("handle_userfault+0x1b2/0x5e0", 0x11b2, "handle_userfault", &start, &end), 0);
        assert_int_equal(start, 0x1000);
        assert_int_equal(end, 0x15e1);
        /* of a module, and what compilers split off */
        assert_int_equal(learn_parse("kvm_halt+0x10/0x20 [kvm]", 0x10, "kvm_halt", &start, &end), 0);
        assert_int_equal(learn_parse("handle_userfault.part.0+0x2/0x5", 0x12, "handle_userfault", &start, &end), 0);
        assert_int_equal(start, 0x10);
        assert_int_equal(learn_parse("futex_wait_queue_me+0x0/0x0", 0x12, "futex_wait", &start, &end), 0);
        assert_int_equal(end, 0x13);
}

static void test_nonsense(void **state) {
        static const char *const bad[] = {
                "",
                "handle_userfault",
                "handle_userfault+",
                "handle_userfault+0x10",
                "handle_userfault+0x10/",
                "handle_userfault+0x30/0x20",         /* behind its own end */
                "handle_userfault+0x10/0xffffffffff", /* no function is as large */
                "handle_userfaults+0x10/0x20",
                "xhandle_userfault+0x10/0x20",
                "+0x10/0x20",
                "0xffffffff81000000",
        };
        uint64_t start = 1, end = 2;

        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                assert_int_equal(learn_parse(bad[i], 0x1000, "handle_userfault", &start, &end), -EINVAL);
        assert_int_equal(learn_parse("handle_userfault+0x30/0x40", 0x2f, "handle_userfault", &start, &end), -EINVAL);
        assert_int_equal(start, 1);
        assert_int_equal(end, 2);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_bounds),
                cmocka_unit_test(test_nonsense),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
