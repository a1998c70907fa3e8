/* SPDX-License-Identifier: MIT */
/* Crashes of the host. The store is an XFS in a file; that file lies on another XFS, where it can be cloned
 * at one instant while the store is in use. Each clone is what the disk held at that moment: mounted (which
 * replays its log), it is the store after a crash. (A disk's volatile cache is not part of this.) */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "snap_test.h"

#define N_CRASHES 6
#define RAM_PAGES 1100u

struct disk {
        struct loop_fs outer;
        char image[160], mnt[160], crash_image[160], crash_mnt[160];
};

static bool mount_loop(const char *image, const char *mnt) {
        assert_true(mkdir(mnt, 0700) == 0 || errno == EEXIST);
        return run_quiet((const char *const[]){ "mount", "-o", "loop,nouuid", image, mnt, NULL }) == 0;
}

static bool disk_setup(struct disk *d) {
        if (!private_mounts() || !loop_fs_setup(&d->outer, "2G"))
                return false;
        (void) snprintf(d->image, sizeof(d->image), "%s/disk.img", d->outer.mnt);
        (void) snprintf(d->mnt, sizeof(d->mnt), "%s/mnt", d->outer.mnt);
        (void) snprintf(d->crash_image, sizeof(d->crash_image), "%s/crash.img", d->outer.mnt);
        (void) snprintf(d->crash_mnt, sizeof(d->crash_mnt), "%s/crash", d->outer.mnt);
        if (run_quiet((const char *const[]){ "truncate", "-s", "310M", d->image, NULL }) == 0 &&
            run_quiet((const char *const[]){ "mkfs.xfs", "-q", "-m", "reflink=1", d->image, NULL }) == 0 &&
            mount_loop(d->image, d->mnt))
                return true;
        loop_fs_teardown(&d->outer);
        return false;
}

static void disk_teardown(struct disk *d) {
        assert_int_equal(umount(d->mnt), 0);
        loop_fs_teardown(&d->outer);
}

/* The disk as it is at this instant, mounted at crash_mnt. */
static struct snap_store *crash(struct disk *d) {
        struct snap_store *s;
        bool reflinked = false;
        int src, dst;

        src = open(d->image, O_RDONLY | O_CLOEXEC);
        dst = open(d->crash_image, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(src >= 0 && dst >= 0);
        assert_ok(io_clone_file(src, dst, &reflinked));
        assert_true(reflinked); /* a copy would not be one instant */
        (void) close(src);
        (void) close(dst);
        assert_true(mount_loop(d->crash_image, d->crash_mnt));
        assert_ok(snap_store_open(d->crash_mnt, &s));
        return s;
}

static void crash_end(struct disk *d, struct snap_store *s) {
        snap_store_close(s);
        assert_int_equal(umount(d->crash_mnt), 0);
}

/* Everything that a publish with sync (or make_durable) reported is there when it returns. */
static void test_durable_when_told(void **state) {
        struct snap_manifest *m = calloc(4, sizeof(*m)), *got = calloc(1, sizeof(*got));
        struct disk d = {};
        struct snap_store *s, *after;
        struct rng r = { .state = 2 };
        struct model ram;
        bool durable;
        int fd;

        skip_unless(disk_setup(&d), "needs root, xfsprogs and loop devices");
        model_init(&ram, RAM_PAGES);
        for (uint64_t i = 0; i < ram.n_pages; i++)
                page_fill(&r, model_page(&ram, i));
        assert_ok(snap_store_open(d.mnt, &s));
        for (unsigned i = 0; i < 4; i++) {
                bool late = i == 2; /* first without sync, then made durable */

                page_fill_small(i, model_page(&ram, i));
                publish(s, &ram, i ? &m[i - 1] : NULL, !late, &m[i]);
                if (late)
                        assert_ok(snap_store_make_durable(s, m[i].id));
                after = crash(&d);
                assert_ok(snap_store_load(after, m[i].id, got, &durable));
                assert_memory_equal(got, &m[i], sizeof(*got));
                assert_true(durable);
                assert_ok(snap_store_verify(after, m[i].id, NULL, NULL, NULL));
                assert_ok(snap_store_open_file(after, m[i].id, SNAP_FILE_MEMORY, &fd));
                check_image(fd, &ram);
                (void) close(fd);
                crash_end(&d, after);
        }
        snap_store_close(s);
        disk_teardown(&d);
        model_clear(&ram);
        free(m);
        free(got);
}

struct publisher {
        struct snap_store *store;
        atomic_bool stop;
        sem_t published; /* once per snapshot, and WARM_UP times at the end */
        int error;       /* to be read after the thread's end */
};

#define WARM_UP 3 /* snapshots before the first crash */

/* Publishes children and removes old ones, as fast as it can, with sync and without. Uses no cmocka
 * assertions: they belong to the main thread. */
static void *publish_on(void *arg) {
        struct snap_writer_params params = { .ram_bytes = RAM_PAGES * SNAP_PAGE_SIZE, .codec = SNAP_CODEC_LZ4 };
        struct model ram = { .n_pages = RAM_PAGES };
        struct snap_manifest *m = calloc(1, sizeof(*m));
        uint8_t page[SNAP_PAGE_SIZE];
        struct publisher *p = arg;
        id_str ids[8] = {};

        for (unsigned i = 0; !atomic_load(&p->stop) && p->error == 0; i++) {
                struct snap_txn *t = NULL;
                struct snap_writer *w = NULL;
                struct snap_writer_stats stats;
                int fd = -1, r;
                id_str id;

                id_new(id);
                manifest_fill(m, &ram);
                r = snap_txn_begin(p->store, id, &t);
                if (r == 0)
                        r = snap_txn_create_image(t, &fd);
                if (r == 0)
                        r = snap_writer_new(fd, -1, &params, &w);
                for (uint64_t k = 0; r == 0 && k < 64; k++) {
                        page_fill_small(i + k, page);
                        r = snap_writer_put(w, k * 17, page, 1);
                }
                if (r == 0)
                        r = snap_writer_finish(w, &stats);
                if (r == 0)
                        r = snap_txn_set_vmstate(t, page, sizeof(page));
                if (r == 0)
                        r = snap_txn_publish(t, m, i % 3 != 0);
                if (r == 0 && ids[i % 8][0])
                        r = snap_store_remove(p->store, ids[i % 8]);
                memcpy(ids[i % 8], id, sizeof(id));
                snap_writer_free(w);
                snap_txn_free(t);
                (void) close_fd(fd);
                p->error = r;
                (void) sem_post(&p->published);
        }
        for (unsigned i = 0; i < WARM_UP; i++)
                (void) sem_post(&p->published);
        free(m);
        return NULL;
}

/* Crashes at any moment: what is marked durable is sound, and recovery leaves sound snapshots only. */
static void test_crash_anywhere(void **state) {
        struct publisher p = {};
        struct disk d = {};
        unsigned n_durable = 0;
        pthread_t thread;

        skip_unless(disk_setup(&d), "needs root, xfsprogs and loop devices");
        assert_ok(snap_store_open(d.mnt, &p.store));
        assert_int_equal(sem_init(&p.published, 0, 0), 0);
        assert_int_equal(pthread_create(&thread, NULL, publish_on, &p), 0);
        for (unsigned i = 0; i < WARM_UP; i++)
                while (sem_wait(&p.published) < 0)
                        assert_int_equal(errno, EINTR);
        for (unsigned i = 0; i < N_CRASHES; i++) {
                struct snap_store *s = crash(&d);
                cleanup_snap_list struct snap_list l = {}, left = {};
                struct snap_manifest *m = malloc(sizeof(*m));
                unsigned removed;

                assert_ok(snap_store_list(s, &l));
                for (size_t k = 0; k < l.n; k++) {
                        bool durable = false;
                        int r = snap_store_load(s, l.ids[k], m, &durable);

                        if (r < 0 || !durable)
                                continue;
                        n_durable++;
                        assert_ok(snap_store_verify(s, l.ids[k], NULL, NULL, NULL));
                }
                assert_ok(snap_store_sweep(s, NULL, NULL));
                assert_ok(snap_store_recover(s, &removed, NULL));
                assert_ok(snap_store_list(s, &left));
                assert_int_equal(left.n + removed, l.n);
                for (size_t k = 0; k < left.n; k++) {
                        bool durable = false;

                        assert_ok(snap_store_load(s, left.ids[k], m, &durable));
                        assert_true(durable);
                        assert_ok(snap_store_verify(s, left.ids[k], NULL, NULL, NULL));
                }
                free(m);
                crash_end(&d, s);
        }
        atomic_store(&p.stop, true);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(p.error, 0);
        (void) sem_destroy(&p.published);
        assert_true(n_durable > 0);
        snap_store_close(p.store);
        disk_teardown(&d);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_durable_when_told),
                cmocka_unit_test(test_crash_anywhere),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
