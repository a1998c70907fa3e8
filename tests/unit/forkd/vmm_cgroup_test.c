/* SPDX-License-Identifier: MIT */
/* Real cgroups; skipped where none can be made. */
#include "vmm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"
#include "forkd/vmm/cgroup.h"

static char instance[32];

#define TEST(name)                                   \
        static void name##_body(struct vmm_test *t); \
        static void name(void **state) {             \
                vmm_test_run(*state, name##_body);   \
        }                                            \
        static void name##_body(struct vmm_test *t)

static bool group_exists(const char *id) {
        char mount[PATH_MAX / 2], path[PATH_MAX];

        check(cgroup_mount(mount, sizeof(mount)) == 0);
        (void) snprintf(path, sizeof(path), "%s/forkd-%s%s%s", mount, instance, id ? "/" : "", id ? id : "");
        return access(path, F_OK) == 0;
}

static int spawn_sleeper(struct vmm_test *t, int procs_fd) {
        /* a shell with a child: a group, not a process, is what must end */
        const char *const argv[] = { "/bin/sh", "-c", "/bin/sleep 600 & wait", NULL };
        int pidfd = -1;
        pid_t pid;

        check_ok(spawn_process(&(struct spawn_params){ .argv = argv, .cgroup_fd = procs_fd }, &pid, &pidfd));
        return pidfd;
}

TEST(create_and_remove) {
        int a = -1, b = -1;

        check_ok(cgroup_create(instance, "a", &a, &t->e));
        check_ok(cgroup_create(instance, "b", &b, &t->e));
        check(group_exists("a") && group_exists("b"));
        (void) close(a);
        (void) close(b);
        check_ok(cgroup_remove(instance, "a", &t->e));
        check(!group_exists("a") && group_exists(NULL));
        check_ok(cgroup_remove(instance, "b", &t->e));
        check(!group_exists(NULL)); /* the last one takes the base with it */
        check_ok(cgroup_remove(instance, "b", &t->e));
        check_ok(cgroup_kill(instance, "b", &t->e));
}

TEST(removal_kills_all) {
        int procs = -1, pidfd;

        check_ok(cgroup_create(instance, "a", &procs, &t->e));
        pidfd = spawn_sleeper(t, procs);
        (void) close(procs);
        check_ok(cgroup_remove(instance, "a", &t->e));
        check(!group_exists("a"));
        check(spawn_wait(pidfd, 5000, NULL) == 0);
        (void) close(pidfd);
}

TEST(what_an_earlier_life_left_is_killed) {
        int procs = -1, again = -1, pidfd;

        check_ok(cgroup_create(instance, "a", &procs, &t->e));
        pidfd = spawn_sleeper(t, procs);
        check_ok(cgroup_create(instance, "a", &again, &t->e));
        check(spawn_wait(pidfd, 5000, NULL) == 0);
        (void) close(pidfd);
        (void) close(procs);
        /* And it is a group like any other: what is born in it now lives. */
        pidfd = spawn_sleeper(t, again);
        check(spawn_wait(pidfd, 100, NULL) == -ETIMEDOUT);
        (void) close(again);
        check_ok(cgroup_remove(instance, "a", &t->e));
        check(spawn_wait(pidfd, 5000, NULL) == 0);
        (void) close(pidfd);
}

TEST(killing_one_leaves_the_other) {
        int a = -1, b = -1, pa, pb;

        check_ok(cgroup_create(instance, "0001", &a, &t->e));
        check_ok(cgroup_create(instance, "00010", &b, &t->e));
        pa = spawn_sleeper(t, a);
        pb = spawn_sleeper(t, b);
        (void) close(a);
        (void) close(b);
        check_ok(cgroup_remove(instance, "0001", &t->e));
        check(spawn_wait(pa, 5000, NULL) == 0);
        check(spawn_wait(pb, 0, NULL) == -ETIMEDOUT);
        check_ok(cgroup_remove(instance, "00010", &t->e));
        check(spawn_wait(pb, 5000, NULL) == 0);
        (void) close(pa);
        (void) close(pb);
}

TEST(names_that_are_paths) {
        int fd = -1;

        check(cgroup_create("../x", "a", &fd, &t->e) == -EINVAL);
        check(cgroup_create(instance, "..", &fd, &t->e) == -EINVAL);
        check(cgroup_create(instance, "a/b", &fd, &t->e) == -EINVAL);
        check(cgroup_create(instance, "", &fd, &t->e) == -EINVAL);
        check(cgroup_remove(instance, "..", &t->e) == -EINVAL);
        check(fd == -1);
}

TEST(who_joins_leaves_the_others_alone) {
        int first = -1, second = -1, pidfd;

        check_ok(cgroup_join(instance, "a", &first, &t->e));
        pidfd = spawn_sleeper(t, first);
        check_ok(cgroup_join(instance, "a", &second, &t->e));
        check(spawn_wait(pidfd, 0, NULL) == -ETIMEDOUT);
        (void) close(first);
        (void) close(second);
        check_ok(cgroup_remove(instance, "a", &t->e));
        check(spawn_wait(pidfd, 5000, NULL) == 0);
        (void) close(pidfd);
}

#define T(f) cmocka_unit_test_setup_teardown(f, vmm_test_setup, vmm_test_teardown)

int main(void) {
        const struct CMUnitTest tests[] = {
                T(create_and_remove),
                T(removal_kills_all),
                T(what_an_earlier_life_left_is_killed),
                T(who_joins_leaves_the_others_alone),
                T(killing_one_leaves_the_other),
                T(names_that_are_paths),
        };
        struct err e;
        int fd = -1;

        (void) snprintf(instance, sizeof(instance), "test%d", (int) getpid());
        if (cgroup_create(instance, "probe", &fd, &e) < 0)
                return vmm_test_skip_all(e.message);
        (void) close(fd);
        if (cgroup_remove(instance, "probe", &e) < 0)
                return 1;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
