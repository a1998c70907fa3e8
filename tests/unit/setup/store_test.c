/* SPDX-License-Identifier: MIT */
/* The loop-mounted store, with real mounts: root only. On a host whose /tmp has reflink the image is never made,
 * and there is nothing to test but that. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "common/io.h"
#include "setup/run.h"
#include "setup/store_mount.h"
#include "skip.h"

static char dir[64];

static int make(void **state) {
        (void) snprintf(dir, sizeof(dir), "/tmp/forkd-store-XXXXXX");
        assert_non_null(mkdtemp(dir));
        return 0;
}

static int drop(void **state) {
        char path[PATH_MAX];

        (void) snprintf(path, sizeof(path), "%s/store", dir);
        (void) umount2(path, MNT_DETACH);
        (void) snprintf(path, sizeof(path), "%s/copy/store", dir);
        (void) umount2(path, MNT_DETACH);
        return io_remove_tree(AT_FDCWD, dir);
}

static void need_loop_store(void) {
        char mkfs[64];

        if (geteuid() != 0 || access("/dev/loop-control", R_OK | W_OK) < 0 || run_find("mkfs.xfs", mkfs, sizeof(mkfs)) < 0 ||
            io_probe_reflink(dir) != 0)
                skip_because("needs root, loop devices, mkfs.xfs, and a /tmp without reflink");
}

static void ok(int r, const struct err *e) {
        if (r < 0)
                print_message("%s | %s\n", e->message, e->hint);
        assert_int_equal(r, 0);
}

/* Loop devices whose backing file is below our directory. */
static unsigned loops(void) {
        DIR *d = opendir("/sys/block");
        unsigned n = 0;

        assert_non_null(d);
        for (struct dirent *de; (de = readdir(d));) {
                cleanup_free char *text = NULL;
                char path[PATH_MAX];
                size_t len;

                (void) snprintf(path, sizeof(path), "/sys/block/%s/loop/backing_file", de->d_name);
                if (io_read_file(AT_FDCWD, path, 4096, &text, &len) == 0)
                        n += strncmp(text, dir, strlen(dir)) == 0 && text[strlen(dir)] == '/';
        }
        (void) closedir(d);
        return n;
}

static void path_of(const char *name, char *buf) {
        (void) snprintf(buf, PATH_MAX, "%s/%s", dir, name);
}

static void put(const char *name, const char *text) {
        char path[PATH_MAX];

        path_of(name, path);
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        assert_true(fputs(text, f) >= 0);
        assert_int_equal(fclose(f), 0);
}

static void assert_content(const char *name, const char *text) {
        char path[PATH_MAX];
        cleanup_free char *got = NULL;
        size_t len;

        path_of(name, path);
        assert_int_equal(io_read_file(AT_FDCWD, path, 4096, &got, &len), 0);
        assert_string_equal(got, text);
}

static void test_life(void **state) {
        struct store_info info;
        struct err e = { 0 };
        struct stat st;
        char path[PATH_MAX];
        bool created;

        need_loop_store();
        ok(store_inspect(dir, &info, &e), &e);
        assert_int_equal(info.kind, STORE_NONE);
        assert_false(info.reflink);
        ok(store_detach(dir, &e), &e); /* nothing there: nothing to do */

        ok(store_prepare(dir, STORE_MIN_BYTES, &created, &e), &e);
        assert_true(created);
        ok(store_prepare(dir, STORE_MIN_BYTES * 2, &created, &e), &e);
        assert_false(created);
        path_of("store.img", path);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, STORE_MIN_BYTES);
        assert_true((uint64_t) st.st_blocks * 512 < STORE_MIN_BYTES / 4); /* sparse */
        assert_int_equal(st.st_mode & 077, 0);
        assert_int_equal(store_is_attached(dir), 0);

        ok(store_attach(dir, &e), &e);
        assert_int_equal(store_is_attached(dir), 1);
        assert_int_equal(loops(), 1);
        ok(store_attach(dir, &e), &e); /* again: nothing */
        assert_int_equal(loops(), 1);
        path_of("store", path);
        assert_int_equal(io_probe_reflink(path), 1);
        ok(store_inspect(dir, &info, &e), &e);
        assert_true(info.kind == STORE_LOOP && info.attached && info.reflink && info.free_bytes > 0);
        put("store/file", "kept");

        path_of("store/file", path);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(store_detach(dir, &e), -EBUSY);
        assert_string_equal(e.code, ERR_BUSY);
        assert_int_equal(store_is_attached(dir), 1);
        (void) close_fd(fd);
        ok(store_detach(dir, &e), &e);
        assert_int_equal(store_is_attached(dir), 0);
        assert_int_equal(loops(), 0);

        ok(store_attach(dir, &e), &e);
        assert_content("store/file", "kept");
        ok(store_detach(dir, &e), &e);
}

/* What is deleted in the store is given back to the host. */
static void test_discard(void **state) {
        struct err e = { 0 };
        struct stat full, empty;
        char image[PATH_MAX], file[PATH_MAX];
        cleanup_free char *block = calloc(1, 1 << 20);
        bool created;

        need_loop_store();
        ok(store_prepare(dir, STORE_MIN_BYTES, &created, &e), &e);
        ok(store_attach(dir, &e), &e);
        path_of("store.img", image);
        path_of("store/big", file);
        memset(block, 'x', 1 << 20);
        int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        for (int i = 0; i < 64; i++)
                assert_int_equal(io_write_full(fd, block, 1 << 20), 0);
        assert_int_equal(fsync(fd), 0);
        (void) close_fd(fd);
        assert_int_equal(stat(image, &full), 0);
        assert_int_equal(unlink(file), 0);
        ok(store_detach(dir, &e), &e); /* an unmount ends all discards */
        assert_int_equal(stat(image, &empty), 0);
        assert_true(full.st_blocks - empty.st_blocks > (60 << 20) / 512);
}

/* The image as a crash leaves it: copied while mounted, with work in its log. */
static void test_after_crash(void **state) {
        struct err e = { 0 };
        char from[PATH_MAX], to[PATH_MAX], copy[PATH_MAX], path[PATH_MAX];
        bool created;

        need_loop_store();
        ok(store_prepare(dir, STORE_MIN_BYTES, &created, &e), &e);
        ok(store_attach(dir, &e), &e);
        put("store/file", "synced");
        path_of("store/file", path);
        cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_int_equal(fsync(fd), 0);
        fd = close_fd(fd);
        path_of("store", path);
        assert_int_equal(io_fsync_dir(AT_FDCWD, path), 0);

        path_of("store.img", from);
        path_of("copy", copy);
        path_of("copy/store.img", to);
        assert_int_equal(io_mkdir_p(copy, 0700), 0);
        cleanup_fd int src = open(from, O_RDONLY | O_CLOEXEC), dst = open(to, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(src >= 0 && dst >= 0);
        assert_int_equal(io_clone_file(src, dst, NULL), 0);
        src = close_fd(src);
        dst = close_fd(dst);

        ok(store_attach(copy, &e), &e); /* beside the original, which has the same UUID */
        assert_content("copy/store/file", "synced");
        assert_int_equal(store_is_attached(copy), 1);
        ok(store_detach(copy, &e), &e);
        assert_int_equal(store_is_attached(dir), 1);
        ok(store_detach(dir, &e), &e);
        assert_int_equal(loops(), 0);
}

static void test_refuses(void **state) {
        struct err e = { 0 };
        struct store_info info;
        char path[PATH_MAX];
        bool created;

        need_loop_store();
        assert_int_equal(store_prepare(dir, STORE_MIN_BYTES / 2, &created, &e), -ERANGE);
        assert_int_equal(store_prepare(dir, STORE_MAX_BYTES + 4096, &created, &e), -ERANGE);

        /* files in the way: before the image exists, and after */
        path_of("store/snapshots/deep", path);
        assert_int_equal(io_mkdir_p(path, 0700), 0);
        ok(store_inspect(dir, &info, &e), &e);
        assert_int_equal(info.kind, STORE_NONE); /* empty directories do not count */
        put("store/snapshots/deep/file", "x");
        ok(store_inspect(dir, &info, &e), &e);
        assert_int_equal(info.kind, STORE_COPYING);
        assert_int_equal(store_prepare(dir, STORE_MIN_BYTES, &created, &e), -ENOTEMPTY);
        path_of("store/snapshots/deep/file", path);
        assert_int_equal(unlink(path), 0);
        ok(store_prepare(dir, STORE_MIN_BYTES, &created, &e), &e);
        put("store/file", "x");
        assert_int_equal(store_attach(dir, &e), -ENOTEMPTY);
        assert_string_equal(e.code, ERR_STATE);
        path_of("store/file", path);
        assert_int_equal(unlink(path), 0);

        /* something else mounted there */
        path_of("store", path);
        assert_int_equal(mount("none", path, "tmpfs", 0, "size=64k"), 0);
        assert_int_equal(store_attach(dir, &e), -EBUSY);
        assert_int_equal(store_is_attached(dir), 0);
        ok(store_detach(dir, &e), &e); /* not ours: left alone */
        assert_int_equal(umount2(path, 0), 0);

        /* an image that is none */
        path_of("store.img", path);
        assert_int_equal(truncate(path, 0), 0);
        assert_int_equal(truncate(path, STORE_MIN_BYTES), 0);
        assert_true(store_attach(dir, &e) < 0);
        assert_int_equal(loops(), 0);
}

static void test_no_image(void **state) {
        struct err e = { 0 };
        struct stat st;
        char path[PATH_MAX];

        ok(store_attach(dir, &e), &e); /* a plain directory: the host's own file system */
        path_of("store", path);
        assert_int_equal(stat(path, &st), 0);
        assert_true(S_ISDIR(st.st_mode));
        assert_int_equal(store_is_attached(dir), 0);
        assert_int_equal(store_is_attached("/no/such/dir"), 0);
}

/* Several processes attach at once: one mount, one loop device. */
static void test_together(void **state) {
        struct err e = { 0 };
        pid_t pids[4];
        bool created;
        int go[2], status;

        need_loop_store();
        ok(store_prepare(dir, STORE_MIN_BYTES, &created, &e), &e);
        assert_int_equal(pipe2(go, O_CLOEXEC), 0);
        for (size_t i = 0; i < ARRAY_LEN(pids); i++) {
                pids[i] = fork();
                if (pids[i] == 0) {
                        char c;
                        (void) close_fd(go[1]);
                        if (read(go[0], &c, 1) != 0) /* until the parent closes its end */
                                _exit(3);
                        _exit(store_attach(dir, &e) == 0 ? 0 : 1);
                }
        }
        (void) close_fd(go[0]);
        (void) close_fd(go[1]);
        for (size_t i = 0; i < ARRAY_LEN(pids); i++) {
                assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
                assert_int_equal(status, 0);
        }
        assert_int_equal(loops(), 1);
        ok(store_detach(dir, &e), &e);
        assert_int_equal(store_is_attached(dir), 0);
        assert_int_equal(loops(), 0);
}

#define WITH_DIR(fn) cmocka_unit_test_setup_teardown(fn, make, drop)

int main(void) {
        const struct CMUnitTest tests[] = {
                WITH_DIR(test_life),    WITH_DIR(test_discard),  WITH_DIR(test_after_crash),
                WITH_DIR(test_refuses), WITH_DIR(test_no_image), WITH_DIR(test_together),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
