/* SPDX-License-Identifier: MIT */
/* The child that most tests start is this program itself: "--child WHAT" reports what it got on descriptor 1. */
#include "common_test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"

static const char *self;

/* ---- the child's side ---- */

/* Every open descriptor with its inode, but for the one that reads the list. */
static int child_fds(void) {
        struct dirent *de;
        DIR *d = opendir("/proc/self/fd");

        while ((de = readdir(d))) {
                int fd = atoi(de->d_name);
                struct stat st;

                if (de->d_name[0] == '.' || fd == dirfd(d) || fstat(fd, &st) < 0)
                        continue;
                (void) printf("%d=%llu%s ", fd, (unsigned long long) st.st_ino, fcntl(fd, F_GETFD) & FD_CLOEXEC ? "!" : "");
        }
        (void) closedir(d);
        return 0;
}

static int child_signals(void) {
        sigset_t mask;
        unsigned blocked = 0, handled = 0;

        (void) sigprocmask(SIG_BLOCK, NULL, &mask);
        for (int s = 1; s < NSIG; s++) {
                struct sigaction sa;

                blocked += sigismember(&mask, s) == 1;
                handled += sigaction(s, NULL, &sa) == 0 && sa.sa_handler != SIG_DFL;
        }
        (void) printf("blocked=%u handled=%u", blocked, handled);
        return 0;
}

static int child_main(const char *what) {
        if (strcmp(what, "fds") == 0)
                return child_fds();
        if (strcmp(what, "signals") == 0)
                return child_signals();
        if (strcmp(what, "session") == 0)
                return printf("sid=%d", getsid(0) == getpid()) < 0;
        if (strcmp(what, "env") == 0) {
                for (char **e = environ; *e; e++)
                        (void) printf("%s ", *e);
                return 0;
        }
        if (strcmp(what, "exit7") == 0)
                return 7;
        if (strcmp(what, "wait") == 0) /* until the pipe on 0 ends */
                return read(0, &(char){ 0 }, 1) == 0 ? 0 : 1;
        return 99;
}

/* ---- the parent's side ---- */

/* Starts --child @what with stdout in a pipe and the given descriptors; reads all it says. */
static void run_child(const char *what, struct spawn_params *p, struct spawn_fd *more, size_t n_more, char *out, size_t size) {
        const char *argv[] = { self, "--child", what, NULL };
        struct spawn_fd fds[SPAWN_MAX_FDS];
        int pipe_fds[2], pidfd, status;
        pid_t pid;
        ssize_t n;

        assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
        fds[0] = (struct spawn_fd){ pipe_fds[1], 1 };
        for (size_t i = 0; i < n_more; i++)
                fds[i + 1] = more[i];
        p->argv = argv;
        p->fds = fds;
        p->n_fds = n_more + 1;
        assert_ok(spawn_process(p, &pid, &pidfd));
        (void) close(pipe_fds[1]);
        n = io_read_full(pipe_fds[0], out, size - 1);
        assert_ok(n);
        out[n] = '\0';
        (void) close(pipe_fds[0]);
        assert_ok(spawn_wait(pidfd, 20000, &status));
        assert_int_equal(status, 0);
        assert_int_equal(fcntl(pidfd, F_GETFD), FD_CLOEXEC);
        (void) close(pidfd);
}

static unsigned long long inode(int fd) {
        struct stat st;

        assert_int_equal(fstat(fd, &st), 0);
        return (unsigned long long) st.st_ino;
}

static void expect_fd(const char *list, int fd, unsigned long long ino) {
        char entry[64];

        (void) snprintf(entry, sizeof(entry), "%d=%llu ", fd, ino);
        if (strncmp(list, entry, strlen(entry)) != 0) {
                (void) snprintf(entry, sizeof(entry), " %d=%llu ", fd, ino);
                if (!strstr(list, entry))
                        fail_msg("no '%s' in '%s'", entry, list);
        }
}

static unsigned count_words(const char *s) {
        unsigned n = 0;

        for (; (s = strchr(s, ' ')); s++)
                n++;
        return n;
}

/* What is not listed is closed, also what is not CLOEXEC; streams that are not listed are /dev/null. */
static void test_only_what_is_listed(void **state) {
        struct spawn_params p = { .cgroup_fd = -1 };
        int leak[20], null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        char out[4096];

        for (size_t i = 0; i < ARRAY_LEN(leak); i++)
                leak[i] = dup(null_fd);
        run_child("fds", &p, NULL, 0, out, sizeof(out));
        assert_int_equal(count_words(out), 3);
        expect_fd(out, 0, inode(null_fd));
        expect_fd(out, 2, inode(null_fd));
        for (size_t i = 0; i < ARRAY_LEN(leak); i++)
                (void) close(leak[i]);
        (void) close(null_fd);
}

/* Numbers that collide: a swap, a rotation, one descriptor in several places, targets where the parent's own
 * (the report pipe among them) happen to be. */
static void test_shuffles(void **state) {
        struct rng r = { 5 };

        for (unsigned round = 0; round < 40; round++) {
                struct spawn_params p = { .cgroup_fd = -1 };
                struct spawn_fd fds[10];
                int files[6];
                char out[4096];
                size_t n = 1 + rng_below(&r, ARRAY_LEN(fds));
                bool used[24] = { [1] = true };

                for (size_t i = 0; i < ARRAY_LEN(files); i++) {
                        files[i] = memfd_create("one of several", MFD_CLOEXEC);
                        assert_true(files[i] >= 0);
                }
                for (size_t i = 0; i < n; i++) {
                        int to;

                        do
                                to = (int) rng_below(&r, ARRAY_LEN(used));
                        while (used[to]);
                        used[to] = true;
                        fds[i] = (struct spawn_fd){ files[rng_below(&r, ARRAY_LEN(files))], to };
                }
                run_child("fds", &p, fds, n, out, sizeof(out));
                for (size_t i = 0; i < n; i++)
                        expect_fd(out, fds[i].child_fd, inode(fds[i].parent_fd));
                assert_int_equal(count_words(out), n + 3 - (size_t) used[0] - (size_t) used[2]);
                assert_null(strchr(out, '!')); /* none of them closes at the child's own next exec */
                for (size_t i = 0; i < ARRAY_LEN(files); i++)
                        (void) close(files[i]);
        }
}

/* A parent without standard streams: the descriptors it makes meanwhile have their numbers. */
static int spawn_without_streams(void) {
        const char *const argv[] = { self, "--child", "exit7", NULL };
        struct spawn_params p = { .argv = argv, .cgroup_fd = -1 };
        int status = -1, pidfd;
        pid_t pid;

        for (int i = 0; i < 3; i++)
                (void) close(i);
        if (spawn_process(&p, &pid, &pidfd) < 0 || spawn_wait(pidfd, 20000, &status) < 0)
                return 1;
        return WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : 2;
}

static void test_parent_without_streams(void **state) {
        int status;
        pid_t pid = fork();

        if (pid == 0)
                _exit(spawn_without_streams());
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
}

static void test_exec_failures(void **state) {
        static const struct {
                const char *path;
                int err;
        } bad[] = { { "/nonexistent/program", ENOENT }, { "/", EACCES }, { "/dev/null", EACCES }, { "/etc/passwd/x", ENOTDIR } };
        unsigned before = count_fds();

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                const char *const argv[] = { bad[i].path, NULL };
                struct spawn_params p = { .argv = argv, .cgroup_fd = -1 };
                pid_t pid = -5;
                int pidfd = -5;

                assert_int_equal(spawn_process(&p, &pid, &pidfd), -bad[i].err);
                assert_int_equal(pid, -5);
                assert_int_equal(pidfd, -5);
                assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* reaped */
                assert_int_equal(errno, ECHILD);
        }
        assert_int_equal(count_fds(), before);
}

/* Something fails in the child before exec: the caller learns which. */
static void test_setup_failures(void **state) {
        const char *const argv[] = { "/bin/true", NULL };
        struct spawn_fd bad = { 900, 5 };
        struct spawn_fd many[SPAWN_MAX_FDS + 1] = { { 0 } };
        struct spawn_params p = { .argv = argv, .fds = &bad, .n_fds = 1, .cgroup_fd = -1 };
        int pidfd;
        pid_t pid;

        assert_fails(spawn_process(&p, &pid, &pidfd), EBADF);
        p.fds = many;
        p.n_fds = ARRAY_LEN(many);
        assert_fails(spawn_process(&p, &pid, &pidfd), EINVAL);
        p.n_fds = 0;
        p.cgroup_fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
        assert_fails(spawn_process(&p, &pid, &pidfd), EBADF);
        (void) close(p.cgroup_fd);
}

/* The child has descriptors left for what it shall get, but none for its report: that is a failure, too. */
static void test_no_descriptor_for_the_report(void **state) {
        const char *const argv[] = { "/bin/true", NULL };
        struct spawn_fd fd = { 0, 98 };
        struct spawn_params p = { .argv = argv, .fds = &fd, .n_fds = 1, .cgroup_fd = -1 };
        struct rlimit old, low;
        int pidfd = -1, r;
        pid_t pid;

        assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
        low = old;
        low.rlim_cur = 100; /* 99 is free for the first move above the targets; then there is no more */
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
        r = spawn_process(&p, &pid, &pidfd);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
        assert_true(r == -EMFILE || r == -EINVAL);
        assert_int_equal(pidfd, -1);
}

static void on_signal(int sig) {
}

static void test_signals_are_reset(void **state) {
        struct spawn_params p = { .cgroup_fd = -1 };
        sigset_t all, old;
        char out[128];

        (void) signal(SIGPIPE, SIG_IGN);
        (void) signal(SIGUSR1, on_signal);
        (void) sigfillset(&all);
        (void) sigprocmask(SIG_SETMASK, &all, &old);
        run_child("signals", &p, NULL, 0, out, sizeof(out));
        (void) sigprocmask(SIG_SETMASK, &old, NULL);
        (void) signal(SIGPIPE, SIG_DFL);
        (void) signal(SIGUSR1, SIG_DFL);
        /* the sanitizers' runtimes take SIGSEGV and friends for themselves */
        assert_true(strncmp(out, "blocked=0 ", 10) == 0);
#if !defined(FORKD_ASAN) && !defined(FORKD_TSAN)
        assert_string_equal(out, "blocked=0 handled=0");
#endif
}

static void test_session_and_env(void **state) {
        static const char *const env[] = { "A=1", "B=two", NULL };
        struct spawn_params p = { .cgroup_fd = -1, .new_session = true };
        char out[4096];

        run_child("session", &p, NULL, 0, out, sizeof(out));
        assert_true(strncmp(out, "sid=1", 5) == 0);
        p.new_session = false;
        run_child("session", &p, NULL, 0, out, sizeof(out));
        assert_true(strncmp(out, "sid=0", 5) == 0);
        p.env = env;
        run_child("env", &p, NULL, 0, out, sizeof(out));
        assert_string_equal(out, "A=1 B=two ");
        p.env = NULL;
        assert_int_equal(setenv("FORKD_TEST_VAR", "inherited", 1), 0);
        run_child("env", &p, NULL, 0, out, sizeof(out));
        assert_non_null(strstr(out, "FORKD_TEST_VAR=inherited "));
}

/* Starts a child that lives until the returned descriptor is closed. */
static int start_waiting(pid_t *ret_pid, int *ret_pidfd, int death_signal) {
        const char *const argv[] = { self, "--child", "wait", NULL };
        int p[2];

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        struct spawn_fd fds[] = { { p[0], 0 } };
        struct spawn_params sp = { .argv = argv, .fds = fds, .n_fds = 1, .cgroup_fd = -1, .death_signal = death_signal };
        assert_ok(spawn_process(&sp, ret_pid, ret_pidfd));
        (void) close(p[0]);
        return p[1];
}

static void test_wait(void **state) {
        int pidfd, fd, status = 5;
        uint64_t start;
        pid_t pid;

        fd = start_waiting(&pid, &pidfd, 0);
        start = now_ns();
        assert_fails(spawn_wait(pidfd, 30, &status), ETIMEDOUT);
        assert_true(ms_since(start) >= 30);
        assert_fails(spawn_wait(pidfd, 0, &status), ETIMEDOUT);
        assert_int_equal(status, 5);
        (void) close(fd);
        assert_ok(spawn_wait(pidfd, -1, &status));
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_int_equal(waitpid(pid, NULL, WNOHANG), -1); /* reaped */
        status = 5;
        assert_ok(spawn_wait(pidfd, -1, &status)); /* again: it has ended, how is no longer known */
        assert_int_equal(status, -1);
        assert_fails(spawn_kill(pidfd, SIGKILL), ESRCH);
        (void) close(pidfd);

        fd = start_waiting(&pid, &pidfd, 0);
        assert_ok(spawn_kill(pidfd, SIGKILL));
        assert_ok(spawn_wait(pidfd, 20000, &status));
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        (void) close(pidfd);
        (void) close(fd);
        fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        (void) close(fd);
        assert_fails(spawn_wait(fd, 20000, &status), EBADF); /* no descriptor: not "it has ended" */
}

/* Of a process that is not our child the end is known, not the status. */
static void test_wait_for_a_stranger(void **state) {
        int p[2], pidfd, own, status = 5, fd;
        pid_t pid, other;

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        pid = fork(); /* its child will be our grandchild */
        if (pid == 0) {
                fd = start_waiting(&other, &own, SIGKILL);
                (void) !write(p[1], &other, sizeof(other));
                (void) fd;
                (void) pause();
                _exit(0);
        }
        assert_int_equal(io_read_full(p[0], &other, sizeof(other)), sizeof(other));
        assert_ok(spawn_pidfd_open(other, 0, &pidfd));
        assert_fails(spawn_wait(pidfd, 0, &status), ETIMEDOUT);
        (void) kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        assert_ok(spawn_wait(pidfd, 20000, &status)); /* and the death signal worked */
        assert_int_equal(status, -1);
        (void) close(pidfd);
        (void) close(p[0]);
        (void) close(p[1]);
}

static void test_start_time(void **state) {
        uint64_t ours = 0, theirs = 0;
        int pidfd = -1, own, fd;
        pid_t pid;

        /* A name that tries to be the rest of the line. */
        assert_int_equal(prctl(PR_SET_NAME, "a) S 1 2 3 ("), 0);
        assert_ok(spawn_start_time(getpid(), &ours));
        assert_true(ours > 0);
        assert_ok(spawn_pidfd_open(getpid(), ours, &pidfd));
        (void) close(pidfd);
        pidfd = -1;
        assert_fails(spawn_pidfd_open(getpid(), ours + 1, &pidfd), ESRCH);
        fd = start_waiting(&pid, &own, 0);
        assert_ok(spawn_start_time(pid, &theirs));
        assert_true(theirs >= ours);
        (void) close(fd);
        assert_ok(spawn_wait(own, 20000, NULL));
        (void) close(own);
        assert_fails(spawn_start_time(pid, &theirs), ESRCH);
        assert_fails(spawn_pidfd_open(pid, theirs, &pidfd), ESRCH);
        assert_fails(spawn_pidfd_open(pid, 0, &pidfd), ESRCH);
        assert_fails(spawn_pidfd_open(0, 0, &pidfd), ESRCH);
        assert_fails(spawn_pidfd_open(-1, 0, &pidfd), ESRCH);
        assert_int_equal(pidfd, -1);
}

static void test_pid_of_a_pidfd(void **state) {
        int pidfd, own, fd, null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        struct pollfd ended = { .events = POLLIN };
        pid_t pid, got = 5;

        assert_ok(spawn_pidfd_open(getpid(), 0, &pidfd));
        assert_ok(spawn_pidfd_pid(pidfd, &got));
        assert_int_equal(got, getpid());
        (void) close(pidfd);
        got = 5;
        assert_fails(spawn_pidfd_pid(null, &got), EINVAL);
        (void) close(null);
        assert_fails(spawn_pidfd_pid(null, &got), EBADF);
        assert_fails(spawn_pidfd_pid(-1, &got), EBADF);

        fd = start_waiting(&pid, &own, 0);
        assert_ok(spawn_pidfd_pid(own, &got));
        assert_int_equal(got, pid);
        got = 5;
        (void) close(fd);
        ended.fd = own;
        assert_int_equal(poll(&ended, 1, 20000), 1);
        assert_fails(spawn_pidfd_pid(own, &got), ESRCH); /* has ended, not reaped yet */
        assert_ok(spawn_wait(own, 20000, NULL));
        assert_fails(spawn_pidfd_pid(own, &got), ESRCH);
        assert_int_equal(got, 5);
        (void) close(own);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_only_what_is_listed),
                cmocka_unit_test(test_shuffles),
                cmocka_unit_test(test_parent_without_streams),
                cmocka_unit_test(test_exec_failures),
                cmocka_unit_test(test_setup_failures),
                cmocka_unit_test(test_no_descriptor_for_the_report),
                cmocka_unit_test(test_signals_are_reset),
                cmocka_unit_test(test_session_and_env),
                cmocka_unit_test(test_wait),
                cmocka_unit_test(test_wait_for_a_stranger),
                cmocka_unit_test(test_start_time),
                cmocka_unit_test(test_pid_of_a_pidfd),
        };
        char path[4096];
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

        if (argc == 3 && strcmp(argv[1], "--child") == 0)
                return child_main(argv[2]);
        if (n < 0)
                return 1;
        path[n] = '\0';
        self = path;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
