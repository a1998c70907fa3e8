/* SPDX-License-Identifier: MIT */
/* The host gives no more: descriptors, sizes of files, address space. What was asked for is refused with the
 * reason, what is there goes on. The pager is the real program, so that its limits can be its own. */
#include "tests/unit/pager/harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/spawn.h"

#define PAGES 512ull
#define HUGE_RAM (64ull << 30)

static struct harness h;
static struct image img;
static pid_t pid;
static int pidfd;

static int setup(void **state) {
        const char *argv[] = { UFFD_PAGER, "--control", h.path, "--workers", "1", "--log-level", "error", NULL };
        struct spawn_params sp = { .argv = argv, .cgroup_fd = -1 };
        int fd;

        h = (struct harness){ 0 };
        h.base = event_base_new();
        assert_non_null(h.base);
        (void) snprintf(h.dir, sizeof(h.dir), "/tmp/pager-test-XXXXXX");
        assert_non_null(mkdtemp(h.dir));
        (void) snprintf(h.path, sizeof(h.path), "%s/pager.sock", h.dir);
        assert_int_equal(spawn_process(&sp, &pid, &pidfd), 0);
        for (uint64_t start = now_ns(); io_connect_unix(h.path, &fd) < 0;) { /* until it listens */
                assert_true(ms_since(start) < DEADLINE_MS);
                (void) sched_yield();
        }
        (void) close_fd(fd);
        harness_connect(&h);
        image_make(&img, PAGES, 21, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int status;

        image_clear(&img);
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_bool(&b, "force", true);
        struct answer a = harness_call(&h, "shutdown", &b, NULL, 0);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        assert_int_equal(spawn_wait(pidfd, DEADLINE_MS, &status), 0);
        assert_int_equal(status, 0); /* it is the one we started, and has not crashed */
        pidfd = close_fd(pidfd);
        rpc_conn_unref(h.conn);
        event_base_free(h.base);
        assert_int_equal(rmdir(h.dir), 0);
        return 0;
}

static void set_limit(int resource, rlim_t soft) {
        struct rlimit rl;

        assert_int_equal(prlimit(pid, (__rlimit_resource_t) resource, NULL, &rl), 0);
        rl.rlim_cur = MIN_OF(soft, rl.rlim_max);
        assert_int_equal(prlimit(pid, (__rlimit_resource_t) resource, &rl, NULL), 0);
}

static unsigned pager_fds(void) {
        char path[64];
        unsigned n = 0;
        DIR *d;

        (void) snprintf(path, sizeof(path), "/proc/%d/fd", (int) pid);
        d = opendir(path);
        assert_non_null(d);
        for (struct dirent *de; (de = readdir(d));)
                n += de->d_name[0] != '.';
        (void) closedir(d);
        return n;
}

/** session.open that may fail. */
static struct answer try_open(struct vmm *v, const struct image *i) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int pair[2], fds[2];

        *v = (struct vmm){ .memfd = -1, .sock = -1, .pidfd = -1, .err_fd = -1, .layout_fd = -1, .ram_fd = -1, .uffd_dev = -1 };
        v->ram_bytes = i->n_pages * TEST_PAGE;
        id_new(v->session);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        fds[0] = i->fd;
        fds[1] = pair[0];
        mp_buf_init(&b);
        mp_map(&b, 4);
        mp_kv_str(&b, "session", v->session);
        mp_kv_u64(&b, "ram_bytes", v->ram_bytes);
        mp_kv_bool(&b, "segments", true);
        mp_kv_u64(&b, "fds", 2);
        struct answer a = harness_call(&h, "session.open", &b, fds, 2);
        (void) close_fd(pair[0]);
        v->sock = pair[1];
        if (a.r == 0)
                v->memfd = TAKE_FD(a.fds[0]);
        return a;
}

static void close_open(struct vmm *v) {
        (void) close_fd(v->sock);
        (void) close_fd(v->memfd);
        (void) harness_note(&h, "session.gone", v->session);
}

static void refused(struct answer a, struct vmm *v, const char *code, const char *words) {
        assert_true(a.r < 0);
        if (strcmp(a.e.code, code) != 0 || !strstr(a.e.message, words))
                fail_msg("%s: \"%s\" does not tell of \"%s\"", a.e.code, a.e.message, words);
        answer_clear(&a);
        (void) close_fd(v->sock);
        assert_false(h.conn_closed);
}

static void assert_service(void) {
        struct vmm v;

        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 21 2"), "ok");
        vmm_end(&h, &v);
}

static void test_descriptors(void **state) {
        struct vmm running, v[16];
        unsigned n = 0, before;
        struct answer a;

        vmm_start(&h, &running, &img);
        before = pager_fds();
        set_limit(RLIMIT_NOFILE, before + PAGER_SPARE_FDS + 5 * PAGER_FDS_OF_SESSION + PAGER_FDS_OF_IMAGE);
        while ((a = try_open(&v[n], &img)).r == 0) {
                answer_clear(&a);
                assert_true(++n < ARRAY_LEN(v));
        }
        assert_true(n >= 2);
        assert_non_null(strstr(a.e.hint, "LimitNOFILE"));
        refused(a, &v[n], ERR_LIMIT, "descriptors");
        /* Those that are there may still attach, and all goes on. */
        vmm_spawn(&v[0]);
        assert_string_equal(vmm_cmd(&v[0], "map"), "ok 512");
        (void) harness_note(&h, "session.attached", v[0].session);
        assert_string_equal(vmm_cmd(&v[0], "verify 21 2"), "ok");
        assert_string_equal(vmm_cmd(&running, "verify 21 2"), "ok");
        /* The end of one makes room for one. */
        close_open(&v[1]);
        a = try_open(&v[1], &img);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        refused(try_open(&v[n], &img), &v[n], ERR_LIMIT, "descriptors");
        vmm_end(&h, &v[0]);
        for (unsigned i = 1; i < n; i++)
                close_open(&v[i]);
        vmm_end(&h, &running);
        assert_true(pager_fds() <= before);
        set_limit(RLIMIT_NOFILE, RLIM_INFINITY);
        assert_service();
}

/** An image that nobody uses is no reason to refuse one that somebody wants. */
static void test_descriptors_of_idle_images(void **state) {
        struct image other[6];
        struct answer a;
        struct vmm v;

        set_limit(RLIMIT_NOFILE, pager_fds() + PAGER_SPARE_FDS + 2 * (PAGER_FDS_OF_SESSION + PAGER_FDS_OF_IMAGE));
        for (unsigned i = 0; i < ARRAY_LEN(other); i++) {
                image_make(&other[i], 64, i, SNAP_CODEC_LZ4);
                a = try_open(&v, &other[i]);
                if (a.r < 0)
                        fail_msg("image %u: %s", i, a.e.message);
                answer_clear(&a);
                close_open(&v);
        }
        assert_true(harness_status(&h, "totals", NULL, "images") < ARRAY_LEN(other));
        for (unsigned i = 0; i < ARRAY_LEN(other); i++)
                image_clear(&other[i]);
}

/** An image's memory is a file, and may be too large for one. The signal that comes with it would be the end. */
static void test_size_of_a_file(void **state) {
        struct vmm v;

        set_limit(RLIMIT_FSIZE, PAGES * TEST_PAGE / 2);
        refused(try_open(&v, &img), &v, ERR_IO, "too large");
        set_limit(RLIMIT_FSIZE, RLIM_INFINITY);
        assert_service();
}

static void make_huge(struct image *huge) {
        struct snap_writer_params params = { .ram_bytes = HUGE_RAM, .codec = SNAP_CODEC_LZ4 };
        cleanup_snap_writer struct snap_writer *w = NULL;
        uint8_t page[TEST_PAGE];

        *huge = (struct image){ .n_pages = HUGE_RAM / TEST_PAGE, .fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) };
        assert_true(huge->fd >= 0);
        memset(page, 7, sizeof(page));
        assert_int_equal(snap_writer_new(huge->fd, -1, &params, &w), 0);
        assert_int_equal(snap_writer_put(w, 12345, page, 1), 0);
        assert_int_equal(snap_writer_finish(w, &huge->stats), 0);
}

static uint64_t pager_vm_bytes(void) {
        unsigned long long pages = 0;
        char path[64];
        FILE *f;

        (void) snprintf(path, sizeof(path), "/proc/%d/statm", (int) pid);
        f = fopen(path, "re");
        assert_non_null(f);
        assert_int_equal(fscanf(f, "%llu", &pages), 1);
        (void) fclose(f);
        return pages * TEST_PAGE;
}

static void test_address_space(void **state) {
        struct image huge;
        struct answer a;
        struct vmm v;
        unsigned fds;

        make_huge(&huge);
        assert_service();
        set_limit(RLIMIT_AS, pager_vm_bytes() + (256ull << 20));
        fds = pager_fds();
        refused(try_open(&v, &huge), &v, ERR_NO_SPACE, "memory");
        assert_int_equal(pager_fds(), fds);
        assert_service();
        set_limit(RLIMIT_AS, RLIM_INFINITY);
        a = try_open(&v, &huge);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        close_open(&v);
        image_clear(&huge);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_descriptors, setup, teardown),
                cmocka_unit_test_setup_teardown(test_descriptors_of_idle_images, setup, teardown),
                cmocka_unit_test_setup_teardown(test_size_of_a_file, setup, teardown),
                cmocka_unit_test_setup_teardown(test_address_space, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
