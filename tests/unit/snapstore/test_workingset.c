/* SPDX-License-Identifier: MIT */
/* Working sets: what the file may say, merging against a model, and the file's life in the store. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/io.h"
#include "snap_test.h"

#define RAM 4096u

static const uint8_t uuid[SNAP_UUID_LEN] = "one image's uuid";
static const uint8_t other[SNAP_UUID_LEN] = "another's uuid..";

#define SET(...)                                                                               \
        {                                                                                      \
                .run = (struct snap_run[]){ __VA_ARGS__ },                                     \
                .n_runs = sizeof((struct snap_run[]){ __VA_ARGS__ }) / sizeof(struct snap_run) \
        }

static void count(struct snap_workingset *w) {
        w->n_pages = 0;
        for (size_t i = 0; i < w->n_runs; i++)
                w->n_pages += w->run[i].n;
}

static void assert_same(const struct snap_workingset *a, const struct snap_workingset *b) {
        assert_int_equal(a->n_runs, b->n_runs);
        assert_int_equal(a->n_pages, b->n_pages);
        for (size_t i = 0; i < a->n_runs; i++) {
                assert_int_equal(a->run[i].first, b->run[i].first);
                assert_int_equal(a->run[i].n, b->run[i].n);
        }
}

static void round_trip(struct snap_workingset *w, uint64_t ram_pages) {
        cleanup_snap_workingset struct snap_workingset got = {};
        cleanup_free void *data = NULL;
        cleanup_fd int fd = temp_fd();
        size_t len;

        count(w);
        assert_ok(snap_workingset_encode(w, uuid, ram_pages, &data, &len));
        assert_ok(io_pwrite_full(fd, data, len, 0));
        assert_ok(snap_workingset_read(fd, uuid, ram_pages, &got));
        assert_same(&got, w);
        assert_int_equal(got.restores, w->restores);
}

static void test_round_trip(void **state) {
        struct snap_workingset w = SET({ 100, 16 }, { 0, 1 }, { 4095, 1 }, { 116, 4 }), empty = {}, all = SET({ 0, RAM });
        uint64_t max = SNAP_MAX_RAM / SNAP_PAGE_SIZE;
        struct snap_workingset huge = SET({ max - 1, 1 }, { 0, max - 1 });

        w.restores = 7;
        round_trip(&w, RAM);
        round_trip(&empty, RAM);
        round_trip(&all, RAM);
        round_trip(&huge, max);
}

static void test_most_runs(void **state) {
        uint64_t ram = 4ull * SNAP_WORKINGSET_MAX_RUNS;
        struct snap_workingset w = { .n_runs = SNAP_WORKINGSET_MAX_RUNS };
        cleanup_free void *data = NULL;
        size_t len;

        w.run = calloc(w.n_runs + 1, sizeof(*w.run));
        assert_non_null(w.run);
        for (size_t i = 0; i <= w.n_runs; i++)
                w.run[i] = (struct snap_run){ ram - 2 - 2 * i, 1 };
        round_trip(&w, ram);
        w.n_runs++;
        count(&w);
        assert_int_equal(snap_workingset_encode(&w, uuid, ram, &data, &len), -EINVAL);
        snap_workingset_clear(&w);
}

/* What must not be written. */
static void test_encode_refuses(void **state) {
        struct snap_workingset bad[] = {
                SET({ 5, 0 }),                         /* no page */
                SET({ RAM, 1 }),                       /* outside */
                SET({ RAM - 1, 2 }),                   /* over the end */
                SET({ UINT64_MAX, 2 }),                /* wraps */
                SET({ 10, 4 }, { 13, 1 }),             /* twice */
                SET({ 10, 4 }, { 20, 1 }, { 10, 4 }),  /* twice, the same */
                SET({ 10, 1 }, { 0, 20 }),             /* one inside the other */
                SET({ 0, RAM }, { 5, UINT64_MAX - 2 }) /* a sum that wraps */
        };
        struct snap_workingset wrong_sum = SET({ 1, 1 });
        void *data = NULL;
        size_t len;

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                count(&bad[i]);
                assert_int_equal(snap_workingset_encode(&bad[i], uuid, RAM, &data, &len), -EINVAL);
        }
        assert_int_equal(snap_workingset_encode(&wrong_sum, uuid, RAM, &data, &len), -EINVAL);
        wrong_sum.n_pages = 1;
        assert_int_equal(snap_workingset_encode(&wrong_sum, uuid, 0, &data, &len), -EINVAL);
        assert_int_equal(snap_workingset_encode(&wrong_sum, uuid, SNAP_MAX_RAM, &data, &len), -EINVAL);
        assert_null(data);
}

/* ---- what a file may not say ---- */

struct file {
        uint8_t data[48 + 3 * 8 + 8];
        size_t len;
};

static void sum(struct file *f) {
        uint64_t x = XXH3_64bits(f->data, f->len - 8);

        memcpy(f->data + f->len - 8, &x, 8);
}

static struct file good_file(void) {
        struct snap_workingset w = SET({ 100, 16 }, { 5, 1 }, { 200, 2 });
        struct file f = {};
        void *data;

        count(&w);
        assert_ok(snap_workingset_encode(&w, uuid, RAM, &data, &f.len));
        assert_int_equal(f.len, sizeof(f.data));
        memcpy(f.data, data, f.len);
        free(data);
        return f;
}

static int decode(const struct file *f) {
        struct snap_workingset w = { .n_runs = 4711 };
        int r = snap_workingset_decode(f->data, f->len, uuid, RAM, &w);

        if (r == 0)
                snap_workingset_clear(&w);
        else
                assert_int_equal(w.n_runs, 4711); /* untouched */
        return r;
}

static void test_each_bit_counts(void **state) {
        struct file f = good_file();

        assert_int_equal(decode(&f), 0);
        for (size_t i = 0; i < f.len * 8; i++) {
                f.data[i / 8] ^= (uint8_t) (1u << i % 8);
                assert_int_equal(decode(&f), -EBADMSG);
                f.data[i / 8] ^= (uint8_t) (1u << i % 8);
        }
}

static void test_torn(void **state) {
        struct file f = good_file();

        for (size_t len = 0; len < f.len; len++) {
                struct file torn = f;

                torn.len = len;
                assert_int_equal(decode(&torn), -EBADMSG);
                if (len < 56)
                        continue;
                sum(&torn); /* also if the sum is right: the number of runs is not */
                assert_int_equal(decode(&torn), -EBADMSG);
        }
}

static int with_u32(size_t offset, uint32_t v) {
        struct file f = good_file();

        memcpy(f.data + offset, &v, sizeof(v));
        sum(&f);
        return decode(&f);
}

static void test_fields(void **state) {
        assert_int_equal(with_u32(0, 0x12345678), -EBADMSG);
        assert_int_equal(with_u32(8, 2), -EPROTONOSUPPORT);
        assert_int_equal(with_u32(12, UINT32_MAX), 0); /* restores */
        assert_int_equal(with_u32(16, 1), -ESTALE);    /* uuid */
        assert_int_equal(with_u32(32, RAM + 1), -ESTALE);
        assert_int_equal(with_u32(32, RAM - 1), -ESTALE);
        assert_int_equal(with_u32(40, 2), -EBADMSG);
        assert_int_equal(with_u32(40, 4), -EBADMSG);
        assert_int_equal(with_u32(40, UINT32_MAX), -EBADMSG);
        assert_int_equal(with_u32(40, (UINT32_MAX / 8) + 4), -EBADMSG); /* a length that wraps in 32 bits */
        assert_int_equal(with_u32(44, 1), -EBADMSG);
        assert_int_equal(with_u32(48, RAM - 16), 0); /* first run: up to the end */
        assert_int_equal(with_u32(48, RAM - 15), -EBADMSG);
        assert_int_equal(with_u32(48, UINT32_MAX), -EBADMSG);
        assert_int_equal(with_u32(48, 190), -EBADMSG); /* reaches into the third */
        assert_int_equal(with_u32(48, 184), 0);
        assert_int_equal(with_u32(52, 0), -EBADMSG);
        assert_int_equal(with_u32(52, UINT32_MAX), -EBADMSG);
        assert_int_equal(with_u32(56, 101), -EBADMSG);
}

static void test_other_image(void **state) {
        struct file f = good_file();
        struct snap_workingset w;

        assert_int_equal(snap_workingset_decode(f.data, f.len, other, RAM, &w), -ESTALE);
        assert_int_equal(snap_workingset_decode(f.data, f.len, uuid, RAM * 2, &w), -ESTALE);
}

static void test_read_odd_files(void **state) {
        cleanup_fd int fd = temp_fd(), null = open("/dev/zero", O_RDONLY | O_CLOEXEC), dir = open("/", O_RDONLY | O_CLOEXEC);
        struct snap_workingset w;
        int p[2];

        assert_int_equal(snap_workingset_read(fd, uuid, RAM, &w), -EBADMSG);
        assert_int_equal(ftruncate(fd, 1ll << 40), 0); /* is not read to find that out */
        assert_int_equal(snap_workingset_read(fd, uuid, RAM, &w), -EBADMSG);
        assert_int_equal(snap_workingset_read(null, uuid, RAM, &w), -EBADMSG);
        assert_int_equal(snap_workingset_read(dir, uuid, RAM, &w), -EBADMSG);
        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        assert_int_equal(snap_workingset_read(p[0], uuid, RAM, &w), -EBADMSG); /* and does not wait */
        (void) close(p[0]);
        (void) close(p[1]);
        assert_int_equal(snap_workingset_read(-1, uuid, RAM, &w), -EBADF);
}

/* ---- merging ---- */

static void test_merge_first(void **state) {
        const struct snap_run rec[] = { { 50, 2 }, { 52, 3 }, { 10, 1 }, { 51, 2 }, { 9, 3 }, { 60, 1 } };
        struct snap_workingset want = SET({ 50, 5 }, { 10, 1 }, { 9, 1 }, { 11, 1 }, { 60, 1 });
        cleanup_snap_workingset struct snap_workingset w = {};
        uint64_t n_new;

        count(&want);
        assert_ok(snap_workingset_merge(NULL, rec, ARRAY_LEN(rec), RAM, RAM, &w, &n_new));
        assert_same(&w, &want);
        assert_int_equal(w.restores, 1);
        assert_int_equal(n_new, 9);
}

static void test_merge_keeps_order(void **state) {
        struct snap_workingset old = SET({ 50, 5 }, { 10, 1 }), want = SET({ 50, 5 }, { 10, 2 }, { 0, 1 }, { 55, 1 });
        const struct snap_run rec[] = { { 11, 1 }, { 50, 1 }, { 0, 1 }, { 51, 5 } };
        cleanup_snap_workingset struct snap_workingset w = {}, again = {};
        uint64_t n_new;

        count(&old);
        count(&want);
        old.restores = 4;
        assert_ok(snap_workingset_merge(&old, rec, ARRAY_LEN(rec), RAM, RAM, &w, &n_new));
        assert_same(&w, &want);
        assert_int_equal(w.restores, 5);
        assert_int_equal(n_new, 3);
        assert_ok(snap_workingset_merge(&w, rec, ARRAY_LEN(rec), RAM, RAM, &again, &n_new));
        assert_same(&again, &want);
        assert_int_equal(n_new, 0);
        snap_workingset_clear(&again);
        assert_ok(snap_workingset_merge(&w, NULL, 0, RAM, RAM, &again, NULL));
        assert_same(&again, &want);
}

static void test_merge_cuts(void **state) {
        struct snap_workingset old = SET({ 50, 5 }), want = SET({ 50, 5 }, { 0, 2 }), want_old = SET({ 50, 3 });
        const struct snap_run rec[] = { { 0, 10 }, { 20, 1 } };
        cleanup_snap_workingset struct snap_workingset w = {}, cut = {};
        uint64_t n_new;

        count(&old);
        count(&want);
        count(&want_old);
        assert_ok(snap_workingset_merge(&old, rec, ARRAY_LEN(rec), RAM, 7, &w, &n_new));
        assert_same(&w, &want);
        assert_int_equal(n_new, 2);
        assert_ok(snap_workingset_merge(&old, rec, ARRAY_LEN(rec), RAM, 3, &cut, &n_new)); /* the limit became smaller */
        assert_same(&cut, &want_old);
        assert_int_equal(n_new, 0);
}

static void test_merge_most_runs(void **state) {
        uint64_t ram = 4ull * SNAP_WORKINGSET_MAX_RUNS;
        size_t n = SNAP_WORKINGSET_MAX_RUNS + 10;
        struct snap_run *rec = calloc(n, sizeof(*rec));
        cleanup_snap_workingset struct snap_workingset w = {};

        assert_non_null(rec);
        for (size_t i = 0; i < n; i++)
                rec[i] = (struct snap_run){ 2 * i, 1 };
        assert_ok(snap_workingset_merge(NULL, rec, n, ram, ram, &w, NULL));
        assert_int_equal(w.n_runs, SNAP_WORKINGSET_MAX_RUNS);
        assert_int_equal(w.n_pages, SNAP_WORKINGSET_MAX_RUNS);
        round_trip(&w, ram);
        free(rec);
}

static void test_merge_refuses(void **state) {
        const struct snap_run bad[][2] = {
                { { 0, 0 }, { 1, 1 } },          { { RAM, 1 }, { 1, 1 } }, { { RAM - 1, 2 }, { 1, 1 } },
                { { UINT64_MAX, 1 }, { 1, 1 } }, { { 0, RAM }, { 0, 1 } }, { { 1, UINT64_MAX }, { 1, 1 } },
        };
        struct snap_workingset w = {}, old = SET({ RAM, 1 });

        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                assert_int_equal(snap_workingset_merge(NULL, bad[i], 2, RAM, RAM, &w, NULL), -EINVAL);
        assert_int_equal(snap_workingset_merge(&old, NULL, 0, RAM, RAM, &w, NULL), -EINVAL);
        assert_int_equal(snap_workingset_merge(NULL, NULL, 0, 0, 1, &w, NULL), -EINVAL);
        assert_int_equal(snap_workingset_merge(NULL, NULL, 0, UINT64_MAX, 1, &w, NULL), -EINVAL);
        assert_null(w.run);
}

/* Random recordings, one after the other, against the order kept page by page. */
static void test_merge_random(void **state) {
        struct rng rng = { 4711 };

        for (unsigned round = 0; round < 200; round++) {
                uint64_t ram = 1 + rng_below(&rng, 700), max = 1 + rng_below(&rng, ram), n_model = 0;
                cleanup_snap_workingset struct snap_workingset w = {};
                uint64_t model[700];
                bool in[700] = {};

                for (unsigned k = 0; k < 4; k++) {
                        struct snap_workingset next = {};
                        struct snap_run rec[32];
                        uint64_t left = ram, n_before = n_model, n_new, at = 0;
                        size_t n = 0;

                        for (; n < ARRAY_LEN(rec) && left > 0; n++) {
                                rec[n].first = rng_below(&rng, ram);
                                rec[n].n = 1 + rng_below(&rng, MIN_OF(MIN_OF(left, 20u), ram - rec[n].first));
                                left -= rec[n].n;
                                for (uint64_t p = rec[n].first; p < rec[n].first + rec[n].n; p++)
                                        if (!in[p] && n_model < max) {
                                                in[p] = true;
                                                model[n_model++] = p;
                                        }
                        }
                        assert_ok(snap_workingset_merge(k ? &w : NULL, rec, n, ram, max, &next, &n_new));
                        snap_workingset_clear(&w);
                        w = next;
                        assert_int_equal(n_new, n_model - n_before);
                        assert_int_equal(w.n_pages, n_model);
                        assert_int_equal(w.restores, k + 1);
                        for (size_t i = 0; i < w.n_runs; i++)
                                for (uint64_t p = 0; p < w.run[i].n; p++)
                                        assert_int_equal(model[at++], w.run[i].first + p);
                        assert_int_equal(at, n_model);
                        round_trip(&w, ram);
                }
        }
}

static void test_max_pages(void **state) {
        assert_int_equal(snap_workingset_max_pages(1), 1);
        assert_int_equal(snap_workingset_max_pages(4096), 4096);   /* 16 MiB */
        assert_int_equal(snap_workingset_max_pages(8192), 4096);   /* 32 MiB */
        assert_int_equal(snap_workingset_max_pages(65536), 16384); /* 256 MiB */
}

/* ---- in the store ---- */

struct fixture {
        char dir[128];
        struct snap_store *store;
        struct model ram;
        struct snap_manifest m;
};

static int setup(void **state) {
        struct fixture *f = calloc(1, sizeof(*f));

        assert_non_null(f);
        temp_dir(f->dir, sizeof(f->dir));
        assert_ok(snap_store_open(f->dir, &f->store));
        model_init(&f->ram, 6000);
        page_fill_small(1, model_page(&f->ram, 7));
        publish(f->store, &f->ram, NULL, false, &f->m);
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

static unsigned entries_in_tmp(struct fixture *f) {
        char path[256];
        unsigned n = 0;
        DIR *d;

        (void) snprintf(path, sizeof(path), "%s/tmp", f->dir);
        d = opendir(path);
        assert_non_null(d);
        for (struct dirent *de; (de = readdir(d));)
                n += de->d_name[0] != '.';
        (void) closedir(d);
        return n;
}

static void file_path(struct fixture *f, char *buf, size_t size) {
        assert_ok(snap_store_path(f->store, f->m.id, SNAP_FILE_WORKINGSET, buf, size));
}

static void overwrite(struct fixture *f, const void *data, size_t len) {
        char path[256];

        file_path(f, path, sizeof(path));
        assert_ok(io_write_file_atomic(AT_FDCWD, path, data, len, 0600, false));
}

static void test_learn(void **state) {
        struct fixture *f = *state;
        const struct snap_run first[] = { { 300, 16 }, { 0, 4 } }, second[] = { { 0, 2 }, { 400, 1 } };
        struct snap_workingset want = SET({ 300, 16 }, { 0, 4 }, { 400, 1 });
        cleanup_snap_workingset struct snap_workingset w = {};
        cleanup_fd int before = -1;
        struct stat a, b;
        char path[256];
        uint64_t n_new;

        assert_int_equal(snap_store_read_workingset(f->store, &f->m, &w), -ENODATA);
        assert_ok(snap_store_learn_workingset(f->store, f->m.id, first, 2, &n_new));
        assert_int_equal(n_new, 20);
        assert_ok(snap_store_open_file(f->store, f->m.id, SNAP_FILE_WORKINGSET, &before));
        assert_ok(snap_store_learn_workingset(f->store, f->m.id, second, 2, &n_new));
        assert_int_equal(n_new, 1);
        count(&want);
        assert_ok(snap_store_read_workingset(f->store, &f->m, &w));
        assert_same(&w, &want);
        assert_int_equal(w.restores, 2);
        snap_workingset_clear(&w);

        /* Who had it open goes on reading what it was. */
        assert_ok(snap_workingset_read(before, f->m.image_uuid, 6000, &w));
        assert_int_equal(w.n_pages, 20);

        /* Nothing new: not rewritten. */
        file_path(f, path, sizeof(path));
        assert_int_equal(stat(path, &a), 0);
        assert_ok(snap_store_learn_workingset(f->store, f->m.id, second, 2, &n_new));
        assert_int_equal(n_new, 0);
        assert_ok(snap_store_learn_workingset(f->store, f->m.id, NULL, 0, NULL));
        assert_int_equal(stat(path, &b), 0);
        assert_int_equal(a.st_ino, b.st_ino);
        assert_int_equal(b.st_mode & 0777, 0600);
        assert_int_equal(entries_in_tmp(f), 0);
}

/* A stray page is no news; enough of them are. */
static void test_little_news(void **state) {
        struct fixture *f = *state;
        const struct snap_run first[] = { { 0, 640 } }, stray[] = { { 700, 9 } }, news[] = { { 700, 10 } };
        cleanup_snap_workingset struct snap_workingset w = {};
        uint64_t n_new;

        assert_ok(snap_store_learn_workingset(f->store, f->m.id, first, 1, NULL));
        assert_ok(snap_store_learn_workingset(f->store, f->m.id, stray, 1, &n_new));
        assert_int_equal(n_new, 0);
        assert_ok(snap_store_learn_workingset(f->store, f->m.id, news, 1, &n_new));
        assert_int_equal(n_new, 10);
        assert_ok(snap_store_read_workingset(f->store, &f->m, &w));
        assert_int_equal(w.n_pages, 650);
}

/* A child in the making, complete but for the publishing. */
static struct snap_txn *begin_child(struct fixture *f, const struct model *ram, struct snap_manifest *ret) {
        cleanup_snap_writer struct snap_writer *w = NULL;
        struct snap_writer_stats stats;
        cleanup_fd int fd = -1;
        struct snap_txn *t;
        id_str id;

        id_new(id);
        assert_ok(snap_txn_begin(f->store, id, &t));
        assert_ok(snap_txn_create_image(t, &fd));
        w = writer_start(fd, -1, ram, SNAP_CODEC_LZ4);
        assert_ok(snap_writer_put(w, 0, ram->ram, ram->n_pages));
        assert_ok(snap_writer_finish(w, &stats));
        manifest_fill(ret, ram);
        return t;
}

static void publish_child(struct fixture *f, struct snap_txn *t, struct snap_manifest *m) {
        assert_ok(snap_txn_publish(t, m, true));
        snap_txn_free(t);
        assert_ok(snap_store_verify(f->store, m->id, NULL, NULL, NULL));
}

static void test_inherit(void **state) {
        struct fixture *f = *state;
        const struct snap_run first[] = { { 300, 16 } }, since[] = { { 310, 10 }, { 7, 1 } };
        struct snap_workingset want = SET({ 300, 20 }, { 7, 1 });
        cleanup_snap_workingset struct snap_workingset w = {};
        cleanup_free struct snap_manifest *m = calloc(1, sizeof(*m));
        struct snap_txn *t;

        count(&want);
        assert_non_null(m);
        assert_ok(snap_store_learn_workingset(f->store, f->m.id, first, 1, NULL));
        t = begin_child(f, &f->ram, m);
        assert_ok(snap_txn_inherit_workingset(t, f->m.id, since, 2));
        publish_child(f, t, m);
        assert_ok(snap_store_read_workingset(f->store, m, &w));
        assert_same(&w, &want);
        assert_int_equal(w.restores, 0);
        snap_workingset_clear(&w);
        assert_ok(snap_store_read_workingset(f->store, &f->m, &w)); /* the parent's is what it was */
        assert_int_equal(w.n_pages, 16);
}

/* From nobody, from a useless file, from another RAM size: what was recorded since is all there is. */
static void test_inherit_little(void **state) {
        struct fixture *f = *state;
        const struct snap_run since[] = { { 7, 1 } }, outside[] = { { 6000, 1 } };
        cleanup_free struct snap_manifest *m = calloc(1, sizeof(*m));
        struct snap_workingset w = {};
        struct model small;
        struct snap_txn *t;

        assert_non_null(m);
        t = begin_child(f, &f->ram, m);
        assert_int_equal(snap_txn_inherit_workingset(t, f->m.id, outside, 1), -EINVAL);
        assert_ok(snap_txn_inherit_workingset(t, f->m.id, NULL, 0));
        publish_child(f, t, m);
        assert_int_equal(snap_store_read_workingset(f->store, m, &w), -ENODATA);

        t = begin_child(f, &f->ram, m);
        assert_ok(snap_txn_inherit_workingset(t, "0123456789abcdef", since, 1));
        publish_child(f, t, m);
        assert_ok(snap_store_read_workingset(f->store, m, &w));
        assert_int_equal(w.n_pages, 1);
        snap_workingset_clear(&w);

        overwrite(f, "rubbish", 7);
        t = begin_child(f, &f->ram, m);
        assert_ok(snap_txn_inherit_workingset(t, f->m.id, since, 1));
        publish_child(f, t, m);
        assert_ok(snap_store_read_workingset(f->store, m, &w));
        assert_int_equal(w.n_pages, 1);
        snap_workingset_clear(&w);

        assert_ok(snap_store_learn_workingset(f->store, f->m.id, (struct snap_run[]){ { 5000, 9 } }, 1, NULL));
        model_init(&small, 600);
        t = begin_child(f, &small, m);
        assert_ok(snap_txn_inherit_workingset(t, f->m.id, since, 1));
        publish_child(f, t, m);
        assert_ok(snap_store_read_workingset(f->store, m, &w));
        assert_int_equal(w.n_pages, 1);
        snap_workingset_clear(&w);
        model_clear(&small);
}

static void test_learn_cap(void **state) {
        struct fixture *f = *state;
        const struct snap_run all[] = { { 0, 6000 } };
        uint64_t n_new;

        assert_ok(snap_store_learn_workingset(f->store, f->m.id, all, 1, &n_new));
        assert_int_equal(n_new, 4096); /* 16 MiB, of a RAM of 23.4 */
}

static void test_learn_refuses(void **state) {
        struct fixture *f = *state;
        const struct snap_run outside[] = { { 6000, 1 } };

        assert_int_equal(snap_store_learn_workingset(f->store, f->m.id, outside, 1, NULL), -EINVAL);
        assert_int_equal(snap_store_learn_workingset(f->store, "0123456789abcdef", outside, 1, NULL), -ENOENT);
        assert_int_equal(snap_store_learn_workingset(f->store, "../x", outside, 1, NULL), -EINVAL);
        assert_int_equal(entries_in_tmp(f), 0);
}

/* What is of no use is ignored, and replaced by the next recording. */
static void test_useless_file(void **state) {
        struct fixture *f = *state;
        struct file foreign = good_file();
        const struct snap_run rec[] = { { 1, 1 } };
        struct snap_workingset w = {};
        uint64_t n_new, frames;

        overwrite(f, "rubbish", 7);
        assert_int_equal(snap_store_read_workingset(f->store, &f->m, &w), -EBADMSG);
        assert_ok(snap_store_verify(f->store, f->m.id, NULL, NULL, &frames));
        overwrite(f, foreign.data, foreign.len);
        assert_int_equal(snap_store_read_workingset(f->store, &f->m, &w), -ESTALE);
        assert_ok(snap_store_learn_workingset(f->store, f->m.id, rec, 1, &n_new));
        assert_int_equal(n_new, 1);
        assert_ok(snap_store_read_workingset(f->store, &f->m, &w));
        assert_int_equal(w.restores, 1);
        assert_int_equal(w.n_pages, 1);
        snap_workingset_clear(&w);
}

/* A link in the place of the file is not followed, and replaced, not written through. */
static void test_link(void **state) {
        struct fixture *f = *state;
        const struct snap_run rec[] = { { 1, 1 } };
        struct snap_workingset w = {};
        char path[256], victim[256], buf[8] = "";
        cleanup_fd int fd = -1;

        (void) snprintf(victim, sizeof(victim), "%s/victim", f->dir);
        assert_ok(io_write_file_atomic(AT_FDCWD, victim, "precious", 8, 0600, false));
        file_path(f, path, sizeof(path));
        assert_int_equal(symlink(victim, path), 0);
        assert_int_equal(snap_store_read_workingset(f->store, &f->m, &w), -EBADMSG);
        assert_ok(snap_store_learn_workingset(f->store, f->m.id, rec, 1, NULL));
        assert_ok(snap_store_read_workingset(f->store, &f->m, &w));
        snap_workingset_clear(&w);
        fd = open(victim, O_RDONLY | O_CLOEXEC);
        assert_ok(io_pread_full(fd, buf, 8, 0));
        assert_memory_equal(buf, "precious", 8);
}

static void test_remove(void **state) {
        struct fixture *f = *state;
        const struct snap_run rec[] = { { 1, 1 } };
        uint64_t unique;

        assert_ok(snap_store_learn_workingset(f->store, f->m.id, rec, 1, NULL));
        assert_ok(snap_store_make_durable(f->store, f->m.id));
        assert_ok(snap_store_learn_workingset(f->store, f->m.id, (struct snap_run[]){ { 2, 1 } }, 1, NULL));
        assert_ok(snap_store_unique_bytes(f->store, f->m.id, &unique));
        assert_true(unique > 0);
        assert_ok(snap_store_remove(f->store, f->m.id));
        assert_int_equal(snap_store_learn_workingset(f->store, f->m.id, rec, 1, NULL), -ENOENT);
        assert_int_equal(entries_in_tmp(f), 0);
}

/* One process learns without end, until it is told that the snapshot is gone. */
static pid_t start_learner(struct fixture *f) {
        pid_t pid = fork();

        if (pid == 0) {
                struct snap_store *s;
                int r = snap_store_open(f->dir, &s);

                for (uint64_t i = 0; r == 0; i = (i + 97) % 5900)
                        r = snap_store_learn_workingset(s, f->m.id, (struct snap_run[]){ { i, 97 } }, 1, NULL);
                /* -EBADMSG: caught between its directory and its manifest */
                _exit(r == -ENOENT || r == -EBADMSG ? 0 : 1);
        }
        assert_true(pid > 0);
        return pid;
}

/* The snapshot is removed while its working set is replaced: it goes, and so does all that was on its way to it. */
static void test_remove_while_learning(void **state) {
        struct fixture *f = *state;

        for (unsigned round = 0; round < 60; round++) {
                pid_t pid = start_learner(f);
                struct snap_workingset w = {};
                int status, r;

                while ((r = snap_store_read_workingset(f->store, &f->m, &w)) == -ENODATA)
                        ;
                assert_ok(r); /* what a reader sees is always whole */
                snap_workingset_clear(&w);
                assert_ok(snap_store_remove(f->store, f->m.id));
                assert_int_equal(waitpid(pid, &status, 0), pid);
                assert_int_equal(status, 0);
                assert_int_equal(entries_in_tmp(f), 0);
                publish(f->store, &f->ram, NULL, false, &f->m);
        }
}

/* A full or read-only file system: an error, the old set as it was, nothing left behind. */
static void test_no_room(void **state) {
        struct snap_store *s;
        struct loop_fs fs;
        cleanup_free struct snap_manifest *m = calloc(1, sizeof(*m));
        const struct snap_run rec[] = { { 1, 1 } };
        cleanup_snap_workingset struct snap_workingset w = {};
        struct snap_run *many = calloc(SNAP_WORKINGSET_MAX_RUNS, sizeof(*many));
        struct model ram;
        char filler[160];
        int fd;

        assert_non_null(m);
        assert_non_null(many);
        model_init(&ram, 6000);
        page_fill_small(1, model_page(&ram, 7));
        if (!private_mounts() || !loop_fs_setup(&fs, "320M")) {
                free(many);
                model_clear(&ram);
                skip_because("needs root and XFS on a loop device");
                return;
        }
        assert_ok(snap_store_open(fs.mnt, &s));
        publish(s, &ram, NULL, true, m);
        assert_ok(snap_store_learn_workingset(s, m->id, rec, 1, NULL));
        (void) snprintf(filler, sizeof(filler), "%s/filler", fs.mnt);
        fd = open(filler, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        for (size_t step = 64u << 20; step >= 4096; step /= 2)
                while (posix_fallocate(fd, lseek(fd, 0, SEEK_END), (off_t) step) == 0)
                        ;
        for (size_t i = 0; i < 3000; i++)
                many[i] = (struct snap_run){ 2 * i, 1 };
        assert_int_equal(snap_store_learn_workingset(s, m->id, many, 3000, NULL), -ENOSPC);
        assert_ok(snap_store_read_workingset(s, m, &w));
        assert_int_equal(w.n_pages, 1);
        (void) close(fd);
        assert_int_equal(unlink(filler), 0);

        assert_int_equal(run_quiet((const char *const[]){ "mount", "-o", "remount,ro", fs.mnt, NULL }), 0);
        assert_int_equal(snap_store_learn_workingset(s, m->id, many, 3000, NULL), -EROFS);
        assert_int_equal(run_quiet((const char *const[]){ "mount", "-o", "remount,rw", fs.mnt, NULL }), 0);
        assert_ok(snap_store_learn_workingset(s, m->id, many, 3000, NULL));
        unsigned swept = 99;
        assert_ok(snap_store_sweep(s, &swept, NULL));
        assert_int_equal(swept, 0);
        snap_store_close(s);
        loop_fs_teardown(&fs);
        model_clear(&ram);
        free(many);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_round_trip),
                cmocka_unit_test(test_most_runs),
                cmocka_unit_test(test_encode_refuses),
                cmocka_unit_test(test_each_bit_counts),
                cmocka_unit_test(test_torn),
                cmocka_unit_test(test_fields),
                cmocka_unit_test(test_other_image),
                cmocka_unit_test(test_read_odd_files),
                cmocka_unit_test(test_merge_first),
                cmocka_unit_test(test_merge_keeps_order),
                cmocka_unit_test(test_merge_cuts),
                cmocka_unit_test(test_merge_most_runs),
                cmocka_unit_test(test_merge_refuses),
                cmocka_unit_test(test_merge_random),
                cmocka_unit_test(test_max_pages),
                cmocka_unit_test_setup_teardown(test_learn, setup, teardown),
                cmocka_unit_test_setup_teardown(test_little_news, setup, teardown),
                cmocka_unit_test_setup_teardown(test_inherit, setup, teardown),
                cmocka_unit_test_setup_teardown(test_inherit_little, setup, teardown),
                cmocka_unit_test_setup_teardown(test_learn_cap, setup, teardown),
                cmocka_unit_test_setup_teardown(test_learn_refuses, setup, teardown),
                cmocka_unit_test_setup_teardown(test_useless_file, setup, teardown),
                cmocka_unit_test_setup_teardown(test_link, setup, teardown),
                cmocka_unit_test_setup_teardown(test_remove, setup, teardown),
                cmocka_unit_test_setup_teardown(test_remove_while_learning, setup, teardown),
                cmocka_unit_test(test_no_room),
        };

        return cmocka_run_group_tests_name("snapstore working set", tests, NULL, NULL);
}
