/* SPDX-License-Identifier: MIT */
/* What needs a file system of its own: no space left in the middle (a small tmpfs), no reflinks (tmpfs too),
 * and reflinks (XFS in a loop-mounted file). */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "common/io.h"
#include "snap_test.h"

#define NEEDS_MOUNTS "mounting needs root (CAP_SYS_ADMIN)"

static bool can_mount;

/* Device state, image, disk, manifest, as forkd does it. Returns the first error. */
static int try_publish(struct snap_store *s, const struct model *ram, const char *disk) {
        struct snap_writer_params p = { .ram_bytes = ram->n_pages * SNAP_PAGE_SIZE, .codec = SNAP_CODEC_NONE };
        struct snap_manifest *m = calloc(1, sizeof(*m));
        cleanup_snap_writer struct snap_writer *w = NULL;
        cleanup_snap_txn struct snap_txn *t = NULL;
        struct snap_writer_stats stats;
        struct rng r = { .state = 4 };
        cleanup_fd int fd = -1;
        uint64_t state[1024];
        id_str id;
        int result;

        for (size_t i = 0; i < ARRAY_LEN(state); i++)
                state[i] = rng_next(&r);
        id_new(id);
        manifest_fill(m, ram);
        result = snap_txn_begin(s, id, &t);
        if (result == 0)
                result = snap_txn_create_image(t, &fd);
        if (result == 0)
                result = snap_writer_new(fd, -1, &p, &w);
        if (result == 0)
                result = snap_writer_put(w, 0, ram->ram, ram->n_pages);
        if (result == 0)
                result = snap_writer_finish(w, &stats);
        if (result == 0)
                result = snap_txn_add_disk(t, 0, disk, NULL);
        if (result == 0)
                result = snap_txn_set_vmstate(t, state, sizeof(state));
        if (result == 0)
                result = snap_txn_publish(t, m, true);
        free(m);
        return result;
}

static uint64_t used_blocks(const char *path) {
        struct statfs st;

        assert_int_equal(statfs(path, &st), 0);
        return st.f_blocks - st.f_bfree;
}

/* The file system grows page by page from nothing: so the space runs out at every step in turn. Each time
 * all is undone to the last block; in the end it fits. */
static void test_no_space(void **state) {
        struct rng r = { .state = 9 };
        unsigned failures = 0;
        char dir[128], disk[160], options[64];
        struct snap_store *s;
        struct model ram;
        uint64_t before;
        int fd, result;

        skip_unless(can_mount, NEEDS_MOUNTS);
        temp_dir(dir, sizeof(dir));
        model_init(&ram, 60);
        for (uint64_t i = 0; i < ram.n_pages; i++)
                page_fill(&r, model_page(&ram, i));
        assert_int_equal(mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"), 0);
        assert_ok(snap_store_open(dir, &s));
        (void) snprintf(disk, sizeof(disk), "%s/source-disk", dir);
        fd = open(disk, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
        assert_ok(io_pwrite_full(fd, ram.ram, 20000, 0));
        (void) close(fd);
        before = used_blocks(dir);
        for (unsigned kb = 64;; kb += 4) {
                cleanup_snap_list struct snap_list l = {};

                assert_true(kb < 2048);
                (void) snprintf(options, sizeof(options), "size=%uk", kb);
                assert_int_equal(mount("tmpfs", dir, "tmpfs", MS_REMOUNT, options), 0);
                result = try_publish(s, &ram, disk);
                assert_ok(snap_store_list(s, &l));
                if (result == 0) {
                        assert_int_equal(l.n, 1);
                        assert_ok(snap_store_verify(s, l.ids[0], NULL, NULL, NULL));
                        break;
                }
                assert_int_equal(result, -ENOSPC);
                assert_int_equal(l.n, 0);
                assert_int_equal(used_blocks(dir), before);
                failures++;
        }
        assert_true(failures > 20);
        snap_store_close(s);
        assert_int_equal(umount(dir), 0);
        temp_dir_remove(dir);
        model_clear(&ram);
}

/* tmpfs cannot reflink: children are copies, and as good. */
static void test_without_reflink(void **state) {
        struct snap_manifest *m = calloc(2, sizeof(*m));
        struct snap_writer_stats stats;
        struct snap_writer *w;
        struct snap_store *s;
        char dir[128];
        struct model ram;
        uint64_t bytes;
        int fd, child;

        skip_unless(can_mount, NEEDS_MOUNTS);
        temp_dir(dir, sizeof(dir));
        assert_int_equal(mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0700"), 0);
        model_init(&ram, 600);
        for (uint64_t i = 0; i < 500; i++)
                page_fill_small(i, model_page(&ram, i));
        assert_ok(snap_store_open(dir, &s));
        publish(s, &ram, NULL, true, &m[0]);
        page_fill_small(77, model_page(&ram, 550));
        publish(s, &ram, &m[0], true, &m[1]);
        assert_ok(snap_store_open_file(s, m[1].id, SNAP_FILE_MEMORY, &fd));
        child = temp_fd();
        w = writer_start(child, fd, &ram, SNAP_CODEC_LZ4);
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        assert_false(stats.reflinked);
        check_image(child, &ram);
        (void) close(child);
        (void) close(fd);
        assert_ok(snap_store_remove(s, m[0].id));
        assert_ok(snap_store_verify(s, m[1].id, NULL, NULL, NULL));
        assert_ok(snap_store_unique_bytes(s, m[1].id, &bytes));
        assert_true(bytes >= m[1].image_bytes);
        snap_store_close(s);
        assert_int_equal(umount(dir), 0);
        temp_dir_remove(dir);
        model_clear(&ram);
        free(m);
}

/* With reflinks a child owns what it appended, few extents, and the parent's blocks are shared until the
 * parent goes. */
static void test_reflink(void **state) {
        struct snap_manifest *m = calloc(3, sizeof(*m));
        struct snap_writer_stats stats;
        struct snap_writer *w;
        struct rng r = { .state = 6 };
        struct loop_fs fs;
        struct snap_store *s;
        struct snap_txn *t;
        struct model ram;
        uint64_t shared, own, before;
        id_str id;
        int fd, parent;

        skip_unless(can_mount, NEEDS_MOUNTS);
        skip_unless(loop_fs_setup(&fs, "400M"), "no XFS on a loop device (xfsprogs, loop)");
        model_init(&ram, 4096);
        for (uint64_t i = 0; i < ram.n_pages; i++)
                page_fill(&r, model_page(&ram, i));
        assert_ok(snap_store_open(fs.mnt, &s));
        publish(s, &ram, NULL, false, &m[0]);
        assert_ok(snap_store_unique_bytes(s, m[0].id, &before));
        assert_true(before >= m[0].image_bytes);

        id_new(id);
        assert_ok(snap_store_open_file(s, m[0].id, SNAP_FILE_MEMORY, &parent));
        assert_ok(snap_txn_begin(s, id, &t));
        assert_ok(snap_txn_create_image(t, &fd));
        w = writer_start(fd, parent, &ram, SNAP_CODEC_LZ4);
        write_random(&r, &ram, w, 6);
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        assert_true(stats.reflinked);
        manifest_fill(&m[1], &ram);
        snap_manifest_set_parent(&m[1], &m[0]);
        assert_ok(snap_txn_publish(t, &m[1], true));
        snap_txn_free(t);
        check_image(fd, &ram);
        (void) close(fd);
        (void) close(parent);

        assert_ok(snap_store_unique_bytes(s, m[1].id, &own));
        assert_in_range(own, stats.appended_bytes, stats.appended_bytes + 4 * SNAP_PAGE_SIZE);
        assert_true(own < before / 4);
        assert_ok(snap_store_unique_bytes(s, m[0].id, &shared));
        assert_true(shared <= 4 * SNAP_PAGE_SIZE); /* the manifest and device state only */
        assert_ok(snap_store_remove(s, m[0].id));
        /* XFS frees a removed file's extents in the background: unmounting waits for that. */
        snap_store_close(s);
        loop_fs_remount(&fs);
        assert_ok(snap_store_open(fs.mnt, &s));
        assert_ok(snap_store_unique_bytes(s, m[1].id, &own));
        assert_true(own >= m[1].image_bytes);
        assert_ok(snap_store_verify(s, m[1].id, NULL, NULL, NULL));
        snap_store_close(s);
        loop_fs_teardown(&fs);
        model_clear(&ram);
        free(m);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_no_space),
                cmocka_unit_test(test_without_reflink),
                cmocka_unit_test(test_reflink),
        };

        can_mount = private_mounts();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
