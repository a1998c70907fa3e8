/* SPDX-License-Identifier: MIT */
/* Short of memory: the cgroup that is found, its limits, the budget's arithmetic, and the sources of pressure. The
 * files of the kernel are made up below a directory of our own; a socket's out-of-band byte plays the trigger. */
#include "pager/pressure.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "common/io.h"
#include "common/log.h"
#include "pager/budget.h"
#include "tests/unit/setup/skip.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define SECOND 1000000000ull
#define DEADLINE_MS 10000

static char root[64];

static int setup(void **state) {
        strcpy(root, "/tmp/forkd-pressure-XXXXXX");
        return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state) {
        return io_remove_tree(AT_FDCWD, root);
}

static void put(const char *name, const char *text) {
        char path[512], *slash;

        (void) snprintf(path, sizeof(path), "%s%s", root, name);
        slash = strrchr(path, '/');
        *slash = '\0';
        assert_int_equal(io_mkdir_p(path, 0755), 0);
        *slash = '/';
        assert_int_equal(io_write_file_atomic(AT_FDCWD, path, text, strlen(text), 0644, false), 0);
}

static struct pager_memcg find(void) {
        struct pager_memcg m;

        assert_int_equal(pager_memcg_find(root, &m), 0);
        return m;
}

static void assert_group(const char *path, const char *want) {
        assert_non_null(path);
        assert_int_equal(strncmp(path, root, strlen(root)), 0);
        assert_string_equal(path + strlen(root), want);
}

/* ---- the cgroup ---- */

#define MOUNT_V2 "31 23 0:28 / /cg rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
#define MOUNT_V1 "35 31 0:32 / /cg1/memory rw shared:5 - cgroup cgroup rw,memory\n"
#define MOUNT_CPU "33 31 0:30 / /cg1/cpu rw shared:6 - cgroup cgroup rw,cpu,memoryless\n"

static void test_no_cgroup(void **state) {
        struct pager_memcg m = find();

        assert_null(m.v2);
        assert_null(m.v1);
        assert_int_equal(pager_memcg_limit(&m), UINT64_MAX);
        put("/proc/self/mountinfo", "20 1 8:1 / / rw - ext4 /dev/sda1 rw\nnonsense\n\n - cgroup2\n");
        put("/proc/self/cgroup", "0::/a\nnonsense\n:\n");
        m = find();
        assert_null(m.v2);
        pager_memcg_clear(&m);
}

static void test_limits_of_parents(void **state) {
        struct pager_memcg m;

        put("/proc/self/mountinfo", "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n" MOUNT_CPU MOUNT_V2);
        put("/proc/self/cgroup", "4:cpu:/elsewhere\n0::/a/b\n");
        m = find();
        assert_group(m.v2, "/cg/a/b");
        assert_int_equal(m.v2_mount_len, strlen(root) + strlen("/cg"));
        assert_null(m.v1);
        assert_int_equal(pager_memcg_limit(&m), UINT64_MAX);
        put("/cg/a/b/memory.max", "max\n");
        put("/cg/a/b/memory.high", "3221225472\n");
        assert_int_equal(pager_memcg_limit(&m), 3 * GIB);
        put("/cg/a/memory.max", "1073741824\n"); /* the parent allows less */
        put("/cg/a/memory.high", "garbage\n");
        assert_int_equal(pager_memcg_limit(&m), GIB);
        put("/cg/memory.max", "536870912\n"); /* a container's own group is what is mounted */
        assert_int_equal(pager_memcg_limit(&m), GIB / 2);
        put("/memory.max", "4096\n"); /* outside of the mount: not a cgroup's file */
        assert_int_equal(pager_memcg_limit(&m), GIB / 2);
        put("/cg/memory.max", "99999999999999999999999\n");
        assert_int_equal(pager_memcg_limit(&m), GIB);
        pager_memcg_clear(&m);
}

static void test_mounted_in_part(void **state) {
        struct pager_memcg m;

        put("/proc/self/mountinfo", "31 23 0:28 /slice/app /my\\040cg rw - cgroup2 cgroup2 rw\n");
        put("/proc/self/cgroup", "0::/slice/app/x\n");
        m = find();
        assert_group(m.v2, "/my cg/x");
        pager_memcg_clear(&m);
        put("/proc/self/cgroup", "0::/slice/app\n");
        m = find();
        assert_group(m.v2, "/my cg");
        pager_memcg_clear(&m);
        /* not below what is mounted, though it begins with the same letters; and no way out of it */
        put("/proc/self/cgroup", "0::/slice/apple\n");
        m = find();
        assert_group(m.v2, "/my cg");
        pager_memcg_clear(&m);
        put("/proc/self/cgroup", "0::/../../slice\n");
        m = find();
        assert_group(m.v2, "/my cg");
        pager_memcg_clear(&m);
}

static void test_v1(void **state) {
        struct pager_memcg m;

        put("/proc/self/mountinfo", MOUNT_CPU MOUNT_V1 MOUNT_V2);
        put("/proc/self/cgroup", "9:cpu:/x\n4:hugetlb,memory:/job\n0::/\n");
        m = find();
        assert_group(m.v1, "/cg1/memory/job");
        assert_group(m.v2, "/cg");
        put("/cg1/memory/job/memory.stat", "cache 17\nhierarchical_memory_limit 2147483648\nhierarchical_memsw_limit 1\n");
        assert_int_equal(pager_memcg_limit(&m), 2 * GIB);
        pager_memcg_clear(&m);
}

/* ---- the budget ---- */

static void test_budget_default(void **state) {
        assert_int_equal(pager_budget_default(64 * GIB, UINT64_MAX), 16 * GIB);
        assert_int_equal(pager_budget_default(64 * GIB, 8 * GIB), 2 * GIB);
        assert_int_equal(pager_budget_default(64 * GIB, 0), PAGER_MIN_BUDGET);
}

static void test_budget_limit(void **state) {
        struct pager_budget b;

        pager_budget_init(&b, 4 * GIB);
        assert_int_equal(pager_budget_now(&b), 4 * GIB);
        pager_budget_set_limit(&b, 4 * GIB); /* a quarter is left to others */
        assert_int_equal(pager_budget_now(&b), 3 * GIB);
        pager_budget_set_limit(&b, 100 * GIB);
        assert_int_equal(pager_budget_now(&b), 4 * GIB);
        pager_budget_set_limit(&b, 0);
        assert_int_equal(pager_budget_now(&b), PAGER_MIN_BUDGET);
        assert_int_equal(pager_budget_relax(&b, 1), -1);
}

static void test_budget_pressure(void **state) {
        uint64_t now = 100 * SECOND, v = 0;
        struct pager_budget b;
        unsigned n;

        pager_budget_init(&b, 4 * GIB);
        /* of what is there, not of what might be */
        pager_budget_pressure(&b, 2 * GIB, now);
        assert_int_equal(pager_budget_now(&b), 2 * GIB - GIB / 4);
        assert_int_equal(atomic_load(&b.events), 1);
        assert_int_equal(pager_budget_relax(&b, now), PAGER_PRESSURE_CALM_SECONDS * 1000);
        /* again and again: never below the floor */
        for (n = 0; pager_budget_now(&b) > 512 * MIB; n++) {
                assert_true(n < 100);
                pager_budget_pressure(&b, pager_budget_now(&b), now);
        }
        assert_int_equal(pager_budget_now(&b), 512 * MIB);
        pager_budget_pressure(&b, 0, now);
        assert_int_equal(pager_budget_now(&b), 512 * MIB);
        /* calm for a while, then slowly back */
        assert_int_equal(pager_budget_relax(&b, now + 4 * SECOND), 1000);
        assert_int_equal(pager_budget_now(&b), 512 * MIB);
        now += PAGER_PRESSURE_CALM_SECONDS * SECOND;
        for (n = 1; pager_budget_now(&b) < 4 * GIB; n++, now += SECOND) {
                int ms = pager_budget_relax(&b, now);

                assert_true(pager_budget_now(&b) > v);
                v = pager_budget_now(&b);
                assert_int_equal(ms, v < 4 * GIB ? 1000 : -1);
                assert_true(n < 100);
        }
        assert_in_range(n, 20, 40);
        /* the same if nobody looked meanwhile */
        pager_budget_pressure(&b, 4 * GIB, now);
        assert_int_equal(pager_budget_relax(&b, now + 1000 * SECOND), -1);
        assert_int_equal(pager_budget_now(&b), 4 * GIB);
        /* a limit that comes during pressure does not undo it, nor does it stay above the limit */
        pager_budget_pressure(&b, 2 * GIB, now);
        pager_budget_set_limit(&b, 100 * GIB);
        assert_int_equal(pager_budget_now(&b), 2 * GIB - GIB / 4);
        pager_budget_set_limit(&b, GIB);
        assert_int_equal(pager_budget_now(&b), GIB - GIB / 4);
}

static void test_budget_floors(void **state) {
        static const struct {
                uint64_t budget, least;
        } cases[] = { { 8 * GIB, GIB }, { 256 * MIB, 64 * MIB }, { 64 * MIB, 32 * MIB }, { 8 * MIB, 4 * MIB } };

        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                struct pager_budget b;

                pager_budget_init(&b, cases[i].budget);
                for (unsigned n = 0; n < 200; n++)
                        pager_budget_pressure(&b, pager_budget_now(&b), SECOND);
                assert_int_equal(pager_budget_now(&b), cases[i].least);
        }
}

/* ---- the sources ---- */

/** Waits until memory is short, or too long. */
static bool wait_short(struct pager_pressure *p, int wake) {
        uint64_t start = now_ns();
        bool is_short = false;

        while (!is_short && ms_since(start) < DEADLINE_MS)
                assert_int_equal(pager_pressure_wait(p, wake, DEADLINE_MS, &is_short), 0);
        return is_short;
}

static void test_waiting(void **state) {
        cleanup_fd int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        struct pager_pressure p = { .n = 0 };
        struct pager_memcg none = { 0 };
        bool is_short = true;
        uint64_t start;
        int sv[2];
        char c;

        pager_pressure_open(&p, root, &none); /* no such files: told in the log, and that is all */
        assert_int_equal(p.n, 0);
        assert_int_equal(pager_pressure_wait(&p, wake, 0, &is_short), 0);
        assert_false(is_short);

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
                fail_msg("socketpair: %s", strerror(errno));
        assert_int_equal(pager_pressure_add(&p, sv[0]), 0);
        if (send(sv[1], "!", 1, MSG_OOB) < 0) {
                pager_pressure_close(&p);
                (void) close_fd(sv[1]);
                skip_because("this kernel's unix sockets send nothing out of band");
        }
        start = now_ns();
        assert_true(wait_short(&p, wake));
        /* it is still there: told again, but not at once */
        assert_true(wait_short(&p, wake));
        assert_true(ms_since(start) >= PAGER_PRESSURE_PAUSE_MS);
        assert_int_equal(recv(sv[0], &c, 1, MSG_OOB), 1);
        p.deaf_until_ns = 0;
        assert_int_equal(pager_pressure_wait(&p, wake, 0, &is_short), 0);
        assert_false(is_short);

        assert_int_equal(eventfd_write(wake, 1), 0);
        assert_int_equal(pager_pressure_wait(&p, wake, -1, &is_short), 0);
        assert_false(is_short);

        /* it ends: let go of, and not spun on */
        (void) close_fd(sv[1]);
        start = now_ns();
        while (p.n > 0) {
                assert_true(ms_since(start) < DEADLINE_MS);
                assert_int_equal(pager_pressure_wait(&p, -1, DEADLINE_MS, &is_short), 0);
                assert_false(is_short);
        }
        pager_pressure_close(&p);
}

static void test_too_many_sources(void **state) {
        struct pager_pressure p = { .n = 0 };

        for (unsigned i = 0; i < PAGER_MAX_PRESSURE_SOURCES; i++)
                assert_int_equal(pager_pressure_add(&p, eventfd(0, EFD_CLOEXEC)), 0);
        assert_int_equal(pager_pressure_add(&p, -1), -ENOSPC);
        pager_pressure_close(&p);
        assert_int_equal(p.n, 0);
}

/** What is written into the files. */
static void test_files(void **state) {
        cleanup_free char *text = NULL;
        struct pager_pressure p;
        struct pager_memcg m;
        char path[128];
        size_t len;

        put("/proc/self/mountinfo", MOUNT_V2);
        put("/proc/self/cgroup", "0::/a\n");
        put("/proc/pressure/memory", "");
        put("/cg/a/memory.pressure", "");
        m = find();
        pager_pressure_open(&p, root, &m);
        assert_int_equal(p.n, 1); /* the root group is the host */
        pager_pressure_close(&p);
        put("/cg/a/cgroup.events", "populated 1\n");
        pager_pressure_open(&p, root, &m);
        assert_int_equal(p.n, 2);
        pager_pressure_close(&p);
        (void) snprintf(path, sizeof(path), "%s/cg/a/memory.pressure", root);
        assert_int_equal(io_read_file(AT_FDCWD, path, 100, &text, &len), 0);
        assert_string_equal(text, "some 75000 1000000");
        assert_int_equal(len, strlen(text) + 1);
        pager_memcg_clear(&m);
}

/** The real thing, where it is: the kernel takes the trigger, and a calm second brings nothing. */
static void test_this_host(void **state) {
        struct pager_pressure p;
        struct pager_memcg m;

        if (access("/proc/pressure/memory", R_OK | W_OK) < 0)
                skip_because("there is no /proc/pressure/memory to write to (kernel without psi=1, or not root)");
        assert_int_equal(pager_memcg_find("", &m), 0);
        pager_pressure_open(&p, "", &m);
        assert_true(p.n >= 1);
        for (unsigned i = 0; i < p.n; i++) {
                struct pollfd poll_fd = { .fd = p.fd[i], .events = POLLPRI };

                assert_true(poll(&poll_fd, 1, 0) >= 0);
                assert_false(poll_fd.revents & (POLLERR | POLLNVAL));
        }
        assert_true(pager_memcg_limit(&m) > 0);
        pager_pressure_close(&p);
        pager_memcg_clear(&m);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
        const struct CMUnitTest tests[] = {
                TEST(test_no_cgroup),      TEST(test_limits_of_parents), TEST(test_mounted_in_part), TEST(test_v1),
                TEST(test_budget_default), TEST(test_budget_limit),      TEST(test_budget_pressure), TEST(test_budget_floors),
                TEST(test_waiting),        TEST(test_too_many_sources),  TEST(test_files),           TEST(test_this_host),
        };

        log_init("test_pressure", LOG_LVL_ERROR);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
