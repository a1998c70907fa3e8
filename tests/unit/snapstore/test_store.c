/* SPDX-License-Identifier: MIT */
/* The store: transactions, listing, device state, disks, removal, recovery. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "snap_test.h"

struct fixture {
        char dir[128];
        struct snap_store *store;
        struct model ram;
        struct snap_manifest m, child;
};

static int setup(void **state) {
        struct fixture *f = calloc(1, sizeof(*f));

        temp_dir(f->dir, sizeof(f->dir));
        assert_ok(snap_store_open(f->dir, &f->store));
        model_init(&f->ram, 600);
        for (uint64_t i = 0; i < 40; i++)
                page_fill_small(i, model_page(&f->ram, i * 11));
        *state = f;
        return 0;
}

static int teardown(void **state) {
        struct fixture *f = *state;

        snap_store_close(f->store);
        temp_dir_remove(f->dir);
        model_clear(&f->ram);
        free(f);
        return 0;
}

static unsigned count_entries(struct fixture *f, const char *sub) {
        char path[256];
        unsigned n = 0;
        DIR *d;

        (void) snprintf(path, sizeof(path), "%s/%s", f->dir, sub);
        d = opendir(path);
        assert_non_null(d);
        for (struct dirent *de; (de = readdir(d));)
                n += de->d_name[0] != '.';
        (void) closedir(d);
        return n;
}

static bool is_durable(struct fixture *f, const char *id) {
        struct snap_manifest *m = malloc(sizeof(*m));
        bool durable;

        assert_ok(snap_store_load(f->store, id, m, &durable));
        free(m);
        return durable;
}

static void check_snapshot(struct fixture *f, const struct snap_manifest *m) {
        struct snap_manifest *got = calloc(1, sizeof(*got));
        cleanup_fd int fd = -1, state = temp_fd();
        char *data = malloc(m->vmstate_raw_bytes);
        uint64_t frames;

        assert_ok(snap_store_load(f->store, m->id, got, NULL));
        assert_memory_equal(got, m, sizeof(*m));
        assert_ok(snap_store_open_file(f->store, m->id, SNAP_FILE_MEMORY, &fd));
        check_image(fd, &f->ram);
        assert_ok(snap_store_read_vmstate(f->store, m->id, state));
        assert_int_equal(lseek(state, 0, SEEK_END), m->vmstate_raw_bytes);
        assert_ok(io_pread_full(state, data, m->vmstate_raw_bytes, 0));
        for (size_t i = 0; i < m->vmstate_raw_bytes; i++)
                assert_int_equal(data[i], (char) ("device state"[i % 12] + m->id[i % ID_LEN]));
        assert_ok(snap_store_verify(f->store, m->id, NULL, NULL, &frames));
        assert_true(frames > 0);
        free(data);
        free(got);
}

static void test_publish(void **state) {
        struct fixture *f = *state;
        cleanup_snap_list struct snap_list l = {};
        struct stat st;
        char path[256];
        uint64_t bytes;

        publish(f->store, &f->ram, NULL, false, &f->m);
        check_snapshot(f, &f->m);
        assert_false(is_durable(f, f->m.id));
        page_fill_small(999, model_page(&f->ram, 17));
        publish(f->store, &f->ram, &f->m, true, &f->child);
        check_snapshot(f, &f->child);
        assert_true(is_durable(f, f->child.id));
        assert_string_equal(f->child.parent, f->m.id);
        assert_int_equal(f->child.pages_stored, 41);
        assert_int_equal(f->child.pages_zero, 559);
        assert_true(f->child.stored_bytes < f->child.image_bytes + f->child.vmstate_bytes);
        assert_true(f->child.vmstate_bytes < f->child.vmstate_raw_bytes / 4);

        assert_ok(snap_store_make_durable(f->store, f->m.id));
        assert_true(is_durable(f, f->m.id));
        assert_ok(snap_store_make_durable(f->store, f->m.id));

        assert_ok(snap_store_list(f->store, &l));
        assert_int_equal(l.n, 2);
        assert_true(strcmp(l.ids[0], l.ids[1]) < 0);
        assert_int_equal(count_entries(f, "tmp"), 0);
        assert_ok(snap_store_path(f->store, f->m.id, NULL, path, sizeof(path)));
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0700);
        assert_ok(snap_store_path(f->store, f->m.id, SNAP_FILE_MEMORY, path, sizeof(path)));
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_int_equal(st.st_size, f->m.image_bytes);
        assert_ok(snap_store_unique_bytes(f->store, f->m.id, &bytes));
        assert_true(bytes > 0 && bytes <= f->m.image_bytes + 3 * 65536);
}

static void test_names(void **state) {
        struct fixture *f = *state;
        static const char *const ids[] = {
                "", "..", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "../../../../tmp", "0123456789abcde/"
        };
        static const char *const files[] = { "",          "..",          "../manifest",  "disk-8.img",
                                             "disk-.img", "disk-00.img", "disk-0.img.x", "memory.img/" };
        struct snap_txn *t = NULL;
        char path[256];
        int fd = -1;

        publish(f->store, &f->ram, NULL, false, &f->m);
        for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
                assert_int_equal(snap_txn_begin(f->store, ids[i], &t), -EINVAL);
                assert_int_equal(snap_store_load(f->store, ids[i], &f->child, NULL), -EINVAL);
                assert_int_equal(snap_store_remove(f->store, ids[i]), -EINVAL);
                assert_int_equal(snap_store_path(f->store, ids[i], NULL, path, sizeof(path)), -EINVAL);
                assert_int_equal(snap_store_make_durable(f->store, ids[i]), -EINVAL);
        }
        for (size_t i = 0; i < ARRAY_LEN(files); i++) {
                assert_int_equal(snap_store_open_file(f->store, f->m.id, files[i], &fd), -EINVAL);
                assert_int_equal(snap_store_path(f->store, f->m.id, files[i], path, sizeof(path)), -EINVAL);
        }
        assert_int_equal(snap_store_path(f->store, f->m.id, NULL, path, strlen(f->dir) + 20), -ENAMETOOLONG);
        assert_int_equal(snap_store_load(f->store, "0000000000000000", &f->child, NULL), -ENOENT);
        assert_int_equal(snap_store_remove(f->store, "0000000000000000"), -ENOENT);
        assert_int_equal(snap_store_open_file(f->store, f->m.id, "disk-0.img", &fd), -ENOENT);
        assert_int_equal(fd, -1);
}

/* Whatever ends a transaction but a good publish leaves nothing. */
static void test_abort(void **state) {
        struct fixture *f = *state;
        struct snap_writer_stats stats;
        struct snap_txn *t, *t2;
        struct snap_writer *w;
        int fd;

        publish(f->store, &f->ram, NULL, false, &f->m);
        assert_int_equal(snap_txn_begin(f->store, f->m.id, &t), -EEXIST);

        assert_ok(snap_txn_begin(f->store, "00000000000000aa", &t));
        assert_ok(snap_txn_create_image(t, &fd));
        assert_int_equal(snap_txn_create_image(t, &fd), -EEXIST);
        manifest_fill(&f->child, &f->ram);
        assert_int_equal(snap_txn_publish(t, &f->child, true), -EBADMSG); /* no complete image */
        assert_int_equal(snap_txn_publish(t, &f->child, true), -EINVAL);  /* and over */
        snap_txn_free(t);
        (void) close(fd);

        assert_ok(snap_txn_begin(f->store, "00000000000000aa", &t));
        assert_int_equal(snap_txn_publish(t, &f->child, false), -EBADMSG); /* no image at all */
        snap_txn_free(t);

        /* two for one id: the second to publish loses */
        assert_ok(snap_txn_begin(f->store, "00000000000000aa", &t));
        assert_ok(snap_txn_begin(f->store, "00000000000000aa", &t2));
        for (unsigned i = 0; i < 2; i++) {
                assert_ok(snap_txn_create_image(i ? t2 : t, &fd));
                w = writer_start(fd, -1, &f->ram, SNAP_CODEC_NONE);
                assert_ok(snap_writer_finish(w, &stats));
                snap_writer_free(w);
                (void) close(fd);
        }
        f->child.vcpus = 0;
        assert_int_equal(snap_txn_publish(t, &f->child, false), -EINVAL); /* a bad manifest */
        snap_txn_free(t);
        assert_int_equal(count_entries(f, "tmp"), 1);
        f->child.vcpus = 1;
        f->child.mem_bytes += SNAP_PAGE_SIZE;
        assert_int_equal(snap_txn_publish(t2, &f->child, false), -EINVAL); /* contradicts the image */
        snap_txn_free(t2);
        assert_int_equal(count_entries(f, "tmp"), 0);
        assert_int_equal(count_entries(f, "snapshots"), 1);
}

static void test_race_for_an_id(void **state) {
        struct fixture *f = *state;
        struct snap_writer_stats stats;
        struct snap_txn *t[2];
        struct snap_writer *w;
        int fd;

        for (unsigned i = 0; i < 2; i++) {
                assert_ok(snap_txn_begin(f->store, "00000000000000aa", &t[i]));
                assert_ok(snap_txn_create_image(t[i], &fd));
                w = writer_start(fd, -1, &f->ram, SNAP_CODEC_NONE);
                assert_ok(snap_writer_finish(w, &stats));
                snap_writer_free(w);
                (void) close(fd);
        }
        manifest_fill(&f->m, &f->ram);
        assert_ok(snap_txn_publish(t[0], &f->m, false));
        assert_int_equal(snap_txn_publish(t[1], &f->m, true), -EEXIST);
        snap_txn_free(t[0]);
        snap_txn_free(t[1]);
        assert_int_equal(count_entries(f, "tmp"), 0);
        assert_false(is_durable(f, "00000000000000aa")); /* the winner's, not the loser's */
        assert_int_equal(snap_store_read_vmstate(f->store, "00000000000000aa", 1), -ENODATA);
}

static void test_sweep(void **state) {
        struct fixture *f = *state;
        struct snap_txn *t;
        char path[512];
        unsigned removed;
        int fd;

        assert_ok(snap_txn_begin(f->store, "00000000000000aa", &t));
        assert_ok(snap_txn_create_image(t, &fd));
        (void) close(fd);
        /* left over from a crash: a directory with files, a file, a link that points outside */
        (void) snprintf(path, sizeof(path), "%s/tmp/new-00000000000000bb-0011223344556677", f->dir);
        assert_int_equal(mkdir(path, 0700), 0);
        (void) strcat(path, "/memory.img");
        fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        (void) close(fd);
        (void) snprintf(path, sizeof(path), "%s/tmp/file", f->dir);
        fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        (void) close(fd);
        (void) snprintf(path, sizeof(path), "%s/tmp/link", f->dir);
        assert_int_equal(symlink("../snapshots", path), 0);
        publish(f->store, &f->ram, NULL, false, &f->m);

        assert_ok(snap_store_sweep(f->store, &removed, NULL));
        assert_int_equal(removed, 3);
        assert_int_equal(count_entries(f, "tmp"), 1); /* the living one */
        check_snapshot(f, &f->m);
        snap_txn_free(t);
        assert_int_equal(count_entries(f, "tmp"), 0);
}

/* Any ancestor can go; open readers read on. */
static void test_remove(void **state) {
        struct fixture *f = *state;
        struct snap_image *img;
        cleanup_snap_list struct snap_list l = {};

        publish(f->store, &f->ram, NULL, true, &f->m);
        assert_ok(snap_store_open_image(f->store, f->m.id, NULL, &img));
        page_fill_small(7, model_page(&f->ram, 500));
        publish(f->store, &f->ram, &f->m, false, &f->child);
        assert_ok(snap_store_remove(f->store, f->m.id));
        assert_int_equal(snap_store_load(f->store, f->m.id, &f->m, NULL), -ENOENT);
        assert_int_equal(snap_store_remove(f->store, f->m.id), -ENOENT);
        check_snapshot(f, &f->child);
        assert_ok(snap_image_verify(img, NULL, NULL, NULL));
        snap_image_close(img);
        assert_ok(snap_store_remove(f->store, f->child.id));
        assert_ok(snap_store_list(f->store, &l));
        assert_int_equal(l.n, 0);
        assert_int_equal(count_entries(f, "tmp"), 0);
}

static void test_disks(void **state) {
        struct fixture *f = *state;
        cleanup_snap_txn struct snap_txn *t = NULL;
        struct snap_writer_stats stats;
        char src[256], content[9000], got[9000], path[256];
        struct snap_writer *w;
        bool reflinked;
        int fd;

        for (size_t i = 0; i < sizeof(content); i++)
                content[i] = (char) (i * 7);
        (void) snprintf(src, sizeof(src), "%s/disk", f->dir);
        fd = open(src, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_ok(io_pwrite_full(fd, content, sizeof(content), 1 << 20));
        (void) close(fd);
        (void) snprintf(path, sizeof(path), "%s/link", f->dir);
        assert_int_equal(symlink("disk", path), 0);

        assert_ok(snap_txn_begin(f->store, "00000000000000dd", &t));
        assert_int_equal(snap_txn_add_disk(t, 1, src, NULL), -EINVAL); /* in order */
        assert_int_equal(snap_txn_add_disk(t, 0, f->dir, NULL), -EINVAL);
        assert_int_equal(snap_txn_add_disk(t, 0, path, NULL), -ELOOP);
        assert_int_equal(snap_txn_add_disk(t, 0, "/nonexistent", NULL), -ENOENT);
        assert_ok(snap_txn_add_disk(t, 0, src, &reflinked));
        assert_ok(snap_txn_add_disk(t, 1, src, NULL));
        assert_int_equal(snap_txn_add_disk(t, 1, src, NULL), -EINVAL);
        assert_ok(snap_txn_create_image(t, &fd));
        w = writer_start(fd, -1, &f->ram, SNAP_CODEC_LZ4);
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        (void) close(fd);
        manifest_fill(&f->m, &f->ram);
        assert_ok(snap_txn_publish(t, &f->m, true));
        assert_int_equal(f->m.n_disks, 2);
        assert_int_equal(f->m.disk_bytes[0], (1 << 20) + sizeof(content));

        /* what happens to the source later is not seen */
        fd = open(src, O_RDWR | O_CLOEXEC);
        assert_ok(io_pwrite_full(fd, "changed", 7, 1 << 20));
        (void) close(fd);
        assert_ok(snap_store_open_file(f->store, f->m.id, "disk-0.img", &fd));
        assert_ok(io_pread_full(fd, got, sizeof(got), 1 << 20));
        assert_memory_equal(got, content, sizeof(got));
        (void) close(fd);
        assert_ok(snap_store_verify(f->store, f->m.id, NULL, NULL, NULL));
        assert_ok(snap_store_path(f->store, f->m.id, "disk-1.img", path, sizeof(path)));
        assert_int_equal(truncate(path, 5), 0);
        assert_int_equal(snap_store_verify(f->store, f->m.id, NULL, NULL, NULL), -EBADMSG);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(snap_store_verify(f->store, f->m.id, NULL, NULL, NULL), -EBADMSG);
}

static void test_vmstate_limits(void **state) {
        struct fixture *f = *state;
        cleanup_snap_txn struct snap_txn *t = NULL;
        cleanup_fd int fd = temp_fd();
        struct rng r = { .state = 8 };
        uint64_t random[1000];

        assert_ok(snap_txn_begin(f->store, "00000000000000ee", &t));
        assert_int_equal(snap_txn_set_vmstate_fd(t, fd), -EINVAL); /* empty */
        assert_int_equal(ftruncate(fd, (off_t) SNAP_MAX_VMSTATE + 1), 0);
        assert_int_equal(snap_txn_set_vmstate_fd(t, fd), -EFBIG);
        assert_int_equal(ftruncate(fd, 0), 0);
        for (size_t i = 0; i < ARRAY_LEN(random); i++)
                random[i] = rng_next(&r); /* does not compress: stored as it is */
        assert_ok(io_write_full(fd, random, sizeof(random)));
        assert_ok(snap_txn_set_vmstate_fd(t, fd));
        assert_int_equal(snap_txn_set_vmstate(t, random, 8), -EINVAL); /* once */
}

/* Damage to any file of a snapshot is found by verify, and no damaged device state is handed out. */
static void test_damage(void **state) {
        struct fixture *f = *state;
        static const char *const files[] = { SNAP_FILE_MANIFEST, SNAP_FILE_MEMORY, SNAP_FILE_VMSTATE };
        char path[256], other[256];
        struct snap_image *img;

        publish(f->store, &f->ram, NULL, false, &f->m);
        for (size_t i = 0; i < ARRAY_LEN(files); i++) {
                uint8_t byte, flipped;
                struct stat st;
                int fd;

                assert_ok(snap_store_path(f->store, f->m.id, files[i], path, sizeof(path)));
                fd = open(path, O_RDWR | O_CLOEXEC);
                assert_int_equal(fstat(fd, &st), 0);
                for (off_t off = 0; off < st.st_size; off += i == 1 ? 101 : 7) {
                        assert_int_equal(pread(fd, &byte, 1, off), 1);
                        flipped = byte ^ 0x10;
                        assert_int_equal(pwrite(fd, &flipped, 1, off), 1);
                        if (i != 1) /* in memory.img there is padding: test_corrupt looks closer */
                                assert_true(snap_store_verify(f->store, f->m.id, NULL, NULL, NULL) < 0);
                        if (i == 2)
                                assert_int_equal(snap_store_read_vmstate(f->store, f->m.id, 1), -EBADMSG);
                        assert_int_equal(pwrite(fd, &byte, 1, off), 1);
                }
                assert_ok(snap_store_verify(f->store, f->m.id, NULL, NULL, NULL));
                /* one byte less, one more, gone, a directory, a FIFO in its place */
                assert_int_equal(ftruncate(fd, st.st_size - 1), 0);
                assert_int_equal(snap_store_verify(f->store, f->m.id, NULL, NULL, NULL), -EBADMSG);
                assert_int_equal(ftruncate(fd, st.st_size + 1), 0);
                assert_int_equal(snap_store_verify(f->store, f->m.id, NULL, NULL, NULL), -EBADMSG);
                (void) close(fd);
                (void) snprintf(other, sizeof(other), "%s/kept", f->dir);
                assert_int_equal(rename(path, other), 0);
                assert_int_equal(snap_store_verify(f->store, f->m.id, NULL, NULL, NULL), -EBADMSG);
                assert_int_equal(mkfifo(path, 0600), 0);
                assert_int_equal(snap_store_verify(f->store, f->m.id, NULL, NULL, NULL), -EBADMSG);
                assert_int_equal(unlink(path), 0);
                assert_int_equal(symlink(other, path), 0);
                assert_int_equal(snap_store_verify(f->store, f->m.id, NULL, NULL, NULL), -EBADMSG);
                assert_int_equal(rename(other, path), 0);
                assert_int_equal(truncate(path, st.st_size), 0);
                publish(f->store, &f->ram, NULL, false, &f->m); /* a fresh one for the next file */
        }
        /* a good image, but another snapshot's */
        publish(f->store, &f->ram, NULL, false, &f->child);
        assert_ok(snap_store_path(f->store, f->m.id, SNAP_FILE_MEMORY, path, sizeof(path)));
        assert_ok(snap_store_path(f->store, f->child.id, SNAP_FILE_MEMORY, other, sizeof(other)));
        assert_int_equal(rename(path, other), 0);
        assert_int_equal(snap_store_open_image(f->store, f->child.id, NULL, &img), -EBADMSG);
        assert_int_equal(snap_store_open_image(f->store, f->m.id, &f->m, &img), -EBADMSG);
        /* a good manifest, but another snapshot's */
        publish(f->store, &f->ram, NULL, false, &f->m);
        assert_ok(snap_store_path(f->store, f->m.id, SNAP_FILE_MANIFEST, path, sizeof(path)));
        assert_ok(snap_store_path(f->store, f->child.id, SNAP_FILE_MANIFEST, other, sizeof(other)));
        assert_int_equal(rename(path, other), 0);
        assert_int_equal(snap_store_load(f->store, f->child.id, &f->m, NULL), -EBADMSG);
}

/* After a crash: what is whole becomes durable, what is torn goes, what was durable is not even read. */
static void test_recover(void **state) {
        struct fixture *f = *state;
        struct snap_manifest *torn = calloc(1, sizeof(*torn)), *safe = calloc(1, sizeof(*safe));
        cleanup_snap_list struct snap_list l = {};
        char path[256];
        unsigned removed, left;

        publish(f->store, &f->ram, NULL, false, &f->m);
        /* what is no snapshot keeps none from being checked; its name sorts first */
        assert_ok(snap_store_path(f->store, "0000000000000001", NULL, path, sizeof(path)));
        assert_int_equal(symlink("/etc", path), 0);
        publish(f->store, &f->ram, &f->m, false, torn);
        publish(f->store, &f->ram, &f->m, true, safe);
        assert_ok(snap_store_path(f->store, torn->id, SNAP_FILE_MEMORY, path, sizeof(path)));
        assert_int_equal(truncate(path, (off_t) torn->image_bytes - 4096), 0);
        assert_ok(snap_store_recover(f->store, &removed, &left));
        assert_int_equal(removed, 1);
        assert_int_equal(left, 1);
        assert_ok(snap_store_path(f->store, "0000000000000001", NULL, path, sizeof(path)));
        assert_int_equal(unlink(path), 0); /* it is there still */
        assert_ok(snap_store_list(f->store, &l));
        assert_int_equal(l.n, 2);
        assert_true(is_durable(f, f->m.id));
        assert_true(is_durable(f, safe->id));
        assert_int_equal(snap_store_load(f->store, torn->id, torn, NULL), -ENOENT);
        assert_int_equal(count_entries(f, "tmp"), 0);
        free(torn);
        free(safe);
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
        const struct CMUnitTest tests[] = {
                T(test_publish), T(test_names), T(test_abort),          T(test_race_for_an_id), T(test_sweep),
                T(test_remove),  T(test_disks), T(test_vmstate_limits), T(test_damage),         T(test_recover),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
