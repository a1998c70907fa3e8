/* SPDX-License-Identifier: MIT */
/* Who is at the other end of a socket, and being that for a moment. */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/api/caller.h"

#define USER 54321
#define N_GROUPS 100

static char dir[64];

static int setup(void **state) {
        temp_dir(dir, sizeof(dir));
        return 0;
}

static int teardown(void **state) {
        temp_dir_remove(dir);
        return 0;
}

/* Connects as user USER with groups 60000 … 60099, and stays until it is hung up on. */
static pid_t connect_as_user(const char *path) {
        gid_t groups[N_GROUPS];
        char c;
        pid_t pid = fork();
        int fd;

        assert_true(pid >= 0);
        if (pid > 0)
                return pid;
        for (unsigned i = 0; i < N_GROUPS; i++)
                groups[i] = 60000 + i;
        if (setgroups(N_GROUPS, groups) < 0 || setgid(USER + 1) < 0 || setuid(USER) < 0 || io_connect_unix(path, &fd) < 0)
                _exit(1);
        _exit(read(fd, &c, 1) == 0 ? 0 : 2);
}

static void test_peer_of_a_socket(void **state) {
        cleanup_caller struct caller *c = NULL;
        const char *path = in_dir(dir, "sock");
        int listener, fd, status;
        pid_t pid;

        skip_unless(geteuid() == 0, "not root");
        assert_int_equal(chmod(dir, 0711), 0);
        assert_ok(io_listen_unix(path, 0666, &listener));
        assert_ok(io_set_nonblock(listener, false));
        pid = connect_as_user(path);
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        assert_true(fd >= 0);
        assert_ok(caller_of_socket(fd, &c));
        assert_int_equal(c->uid, USER);
        assert_int_equal(c->gid, USER + 1);
        assert_int_equal(c->n_groups, N_GROUPS);
        assert_false(caller_is_root(c));
        assert_true(caller_in_group(c, USER + 1));
        assert_true(caller_in_group(c, 60000) && caller_in_group(c, 60099));
        assert_false(caller_in_group(c, 60100) || caller_in_group(c, 0));
        (void) close(fd);
        (void) close(listener);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
}

static void test_ourselves(void **state) {
        cleanup_caller struct caller *c = NULL;
        int sv[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        assert_ok(caller_of_socket(sv[0], &c));
        assert_int_equal(c->uid, geteuid());
        assert_true(caller_is_root(c));
        (void) close(sv[0]);
        (void) close(sv[1]);
        assert_true(caller_of_socket(sv[0], &c) < 0); /* no socket any more */
}

static int decode(const struct mp_buf *b, struct caller **ret) {
        cleanup_mp_doc struct mp_doc doc = { 0 };

        assert_ok(mp_parse(b->sb.data, b->sb.size, &doc));
        return caller_decode(&doc.root, ret);
}

static struct caller *a_user(void) {
        struct caller *c = calloc(1, sizeof(*c) + 2 * sizeof(gid_t));

        assert_non_null(c);
        *c = (struct caller){ .refs = 1, .uid = USER, .gid = USER + 1, .n_groups = 2 };
        c->groups[0] = 7;
        c->groups[1] = 4000000000u;
        return c;
}

static void test_there_and_back(void **state) {
        cleanup_caller struct caller *c = a_user(), *got = NULL;
        const struct caller root = { .uid = 0 };
        cleanup_mp_buf struct mp_buf b = { 0 }, nobody = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 1);
        caller_encode(c, &b);
        assert_ok(decode(&b, &got));
        assert_int_equal(got->uid, USER);
        assert_int_equal(got->gid, USER + 1);
        assert_int_equal(got->n_groups, 2);
        assert_int_equal(got->groups[1], 4000000000u);

        mp_buf_clear(&b);
        mp_buf_init(&b);
        mp_map(&b, 1);
        caller_encode(&root, &b);
        caller_unref(TAKE_PTR(got));
        assert_ok(decode(&b, &got));
        assert_null(got);

        mp_buf_init(&nobody);
        mp_map(&nobody, 0);
        assert_fails(decode(&nobody, &got), EINVAL);
}

static void put_caller(struct mp_buf *b, uint64_t uid, uint64_t gid, uint64_t group, bool has_groups) {
        mp_buf_init(b);
        mp_map(b, 1);
        mp_key(b, "caller");
        mp_map(b, has_groups ? 3 : 2);
        mp_kv_u64(b, "uid", uid);
        mp_kv_u64(b, "gid", gid);
        if (has_groups) {
                mp_key(b, "groups");
                mp_array(b, 1);
                mp_u64(b, group);
        }
}

/* -1 means "leave it as it is" to the kernel's calls: such a caller would stay root. */
static void test_callers_that_are_none(void **state) {
        static const uint64_t bad[][3] = { { 0, 5, 5 },          { UINT32_MAX, 5, 5 }, { 1ull << 32, 5, 5 },
                                           { 5, UINT32_MAX, 5 }, { 5, 5, UINT32_MAX }, { 5, 5, 1ull << 40 } };
        struct caller *got = NULL;
        struct mp_buf b;

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                put_caller(&b, bad[i][0], bad[i][1], bad[i][2], true);
                assert_fails(decode(&b, &got), EINVAL);
                mp_buf_clear(&b);
        }
        put_caller(&b, 5, 5, 0, false);
        assert_fails(decode(&b, &got), EINVAL);
        mp_buf_clear(&b);
}

/* In a child: what goes wrong must not leave the test as somebody else. Returns a step's number, 0: all well. */
static int be_a_user(const char *secret, const char *shared) {
        cleanup_caller struct caller *c = a_user();
        gid_t groups[8];

        if (caller_become(NULL) < 0 || geteuid() != 0)
                return 1;
        if (caller_become(c) < 0)
                return 2;
        if (geteuid() != USER || getuid() != 0 || getegid() != USER + 1 || getgroups(8, groups) != 2 || groups[0] != 7)
                return 3;
        if (open(secret, O_RDONLY | O_CLOEXEC) >= 0 || errno != EACCES)
                return 4;
        if (open(shared, O_RDONLY | O_CLOEXEC) < 0)
                return 5;
        if (chroot("/") == 0) /* a capability */
                return 6;
        caller_revert(c);
        if (geteuid() != 0 || getegid() != 0 || getgroups(8, groups) != 0)
                return 7;
        return open(secret, O_RDONLY | O_CLOEXEC) < 0 ? 8 : 0;
}

static void test_become_and_revert(void **state) {
        const char *secret = in_dir(dir, "secret"), *shared = in_dir(dir, "shared");
        int status;
        pid_t pid;

        skip_unless(geteuid() == 0, "not root");
        assert_int_equal(chmod(dir, 0711), 0);
        assert_ok(io_write_file_atomic(AT_FDCWD, secret, "x", 1, 0600, false));
        assert_ok(io_write_file_atomic(AT_FDCWD, shared, "x", 1, 0640, false));
        assert_int_equal(chown(shared, 0, 7), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
                _exit(be_a_user(secret, shared));
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
}

/* While a process acts as a user, the user has no power over it. */
static void test_the_user_cannot_signal_who_acts_for_it(void **state) {
        int ready[2], hold[2], status;
        pid_t actor, user;
        char c;

        skip_unless(geteuid() == 0, "not root");
        assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
        assert_int_equal(pipe2(hold, O_CLOEXEC), 0);
        actor = fork();
        assert_true(actor >= 0);
        if (actor == 0) {
                struct caller *who = a_user();

                (void) close(hold[1]);
                if (caller_become(who) < 0 || write(ready[1], "x", 1) != 1)
                        _exit(1);
                _exit(read(hold[0], &c, 1) == 0 ? 0 : 2);
        }
        assert_int_equal(read(ready[0], &c, 1), 1);
        user = fork();
        assert_true(user >= 0);
        if (user == 0) {
                (void) close(hold[1]);
                if (setgroups(0, NULL) < 0 || setgid(USER + 1) < 0 || setuid(USER) < 0)
                        _exit(1);
                _exit(kill(actor, SIGKILL) < 0 && errno == EPERM ? 0 : 2);
        }
        assert_int_equal(waitpid(user, &status, 0), user);
        assert_int_equal(status, 0);
        (void) close(hold[1]);
        assert_int_equal(waitpid(actor, &status, 0), actor);
        assert_int_equal(status, 0);
        (void) close(hold[0]);
        (void) close(ready[0]);
        (void) close(ready[1]);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_peer_of_a_socket),  cmocka_unit_test(test_ourselves),
                cmocka_unit_test(test_there_and_back),    cmocka_unit_test(test_callers_that_are_none),
                cmocka_unit_test(test_become_and_revert), cmocka_unit_test(test_the_user_cannot_signal_who_acts_for_it),
        };

        return cmocka_run_group_tests(tests, setup, teardown);
}
