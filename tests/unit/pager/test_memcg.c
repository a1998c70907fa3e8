/* SPDX-License-Identifier: MIT */
/* The real pager in a memory cgroup that is much smaller than what its guest wants: it lives within the limit, and when
 * the limit is lowered under it, a page that the kernel has no memory for costs a cold one, not the session. Out of
 * memory must be an error here and not a kill, which only the v1 controller offers (memory.oom_control). */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/spawn.h"
#include "pager/memcg.h"
#include "tests/unit/setup/skip.h"

#define MIB (1ull << 20)

static char group[256];
static struct harness h;
static struct image img;
static pid_t pid;
static int pidfd;

static void put(const char *name, unsigned long long v) {
        char path[320], text[32];
        int n = snprintf(text, sizeof(text), "%llu", v);
        cleanup_fd int fd = -1;

        (void) snprintf(path, sizeof(path), "%s/%s", group, name);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, text, (size_t) n) != n)
                fail_msg("writing %s to %s: %s", text, path, strerror(errno));
}

static unsigned long long get(const char *name) {
        cleanup_free char *text = NULL;
        char path[320];

        (void) snprintf(path, sizeof(path), "%s/%s", group, name);
        assert_int_equal(io_read_file(AT_FDCWD, path, 4096, &text, NULL), 0);
        return strtoull(text, NULL, 10);
}

static void start_pager(void) {
        const char *argv[] = { UFFD_PAGER,        "--control", h.path,        "--workers", "2",
                               "--memory-budget", "1G",        "--log-level", "warning",   NULL };
        struct spawn_fd fds[] = { { STDERR_FILENO, STDERR_FILENO } };
        struct spawn_params sp = { .argv = argv, .fds = fds, .n_fds = 1 };
        cleanup_fd int procs = -1;
        char path[320];
        int fd;

        (void) snprintf(path, sizeof(path), "%s/cgroup.procs", group);
        procs = open(path, O_WRONLY | O_CLOEXEC);
        assert_true(procs >= 0);
        sp.cgroup_fd = procs;
        assert_int_equal(spawn_process(&sp, &pid, &pidfd), 0);
        for (uint64_t start = now_ns(); io_connect_unix(h.path, &fd) < 0;) { /* until it listens */
                assert_true(ms_since(start) < DEADLINE_MS);
                (void) sched_yield();
        }
        (void) close_fd(fd);
        harness_connect(&h);
}

static int setup(void **state) {
        struct pager_memcg m;

        h = (struct harness){ .base = event_base_new() };
        assert_non_null(h.base);
        image_make(&img, 64 * MIB / TEST_PAGE, 81, SNAP_CODEC_LZ4);
        assert_int_equal(pager_memcg_find("", &m), 0);
        if (m.v1)
                (void) snprintf(group, sizeof(group), "%s/forkd-test-%d", m.v1, (int) getpid());
        pager_memcg_clear(&m);
        (void) snprintf(h.dir, sizeof(h.dir), "/tmp/pager-test-XXXXXX");
        assert_non_null(mkdtemp(h.dir));
        (void) snprintf(h.path, sizeof(h.path), "%s/pager.sock", h.dir);
        return 0;
}

static int teardown(void **state) {
        uint64_t start = now_ns();

        if (pid > 0) {
                best_effort(spawn_kill(pidfd, SIGKILL));
                best_effort(spawn_wait(pidfd, DEADLINE_MS, NULL));
                pidfd = close_fd(pidfd);
                pid = 0;
        }
        rpc_conn_unref(h.conn);
        event_base_free(h.base);
        image_clear(&img);
        (void) unlink(h.path);
        while (group[0] && rmdir(group) < 0 && errno == EBUSY && ms_since(start) < DEADLINE_MS)
                (void) sched_yield(); /* a dead process leaves its group a moment later */
        group[0] = '\0';
        return rmdir(h.dir);
}

static void need_group(void) {
#if defined(FORKD_ASAN) || defined(FORKD_TSAN)
        skip_because("a sanitizer's own memory is more than the limit");
#endif
        if (!group[0])
                skip_because("there is no v1 memory controller here");
        if (mkdir(group, 0755) < 0)
                skip_because("cgroups cannot be made");
}

static double total(const char *key) {
        return harness_status(&h, "totals", NULL, key);
}

static void end_well(struct vmm *v) {
        int status;

        assert_int_equal(total("sessions_failed"), 0);
        assert_int_equal(total("oldest_fault_ms"), 0);
        vmm_end(&h, v);
        assert_int_equal(spawn_kill(pidfd, SIGTERM), 0);
        assert_int_equal(spawn_wait(pidfd, DEADLINE_MS, &status), 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        pidfd = close_fd(pidfd);
        pid = 0;
}

/** The group's limit bounds the budget, whatever was asked for. */
static void test_within(void **state) {
        struct vmm v;

        need_group();
        put("memory.limit_in_bytes", 40 * MIB);
        start_pager();
        assert_int_equal(total("budget_bytes"), 30 * MIB);
        vmm_start(&h, &v, &img);
        for (unsigned i = 0; i < 2; i++)
                assert_string_equal(vmm_cmd(&v, "verify 81 2"), "ok");
        assert_true(total("reclaimed_pages") > 0);
        assert_true(total("present_bytes") <= 34.0 * MIB);
        end_well(&v);
}

/** Lowered while the pager believes that it has a gigabyte. */
static void test_lowered(void **state) {
        uint64_t start;
        struct vmm v;

        need_group();
        start_pager();
        assert_int_equal(total("budget_bytes"), 1024 * MIB);
        vmm_start(&h, &v, &img);
        put("memory.oom_control", 1);
        put("memory.limit_in_bytes", 24 * MIB);
        start = now_ns();
        assert_string_equal(vmm_cmd(&v, "verify 81 2"), "ok");
        assert_true(get("memory.failcnt") > 0);
        while (total("budget_bytes") != 18.0 * MIB)
                assert_true(ms_since(start) < DEADLINE_MS);
        assert_string_equal(vmm_cmd(&v, "verify 81 2"), "ok");
        assert_true(total("reclaimed_pages") > 0);
        end_well(&v);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
        const struct CMUnitTest tests[] = { TEST(test_within), TEST(test_lowered) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
