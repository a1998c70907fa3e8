/* SPDX-License-Identifier: MIT */
/* A child in a jail is a shell (from the host's /usr) that says what it finds. */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/jail.h"
#include "common/spawn.h"

#define SOMEBODY 2147221000u /* nobody's: forkd/host/jail.c */

/* Runs a script; what it prints into @out. 0, or what spawn_process said. */
static int run(const struct jail *jail, const char *script, char *out, size_t size, char *step) {
        const char *const argv[] = { "/usr/bin/dash", "-c", script, NULL };
        const char *const sh[] = { "/bin/sh", "-c", script, NULL };
        const char *const env[] = { "PATH=/usr/bin:/bin", NULL };
        int p[2], pidfd = -1, status = -1, r;
        ssize_t n;
        pid_t pid;

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        struct spawn_fd fds[] = { { p[1], 1 } };
        r = spawn_process(&(struct spawn_params){ .argv = access(argv[0], X_OK) == 0 ? argv : sh,
                                                  .env = env,
                                                  .fds = fds,
                                                  .n_fds = 1,
                                                  .cgroup_fd = -1,
                                                  .death_signal = SIGKILL,
                                                  .jail = jail,
                                                  .step = step },
                          &pid, &pidfd);
        (void) close(p[1]);
        n = r < 0 ? 0 : io_read_full(p[0], out, size - 1);
        (void) close(p[0]);
        if (r < 0)
                return r;
        assert_true(n >= 0);
        out[n] = '\0';
        assert_ok(spawn_wait(pidfd, 10000, &status));
        (void) close(pidfd);
        return 0;
}

static bool needs_root(void) {
        if (geteuid() == 0)
                return false;
        print_message("SKIPPED: not root\n");
        return true;
}

static void test_who_it_is(void **state) {
        const struct jail_limit limits[] = { { RLIMIT_CORE, 0 }, { RLIMIT_NOFILE, 77 } };
        const struct jail j = { .uid = SOMEBODY,
                                .groups = { SOMEBODY + 1 },
                                .n_groups = 1,
                                .mnt_ns = -1,
                                .net_ns = -1,
                                .limits = limits,
                                .n_limits = ARRAY_LEN(limits) };
        char out[2000], step[SPAWN_STEP_LEN];

        if (needs_root())
                skip();
        assert_ok(run(&j, "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status; ulimit -n", out, sizeof(out), step));
        assert_non_null(strstr(out, "Uid:\t2147221000\t2147221000\t2147221000\t2147221000\n"));
        assert_non_null(strstr(out, "Gid:\t2147221000\t2147221000\t2147221000\t2147221000\n"));
        assert_non_null(strstr(out, "Groups:\t2147221001"));
        assert_non_null(strstr(out, "CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n"));
        assert_non_null(strstr(out, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"));
        assert_non_null(strstr(out, "CapInh:\t0000000000000000\n"));
        assert_non_null(strstr(out, "NoNewPrivs:\t1\n"));
        assert_non_null(strstr(out, "\n77\n"));
}

static void test_a_capability_that_is_kept(void **state) {
        const struct jail j = { .uid = SOMEBODY, .caps = 1ull << CAP_SYS_PTRACE, .mnt_ns = -1, .net_ns = -1 };
        char out[2000], step[SPAWN_STEP_LEN];

        if (needs_root())
                skip();
        assert_ok(run(&j, "grep -E '^(Uid|Cap)' /proc/self/status", out, sizeof(out), step));
        assert_non_null(strstr(out, "Uid:\t2147221000\t"));
        /* through an exec, and nothing else */
        assert_non_null(strstr(out, "CapPrm:\t0000000000080000\nCapEff:\t0000000000080000\nCapBnd:\t0000000000080000\n"));
}

/* In a plain chroot no mount can be made private: its root is none. */
static bool root_is_mount(void) {
        struct statx stx;

        if (statx(AT_FDCWD, "/", 0, STATX_BASIC_STATS, &stx) == 0 && stx.stx_attributes & STATX_ATTR_MOUNT_ROOT)
                return true;
        skip_because("the root directory is no mount");
        return false;
}

static void test_namespaces_of_its_own(void **state) {
        const struct jail j = { .uid = SOMEBODY, .mnt_ns = -1, .net_ns = -1, .own = true };
        char out[2000], step[SPAWN_STEP_LEN];

        if (needs_root() || !root_is_mount())
                skip();
        assert_ok(run(&j, "echo $$; echo /proc/[0-9]*; cat /proc/sys/kernel/hostname 2>&1 | wc -l", out, sizeof(out), step));
        assert_memory_equal(out, "1\n/proc/1", 9);
        /* what was mounted in there is not mounted here */
        assert_int_equal(access("/proc/self/mounts", R_OK), 0);
        assert_true(access("/proc/2", F_OK) == 0 || access("/proc/meminfo", F_OK) == 0);
}

static void test_which_step_failed(void **state) {
        const struct jail j = { .uid = SOMEBODY, .mnt_ns = -1, .net_ns = -1 };
        struct jail bad = j;
        char out[200], step[SPAWN_STEP_LEN];
        int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

        if (needs_root())
                skip();
        bad.mnt_ns = null;
        assert_int_equal(run(&bad, "true", out, sizeof(out), step), -EINVAL);
        assert_string_equal(step, "joining the mount namespace");
        bad = j;
        bad.net_ns = null;
        assert_int_equal(run(&bad, "true", out, sizeof(out), step), -EINVAL);
        assert_string_equal(step, "joining the network namespace");
        (void) close(null);
}

/* ---- a root directory ---- */

/* In a child of fork: what newroot_enter makes, and what it says. */
static int in_new_root(const struct newroot_entry *entries, size_t n, const char *where, int (*look)(void), char *step) {
        int status, p[2];
        pid_t pid;

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                char what[JAIL_STEP_LEN] = "";
                int r = unshare(CLONE_NEWNS) < 0 ? -errno : newroot_enter(where, entries, n, what);

                (void) !write(p[1], what, sizeof(what));
                _exit(r < 0 ? 100 : look());
        }
        assert_int_equal(read(p[0], step, JAIL_STEP_LEN), JAIL_STEP_LEN);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        (void) close(p[0]);
        (void) close(p[1]);
        assert_true(WIFEXITED(status));
        return WEXITSTATUS(status);
}

/* The number of the first thing that is not as it should be, 0: none. */
static int look_around(void) {
        int fd;

        if (access("/usr/bin", F_OK) < 0 || access("/proc/self/fd", F_OK) < 0 || access("/empty", F_OK) < 0)
                return 1;
        if (access("/root", F_OK) == 0 || access("/tmp", F_OK) == 0 || access("/sys", F_OK) == 0)
                return 2;
        if (open("/x", O_CREAT | O_WRONLY, 0600) >= 0 || errno != EROFS)
                return 3;
        if (open("/usr/x", O_CREAT | O_WRONLY, 0600) >= 0 || errno != EROFS)
                return 4;
        fd = open("/dev/null", O_RDWR);
        if (fd < 0 || write(fd, "x", 1) != 1)
                return 5;
        if (access("/no", F_OK) == 0)
                return 6;
        return mkdir("/dev/x", 0700) == 0 ? 7 : 0;
}

static void test_new_root(void **state) {
        static const struct newroot_entry entries[] = {
                { NEWROOT_BIND, "/usr", 0, 0 },        { NEWROOT_BIND, "/bin", 0, 0 },  { NEWROOT_BIND, "/no/such/dir", 0, 0 },
                { NEWROOT_DEVICE, "/dev/null", 0, 0 }, { NEWROOT_PROC, "/proc", 0, 0 }, { NEWROOT_DIR, "/empty", 0, 0 },
        };
        static const struct newroot_entry no_device[] = { { NEWROOT_DEVICE, "/etc/passwd", 0, 0 } };
        char step[JAIL_STEP_LEN];

        if (needs_root() || !root_is_mount())
                skip();
        assert_int_equal(in_new_root(entries, ARRAY_LEN(entries), "/tmp", look_around, step), 0);
        assert_int_equal(in_new_root(no_device, 1, "/tmp", look_around, step), 100);
        assert_string_equal(step, "making /etc/passwd");
        assert_int_equal(in_new_root(entries, 2, "/no/such/dir", look_around, step), 100);
        assert_string_equal(step, "mounting a tmpfs at /no/such/dir");
        assert_int_equal(access("/tmp", F_OK), 0); /* here everything is as it was */
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_who_it_is),
                cmocka_unit_test(test_a_capability_that_is_kept),
                cmocka_unit_test(test_namespaces_of_its_own),
                cmocka_unit_test(test_which_step_failed),
                cmocka_unit_test(test_new_root),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
