/* SPDX-License-Identifier: MIT */
/* Choosing modules and their order, on a tree of pretended ones. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/io.h"
#include "elf_maker.h"
#include "setup/modules.h"

static char dir[] = "/tmp/forkd-modules-XXXXXX";

static void put(const char *name, const void *data, size_t len) {
        char path[PATH_MAX];

        (void) snprintf(path, sizeof(path), "%s/%s", dir, name);
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        assert_int_equal(fwrite(data, 1, len, f), len);
        assert_int_equal(fclose(f), 0);
}

static void put_module(const char *file, const char *depends) {
        char info[128];
        size_t len;

        int n = snprintf(info, sizeof(info), "depends=%s", depends);
        char *m = make_module(info, (size_t) n + 1, &len);
        put(file, m, len);
        free(m);
}

static int setup(void **state) {
        char path[PATH_MAX];

        assert_non_null(mkdtemp(dir));
        (void) snprintf(path, sizeof(path), "%s/kernel/drivers/net", dir);
        assert_int_equal(io_mkdir_p(path, 0755), 0);
        put_module("kernel/drivers/ring.ko", "");
        put_module("kernel/drivers/virtio-bus.ko", "ring"); /* a file with '-' is the module with '_' */
        put_module("kernel/drivers/net/card.ko", "virtio_bus,fail-over,ring");
        put_module("kernel/drivers/net/fail_over.ko", "");
        put_module("kernel/loop_a.ko", "loop_b");
        put_module("kernel/loop_b.ko", "loop_a");
        put_module("kernel/orphan.ko", "nowhere");
        put_module("kernel/needs_builtin.ko", "ext4");
        put("kernel/damaged.ko", "\177ELF", 4);
        put("kernel/readme.txt", "no module", 9);
        put("modules.builtin", "kernel/fs/ext4/ext4.ko\nkernel/fs/last-one.ko", 44);
        return 0;
}

static int teardown(void **state) {
        return io_remove_tree(AT_FDCWD, dir);
}

static void order(const struct module_set *s, char *buf, size_t size) {
        buf[0] = '\0';
        for (size_t i = 0; i < s->n; i++)
                (void) snprintf(buf + strlen(buf), size - strlen(buf), "%s%s", i > 0 ? " " : "", s->m[i].name);
}

static int collect(const char *const *wanted, char *buf, size_t size, struct err *e) {
        cleanup_module_set struct module_set set = { 0 };

        int r = modules_collect(dir, wanted, &set, e);
        order(&set, buf, size);
        return r;
}

static void test_order(void **state) {
        struct err e = { 0 };
        char got[256];

        assert_int_equal(collect((const char *[]){ "card", "ring", NULL }, got, sizeof(got), &e), 0);
        assert_string_equal(got, "ring virtio_bus fail_over card");
        assert_int_equal(collect((const char *[]){ "ring", "card", "virtio_bus", NULL }, got, sizeof(got), &e), 0);
        assert_string_equal(got, "ring virtio_bus fail_over card");
        assert_int_equal(collect((const char *[]){ NULL }, got, sizeof(got), &e), 0);
        assert_string_equal(got, "");
}

static void test_builtin_and_optional(void **state) {
        struct err e = { 0 };
        char got[256];

        assert_int_equal(collect((const char *[]){ "ext4", "last_one", "?absent", "?ring", NULL }, got, sizeof(got), &e), 0);
        assert_string_equal(got, "ring");
        assert_int_equal(collect((const char *[]){ "needs_builtin", NULL }, got, sizeof(got), &e), 0);
        assert_string_equal(got, "needs_builtin");
}

static void test_failures(void **state) {
        struct err e = { 0 };
        char got[256];

        assert_int_equal(collect((const char *[]){ "ring", "absent", NULL }, got, sizeof(got), &e), -ENOENT);
        assert_non_null(strstr(e.message, "absent"));
        assert_string_equal(got, ""); /* outputs stay as they were */
        assert_int_equal(collect((const char *[]){ "?orphan", NULL }, got, sizeof(got), &e), -ENOENT);
        assert_non_null(strstr(e.message, "nowhere")); /* optional itself, its dependency is not */
        assert_int_equal(collect((const char *[]){ "loop_a", NULL }, got, sizeof(got), &e), -ELOOP);
        assert_true(collect((const char *[]){ "damaged", NULL }, got, sizeof(got), &e) < 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_order),
                cmocka_unit_test(test_builtin_and_optional),
                cmocka_unit_test(test_failures),
        };
        return cmocka_run_group_tests(tests, setup, teardown);
}
