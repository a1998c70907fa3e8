/* SPDX-License-Identifier: MIT */
/* A host made of files: what its figures come to. */
#include "common_test.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/host/host.h"

static char root[64];
static struct host *h;

static void put(const char *path, const char *text) {
        char full[512], dir[512];
        FILE *f;

        (void) snprintf(full, sizeof(full), "%s%s", root, path);
        (void) strcpy(dir, full);
        *strrchr(dir, '/') = '\0';
        assert_int_equal(io_mkdir_p(dir, 0700), 0);
        f = fopen(full, "we");
        assert_non_null(f);
        assert_true(fputs(text, f) >= 0);
        assert_int_equal(fclose(f), 0);
}

static void find(void) {
        host_free(h);
        assert_int_equal(host_new(root, "inst", &h), 0);
}

static int setup(void **state) {
        temp_dir(root, sizeof(root));
        put("/proc/meminfo", "MemTotal:       1000 kB\nMemFree:        5 kB\nMemAvailable:   600 kB\n");
        put("/proc/loadavg", "0.10 0.20 0.30 2/150 4242\n");
        put("/proc/sys/kernel/threads-max", "1000\n");
        put("/proc/sys/kernel/pid_max", "400\n");
        return 0;
}

static int teardown(void **state) {
        host_free(h);
        h = NULL;
        temp_dir_remove(root);
        return 0;
}

static void test_no_cgroups(void **state) {
        find();
        assert_int_equal(host_memory(h), 600 * 1024);
        assert_int_equal(host_pids(h), 250);
}

static void test_nothing_at_all(void **state) {
        temp_dir_remove(root);
        find();
        assert_true(host_memory(h) == UINT64_MAX);
        assert_true(host_pids(h) == UINT64_MAX);
        assert_int_equal(host_private_bytes(h, 1), 0);
        assert_true(host_disk("/no/such/place") == UINT64_MAX);
        (void) mkdir(root, 0700);
}

static void test_version_1(void **state) {
        put("/proc/self/mountinfo",
            "35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory\n36 31 0:33 / /cg/pids rw - cgroup cgroup rw,pids\n");
        put("/proc/self/cgroup", "4:memory:/a/b\n8:pids:/a\n");
        put("/cg/memory/memory.limit_in_bytes", "9223372036854771712\n");
        put("/cg/memory/memory.usage_in_bytes", "900000\n");
        put("/cg/memory/a/memory.limit_in_bytes", "300000\n");
        put("/cg/memory/a/memory.usage_in_bytes", "250000\n");
        put("/cg/memory/a/memory.stat", "cache 1\ninactive_file 7\ntotal_inactive_file 30000\n");
        put("/cg/memory/a/b/memory.limit_in_bytes", "200000\n");
        put("/cg/memory/a/b/memory.usage_in_bytes", "50000\n");
        find();
        /* a's 300000 - (250000 - 30000) is less than what b has left. */
        assert_int_equal(host_memory(h), 80000);
        put("/cg/pids/a/pids.max", "100\n");
        put("/cg/pids/a/pids.current", "97\n");
        assert_int_equal(host_pids(h), 3);
        put("/cg/pids/a/pids.max", "max\n");
        assert_int_equal(host_pids(h), 250);
        put("/cg/memory/a/memory.usage_in_bytes", "400000\n"); /* it was lowered below what is used */
        assert_int_equal(host_memory(h), 0);
}

/* VMMs live beside forkd, not in its group: what counts is their own group and the mount. */
static void test_version_2(void **state) {
        put("/proc/self/mountinfo", "41 31 0:38 / /cg rw,relatime - cgroup2 cgroup2 rw\n");
        put("/proc/self/cgroup", "0::/system.slice/forkd.service\n");
        put("/cg/system.slice/forkd.service/memory.max", "1\n");
        put("/cg/system.slice/forkd.service/memory.current", "1\n");
        put("/cg/forkd-inst/memory.max", "500000\n");
        put("/cg/forkd-inst/memory.current", "480000\n");
        put("/cg/forkd-inst/memory.stat", "anon 1\ninactive_file 5000\n");
        put("/cg/forkd-inst/pids.max", "50\n");
        put("/cg/forkd-inst/pids.current", "20\n");
        find();
        assert_int_equal(host_memory(h), 25000);
        assert_int_equal(host_pids(h), 30);
        put("/cg/memory.max", "100000\n");
        put("/cg/memory.current", "90000\n");
        assert_int_equal(host_memory(h), 10000);
}

static void test_private_memory(void **state) {
        put("/proc/42/statm", "5000 300 100 5 0 200 0\n");
        put("/proc/43/statm", "5000 100 300 5 0 200 0\n");
        find();
        assert_int_equal(host_private_bytes(h, 42), 200u * (unsigned) sysconf(_SC_PAGESIZE));
        assert_int_equal(host_private_bytes(h, 43), 0);
}

/* The real one: figures that can be. */
static void test_this_host(void **state) {
        struct host *real;

        assert_int_equal(host_new("", "no-such-instance", &real), 0);
        assert_true(host_memory(real) > 1 << 20);
        assert_true(host_pids(real) > 0);
        assert_true(host_private_bytes(real, getpid()) > 0);
        assert_true(host_disk("/") > 0);
        assert_true(host_descriptors() > 0);
        host_free(real);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_no_cgroups, setup, teardown),
                cmocka_unit_test_setup_teardown(test_nothing_at_all, setup, teardown),
                cmocka_unit_test_setup_teardown(test_version_1, setup, teardown),
                cmocka_unit_test_setup_teardown(test_version_2, setup, teardown),
                cmocka_unit_test_setup_teardown(test_private_memory, setup, teardown),
                cmocka_unit_test_setup_teardown(test_this_host, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
