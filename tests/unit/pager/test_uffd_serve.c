/* SPDX-License-Identifier: MIT */
/* `uffd-pager serve`, the program: VMMs come and go without forkd, and who cannot be served is ended. */
#include "tests/unit/pager/fc.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/spawn.h"

#define PAGES 2048ull
#define VMMS 8

static struct fc_server srv;
static struct image img;

static int setup(void **state) {
        image_make(&img, PAGES, 42, SNAP_CODEC_LZ4);
        fc_snapshot(&srv, &img);
        return 0;
}

static int teardown(void **state) {
        fc_snapshot_remove(&srv);
        image_clear(&img);
        return 0;
}

/** Flips a bit in the server's copy of the frame that holds @page. */
static void corrupt(uint64_t page) {
        struct image copy = img;
        char path[128];

        (void) snprintf(path, sizeof(path), "%s/memory.img", srv.dir);
        copy.fd = open(path, O_RDWR | O_CLOEXEC);
        assert_true(copy.fd >= 0);
        image_corrupt(&copy, page);
        (void) close_fd(copy.fd);
}

/** A total that may be a moment late. */
static void wait_total(const char *key, double n) {
        uint64_t start = now_ns();

        while (harness_status(&srv.h, "totals", NULL, key) != n)
                if (ms_since(start) > DEADLINE_MS)
                        fail_msg("%s are not %g in the end", key, n);
}

static void wait_sessions(double n) {
        wait_total("sessions", n);
}

static void assert_killed(struct vmm *v, int sig) {
        int status = vmm_wait(v, NULL, 0);

        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), sig);
}

static void test_many_vmms(void **state) {
        struct vmm v[VMMS];

        fc_server_start(&srv, NULL, false);
        for (unsigned i = 0; i < VMMS; i++)
                fc_attach(&srv, &v[i], &img);
        for (unsigned i = 0; i < VMMS; i++)
                vmm_send(&v[i], "verify 42 2");
        for (unsigned i = 0; i < VMMS; i++)
                assert_string_equal(vmm_answer(&v[i]), "ok");
        assert_int_equal(harness_status(&srv.h, "totals", NULL, "sessions"), VMMS);
        assert_int_equal(harness_status(&srv.h, "totals", NULL, "images"), 1);
        assert_int_equal(harness_status(&srv.h, "images", NULL, "decodes"), img.stats.frames);
        assert_int_equal(harness_status(&srv.h, "images", NULL, "present_bytes"), img.n_stored * TEST_PAGE);
        wait_total("pages_installed", (double) (VMMS * img.n_stored));
        for (unsigned i = 0; i < VMMS; i++)
                vmm_kill(&v[i]);
        wait_sessions(0);
        assert_int_equal(harness_status(&srv.h, "totals", NULL, "sessions_failed"), 0);
        fc_server_stop(&srv);
}

static void test_corrupt_frame(void **state) {
        uint64_t page = image_stored_page(&img, 1000);
        struct vmm v, w;

        fc_server_start(&srv, NULL, false);
        fc_attach(&srv, &v, &img);
        fc_attach(&srv, &w, &img);
        assert_string_equal(vmm_cmd(&w, "verify 42 2"), "ok"); /* it has all of it now */
        vmm_kill(&v);
        vmm_kill(&w);
        wait_sessions(0);
        fc_server_stop(&srv);

        fc_server_start(&srv, NULL, false);
        fc_attach(&srv, &v, &img);
        fc_attach(&srv, &w, &img);
        corrupt(page);
        vmm_send(&v, "touch %llu", (unsigned long long) page);
        assert_killed(&v, SIGKILL);
        fc_server_says(&srv, "failed: a stored frame or index node is corrupt");
        fc_server_says(&srv, "killed the VMM, process ");
        wait_sessions(1);
        /* the others go on with what is good */
        assert_string_equal(vmm_cmd(&w, "touch 0"), "ok");
        corrupt(page); /* flips it back */
        assert_string_equal(vmm_cmd(&w, "verify 42 2"), "ok");
        fc_attach(&srv, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_kill(&v);
        vmm_kill(&w);
        wait_sessions(0);
        fc_server_stop(&srv);
}

/** Where the VMM cannot be signalled its pages are poisoned: the kernel ends it. */
static void test_poison(void **state) {
        uint64_t page = image_stored_page(&img, 1000);
        struct vmm v;

        if (geteuid() != 0 || access("/usr/bin/unshare", X_OK) != 0)
                fc_skip("no pid namespace can be made here");
        fc_server_start(&srv, NULL, true);
        fc_attach(&srv, &v, &img);
        corrupt(page);
        vmm_send(&v, "touch %llu", (unsigned long long) page);
        assert_killed(&v, SIGBUS);
        fc_server_says(&srv, "is poisoned instead");
        wait_sessions(0);
        corrupt(page);
        fc_attach(&srv, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_kill(&v);
        wait_sessions(0);
        assert_int_equal(spawn_kill(srv.pidfd, SIGKILL), 0);
        (void) fc_server_wait(&srv);
        assert_int_equal(unlink(srv.path) | unlink(srv.control), 0);
}

static void test_stale_socket(void **state) {
        struct fc_server second;
        struct vmm v;
        int status;

        fc_server_start(&srv, NULL, false);
        /* a second one is refused, and harms nothing */
        second = srv;
        const char *argv[] = { UFFD_PAGER, "serve", "--snapshot", srv.dir, "--socket", srv.path, NULL };
        struct spawn_params sp = { .argv = argv, .cgroup_fd = -1 };
        assert_int_equal(spawn_process(&sp, &second.pid, &second.pidfd), 0);
        assert_int_equal(spawn_wait(second.pidfd, DEADLINE_MS, &status), 0);
        (void) close_fd(second.pidfd);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
        fc_attach(&srv, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_kill(&v);

        assert_int_equal(spawn_kill(srv.pidfd, SIGKILL), 0);
        (void) fc_server_wait(&srv);
        assert_int_equal(access(srv.path, F_OK), 0);
        fc_server_start(&srv, NULL, false);
        fc_attach(&srv, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_kill(&v);
        wait_sessions(0);
        fc_server_stop(&srv);
}

static void test_drains(void **state) {
        struct vmm v, w;
        int status, fd;

        fc_server_start(&srv, NULL, false);
        fc_attach(&srv, &v, &img);
        fc_attach(&srv, &w, &img);
        wait_sessions(2);
        assert_int_equal(spawn_kill(srv.pidfd, SIGTERM), 0);
        fc_server_says(&srv, "will end with the last one");
        assert_int_equal(access(srv.path, F_OK), -1);
        assert_int_equal(io_connect_unix(srv.path, &fd), -ENOENT);
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok"); /* served to the end */
        vmm_kill(&v);
        assert_string_equal(vmm_cmd(&w, "touch 1"), "ok");
        vmm_kill(&w);
        status = fc_server_wait(&srv);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_second_term(void **state) {
        struct vmm v;
        int status;

        fc_server_start(&srv, NULL, false);
        fc_attach(&srv, &v, &img);
        wait_sessions(1);
        assert_int_equal(spawn_kill(srv.pidfd, SIGTERM), 0);
        fc_server_says(&srv, "will end with the last one");
        assert_int_equal(spawn_kill(srv.pidfd, SIGTERM), 0);
        assert_killed(&v, SIGKILL); /* not left waiting for a pager that is gone */
        status = fc_server_wait(&srv);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/** The session is the process's, not the socket's. */
static void test_closed_socket(void **state) {
        struct vmm v;

        fc_server_start(&srv, NULL, false);
        fc_attach(&srv, &v, &img);
        wait_sessions(1);
        assert_string_equal(vmm_cmd(&v, "touch 3"), "ok");
        assert_string_equal(vmm_cmd(&v, "hangup"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 3"), "ok");
        assert_int_equal(harness_status(&srv.h, "totals", NULL, "sessions"), 1);
        vmm_kill(&v);
        wait_sessions(0);
        fc_server_stop(&srv);
}

/** Any orderly end of the pager is the VMMs' end. */
static void test_shutdown(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct vmm v;
        int status;

        fc_server_start(&srv, NULL, false);
        fc_attach(&srv, &v, &img);
        wait_sessions(1);
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_bool(&b, "force", true);
        struct answer a = harness_call(&srv.h, "shutdown", &b, NULL, 0);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        assert_killed(&v, SIGKILL);
        status = fc_server_wait(&srv);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/** Who has connected and who sends the layout must be one; nobody is killed for it. */
static void test_other_sender(void **state) {
        struct vmm v = { .memfd = -1, .sock = -1, .uffd_dev = -1 };
        int fd;

        fc_server_start(&srv, NULL, false);
        assert_int_equal(io_connect_unix(srv.path, &fd), 0);
        fc_spawn(&v, fd);
        assert_string_equal(vmm_cmd(&v, "layout %llu 1", PAGES), "ok 1");
        assert_string_equal(vmm_cmd(&v, "attach %d", FC_TODAY), "ok");
        assert_non_null(strstr(raw_answer(fd), "expected was process"));
        (void) close_fd(fd);
        wait_sessions(0);
        assert_string_equal(vmm_cmd(&v, "touched"), "ok 0");
        vmm_kill(&v);
        fc_server_stop(&srv);
}

/** A connection that has nothing to lose is only hung up on: its process lives. */
static void test_garbage(void **state) {
        static const char *const cases[] = { "hello\n", "[]", "[{}]",
                                             "[{\"base_host_virt_addr\":4096,\"size\":4096,\"offset\":0}]" };
        static const char *const more[] = { "--handshake-seconds", "1", NULL };
        struct vmm v;
        int fd;

        fc_server_start(&srv, more, false);
        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                assert_int_equal(io_connect_unix(srv.path, &fd), 0);
                raw_send(fd, cases[i], strlen(cases[i]), -1);
                assert_int_equal(strncmp(raw_answer(fd), "error: ", 7), 0);
                assert_string_equal(raw_answer(fd), "");
                (void) close_fd(fd);
        }
        /* nothing at all, half of something, a descriptor of another kind, and gone at once */
        assert_int_equal(io_connect_unix(srv.path, &fd), 0);
        assert_non_null(strstr(raw_answer(fd), "within 1 seconds"));
        (void) close_fd(fd);
        assert_int_equal(io_connect_unix(srv.path, &fd), 0);
        raw_send(fd, "[{\"base", 7, -1);
        assert_non_null(strstr(raw_answer(fd), "within 1 seconds"));
        (void) close_fd(fd);
        assert_int_equal(io_connect_unix(srv.path, &fd), 0);
        raw_send(fd, cases[3], strlen(cases[3]), srv.pidfd);
        assert_non_null(strstr(raw_answer(fd), "no userfaultfd"));
        (void) close_fd(fd);
        for (unsigned i = 0; i < 100; i++) {
                assert_int_equal(io_connect_unix(srv.path, &fd), 0);
                (void) close_fd(fd);
        }
        wait_sessions(0);
        fc_attach(&srv, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_kill(&v);
        wait_sessions(0);
        fc_server_stop(&srv);
}

/** Who has sent its userfaultfd depends on us: a layout that cannot be served is its end. */
static void test_bad_layout(void **state) {
        static const char *const more[] = { "--handshake-seconds", "1", NULL };
        struct vmm v = { .memfd = -1, .sock = -1, .uffd_dev = -1 };
        int status;

        fc_server_start(&srv, more, false);
        fc_spawn(&v, -1);
        assert_string_equal(vmm_cmd(&v, "layout %llu 1", PAGES + 16), "ok 1");
        vmm_send(&v, "attach %d %s", FC_TODAY, srv.path); /* may be killed before it can answer */
        assert_killed(&v, SIGKILL);
        fc_server_says(&srv, "lies outside of guest memory");
        wait_sessions(0);

        /* a layout of libuffd-attach, for memory that nobody has given it */
        struct raw_vmm r = { .len = PAGES * TEST_PAGE };
        pid_t pid = fork();
        if (pid == 0) {
                char json[256];
                int fd;

                r.map = mmap(NULL, r.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
                if (r.map == MAP_FAILED || uffd_open(0, &r.uffd) < 0 || io_connect_unix(srv.path, &fd) < 0)
                        _exit(1);
                int n = snprintf(json, sizeof(json),
                                 "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":4096,"
                                 "\"forkd\":{\"mode\":\"memfd\",\"version\":1}}]",
                                 (unsigned long long) (uintptr_t) r.map, r.len);
                if (io_send_fds(fd, json, (size_t) n, &r.uffd, 1) != n)
                        _exit(1);
                (void) pause(); /* for the end */
        }
        assert_true(pid > 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        fc_server_says(&srv, "only forkd hands out");
        wait_sessions(0);

        /* sends half of its layout, and the descriptor, and then nothing */
        v = (struct vmm){ .memfd = -1, .sock = -1, .uffd_dev = -1 };
        fc_spawn(&v, -1);
        assert_string_equal(vmm_cmd(&v, "layout 2048 3"), "ok 3");
        assert_string_equal(vmm_cmd(&v, "attach 22 %s", srv.path), "ok");
        assert_killed(&v, SIGKILL);
        fc_server_says(&srv, "within 1 seconds");
        wait_sessions(0);
        fc_server_stop(&srv);
}

static int become(uid_t uid) {
        return setgroups(0, NULL) < 0 || setgid(uid) < 0 || setuid(uid) < 0 ? -1 : 0;
}

/** Runs @fn in a child that is user @uid; its exit code. */
static int as_user(uid_t uid, int (*fn)(void)) {
        pid_t pid = fork();
        int status;

        if (pid == 0)
                _exit(become(uid) < 0 ? 99 : fn());
        assert_true(pid > 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int try_to_connect(void) {
        char c;
        int fd, r = io_connect_unix(srv.path, &fd);

        if (r < 0)
                return r == -EACCES ? 1 : 98;
        if (send(fd, "x", 1, MSG_NOSIGNAL) != 1)
                return 2;
        /* refused at the door: nothing is said; let in: the answer to nonsense */
        return recv(fd, &c, 1, 0) == 1 && c == 'e' ? 0 : 2;
}

static void test_other_users(void **state) {
        static const char *const more[] = { "--peer-uid", "4242", NULL };
        struct stat st;

        if (geteuid() != 0)
                fc_skip("only root can be other users");
        assert_int_equal(chmod(srv.dir, 0755), 0);
        fc_server_start(&srv, NULL, false);
        assert_int_equal(stat(srv.path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_int_equal(as_user(4242, try_to_connect), 1);
        assert_int_equal(chmod(srv.path, 0666), 0);
        assert_int_equal(as_user(4242, try_to_connect), 2);
        fc_server_says(&srv, "refused a connection of user 4242");
        fc_server_stop(&srv);

        fc_server_start(&srv, more, false);
        assert_int_equal(stat(srv.path, &st), 0);
        assert_int_equal(st.st_uid, 4242);
        assert_int_equal(as_user(4242, try_to_connect), 0);
        assert_int_equal(as_user(4243, try_to_connect), 1);
        assert_int_equal(as_user(0, try_to_connect), 0);
        wait_sessions(0);
        fc_server_stop(&srv);
}

static double session_value(const char *key) {
        return harness_status(&srv.h, "sessions", NULL, key);
}

/** What one VMM needed first is there for the next before it asks, also after a restart. */
static void test_records(void **state) {
        static const char *const more[] = { "--record", "--record-seconds", "1", "--idle-image-seconds", "0", NULL };
        uint64_t start;
        struct stat st;
        char path[128];
        struct vmm v;

        (void) snprintf(path, sizeof(path), "%s/workingset", srv.dir);
        fc_server_start(&srv, more, false);
        fc_attach(&srv, &v, &img);
        assert_string_equal(vmm_cmd(&v, "range 42 200 300"), "ok");
        fc_server_says(&srv, "are new in the working set");
        assert_int_equal(stat(path, &st), 0);
        vmm_kill(&v);
        wait_sessions(0);
        /* one that ends within its window, and needs something else */
        fc_attach(&srv, &v, &img);
        assert_string_equal(vmm_cmd(&v, "range 42 1000 300"), "ok");
        srv.seen[0] = '\0';
        vmm_kill(&v);
        fc_server_says(&srv, "are new in the working set");
        wait_sessions(0);
        fc_server_stop(&srv);

        fc_server_start(&srv, NULL, false);
        fc_attach(&srv, &v, &img);
        start = now_ns();
        while (session_value("pages_ahead") + session_value("zero_ahead") < 600)
                if (ms_since(start) > DEADLINE_MS)
                        fail_msg("%g pages came ahead", session_value("pages_ahead"));
        assert_string_equal(vmm_cmd(&v, "range 42 200 300"), "ok");
        assert_string_equal(vmm_cmd(&v, "range 42 1000 300"), "ok");
        assert_int_equal(session_value("faults.missing") + session_value("faults.zero") + session_value("faults.present"), 0);
        vmm_kill(&v);
        wait_sessions(0);

        /* a bad one is left aside */
        assert_int_equal(truncate(path, st.st_size - 1), 0);
        fc_attach(&srv, &v, &img);
        fc_server_says(&srv, "a working set is not used");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_kill(&v);
        wait_sessions(0);
        fc_server_stop(&srv);
}

/** The program @argv ends with exit code @code, and says @why. */
static void assert_ends(const char *const *argv, int code, const char *why) {
        char words[4096];
        int err[2], pidfd, status;
        pid_t pid;
        ssize_t n;

        assert_int_equal(pipe2(err, O_CLOEXEC), 0);
        struct spawn_fd fds[] = { { err[1], 2 } };
        struct spawn_params sp = { .argv = argv, .fds = fds, .n_fds = 1, .cgroup_fd = -1 };
        assert_int_equal(spawn_process(&sp, &pid, &pidfd), 0);
        (void) close_fd(err[1]);
        assert_int_equal(spawn_wait(pidfd, DEADLINE_MS, &status), 0);
        (void) close_fd(pidfd);
        n = io_read_full(err[0], words, sizeof(words) - 1);
        assert_true(n >= 0);
        words[n] = '\0';
        (void) close_fd(err[0]);
        assert_true(WIFEXITED(status));
        if (WEXITSTATUS(status) != code || !strstr(words, why))
                fail_msg("exit code %d, and it says: %s", WEXITSTATUS(status), words);
}

/** From a raw memory file to a VMM that finds it all there. */
static void test_pack(void **state) {
        cleanup_snap_image struct snap_image *snap = NULL;
        char raw[128], dir[128], image[160];
        cleanup_fd int fd = -1;
        struct vmm v;

        (void) snprintf(raw, sizeof(raw), "%s/mem", srv.dir);
        (void) snprintf(dir, sizeof(dir), "%s/packed", srv.dir);
        (void) snprintf(image, sizeof(image), "%s/memory.img", srv.dir);
        fd = open(raw, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(snap_image_open(img.fd, &snap), 0);
        assert_int_equal(snap_image_dump(snap, fd), 0);
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", raw, "--snapshot", dir, "--compression", "zstd:3", NULL },
                    0, "");
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", raw, "--snapshot", dir, NULL }, 1, "already");
        assert_int_equal(unlink(image), 0);
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", raw, "--snapshot", srv.dir, NULL }, 0, "");
        assert_int_equal(unlink(raw), 0);
        fc_server_start(&srv, NULL, false);
        fc_attach(&srv, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        assert_int_equal(harness_status(&srv.h, "images", NULL, "present_bytes"), img.n_stored * TEST_PAGE);
        vmm_kill(&v);
        wait_sessions(0);
        fc_server_stop(&srv);
}

static void test_bad_packs(void **state) {
        char raw[128], dir[128];
        cleanup_fd int fd = -1;

        (void) snprintf(raw, sizeof(raw), "%s/mem", srv.dir);
        (void) snprintf(dir, sizeof(dir), "%s/packed", srv.dir);
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", raw, NULL }, 2, "--snapshot");
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", raw, "--snapshot", dir, NULL }, 1, "opening");
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", srv.dir, "--snapshot", dir, NULL }, 1,
                    "whole memory pages");
        fd = open(raw, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", raw, "--snapshot", dir, NULL }, 1, "whole memory pages");
        assert_int_equal(ftruncate(fd, 4097), 0);
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", raw, "--snapshot", dir, NULL }, 1, "whole memory pages");
        assert_int_equal(ftruncate(fd, 8192), 0);
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", raw, "--snapshot", dir, "--compression", "rar", NULL }, 2,
                    "--compression");
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", raw, "--snapshot", raw, NULL }, 1, "directory");
        assert_int_equal(access(dir, F_OK), -1);
        /* nothing but holes is fine */
        assert_ends((const char *[]){ UFFD_PAGER, "pack", "--memory", raw, "--snapshot", dir, NULL }, 0, "");
}

static void test_bad_starts(void **state) {
        char torn[160];
        cleanup_fd int fd = -1;

        (void) snprintf(torn, sizeof(torn), "%s/torn", srv.dir);
        assert_int_equal(mkdir(torn, 0700), 0);
        assert_ends((const char *[]){ UFFD_PAGER, "serve", NULL }, 2, "--snapshot and --socket");
        assert_ends((const char *[]){ UFFD_PAGER, "serve", "--snapshot", srv.dir, NULL }, 2, "--snapshot and --socket");
        assert_ends((const char *[]){ UFFD_PAGER, "--snapshot", srv.dir, NULL }, 2, "belong to");
        assert_ends((const char *[]){ UFFD_PAGER, "serve", "--snapshot", srv.dir, "--socket", srv.path, "--peer-uid", "-1",
                                      NULL },
                    2, "--peer-uid");
        assert_ends((const char *[]){ UFFD_PAGER, "serve", "--snapshot", torn, "--socket", srv.path, NULL }, 1, "memory.img");
        (void) strcat(torn, "/memory.img");
        fd = open(torn, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, 100000), 0);
        *strrchr(torn, '/') = '\0';
        assert_ends((const char *[]){ UFFD_PAGER, "serve", "--snapshot", torn, "--socket", srv.path, NULL }, 1, "torn, corrupt");
        assert_ends((const char *[]){ UFFD_PAGER, "serve", "--snapshot", "/nowhere", "--socket", srv.path, NULL }, 1, "/nowhere");
        assert_ends((const char *[]){ UFFD_PAGER, "serve", "--snapshot", srv.dir, "--socket", "/nowhere/s", NULL }, 1,
                    "/nowhere/s");
        /* a file that is no socket is not removed */
        (void) strcat(torn, "/memory.img");
        assert_ends((const char *[]){ UFFD_PAGER, "serve", "--snapshot", srv.dir, "--socket", torn, NULL }, 1, "torn/memory.img");
        assert_int_equal(access(torn, F_OK), 0);
        assert_int_equal(access(srv.path, F_OK), -1);
}

static int cannot_run(void) {
        return access(UFFD_PAGER, X_OK) == 0 && access(srv.dir, X_OK) == 0 && access("/dev/userfaultfd", R_OK | W_OK) < 0 ? 0 : 1;
}

/** Who may not use userfaultfd hears of it when the server starts, not when the first VMM comes. */
static void test_no_permission(void **state) {
        cleanup_free char *allowed = NULL;
        char image[128];
        size_t len;

        (void) snprintf(image, sizeof(image), "%s/memory.img", srv.dir);
        assert_int_equal(chmod(srv.dir, 0777) | chmod(image, 0644), 0);
        if (geteuid() != 0 || access("/usr/bin/setpriv", X_OK) != 0 || as_user(4242, cannot_run) != 0 ||
            io_read_file(AT_FDCWD, "/proc/sys/vm/unprivileged_userfaultfd", 16, &allowed, &len) < 0 || allowed[0] != '0')
                fc_skip("there is no user here that may run the program, but not use userfaultfd");
        assert_ends((const char *[]){ "/usr/bin/setpriv", "--reuid", "4242", "--clear-groups", UFFD_PAGER, "serve", "--snapshot",
                                      srv.dir, "--socket", srv.path, NULL },
                    1, "vm.unprivileged_userfaultfd");
        assert_int_equal(access(srv.path, F_OK), -1);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_many_vmms, setup, teardown),
                cmocka_unit_test_setup_teardown(test_corrupt_frame, setup, teardown),
                cmocka_unit_test_setup_teardown(test_poison, setup, teardown),
                cmocka_unit_test_setup_teardown(test_stale_socket, setup, teardown),
                cmocka_unit_test_setup_teardown(test_drains, setup, teardown),
                cmocka_unit_test_setup_teardown(test_second_term, setup, teardown),
                cmocka_unit_test_setup_teardown(test_closed_socket, setup, teardown),
                cmocka_unit_test_setup_teardown(test_shutdown, setup, teardown),
                cmocka_unit_test_setup_teardown(test_other_sender, setup, teardown),
                cmocka_unit_test_setup_teardown(test_garbage, setup, teardown),
                cmocka_unit_test_setup_teardown(test_bad_layout, setup, teardown),
                cmocka_unit_test_setup_teardown(test_other_users, setup, teardown),
                cmocka_unit_test_setup_teardown(test_records, setup, teardown),
                cmocka_unit_test_setup_teardown(test_pack, setup, teardown),
                cmocka_unit_test_setup_teardown(test_bad_packs, setup, teardown),
                cmocka_unit_test_setup_teardown(test_no_permission, setup, teardown),
                cmocka_unit_test_setup_teardown(test_bad_starts, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
