/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"

static char dir[64];

static int setup(void **state) {
        temp_dir(dir, sizeof(dir));
        return 0;
}

static int teardown(void **state) {
        temp_dir_remove(dir);
        return 0;
}

static void put_file(const char *path, const char *text) {
        FILE *f = fopen(path, "we");

        assert_non_null(f);
        assert_true(fputs(text, f) >= 0);
        assert_int_equal(fclose(f), 0);
}

static void assert_content(const char *path, const char *text) {
        char *data;
        size_t len;

        assert_ok(io_read_file(AT_FDCWD, path, 1 << 20, &data, &len));
        assert_int_equal(len, strlen(text));
        assert_string_equal(data, text);
        free(data);
}

static unsigned count_entries(const char *path) {
        DIR *d = opendir(path);
        unsigned n = 0;

        assert_non_null(d);
        while (readdir(d))
                n++;
        (void) closedir(d);
        return n - 2;
}

static bool exists(const char *path) {
        struct stat st;

        return lstat(path, &st) == 0;
}

/* ---- whole reads and writes ---- */

static volatile sig_atomic_t alarms;

static void on_alarm(int sig) {
        alarms++;
}

/* Interrupted by signals all the time, over a pipe that takes and gives little at once. */
static void test_full_io_with_signals(void **state) {
        enum { LEN = 3 << 20 };
        struct sigaction sa = { .sa_handler = on_alarm }, old; /* no SA_RESTART */
        struct itimerval often = { .it_interval = { .tv_usec = 500 }, .it_value = { .tv_usec = 500 } }, off = { 0 };
        cleanup_free uint8_t *buf = malloc(LEN);
        int p[2], status;
        pid_t pid;

        for (size_t i = 0; i < LEN; i++)
                buf[i] = (uint8_t) (i * 31 >> 8);
        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        assert_int_equal(sigaction(SIGALRM, &sa, &old), 0);
        pid = fork();
        if (pid == 0) {
                (void) close(p[0]);
                (void) setitimer(ITIMER_REAL, &often, NULL);
                _exit(io_write_full(p[1], buf, LEN) == 0 ? 0 : 1);
        }
        (void) close(p[1]);
        (void) setitimer(ITIMER_REAL, &often, NULL);
        {
                cleanup_free uint8_t *got = calloc(1, LEN + 1);
                ssize_t n = io_read_full(p[0], got, LEN + 1); /* ends with the file, not with the buffer */

                (void) setitimer(ITIMER_REAL, &off, NULL);
                assert_int_equal(n, LEN);
                assert_memory_equal(got, buf, LEN);
        }
        (void) close(p[0]);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
                ;
        assert_int_equal(status, 0);
        assert_int_equal(sigaction(SIGALRM, &old, NULL), 0);
}

static void test_positioned_io(void **state) {
        int fd = open(in_dir(dir, "f"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        char buf[8] = "";

        assert_ok(io_pwrite_full(fd, "abcd", 4, 100));
        assert_ok(io_pread_full(fd, buf, 4, 100));
        assert_memory_equal(buf, "abcd", 4);
        assert_fails(io_pread_full(fd, buf, 5, 100), EBADMSG);
        assert_fails(io_pread_full(fd, buf, 1, 1ull << 63), EINVAL);
        assert_fails(io_write_full(-1, "x", 1), EBADF);
        (void) close(fd);
        fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
        assert_fails(io_write_full(fd, "x", 1), ENOSPC);
        (void) close(fd);
}

static void test_read_file(void **state) {
        char *data = (char *) "old";
        char big[8193];
        size_t len = 5;

        assert_fails(io_read_file(AT_FDCWD, in_dir(dir, "none"), 10, &data, &len), ENOENT);
        assert_fails(io_read_file(AT_FDCWD, dir, 10, &data, &len), EISDIR);
        put_file(in_dir(dir, "f"), "12345");
        assert_fails(io_read_file(AT_FDCWD, in_dir(dir, "f"), 4, &data, &len), EFBIG);
        assert_string_equal(data, "old");
        assert_int_equal(len, 5);
        assert_ok(io_read_file(AT_FDCWD, in_dir(dir, "f"), 5, &data, NULL));
        assert_string_equal(data, "12345");
        free(data);
        for (size_t n = 4095; n <= 8192; n += n == 4097 ? 4094 : 1) { /* around the sizes at which it grows */
                memset(big, 'x', n);
                big[n] = '\0';
                put_file(in_dir(dir, "f"), big);
                assert_content(in_dir(dir, "f"), big);
        }
        assert_ok(io_read_file(AT_FDCWD, "/proc/self/status", 1 << 16, &data, &len)); /* says it is empty */
        assert_true(len > 100 && strlen(data) == len);
        free(data);
}

/* ---- replacing and publishing ---- */

static void test_write_atomic(void **state) {
        const char *path = in_dir(dir, "record");
        struct stat st;
        mode_t old = umask(022);

        for (int sync = 0; sync < 2; sync++) {
                assert_ok(io_write_file_atomic(AT_FDCWD, path, "first", 5, 0600, sync));
                assert_content(path, "first");
                assert_ok(io_write_file_atomic(AT_FDCWD, path, "", 0, 0600, sync));
                assert_content(path, "");
        }
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_int_equal(count_entries(dir), 1); /* no temporary file is left */
        assert_fails(io_write_file_atomic(AT_FDCWD, in_dir(dir, "none/record"), "x", 1, 0600, true), ENOENT);
        (void) umask(old);
}

/* The rename fails (a directory is in the way): the temporary file goes, what was there stays. */
static void test_write_atomic_fails(void **state) {
        assert_int_equal(mkdir(in_dir(dir, "d"), 0700), 0);
        put_file(in_dir(dir, "d/inside"), "x");
        assert_true(io_write_file_atomic(AT_FDCWD, in_dir(dir, "d"), "x", 1, 0600, false) < 0);
        assert_int_equal(count_entries(dir), 1);
        assert_content(in_dir(dir, "d/inside"), "x");
}

/* No space while the new content is written: readers still see the old, and nothing is left behind. */
static void test_write_atomic_no_space(void **state) {
        struct rlimit old, low;
        char big[8192] = "";

        put_file(in_dir(dir, "record"), "old");
        assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
        low = old;
        low.rlim_cur = 4096;
        (void) signal(SIGXFSZ, SIG_IGN);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
        assert_fails(io_write_file_atomic(AT_FDCWD, in_dir(dir, "record"), big, sizeof(big), 0600, false), EFBIG);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        (void) signal(SIGXFSZ, SIG_DFL);
        assert_content(in_dir(dir, "record"), "old");
        assert_int_equal(count_entries(dir), 1);
}

/* While one writes, others read: always a whole content, the old or the new. */
static void test_write_atomic_readers(void **state) {
        char a[2000], b[2000], path[128];
        int status;
        pid_t pid;

        memset(a, 'a', sizeof(a));
        memset(b, 'b', sizeof(b));
        (void) snprintf(path, sizeof(path), "%s/record", dir);
        assert_ok(io_write_file_atomic(AT_FDCWD, path, a, sizeof(a), 0600, false));
        pid = fork();
        if (pid == 0) {
                for (unsigned i = 0; i < 500; i++)
                        if (io_write_file_atomic(AT_FDCWD, path, i % 2 ? a : b, sizeof(a), 0600, false) < 0)
                                _exit(1);
                _exit(0);
        }
        while (waitpid(pid, &status, WNOHANG) == 0) {
                char *data;
                size_t len;

                assert_ok(io_read_file(AT_FDCWD, path, 4096, &data, &len));
                assert_int_equal(len, sizeof(a));
                assert_true(memcmp(data, a, len) == 0 || memcmp(data, b, len) == 0);
                free(data);
        }
        assert_int_equal(status, 0);
}

static void test_publish(void **state) {
        int dfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        assert_int_equal(mkdirat(dfd, "tmp", 0700), 0);
        assert_int_equal(mkdirat(dfd, "tmp/x", 0700), 0);
        assert_int_equal(mkdirat(dfd, "out", 0700), 0);
        assert_ok(io_publish(dfd, "tmp/x", "out/x", true));
        assert_true(exists(in_dir(dir, "out/x")));
        assert_int_equal(mkdirat(dfd, "tmp/x", 0700), 0);
        assert_fails(io_publish(dfd, "tmp/x", "out/x", true), EEXIST); /* also an empty directory is not replaced */
        assert_true(exists(in_dir(dir, "tmp/x")));
        assert_fails(io_publish(dfd, "tmp/none", "out/y", false), ENOENT);
        (void) close(dfd);
}

static void test_mkdir_p(void **state) {
        struct stat st;

        assert_ok(io_mkdir_p(in_dir(dir, "a/b//c/"), 0700));
        assert_int_equal(stat(in_dir(dir, "a/b/c"), &st), 0);
        assert_true(S_ISDIR(st.st_mode));
        assert_ok(io_mkdir_p(in_dir(dir, "a/b/c"), 0700));
        assert_ok(io_mkdir_p("/", 0700));
        put_file(in_dir(dir, "file"), "x");
        assert_fails(io_mkdir_p(in_dir(dir, "file"), 0700), ENOTDIR);
        assert_fails(io_mkdir_p(in_dir(dir, "file/sub"), 0700), ENOTDIR);
        assert_fails(io_mkdir_p("", 0700), EINVAL);
        /* A link to a directory is one. */
        assert_int_equal(symlink("a", in_dir(dir, "link")), 0);
        assert_ok(io_mkdir_p(in_dir(dir, "link"), 0700));
}

/* ---- removing ---- */

static void test_remove_tree(void **state) {
        assert_ok(io_mkdir_p(in_dir(dir, "t/a/b"), 0700));
        assert_ok(io_mkdir_p(in_dir(dir, "t/empty"), 0700));
        put_file(in_dir(dir, "t/a/b/f"), "x");
        for (unsigned i = 0; i < 300; i++) {
                char name[64];

                (void) snprintf(name, sizeof(name), "t/a/file-%u", i);
                put_file(in_dir(dir, name), "x");
        }
        assert_int_equal(mkfifo(in_dir(dir, "t/fifo"), 0600), 0);
        assert_ok(io_remove_tree(AT_FDCWD, in_dir(dir, "t")));
        assert_false(exists(in_dir(dir, "t")));
        assert_ok(io_remove_tree(AT_FDCWD, in_dir(dir, "t"))); /* gone is fine */
        put_file(in_dir(dir, "f"), "x");
        assert_ok(io_remove_tree(AT_FDCWD, in_dir(dir, "f"))); /* one file, too */
        assert_false(exists(in_dir(dir, "f")));
}

static void test_remove_tree_symlinks(void **state) {
        char target[128];

        (void) snprintf(target, sizeof(target), "%s/outside", dir);
        assert_ok(io_mkdir_p(target, 0700));
        put_file(in_dir(dir, "outside/f"), "precious");
        assert_ok(io_mkdir_p(in_dir(dir, "t"), 0700));
        assert_int_equal(symlink(target, in_dir(dir, "t/link")), 0);
        assert_int_equal(symlink("t", in_dir(dir, "to-t")), 0);
        assert_ok(io_remove_tree(AT_FDCWD, in_dir(dir, "to-t"))); /* the link goes, not the tree */
        assert_true(exists(in_dir(dir, "t/link")));
        assert_ok(io_remove_tree(AT_FDCWD, in_dir(dir, "t")));
        assert_false(exists(in_dir(dir, "t")));
        assert_content(in_dir(dir, "outside/f"), "precious");
}

static void test_remove_tree_too_deep(void **state) {
        char path[1024] = "t";
        unsigned before = count_fds();

        for (unsigned i = 0; i < 80; i++)
                (void) strcat(path, "/d");
        assert_ok(io_mkdir_p(in_dir(dir, path), 0700));
        assert_fails(io_remove_tree(AT_FDCWD, in_dir(dir, "t")), ELOOP);
        assert_int_equal(count_fds(), before);
}

/* In a mount namespace of its own, so that nothing can stay mounted. */
static int remove_with_mount(bool bind) {
        char at[128], outside[128];
        int r;

        (void) snprintf(at, sizeof(at), "%s/t/mnt", dir);
        (void) snprintf(outside, sizeof(outside), "%s/outside", dir);
        if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
                return 77;
        if (bind ? mount(outside, at, NULL, MS_BIND, NULL) < 0 : mount("none", at, "tmpfs", 0, NULL) < 0)
                return 77;
        if (!bind)
                put_file(in_dir(dir, "t/mnt/f"), "precious");
        r = io_remove_tree(AT_FDCWD, in_dir(dir, "t"));
        return r == -EXDEV && access(in_dir(dir, "t/mnt/f"), F_OK) == 0 ? 0 : 1;
}

/* What is mounted below belongs to somebody else, be it of the same file system (a bind mount). */
static void test_remove_tree_mounts(void **state) {
        skip_unless(geteuid() == 0, "mounting needs root");
        for (int bind = 0; bind < 2; bind++) {
                int status;
                pid_t pid;

                assert_ok(io_mkdir_p(in_dir(dir, "t/mnt"), 0700));
                assert_ok(io_mkdir_p(in_dir(dir, "outside"), 0700));
                put_file(in_dir(dir, "outside/f"), "precious");
                pid = fork();
                if (pid == 0)
                        _exit(remove_with_mount(bind));
                assert_int_equal(waitpid(pid, &status, 0), pid);
                assert_true(WIFEXITED(status));
                skip_unless(WEXITSTATUS(status) != 77, "no mount namespaces here");
                assert_int_equal(WEXITSTATUS(status), 0);
                assert_content(in_dir(dir, "outside/f"), "precious");
        }
}

/* ---- copies ---- */

static void fill_sparse(int fd, uint64_t size) {
        struct rng r = { 9 };
        char buf[5000];

        assert_int_equal(ftruncate(fd, (off_t) size), 0);
        for (unsigned i = 0; i < 6; i++) {
                for (size_t k = 0; k < sizeof(buf); k++)
                        buf[k] = (char) rng_next(&r);
                assert_ok(io_pwrite_full(fd, buf, sizeof(buf), rng_below(&r, size - sizeof(buf))));
        }
}

static void assert_same(int a, int b, uint64_t size) {
        cleanup_free char *x = malloc(1 << 20), *y = malloc(1 << 20);
        struct stat st;

        assert_int_equal(fstat(b, &st), 0);
        assert_int_equal(st.st_size, size);
        for (uint64_t pos = 0; pos < size; pos += 1 << 20) {
                size_t n = MIN_OF(size - pos, (uint64_t) 1 << 20);

                assert_ok(io_pread_full(a, x, n, pos));
                assert_ok(io_pread_full(b, y, n, pos));
                assert_memory_equal(x, y, n);
        }
}

/* From a memfd to a file (no reflink, no copy_file_range between them), and from file to file. */
static void test_clone_file(void **state) {
        enum { SIZE = 64 << 20 };
        int mem = memfd_create("src", MFD_CLOEXEC), a, b;
        bool reflinked = false;
        struct stat st;

        fill_sparse(mem, SIZE);
        a = open(in_dir(dir, "a"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        b = open(in_dir(dir, "b"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_ok(io_clone_file(mem, a, &reflinked));
        assert_false(reflinked);
        assert_same(mem, a, SIZE);
        assert_int_equal(fstat(a, &st), 0);
        assert_in_range(st.st_blocks * 512, 1, 1 << 20); /* its holes are holes */
        assert_ok(io_clone_file(a, b, NULL));
        assert_same(a, b, SIZE);
        assert_int_equal(fstat(b, &st), 0);
        assert_in_range(st.st_blocks * 512, 1, 1 << 20);
        (void) close(a);
        (void) close(b);
        (void) close(mem);
}

static void test_clone_file_edges(void **state) {
        int src = open(in_dir(dir, "src"), O_RDWR | O_CREAT | O_CLOEXEC, 0600), dst;
        static const uint64_t sizes[] = { 0, 1, 4095, 4096, 65537 };

        for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
                for (int data = 0; data < 2; data++) {
                        dst = open(in_dir(dir, "dst"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
                        assert_int_equal(ftruncate(src, 0), 0);
                        assert_int_equal(ftruncate(src, (off_t) sizes[i]), 0);
                        if (data && sizes[i])
                                assert_ok(io_pwrite_full(src, "z", 1, sizes[i] - 1));
                        assert_ok(io_clone_file(src, dst, NULL));
                        assert_same(src, dst, sizes[i]);
                        (void) close(dst);
                }
        (void) close(src);
        dst = open(in_dir(dir, "dst"), O_RDONLY | O_CLOEXEC);
        assert_true(io_clone_file(dst, dst, NULL) < 0);
        (void) close(dst);
}

static void test_probes(void **state) {
        uint64_t bytes = 0;
        int r = io_probe_reflink(dir);

        assert_true(r == 0 || r == 1);
        assert_fails(io_probe_reflink(in_dir(dir, "none")), ENOENT);
        assert_int_equal(count_entries(dir), 0);
        assert_ok(io_free_bytes(dir, &bytes));
        assert_true(bytes > 0);
        assert_fails(io_free_bytes(in_dir(dir, "none"), &bytes), ENOENT);
}

/* ---- descriptors over sockets ---- */

static void test_send_fds(void **state) {
        int sv[2], in[IO_MAX_FDS], out[IO_MAX_FDS];
        size_t n = IO_MAX_FDS;
        unsigned before;
        char buf[8];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        for (size_t i = 0; i < IO_MAX_FDS; i++)
                in[i] = sv[0];
        before = count_fds();
        assert_int_equal(io_send_fds(sv[0], "hello", 5, in, IO_MAX_FDS), 5);
        assert_int_equal(io_recv_fds(sv[1], buf, 2, out, &n), 2);
        assert_int_equal(n, IO_MAX_FDS);
        for (size_t i = 0; i < n; i++) {
                assert_int_equal(fcntl(out[i], F_GETFD), FD_CLOEXEC);
                (void) close(out[i]);
        }
        assert_int_equal(io_recv_fds(sv[1], buf, 8, out, &n), 3); /* the descriptors came with the first byte */
        assert_int_equal(n, 0);
        assert_fails(io_send_fds(sv[0], "x", 1, in, IO_MAX_FDS + 1), EINVAL);
        assert_fails(io_send_fds(sv[0], "x", 1, (int[]){ -1 }, 1), EBADF);
        /* More than fit: none is kept. */
        assert_int_equal(io_send_fds(sv[0], "x", 1, in, 5), 1);
        n = 4;
        assert_fails(io_recv_fds(sv[1], buf, 8, out, &n), EMSGSIZE);
        assert_int_equal(count_fds(), before);
        (void) close(sv[0]);
        n = 4;
        assert_int_equal(io_recv_fds(sv[1], buf, 8, out, &n), 0);
        assert_fails(io_send_fds(sv[1], "x", 1, NULL, 0), EPIPE); /* and no SIGPIPE */
        (void) close(sv[1]);
}

/* Our descriptor table is full: the kernel drops what does not fit. That must not look like a message that
 * brought fewer, or a later message's descriptors would be taken for this one's. */
static void test_recv_fds_table_full(void **state) {
        int sv[2], out[4], in[3];
        struct rlimit old, low;
        size_t n = 4;
        unsigned before;
        char buf[8];
        ssize_t r;

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        in[0] = in[1] = in[2] = sv[0];
        assert_int_equal(io_send_fds(sv[0], "x", 1, in, 3), 1);
        before = count_fds();
        assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
        low = old;
        low.rlim_cur = (rlim_t) sv[1] + 2; /* room for one */
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
        r = io_recv_fds(sv[1], buf, 8, out, &n);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
        assert_int_equal(r, -EMFILE);
        assert_int_equal(count_fds(), before);
        (void) close(sv[0]);
        (void) close(sv[1]);
}

/** Sends @text and ends: the pid of the process that did so. */
static pid_t send_from_child(int sock, const char *text, const int *fds, size_t n_fds) {
        pid_t pid = fork();
        int status;

        if (pid == 0)
                _exit(io_send_fds(sock, text, strlen(text), fds, n_fds) == (ssize_t) strlen(text) ? 0 : 1);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        return pid;
}

/* Who sent what: known also of senders that have ended, never mixed, and unknown before anybody asked for it. */
static void test_recv_fds_from(void **state) {
        struct ucred from;
        int sv[2], out[253], on = 1;
        size_t n = 1;
        char buf[64];
        pid_t a, b;

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        assert_int_equal(io_send_fds(sv[0], "early", 5, NULL, 0), 5);
        assert_int_equal(setsockopt(sv[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), 0);
        assert_int_equal(io_recv_fds_from(sv[1], buf, sizeof(buf), out, &n, &from), 5);
        assert_int_equal(from.pid, 0);

        assert_int_equal(io_send_fds(sv[0], "own", 3, NULL, 0), 3);
        a = send_from_child(sv[0], "first", sv, 2);
        b = send_from_child(sv[0], "second", NULL, 0);
        n = 2;
        assert_int_equal(io_recv_fds_from(sv[1], buf, sizeof(buf), out, &n, &from), 3);
        assert_int_equal(from.pid, getpid());
        assert_int_equal(from.uid, getuid());
        assert_int_equal(n, 0);
        n = 2;
        assert_int_equal(io_recv_fds_from(sv[1], buf, sizeof(buf), out, &n, &from), 5);
        assert_int_equal(from.pid, a);
        assert_int_equal(n, 2);
        (void) close(out[0]);
        (void) close(out[1]);
        n = 2;
        assert_int_equal(io_recv_fds_from(sv[1], buf, sizeof(buf), out, &n, &from), 6);
        assert_int_equal(from.pid, b);
        assert_int_equal(n, 0);

        /* As many descriptors as the kernel lets through at once leave room for the credentials. */
        struct msghdr msg = { .msg_iov = &(struct iovec){ .iov_base = buf, .iov_len = 1 }, .msg_iovlen = 1 };
        union {
                struct cmsghdr h;
                char space[CMSG_SPACE(sizeof(int) * 253)];
        } control = { .h = { .cmsg_len = CMSG_LEN(sizeof(int) * 253), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
        for (unsigned i = 0; i < 253; i++)
                memcpy(CMSG_DATA(&control.h) + i * sizeof(int), &sv[0], sizeof(int));
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        assert_int_equal(sendmsg(sv[0], &msg, 0), 1);
        n = 253;
        assert_int_equal(io_recv_fds_from(sv[1], buf, sizeof(buf), out, &n, &from), 1);
        assert_int_equal(from.pid, getpid());
        assert_int_equal(n, 253);
        while (n > 0)
                (void) close(out[--n]);
        (void) close(sv[0]);
        (void) close(sv[1]);
}

/* ---- sockets with names ---- */

static void test_listen_and_connect(void **state) {
        const char *path = in_dir(dir, "sock");
        struct stat st;
        int fd, conn, again;
        mode_t old = umask(0);

        assert_ok(io_listen_unix(path, 0600, &fd));
        assert_int_equal(umask(old), 0); /* put back */
        assert_int_equal(lstat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
        assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
        assert_ok(io_connect_unix(path, &conn));
        assert_fails(io_listen_unix(path, 0600, &again), EADDRINUSE);
        (void) close(conn);
        (void) close(fd);
        assert_fails(io_connect_unix(path, &conn), ECONNREFUSED);
        assert_ok(io_listen_unix(path, 0666, &fd)); /* the stale one is replaced */
        assert_int_equal(lstat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0666);
        (void) close(fd);
}

static void test_socket_paths(void **state) {
        char path[200];
        int fd;

        memset(path, 'x', sizeof(path));
        path[107] = '\0';
        assert_fails(io_connect_unix(path, &fd), ENOENT);
        path[107] = 'x';
        path[108] = '\0';
        assert_fails(io_connect_unix(path, &fd), ENAMETOOLONG);
        assert_fails(io_listen_unix(path, 0600, &fd), ENAMETOOLONG);
        /* Not the kernel's nameless or abstract sockets, which everybody on the host could reach. */
        assert_fails(io_listen_unix("", 0600, &fd), EINVAL);
        assert_fails(io_connect_unix("", &fd), EINVAL);
        assert_fails(io_listen_unix(in_dir(dir, "none/sock"), 0600, &fd), ENOENT);
}

/* Only a dead socket is in nobody's way: files and directories of that name are somebody's. */
static void test_listen_spares_files(void **state) {
        int fd;

        put_file(in_dir(dir, "f"), "precious");
        assert_true(io_listen_unix(in_dir(dir, "f"), 0600, &fd) < 0);
        assert_content(in_dir(dir, "f"), "precious");
        assert_int_equal(mkfifo(in_dir(dir, "fifo"), 0600), 0);
        assert_true(io_listen_unix(in_dir(dir, "fifo"), 0600, &fd) < 0);
        assert_true(exists(in_dir(dir, "fifo")));
        assert_int_equal(symlink("f", in_dir(dir, "link")), 0);
        assert_true(io_listen_unix(in_dir(dir, "link"), 0600, &fd) < 0);
        assert_true(exists(in_dir(dir, "link")));
}

/* A server that is alive but has a full backlog is alive; finding that out must not block. */
static void test_listen_full_backlog(void **state) {
        const char *path = in_dir(dir, "sock");
        struct sockaddr_un sa = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), conns[8], other, n = 0;

        (void) snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
        assert_int_equal(bind(fd, (struct sockaddr *) &sa, sizeof(sa)), 0);
        assert_int_equal(listen(fd, 0), 0);
        for (; n < 8; n++) {
                conns[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
                if (connect(conns[n], (struct sockaddr *) &sa, sizeof(sa)) < 0)
                        break;
        }
        assert_true(n < 8);
        (void) alarm(10); /* should it block, the test dies instead of hanging */
        assert_fails(io_listen_unix(path, 0600, &other), EADDRINUSE);
        (void) alarm(0);
        for (; n >= 0; n--)
                (void) close(conns[n]);
        (void) close(fd);
}

static void test_nonblock_and_time(void **state) {
        int p[2];
        char c;

        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        assert_ok(io_set_nonblock(p[0], true));
        assert_int_equal(read(p[0], &c, 1), -1);
        assert_int_equal(errno, EAGAIN);
        assert_ok(io_set_nonblock(p[0], false));
        assert_false(fcntl(p[0], F_GETFL) & O_NONBLOCK);
        assert_fails(io_set_nonblock(-1, true), EBADF);
        (void) close(p[0]);
        (void) close(p[1]);
        assert_true(now_ns() <= now_ns());
        assert_true(ms_since(now_ns() - 5000000) >= 5.0);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                T(test_full_io_with_signals),
                T(test_positioned_io),
                T(test_read_file),
                T(test_write_atomic),
                T(test_write_atomic_fails),
                T(test_write_atomic_no_space),
                T(test_write_atomic_readers),
                T(test_publish),
                T(test_mkdir_p),
                T(test_remove_tree),
                T(test_remove_tree_symlinks),
                T(test_remove_tree_too_deep),
                T(test_remove_tree_mounts),
                T(test_clone_file),
                T(test_clone_file_edges),
                T(test_probes),
                T(test_send_fds),
                T(test_recv_fds_table_full),
                T(test_recv_fds_from),
                T(test_listen_and_connect),
                T(test_socket_paths),
                T(test_listen_spares_files),
                T(test_listen_full_backlog),
                T(test_nonblock_and_time),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
