/* SPDX-License-Identifier: MIT */
/* The control socket: its methods' refusals, the life of images, and that nothing is left behind. */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/spawn.h"

#define PAGES 256ull

static struct harness h;
static struct image img;

static int setup(void **state) {
        harness_start(&h, NULL);
        image_make(&img, PAGES, 5, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        harness_stop(&h);
        return 0;
}

static struct answer call_session(const char *method, const char *session) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", session);
        return harness_call(&h, method, &b, NULL, 0);
}

static void expect_error(struct answer a, const char *code, const char *words) {
        assert_true(a.r < 0);
        assert_string_equal(a.e.code, code);
        if (!strstr(a.e.message, words))
                fail_msg("\"%s\" does not tell of \"%s\"", a.e.message, words);
        answer_clear(&a);
}

static void expect_ok(struct answer a) {
        if (a.r < 0)
                fail_msg("%s", a.e.message);
        answer_clear(&a);
}

static void end_raw(struct vmm *v) {
        (void) close_fd(v->sock);
        (void) close_fd(v->memfd);
        (void) harness_note(&h, "session.gone", v->session);
}

static struct answer open_with(const char *session, uint64_t ram_bytes, int image_fd, unsigned n_fds) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int pair[2], fds[4];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        fds[0] = image_fd;
        fds[1] = pair[0];
        fds[2] = fds[3] = pair[1];
        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_str(&b, "session", session);
        mp_kv_u64(&b, "ram_bytes", ram_bytes);
        mp_kv_u64(&b, "fds", n_fds);
        struct answer a = harness_call(&h, "session.open", &b, fds, n_fds);
        (void) close_fd(pair[0]);
        (void) close_fd(pair[1]);
        return a;
}

static void test_hello_and_unknown(void **state) {
        struct answer a = harness_call(&h, "hello", NULL, NULL, 0);
        char version[16];
        uint64_t v;

        assert_int_equal(a.r, 0);
        assert_int_equal(mp_get_u64(&a.doc.root, "pid", &v), 0);
        assert_int_equal(v, getpid());
        assert_int_equal(mp_get_u64(&a.doc.root, "protocol", &v), 0);
        assert_int_equal(v, 1);
        assert_int_equal(mp_get_str(&a.doc.root, "version", version, sizeof(version)), 0);
        assert_string_equal(version, "test");
        answer_clear(&a);
        expect_error(harness_call(&h, "no.such", NULL, NULL, 0), ERR_INVALID, "no method no.such");
}

static void test_open_refusals(void **state) {
        cleanup_fd int null = open("/dev/null", O_RDONLY | O_CLOEXEC),
                       garbage = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        uint64_t ram = PAGES * TEST_PAGE;
        struct vmm v;
        int fds;

        expect_ok(harness_call(&h, "hello", NULL, NULL, 0)); /* the pager has accepted us: its end counts, too */
        fds = count_fds();
        expect_error(open_with("short", ram, img.fd, 2), ERR_INVALID, "hex");
        expect_error(open_with("0123456789abcdeX", ram, img.fd, 2), ERR_INVALID, "hex");
        expect_error(open_with("0123456789abcdef0", ram, img.fd, 2), ERR_INVALID, "hex");
        expect_error(open_with("0123456789abcdef", ram, img.fd, 1), ERR_INVALID, "1 descriptors");
        expect_error(open_with("0123456789abcdef", ram, img.fd, 0), ERR_INVALID, "0 descriptors");
        expect_error(open_with("0123456789abcdef", ram, img.fd, 4), ERR_INVALID, "4 descriptors");
        expect_error(open_with("0123456789abcdef", ram + TEST_PAGE, img.fd, 2), ERR_INVALID, "ram_bytes");
        expect_error(open_with("0123456789abcdef", ram, null, 2), ERR_INVALID, "image");
        expect_error(open_with("0123456789abcdef", ram, garbage, 2), ERR_CORRUPT, "torn or corrupt");
        assert_int_equal(pwrite(garbage, "not an image", 12, 40000), 12);
        expect_error(open_with("0123456789abcdef", ram, garbage, 2), ERR_CORRUPT, "torn or corrupt");
        expect_error(harness_call(&h, "session.open", NULL, NULL, 0), ERR_INVALID, "session");
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions"), 0);

        vmm_open(&h, &v, &img);
        expect_error(open_with(v.session, ram, img.fd, 2), ERR_EXISTS, "open already");
        assert_int_equal(harness_status(&h, "images", NULL, "sessions"), 1);
        end_raw(&v);
        assert_true(count_fds() <= fds + 4); /* the image stays: its file, two of the memfd, a userfaultfd */
}

static void ignore_result(const struct rpc_result *res, void *arg) {
}

static struct answer open_fds(const int fds[2]) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_str(&b, "session", "0123456789abcdef");
        mp_kv_u64(&b, "ram_bytes", PAGES * TEST_PAGE);
        mp_kv_u64(&b, "fds", 2);
        return harness_call(&h, "session.open", &b, fds, 2);
}

static int make_socket(int domain, int type, bool listens) {
        int fd = socket(domain, type | SOCK_CLOEXEC, 0);

        assert_true(fd >= 0);
        if (listens) { /* at a name that the kernel finds */
                struct sockaddr_un sa = { .sun_family = AF_UNIX };

                assert_int_equal(bind(fd, (struct sockaddr *) &sa, sizeof(sa.sun_family)), 0);
                assert_int_equal(listen(fd, 1), 0);
        }
        return fd;
}

/** Everything a descriptor can be, in both places: the right error, and nothing of it stays. */
static void test_wrong_descriptors(void **state) {
        int pair[2], packets[2], pipes[2], wrong[16], before;
        char dir[] = "/tmp/pager-test-XXXXXX", path[64];
        unsigned n = 0;

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, packets), 0);
        assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
        assert_non_null(mkdtemp(dir));
        (void) snprintf(path, sizeof(path), "%s/fifo", dir);
        assert_int_equal(mkfifo(path, 0600), 0);
        wrong[n++] = open("/dev/null", O_RDWR | O_CLOEXEC);
        wrong[n++] = open("/dev/zero", O_RDWR | O_CLOEXEC);
        wrong[n++] = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        wrong[n++] = open(path, O_RDWR | O_CLOEXEC);
        wrong[n++] = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
        wrong[n++] = memfd_create("test", MFD_CLOEXEC);
        wrong[n++] = epoll_create1(EPOLL_CLOEXEC);
        wrong[n++] = packets[0];
        wrong[n++] = pipes[0];
        wrong[n++] = make_socket(AF_INET, SOCK_STREAM, false);
        wrong[n++] = make_socket(AF_INET, SOCK_DGRAM, false);
        wrong[n++] = make_socket(AF_UNIX, SOCK_DGRAM, false);
        wrong[n++] = make_socket(AF_UNIX, SOCK_STREAM, true);
        assert_int_equal(uffd_open(0, &wrong[n++]), 0);
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", img.fd);
        wrong[n++] = open(path, O_PATH | O_CLOEXEC);
        expect_ok(harness_call(&h, "hello", NULL, NULL, 0));
        before = count_fds();
        for (unsigned i = 0; i < n; i++) {
                assert_true(wrong[i] >= 0);
                struct answer a = open_fds((int[]){ wrong[i], pair[0] });

                assert_true(a.r < 0 && a.e.message[0]);
                answer_clear(&a);
                expect_error(open_fds((int[]){ img.fd, wrong[i] }), ERR_INVALID, "stream socket");
                /* The image is kept for whoever comes next: its file, its memory twice, a userfaultfd. */
                assert_true(count_fds() <= before + 4);
        }
        /* an image that may be written only */
        int wronly = open(path, O_WRONLY | O_CLOEXEC);
        assert_true(wronly >= 0);
        expect_error(open_fds((int[]){ wronly, pair[0] }), ERR_INVALID, "not open for reading");
        (void) close_fd(wronly);
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions"), 0);
        /* the two swapped */
        expect_error(open_fds((int[]){ pair[0], img.fd }), ERR_INVALID, "opening the memory image");

        for (unsigned i = 0; i < n; i++)
                (void) close_fd(wrong[i]);
        (void) close_fd(packets[1]);
        (void) close_fd(pipes[1]);
        (void) close_fd(pair[0]);
        (void) close_fd(pair[1]);
        (void) snprintf(path, sizeof(path), "%s/fifo", dir);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(rmdir(dir), 0);
}

/** The caller is gone before it has its answer. The session is there all the same, and ends with its VMM's socket. */
static void test_hang_up_in_an_answer(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int pair[2];
        id_str id;

        for (unsigned i = 0; i < 32; i++) {
                struct rpc_conn *conn;
                int fd;

                id_new(id);
                assert_int_equal(io_connect_unix(h.path, &fd), 0);
                assert_int_equal(rpc_conn_new(h.base, fd, &(struct rpc_handlers){ 0 }, NULL, &conn), 0);
                assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
                mp_buf_init(&b);
                mp_map(&b, 3);
                mp_kv_str(&b, "session", id);
                mp_kv_u64(&b, "ram_bytes", PAGES * TEST_PAGE);
                mp_kv_u64(&b, "fds", 2);
                assert_int_equal(rpc_notify(conn, "nothing", NULL, NULL, 0), 0);
                assert_int_equal(rpc_call(conn, "session.open", &b, (int[]){ img.fd, pair[0] }, 2, ignore_result, NULL, NULL), 0);
                mp_buf_clear(&b);
                rpc_conn_unref(conn); /* closes: what was sent is there to be read */
                (void) close_fd(pair[0]);
                (void) close_fd(pair[1]);
        }
        for (uint64_t start = now_ns(); harness_status(&h, "totals", NULL, "sessions_ended") < 32;)
                assert_true(ms_since(start) < DEADLINE_MS);
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions"), 0);
}

static void test_session_refusals(void **state) {
        static const char *const by_session[] = { "session.close", "session.removed", "image.prefetch" };

        for (unsigned i = 0; i < ARRAY_LEN(by_session); i++) {
                expect_error(call_session(by_session[i], "0123456789abcdef"), ERR_NOT_FOUND, "no session");
                expect_error(call_session(by_session[i], "../../etc"), ERR_INVALID, "hex");
                expect_error(harness_call(&h, by_session[i], NULL, NULL, 0), ERR_INVALID, "hex");
        }
}

static void test_memfd_is_readonly(void **state) {
        struct stat st;
        struct vmm v;

        vmm_open(&h, &v, &img);
        assert_int_equal(fcntl(v.memfd, F_GETFL) & O_ACCMODE, O_RDONLY);
        assert_int_equal(fstat(v.memfd, &st), 0);
        assert_int_equal(st.st_size, PAGES * TEST_PAGE);
        assert_int_equal(st.st_mode & 0777, 0400);
        assert_int_equal(pwrite(v.memfd, "x", 1, 0), -1);
        assert_int_equal(fallocate(v.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, TEST_PAGE), -1);
        assert_ptr_equal(mmap(NULL, TEST_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, v.memfd, 0), MAP_FAILED);
        end_raw(&v);
}

/** Its image is used again after its last session, and given back when it was idle for long enough. */
static void test_image_life(void **state) {
        struct pager_config cfg = { .workers = 1, .idle_seconds = 0 };
        struct harness other;
        struct vmm v;

        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 5 1"), "ok");
        vmm_end(&h, &v);
        assert_int_equal(harness_status(&h, "totals", NULL, "images"), 1);
        assert_int_equal(harness_status(&h, "images", NULL, "present_bytes"), img.n_stored * TEST_PAGE);
        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 5 1"), "ok");
        assert_int_equal(harness_status(&h, "sessions", v.session, "faults.missing"), 0);
        vmm_end(&h, &v);

        harness_start(&other, &cfg);
        vmm_start(&other, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 5 1"), "ok");
        vmm_end(&other, &v);
        assert_int_equal(harness_status(&other, "totals", NULL, "images"), 0);
        assert_int_equal(harness_status(&other, "totals", NULL, "decodes"), img.stats.frames);
        harness_stop(&other);
}

static void test_idle_expiry(void **state) {
        struct pager_config cfg = { .workers = 1, .idle_seconds = 1 };
        struct harness other;
        uint64_t start;
        struct vmm v;

        harness_start(&other, &cfg);
        vmm_start(&other, &v, &img);
        vmm_end(&other, &v);
        start = now_ns();
        while (harness_status(&other, "totals", NULL, "images") > 0)
                assert_true(ms_since(start) < DEADLINE_MS);
        assert_true(ms_since(start) > 500);
        harness_stop(&other);
}

/** Another content under the same name is another image; one file by two descriptors is one. */
static void test_identity(void **state) {
        cleanup_fd int again = -1;
        struct image other;
        struct vmm a, b, c;
        char path[64];

        image_make(&other, PAGES, 6, SNAP_CODEC_LZ4);
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", img.fd);
        again = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(again >= 0);
        struct image same = img;
        same.fd = again;
        vmm_start(&h, &a, &img);
        vmm_start(&h, &b, &same);
        assert_int_equal(harness_status(&h, "totals", NULL, "images"), 1);
        vmm_start(&h, &c, &other);
        assert_int_equal(harness_status(&h, "totals", NULL, "images"), 2);
        assert_string_equal(vmm_cmd(&a, "verify 5 1"), "ok");
        assert_string_equal(vmm_cmd(&b, "verify 5 1"), "ok");
        assert_string_equal(vmm_cmd(&c, "verify 6 1"), "ok");
        vmm_end(&h, &a);
        vmm_end(&h, &b);
        vmm_end(&h, &c);
        image_clear(&other);
}

static void test_sessions_outlive_connections(void **state) {
        struct vmm v;

        vmm_start(&h, &v, &img);
        harness_connect(&h);
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions"), 1);
        assert_string_equal(vmm_cmd(&v, "verify 5 2"), "ok");
        vmm_end(&h, &v);
}

static void test_shutdown_refused(void **state) {
        struct vmm v;

        vmm_open(&h, &v, &img);
        expect_error(harness_call(&h, "shutdown", NULL, NULL, 0), ERR_BUSY, "1 sessions are open");
        end_raw(&v);
}

/** SIGTERM to the real program: no new session, an end with the last one. */
static void test_sigterm(void **state) {
        struct harness own = { .base = h.base };
        const char *argv[] = { UFFD_PAGER, "--control", own.path, "--workers", "1", "--log-level", "error", NULL };
        struct spawn_params sp = { .argv = argv, .cgroup_fd = -1 };
        int pidfd, status, fd;
        struct vmm v;
        pid_t pid;

        (void) snprintf(own.dir, sizeof(own.dir), "/tmp/pager-test-XXXXXX");
        assert_non_null(mkdtemp(own.dir));
        (void) snprintf(own.path, sizeof(own.path), "%s/pager.sock", own.dir);
        assert_int_equal(spawn_process(&sp, &pid, &pidfd), 0);
        for (uint64_t start = now_ns(); io_connect_unix(own.path, &fd) < 0;) { /* until it listens */
                assert_true(ms_since(start) < DEADLINE_MS);
                (void) sched_yield();
        }
        (void) close_fd(fd);
        harness_connect(&own);
        vmm_start(&own, &v, &img);
        assert_int_equal(spawn_kill(pidfd, SIGHUP), 0);
        assert_int_equal(spawn_kill(pidfd, SIGTERM), 0);
        for (uint64_t start = now_ns(); harness_status(&own, "draining", NULL, NULL) != 1;)
                assert_true(ms_since(start) < DEADLINE_MS);
        struct harness keep = h;
        h.conn = own.conn;
        expect_error(open_with("0123456789abcdef", PAGES * TEST_PAGE, img.fd, 2), ERR_STATE, "takes no new session");
        h.conn = keep.conn;
        assert_string_equal(vmm_cmd(&v, "verify 5 2"), "ok");
        vmm_kill(&v);
        assert_int_equal(spawn_wait(pidfd, DEADLINE_MS, &status), 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_int_equal(access(own.path, F_OK), -1);
        rpc_conn_unref(own.conn);
        (void) close_fd(pidfd);
        assert_int_equal(rmdir(own.dir), 0);
}

static void cycle(unsigned i) {
        struct raw_vmm r;
        struct vmm v;
        uint8_t want[TEST_PAGE];

        vmm_open(&h, &v, &img);
        raw_map(&r, v.memfd, v.ram_bytes);
        raw_attach(&r, v.sock);
        for (unsigned k = 0; k < 4; k++) {
                uint64_t page = (i * 7 + k * 61) % PAGES;

                content_fill(img.seed, page, want);
                assert_memory_equal(r.map + page * TEST_PAGE, want, TEST_PAGE);
        }
        if (i % 2) {
                expect_ok(call_session("session.close", v.session));
                raw_unmap(&r);
                (void) close_fd(v.sock);
        } else {
                (void) close_fd(v.sock);
                (void) harness_note(&h, "session.gone", v.session);
                raw_unmap(&r);
        }
        (void) close_fd(v.memfd);
}

static uint64_t rss_pages(void) {
        unsigned long long size = 0, rss = 0;
        FILE *f = fopen("/proc/self/statm", "re");

        assert_non_null(f);
        assert_int_equal(fscanf(f, "%llu %llu", &size, &rss), 2);
        (void) fclose(f);
        return rss;
}

static void test_nothing_leaks(void **state) {
        uint64_t rss;
        int fds;

        for (unsigned i = 0; i < 20; i++)
                cycle(i);
        fds = count_fds();
        rss = rss_pages();
        for (unsigned i = 0; i < 200; i++) {
                cycle(i);
                h.n_notes = 0;
        }
        assert_int_equal(count_fds(), fds);
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions"), 0);
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions_ended"), 220);
#if !defined(FORKD_ASAN) && !defined(FORKD_TSAN)
        /* 200 leaked sessions would be 200 × 3 pages at least */
        assert_true(rss_pages() < rss + 200);
#else
        (void) rss;
#endif
}

static bool image_is_mapped(void) {
        FILE *f = fopen("/proc/self/maps", "re");
        char line[512];
        bool found = false;

        assert_non_null(f);
        while (fgets(line, sizeof(line), f))
                found = found || strstr(line, "/memfd:forkd-image");
        (void) fclose(f);
        return found;
}

/** One that takes long to give back goes in the background, also when the pager ends in the middle of it. */
static void test_large_image_goes(void **state) {
        struct pager_config cfg = { .idle_seconds = 0 };
        uint64_t deadline = now_ns() + DEADLINE_MS * 1000000ull;

        for (unsigned round = 0; round < 2; round++) {
                struct harness own;
                struct image large;
                struct vmm v;

                harness_start(&own, &cfg);
                image_make(&large, 2 * PAGER_SMALL_PAGES, 9, SNAP_CODEC_LZ4);
                vmm_start(&own, &v, &large);
                assert_string_equal(vmm_cmd(&v, "verify 9 2"), "ok");
                assert_true(harness_status(&own, "images", NULL, "present_bytes") > PAGER_SMALL_PAGES * TEST_PAGE);
                vmm_end(&own, &v);
                assert_int_equal(harness_status(&own, "totals", NULL, "images"), 0);
                while (round == 0 && image_is_mapped())
                        assert_true(now_ns() < deadline);
                image_clear(&large);
                harness_stop(&own);
                assert_false(image_is_mapped());
        }
}

/** However many there are, they are told in one message. */
static void test_status_of_many(void **state) {
        enum { N = PAGER_STATUS_SESSIONS + 1 };
        struct vmm *v = calloc(N, sizeof(*v));

        assert_non_null(v);
        for (unsigned i = 0; i < N; i++) {
                struct answer a = harness_call(&h, "status", NULL, NULL, 0);
                const msgpack_object *sessions = mp_get_array(&a.doc.root, "sessions");

                assert_non_null(sessions);
                assert_int_equal(sessions->via.array.size, i);
                if (i > 0)
                        assert_non_null(mp_get(mp_get(&sessions->via.array.ptr[0], "wait"), "buckets"));
                answer_clear(&a);
                vmm_open(&h, &v[i], &img);
        }
        struct answer a = harness_call(&h, "status", NULL, NULL, 0);
        const msgpack_object *sessions = mp_get_array(&a.doc.root, "sessions");

        assert_int_equal(sessions->via.array.size, N);
        assert_null(mp_get(mp_get(&sessions->via.array.ptr[0], "wait"), "buckets"));
        assert_non_null(mp_get(mp_get(&sessions->via.array.ptr[0], "wait"), "p99_us"));
        assert_non_null(mp_get(mp_get(mp_get(&a.doc.root, "totals"), "wait"), "buckets"));
        answer_clear(&a);
        for (unsigned i = 0; i < N; i++)
                end_raw(&v[i]);
        free(v);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_hello_and_unknown, setup, teardown),
                cmocka_unit_test_setup_teardown(test_open_refusals, setup, teardown),
                cmocka_unit_test_setup_teardown(test_wrong_descriptors, setup, teardown),
                cmocka_unit_test_setup_teardown(test_hang_up_in_an_answer, setup, teardown),
                cmocka_unit_test_setup_teardown(test_session_refusals, setup, teardown),
                cmocka_unit_test_setup_teardown(test_memfd_is_readonly, setup, teardown),
                cmocka_unit_test_setup_teardown(test_image_life, setup, teardown),
                cmocka_unit_test_setup_teardown(test_idle_expiry, setup, teardown),
                cmocka_unit_test_setup_teardown(test_identity, setup, teardown),
                cmocka_unit_test_setup_teardown(test_sessions_outlive_connections, setup, teardown),
                cmocka_unit_test_setup_teardown(test_shutdown_refused, setup, teardown),
                cmocka_unit_test_setup_teardown(test_sigterm, setup, teardown),
                cmocka_unit_test_setup_teardown(test_nothing_leaks, setup, teardown),
                cmocka_unit_test(test_large_image_goes),
                cmocka_unit_test_setup_teardown(test_status_of_many, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
