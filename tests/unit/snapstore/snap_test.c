/* SPDX-License-Identifier: MIT */
#include "snap_test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"

uint64_t rng_next(struct rng *r) {
        /* splitmix64 */
        uint64_t z = (r->state += 0x9e3779b97f4a7c15ull);

        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
}

void page_fill(struct rng *r, void *page) {
        uint64_t *w = page, tag = rng_next(r);

        memset(page, 0, SNAP_PAGE_SIZE);
        switch (tag % 5) {
        case 0: /* all zero */
                break;
        case 1: /* not zero in one byte only, anywhere */
                ((uint8_t *) page)[rng_below(r, SNAP_PAGE_SIZE)] = 1 + (uint8_t) (tag >> 8) % 255;
                break;
        case 2: /* does not compress */
                for (size_t i = 0; i < SNAP_PAGE_SIZE / sizeof(*w); i++)
                        w[i] = rng_next(r);
                break;
        default: /* does */
                for (size_t i = 0; i < SNAP_PAGE_SIZE / sizeof(*w); i++)
                        w[i] = i % 8 < 5 ? tag : i;
        }
}

void page_fill_small(uint64_t tag, void *page) {
        uint64_t *w = page;

        memset(page, 0, SNAP_PAGE_SIZE);
        w[0] = tag + 1;
        w[SNAP_PAGE_SIZE / sizeof(*w) - 1] = tag * 0x9e3779b97f4a7c15ull;
}

void model_init(struct model *m, uint64_t n_pages) {
        m->n_pages = n_pages;
        m->ram = calloc(n_pages, SNAP_PAGE_SIZE);
        assert_non_null(m->ram);
}

void model_clear(struct model *m) {
        free(m->ram);
        m->ram = NULL;
}

int temp_fd(void) {
        int fd = memfd_create("snapstore-test", MFD_CLOEXEC);

        assert_true(fd >= 0);
        return fd;
}

struct snap_writer *writer_start(int fd, int parent_fd, const struct model *m, enum snap_codec codec) {
        struct snap_writer_params p = { .ram_bytes = m->n_pages * SNAP_PAGE_SIZE, .codec = codec };
        struct snap_writer *w;

        assert_ok(snap_writer_new(fd, parent_fd, &p, &w));
        return w;
}

void write_random(struct rng *r, struct model *m, struct snap_writer *w, unsigned n_runs) {
        for (unsigned i = 0; i < 2 * n_runs; i++) {
                uint64_t first = rng_below(r, m->n_pages);
                uint64_t n = 1 + rng_below(r, MIN_OF(40u, m->n_pages - first));

                if (i % 2) {
                        memset(model_page(m, first), 0, n * SNAP_PAGE_SIZE);
                        assert_ok(snap_writer_put_zero(w, first, n));
                        continue;
                }
                for (uint64_t k = 0; k < n; k++)
                        page_fill(r, model_page(m, first + k));
                assert_ok(snap_writer_put(w, first, model_page(m, first), n));
        }
}

int image_of(const struct model *m, enum snap_codec codec) {
        cleanup_snap_writer struct snap_writer *w = NULL;
        struct snap_writer_stats stats;
        int fd = temp_fd();

        w = writer_start(fd, -1, m, codec);
        assert_ok(snap_writer_put(w, 0, m->ram, m->n_pages));
        assert_ok(snap_writer_finish(w, &stats));
        return fd;
}

/* As a pager: region by region, each live frame once, each live slot to its page. */
static void check_by_frames(struct snap_image *img, struct snap_decoder *d, const struct model *m) {
        uint8_t *ram = calloc(m->n_pages, SNAP_PAGE_SIZE), *buf = malloc(SNAP_FRAME_BYTES);
        uint64_t n_pages = 0, n_frames = 0, n_bytes = 0;

        for (uint64_t region = 0; snap_image_next_region(img, region, &region) == 0; region++) {
                struct snap_loc locs[SNAP_REGION_PAGES];
                unsigned n;

                assert_ok(snap_image_region_frames(img, region, locs, &n));
                for (unsigned i = 0; i < n; i++) {
                        struct snap_frame f;

                        assert_ok(snap_image_decode(img, d, &locs[i], buf, &f));
                        assert_true(f.live_mask >> locs[i].slot & 1);
                        n_frames++;
                        n_bytes += locs[i].frame_len;
                        for (unsigned k = 0; k < f.n_pages; k++) {
                                if (!(f.live_mask >> k & 1))
                                        continue;
                                memcpy(ram + f.page[k] * SNAP_PAGE_SIZE, buf + (size_t) k * SNAP_PAGE_SIZE, SNAP_PAGE_SIZE);
                                n_pages++;
                        }
                }
        }
        assert_memory_equal(ram, m->ram, m->n_pages * SNAP_PAGE_SIZE);
        assert_int_equal(n_pages, snap_image_info(img)->n_stored_pages);
        assert_int_equal(n_frames, snap_image_info(img)->live_frames);
        assert_int_equal(n_bytes, snap_image_info(img)->live_bytes);
        free(ram);
        free(buf);
}

void check_image(int fd, const struct model *m) {
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        cleanup_snap_image struct snap_image *img = NULL;
        uint64_t n_zero = 0, frames;
        uint8_t page[SNAP_PAGE_SIZE];

        assert_ok(snap_decoder_new(&d));
        assert_ok(snap_image_open(fd, &img));
        assert_int_equal(snap_image_info(img)->ram_bytes, m->n_pages * SNAP_PAGE_SIZE);
        for (uint64_t i = 0; i < m->n_pages; i++) {
                uint64_t run;

                assert_ok(snap_image_read_page(img, d, i, page));
                if (memcmp(page, model_page(m, i), SNAP_PAGE_SIZE) != 0)
                        fail_msg("page %lu differs", (unsigned long) i);
                assert_ok(snap_image_zero_run(img, i, 1, &run));
                assert_int_equal(run, snap_page_is_zero(model_page(m, i)));
                n_zero += run;
        }
        assert_int_equal(n_zero, snap_image_info(img)->n_zero_pages);
        check_by_frames(img, d, m);
        assert_ok(snap_image_verify(img, NULL, NULL, &frames));
        assert_int_equal(frames, snap_image_info(img)->live_frames);
}

void temp_dir(char *buf, size_t size) {
        const char *base = getenv("TMPDIR");

        assert_true((size_t) snprintf(buf, size, "%s/snapstore-test-XXXXXX", base ? base : "/tmp") < size);
        assert_non_null(mkdtemp(buf));
}

void temp_dir_remove(const char *path) {
        assert_ok(io_remove_tree(AT_FDCWD, path));
}

void manifest_fill(struct snap_manifest *m, const struct model *ram) {
        memset(m, 0, sizeof(*m));
        (void) strcpy(m->tag, "warm");
        (void) strcpy(m->source, "web-1");
        (void) strcpy(m->vmm, "qemu");
        (void) strcpy(m->vmm_version, "7.2.22 (Debian 1:7.2+dfsg)");
        (void) strcpy(m->accel, "tcg");
        (void) strcpy(m->cpu, "max");
        (void) strcpy(m->net, "none");
        m->created_ns = 1700000000000000000ll;
        m->vcpus = 2;
        m->mem_bytes = ram->n_pages * SNAP_PAGE_SIZE;
        m->dirty_bytes = 3 * SNAP_PAGE_SIZE;
}

void publish(struct snap_store *s, const struct model *ram, const struct snap_manifest *parent, bool sync,
             struct snap_manifest *ret) {
        cleanup_snap_writer struct snap_writer *w = NULL;
        cleanup_snap_txn struct snap_txn *t = NULL;
        cleanup_fd int fd = -1, parent_fd = -1;
        struct snap_writer_stats stats;
        char state[20000];
        id_str id;

        id_new(id);
        for (size_t i = 0; i < sizeof(state); i++)
                state[i] = (char) ("device state"[i % 12] + id[i % ID_LEN]);
        if (parent)
                assert_ok(snap_store_open_file(s, parent->id, SNAP_FILE_MEMORY, &parent_fd));
        assert_ok(snap_txn_begin(s, id, &t));
        assert_ok(snap_txn_create_image(t, &fd));
        w = writer_start(fd, parent_fd, ram, SNAP_CODEC_LZ4);
        assert_ok(snap_writer_put(w, 0, ram->ram, ram->n_pages));
        assert_ok(snap_writer_finish(w, &stats));
        snap_txn_start_writeback(t);
        assert_ok(snap_txn_set_vmstate(t, state, sizeof(state)));
        manifest_fill(ret, ram);
        if (parent)
                snap_manifest_set_parent(ret, parent);
        assert_ok(snap_txn_publish(t, ret, sync));
        assert_string_equal(ret->id, id);
}

void skip_because(const char *reason) {
        if (getenv("FORKD_TEST_NO_SKIP"))
                fail_msg("would skip: %s", reason);
        print_message("skipped: %s\n", reason);
}

extern char **environ;

int run_quiet(const char *const argv[]) {
        posix_spawn_file_actions_t fa;
        int status, r;
        pid_t pid;

        posix_spawn_file_actions_init(&fa);
        posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
        posix_spawn_file_actions_addopen(&fa, 1, "/dev/null", O_WRONLY, 0);
        posix_spawn_file_actions_addopen(&fa, 2, "/dev/null", O_WRONLY, 0);
        r = posix_spawnp(&pid, argv[0], &fa, NULL, (char *const *) argv, environ);
        posix_spawn_file_actions_destroy(&fa);
        if (r != 0)
                return -1;
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool private_mounts(void) {
        return unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

bool loop_fs_setup(struct loop_fs *fs, const char *size) {
        *fs = (struct loop_fs){};
        temp_dir(fs->dir, sizeof(fs->dir));
        (void) snprintf(fs->image, sizeof(fs->image), "%s/xfs.img", fs->dir);
        (void) snprintf(fs->mnt, sizeof(fs->mnt), "%s/mnt", fs->dir);
        assert_int_equal(mkdir(fs->mnt, 0700), 0);
        fs->mounted = run_quiet((const char *const[]){ "truncate", "-s", size, fs->image, NULL }) == 0 &&
                      run_quiet((const char *const[]){ "mkfs.xfs", "-q", "-m", "reflink=1", fs->image, NULL }) == 0 &&
                      run_quiet((const char *const[]){ "mount", "-o", "loop", fs->image, fs->mnt, NULL }) == 0;
        if (!fs->mounted)
                temp_dir_remove(fs->dir);
        return fs->mounted;
}

void loop_fs_remount(struct loop_fs *fs) {
        assert_int_equal(umount(fs->mnt), 0);
        assert_int_equal(run_quiet((const char *const[]){ "mount", "-o", "loop", fs->image, fs->mnt, NULL }), 0);
}

void loop_fs_teardown(struct loop_fs *fs) {
        if (!fs->mounted)
                return;
        assert_int_equal(umount(fs->mnt), 0);
        fs->mounted = false;
        temp_dir_remove(fs->dir);
}
