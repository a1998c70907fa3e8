/* SPDX-License-Identifier: MIT */
/* Images hold what was put into them: every codec, chains, order of puts, limits. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "snap_test.h"

static void test_codec_names(void **state) {
        enum snap_codec codec;
        int level;

        for (unsigned c = 0; c < 3; c++) {
                assert_ok(snap_codec_parse(snap_codec_name(c), &codec, &level));
                assert_int_equal(codec, c);
                assert_int_equal(level, 0);
        }
        assert_null(snap_codec_name(3));
        assert_ok(snap_codec_parse("zstd:19", &codec, &level));
        assert_int_equal(level, 19);
        static const char *const bad[] = { "",        "gzip",    "zstd:", "zstd:0", "zstd:20",
                                           "zstd:-1", "zstd:3 ", "lz4:1", "LZ4",    "zstd:99999999999999999999" };
        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                assert_int_equal(snap_codec_parse(bad[i], &codec, &level), -EINVAL);
}

static void test_zero_detection(void **state) {
        _Alignas(64) uint8_t page[SNAP_PAGE_SIZE] = {};

        assert_true(snap_page_is_zero(page));
        for (size_t i = 0; i < SNAP_PAGE_SIZE; i++) {
                page[i] = 0x80;
                assert_false(snap_page_is_zero(page));
                page[i] = 0;
        }
}

static void base_with(enum snap_codec codec, int level) {
        struct snap_writer_params p = { .codec = codec, .level = level };
        struct rng r = { .state = 7 + codec };
        struct snap_writer_stats stats;
        struct snap_writer *w;
        struct model m;
        int fd = temp_fd();

        model_init(&m, 3 * SNAP_REGION_PAGES + 77); /* the last region is not whole */
        for (uint64_t i = 0; i < m.n_pages; i++)
                page_fill(&r, model_page(&m, i));
        p.ram_bytes = m.n_pages * SNAP_PAGE_SIZE;
        assert_ok(snap_writer_new(fd, -1, &p, &w));
        assert_ok(snap_writer_put(w, 0, m.ram, m.n_pages));
        assert_ok(snap_writer_finish(w, &stats));
        /* finished means finished */
        assert_int_equal(snap_writer_put(w, 0, m.ram, 1), -EINVAL);
        assert_int_equal(snap_writer_finish(w, &stats), -EINVAL);
        snap_writer_free(w);
        check_image(fd, &m);
        assert_int_equal(stats.put_pages, m.n_pages);
        assert_int_equal(lseek(fd, 0, SEEK_END), stats.file_bytes);
        assert_int_equal(stats.appended_bytes, stats.file_bytes);
        assert_true(stats.frame_bytes + stats.index_bytes < stats.file_bytes);
        if (codec != SNAP_CODEC_NONE)
                assert_true(stats.frame_bytes < (stats.put_pages - stats.zero_pages) * SNAP_PAGE_SIZE * 3 / 4);
        (void) close(fd);
        model_clear(&m);
}

static void test_codecs(void **state) {
        base_with(SNAP_CODEC_NONE, 0);
        base_with(SNAP_CODEC_LZ4, 0);
        base_with(SNAP_CODEC_ZSTD, 0);
        base_with(SNAP_CODEC_ZSTD, 19);
}

/* A chain: every link equals the model at its time, also when all earlier files are gone. */
static void test_chain(void **state) {
        enum { LINKS = 17 };
        struct rng r = { .state = 42 };
        struct model m, kept = {};
        int fd[LINKS];

        model_init(&m, 5 * SNAP_REGION_PAGES + 3);
        model_init(&kept, m.n_pages);
        for (unsigned i = 0; i < LINKS; i++) {
                struct snap_writer_stats stats;
                struct snap_writer *w;
                struct snap_image *img;

                fd[i] = temp_fd();
                w = writer_start(fd[i], i ? fd[i - 1] : -1, &m, i % 3);
                write_random(&r, &m, w, 12);
                assert_ok(snap_writer_finish(w, &stats));
                snap_writer_free(w);
                check_image(fd[i], &m);
                assert_ok(snap_image_open(fd[i], &img));
                assert_int_equal(snap_image_info(img)->depth, i);
                assert_memory_equal(snap_image_info(img)->uuid, stats.uuid, SNAP_UUID_LEN);
                snap_image_close(img);
                if (i == LINKS / 2)
                        memcpy(kept.ram, m.ram, m.n_pages * SNAP_PAGE_SIZE);
                if (i >= 1 && i != LINKS / 2 + 1)
                        (void) close(fd[i - 1]);
        }
        /* the one in the middle is as it was */
        check_image(fd[LINKS / 2], &kept);
        (void) close(fd[LINKS / 2]);
        (void) close(fd[LINKS - 1]);
        model_clear(&m);
        model_clear(&kept);
}

/* The same number of dirty pages costs the same at every depth. */
static void test_chain_cost(void **state) {
        uint64_t first = 0, appended = 0;
        uint8_t page[SNAP_PAGE_SIZE];
        struct model m;
        int parent;

        model_init(&m, 64 * SNAP_REGION_PAGES);
        for (uint64_t i = 0; i < m.n_pages; i++)
                page_fill_small(i, model_page(&m, i));
        parent = image_of(&m, SNAP_CODEC_NONE);
        for (unsigned link = 1; link <= 16; link++) {
                struct snap_writer_stats stats;
                int fd = temp_fd();
                struct snap_writer *w = writer_start(fd, parent, &m, SNAP_CODEC_NONE);

                for (uint64_t i = 0; i < 300; i++) {
                        page_fill_small(i + link * 1000, page);
                        assert_ok(snap_writer_put(w, i / 4 * 401 + i % 4, page, 1));
                }
                assert_ok(snap_writer_finish(w, &stats));
                snap_writer_free(w);
                (void) close(parent);
                parent = fd;
                appended = stats.appended_bytes;
                if (link == 1)
                        first = appended;
                assert_true(stats.frame_bytes < 301 * SNAP_PAGE_SIZE + stats.frames * 64);
        }
        /* Leaves name a few more frames now; the pages themselves cost nothing more. */
        assert_in_range(appended, first, first + first / 50);
        (void) close(parent);
        model_clear(&m);
}

/* Any order of puts, pages put twice, and zeroing what is still pending. */
static void test_order(void **state) {
        struct rng r = { .state = 99 };
        struct snap_writer_stats stats;
        struct snap_writer *w;
        struct model m;
        int fd = temp_fd(), child = temp_fd();

        model_init(&m, 2 * SNAP_REGION_PAGES);
        w = writer_start(fd, -1, &m, SNAP_CODEC_LZ4);
        for (uint64_t i = m.n_pages; i-- > 0;) { /* backwards, alternating between the regions */
                uint64_t page = i % 2 * SNAP_REGION_PAGES + i / 2;
                page_fill(&r, model_page(&m, page));
                assert_ok(snap_writer_put(w, page, model_page(&m, page), 1));
        }
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        check_image(fd, &m);

        w = writer_start(child, fd, &m, SNAP_CODEC_ZSTD);
        for (unsigned i = 0; i < 2000; i++) {
                uint64_t page = rng_below(&r, 20) * 50, n = 1 + rng_below(&r, 3);
                if (rng_below(&r, 4) == 0) {
                        memset(model_page(&m, page), 0, n * SNAP_PAGE_SIZE);
                        assert_ok(snap_writer_put_zero(w, page, n));
                } else {
                        for (uint64_t k = 0; k < n; k++)
                                page_fill(&r, model_page(&m, page + k));
                        assert_ok(snap_writer_put(w, page, model_page(&m, page), n));
                }
        }
        assert_ok(snap_writer_put_zero(w, SNAP_REGION_PAGES, SNAP_REGION_PAGES)); /* a whole region */
        memset(model_page(&m, SNAP_REGION_PAGES), 0, SNAP_REGION_PAGES * SNAP_PAGE_SIZE);
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        check_image(child, &m);
        (void) close(fd);
        (void) close(child);
        model_clear(&m);
}

/* All zero is a valid state to begin with, to end with, and to come back from. */
static void test_all_zero(void **state) {
        struct snap_writer_stats stats;
        struct snap_writer *w;
        struct snap_image *img;
        struct model m;
        uint64_t region;
        int fd, child = temp_fd(), grandchild = temp_fd();

        model_init(&m, SNAP_REGION_PAGES + 1);
        fd = image_of(&m, SNAP_CODEC_LZ4);
        check_image(fd, &m);
        assert_ok(snap_image_open(fd, &img));
        assert_int_equal(snap_image_next_region(img, 0, &region), -ENOENT);
        assert_int_equal(snap_image_info(img)->live_frames, 0);
        assert_int_equal(snap_image_info(img)->file_bytes, SNAP_PAGE_SIZE);
        snap_image_close(img);

        w = writer_start(child, fd, &m, SNAP_CODEC_LZ4);
        page_fill_small(1, model_page(&m, SNAP_REGION_PAGES));
        assert_ok(snap_writer_put(w, SNAP_REGION_PAGES, model_page(&m, SNAP_REGION_PAGES), 1));
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        check_image(child, &m);

        w = writer_start(grandchild, child, &m, SNAP_CODEC_LZ4);
        memset(model_page(&m, SNAP_REGION_PAGES), 0, SNAP_PAGE_SIZE);
        assert_ok(snap_writer_put(w, SNAP_REGION_PAGES, model_page(&m, SNAP_REGION_PAGES), 1));
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        check_image(grandchild, &m);
        assert_ok(snap_image_open(grandchild, &img));
        assert_int_equal(snap_image_info(img)->dead_frames, 1);
        snap_image_close(img);
        (void) close(fd);
        (void) close(child);
        (void) close(grandchild);
        model_clear(&m);
}

static void test_zero_run(void **state) {
        struct snap_image *img;
        struct model m;
        uint64_t n;
        int fd;

        model_init(&m, 4 * SNAP_REGION_PAGES + 9);
        page_fill_small(1, model_page(&m, 5));
        page_fill_small(2, model_page(&m, 3 * SNAP_REGION_PAGES + 2));
        fd = image_of(&m, SNAP_CODEC_LZ4);
        assert_ok(snap_image_open(fd, &img));
        assert_ok(snap_image_zero_run(img, 0, 100, &n));
        assert_int_equal(n, 5);
        assert_ok(snap_image_zero_run(img, 5, 100, &n));
        assert_int_equal(n, 0);
        assert_ok(snap_image_zero_run(img, 6, UINT64_MAX, &n));
        assert_int_equal(n, 3 * SNAP_REGION_PAGES + 2 - 6);
        assert_ok(snap_image_zero_run(img, 6, 7, &n));
        assert_int_equal(n, 7);
        assert_ok(snap_image_zero_run(img, m.n_pages - 3, UINT64_MAX, &n));
        assert_int_equal(n, 3);
        assert_ok(snap_image_zero_run(img, 0, 0, &n));
        assert_int_equal(n, 0);
        assert_int_equal(snap_image_zero_run(img, m.n_pages, 1, &n), -ERANGE);
        snap_image_close(img);
        (void) close(fd);
        model_clear(&m);
}

static void test_dead_slots(void **state) {
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        uint8_t *buf = malloc(SNAP_FRAME_BYTES);
        struct snap_writer_stats stats;
        struct snap_image *img;
        struct snap_writer *w;
        struct snap_frame f;
        struct snap_loc loc;
        struct model m;
        int fd, child = temp_fd();

        model_init(&m, SNAP_REGION_PAGES);
        for (uint64_t i = 0; i < 16; i++)
                page_fill_small(i, model_page(&m, i));
        fd = image_of(&m, SNAP_CODEC_LZ4);
        w = writer_start(child, fd, &m, SNAP_CODEC_LZ4);
        page_fill_small(100, model_page(&m, 3));
        assert_ok(snap_writer_put(w, 3, model_page(&m, 3), 1));
        assert_ok(snap_writer_put_zero(w, 9, 1));
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);

        assert_ok(snap_decoder_new(&d));
        assert_ok(snap_image_open(child, &img));
        assert_int_equal(snap_image_info(img)->live_frames, 2);
        assert_int_equal(snap_image_info(img)->dead_frames, 0);
        assert_ok(snap_image_lookup(img, 0, &loc));
        assert_ok(snap_image_decode(img, d, &loc, buf, &f));
        assert_int_equal(f.n_pages, 16);
        assert_int_equal(f.live_mask, 0xffff & ~(1u << 3) & ~(1u << 9));
        /* asking for a page that this slot does not hold, or no longer holds */
        loc.page = 1;
        assert_int_equal(snap_image_decode(img, d, &loc, buf, &f), -EBADMSG);
        loc.page = 3;
        loc.slot = 3;
        assert_int_equal(snap_image_decode(img, d, &loc, buf, &f), -EBADMSG);
        loc.slot = 200;
        assert_int_equal(snap_image_decode(img, d, &loc, buf, &f), -EBADMSG);
        assert_ok(snap_image_lookup(img, 9, &loc));
        assert_true(loc.zero);
        assert_int_equal(snap_image_decode(img, d, &loc, buf, &f), -EINVAL);
        assert_int_equal(snap_image_lookup(img, m.n_pages, &loc), -ERANGE);
        snap_image_close(img);
        (void) close(fd);
        (void) close(child);
        free(buf);
        model_clear(&m);
}

/* 1 TiB of RAM, a page here and there: small in the file, quick to open. */
static void test_huge_ram(void **state) {
        struct snap_writer_params p = { .ram_bytes = SNAP_MAX_RAM, .codec = SNAP_CODEC_LZ4 };
        const uint64_t n_pages = SNAP_MAX_RAM / SNAP_PAGE_SIZE, step = n_pages / 61;
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        uint8_t page[SNAP_PAGE_SIZE], got[SNAP_PAGE_SIZE];
        struct snap_writer_stats stats;
        struct snap_image *img;
        struct snap_writer *w;
        uint64_t n, frames;
        int fd = temp_fd(), child = temp_fd();

        assert_ok(snap_writer_new(fd, -1, &p, &w));
        for (uint64_t i = 0; i < n_pages; i += step) {
                page_fill_small(i, page);
                assert_ok(snap_writer_put(w, i, page, 1));
        }
        page_fill_small(n_pages - 1, page);
        assert_ok(snap_writer_put(w, n_pages - 1, page, 1));
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        assert_true(stats.file_bytes < 64 * 1024);

        assert_ok(snap_writer_new(child, fd, &p, &w));
        assert_ok(snap_writer_put_zero(w, 0, n_pages - 1));
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);

        assert_ok(snap_decoder_new(&d));
        assert_ok(snap_image_open(fd, &img));
        for (uint64_t i = 0; i < n_pages; i += step) {
                page_fill_small(i, page);
                assert_ok(snap_image_read_page(img, d, i, got));
                assert_memory_equal(page, got, SNAP_PAGE_SIZE);
                assert_ok(snap_image_zero_run(img, i + 1, UINT64_MAX, &n));
                assert_int_equal(n, MIN_OF(step, n_pages - 1 - i) - 1);
        }
        snap_image_close(img);
        assert_ok(snap_image_open(child, &img));
        assert_int_equal(snap_image_info(img)->n_stored_pages, 1);
        assert_ok(snap_image_verify(img, NULL, NULL, &frames));
        assert_int_equal(frames, 1);
        page_fill_small(n_pages - 1, page);
        assert_ok(snap_image_read_page(img, d, n_pages - 1, got));
        assert_memory_equal(page, got, SNAP_PAGE_SIZE);
        snap_image_close(img);
        (void) close(fd);
        (void) close(child);
}

static void test_dump_and_compact(void **state) {
        struct rng r = { .state = 5 };
        struct snap_writer_stats stats;
        const struct snap_image_info *i;
        struct snap_image *img;
        struct model m;
        int prev, fd = -1, raw = temp_fd(), packed = temp_fd();
        uint64_t before;
        uint8_t *got;

        model_init(&m, 3 * SNAP_REGION_PAGES + 20);
        prev = image_of(&m, SNAP_CODEC_LZ4);
        for (unsigned k = 0; k < 12; k++) {
                struct snap_writer *w;

                fd = temp_fd();
                w = writer_start(fd, prev, &m, SNAP_CODEC_LZ4);
                write_random(&r, &m, w, 60);
                assert_ok(snap_writer_finish(w, &stats));
                snap_writer_free(w);
                (void) close(prev);
                prev = fd;
        }
        assert_ok(snap_image_open(fd, &img));
        i = snap_image_info(img);
        assert_true(snap_image_info_bloated(i));
        before = i->file_bytes;
        assert_ok(snap_image_dump(img, raw));
        got = malloc(m.n_pages * SNAP_PAGE_SIZE);
        assert_int_equal(lseek(raw, 0, SEEK_END), m.n_pages * SNAP_PAGE_SIZE);
        assert_ok(io_pread_full(raw, got, m.n_pages * SNAP_PAGE_SIZE, 0));
        assert_memory_equal(got, m.ram, m.n_pages * SNAP_PAGE_SIZE);
        assert_int_equal(snap_image_dump(img, raw), -EINVAL); /* not empty any more */

        assert_ok(snap_image_compact(img, packed, SNAP_CODEC_ZSTD, 3, &stats));
        snap_image_close(img);
        check_image(packed, &m);
        assert_true(stats.file_bytes < before / 2);
        assert_ok(snap_image_open(packed, &img));
        i = snap_image_info(img);
        assert_int_equal(i->dead_frames, 0);
        assert_int_equal(i->depth, 0);
        assert_false(snap_image_info_bloated(i));
        snap_image_close(img);
        free(got);
        (void) close(fd);
        (void) close(raw);
        (void) close(packed);
        model_clear(&m);
}

static void test_bad_parameters(void **state) {
        struct snap_writer_params good = { .ram_bytes = 1 << 20, .codec = SNAP_CODEC_LZ4 }, p;
        uint8_t page[SNAP_PAGE_SIZE] = { 1 };
        struct snap_writer_stats stats;
        struct snap_writer *w = NULL;
        struct snap_image *img = NULL;
        int fd = temp_fd(), other = temp_fd(), pipe_fd[2];
        static const struct snap_writer_params bad[] = {
                { .ram_bytes = 0, .codec = SNAP_CODEC_LZ4 },
                { .ram_bytes = 4095, .codec = SNAP_CODEC_LZ4 },
                { .ram_bytes = 4097, .codec = SNAP_CODEC_LZ4 },
                { .ram_bytes = SNAP_MAX_RAM + SNAP_PAGE_SIZE, .codec = SNAP_CODEC_LZ4 },
                { .ram_bytes = 1 << 20, .codec = (enum snap_codec) 3 },
                { .ram_bytes = 1 << 20, .codec = SNAP_CODEC_LZ4, .level = 1 },
                { .ram_bytes = 1 << 20, .codec = SNAP_CODEC_NONE, .level = 1 },
                { .ram_bytes = 1 << 20, .codec = SNAP_CODEC_ZSTD, .level = 20 },
                { .ram_bytes = 1 << 20, .codec = SNAP_CODEC_ZSTD, .level = -1 },
        };

        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                assert_int_equal(snap_writer_new(fd, -1, &bad[i], &w), -EINVAL);
        assert_null(w);
        assert_int_equal(snap_writer_new(fd, other, &good, &w), -EBADMSG); /* an empty file is no parent */
        assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
        assert_int_equal(snap_writer_new(pipe_fd[1], -1, &good, &w), -EINVAL);
        assert_int_equal(snap_image_open(pipe_fd[0], &img), -EINVAL);

        assert_ok(snap_writer_new(fd, -1, &good, &w));
        assert_int_equal(snap_writer_put(w, 256, page, 1), -ERANGE);
        assert_int_equal(snap_writer_put(w, 255, page, 2), -ERANGE);
        assert_int_equal(snap_writer_put(w, UINT64_MAX, page, 2), -ERANGE);
        assert_int_equal(snap_writer_put_zero(w, 1, UINT64_MAX), -ERANGE);
        assert_ok(snap_writer_put(w, 255, page, 1)); /* none of which broke it */
        assert_ok(snap_writer_put(w, 256, page, 0));
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        assert_int_equal(snap_writer_new(fd, -1, &good, &w), -EINVAL); /* not empty */
        p = good;
        p.ram_bytes *= 2;
        assert_int_equal(snap_writer_new(other, fd, &p, &w), -EINVAL); /* not the parent's size */
        assert_int_equal(lseek(other, 0, SEEK_END), 0);
        (void) close(fd);
        (void) close(other);
        (void) close(pipe_fd[0]);
        (void) close(pipe_fd[1]);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_codec_names),      cmocka_unit_test(test_zero_detection),
                cmocka_unit_test(test_codecs),           cmocka_unit_test(test_chain),
                cmocka_unit_test(test_chain_cost),       cmocka_unit_test(test_order),
                cmocka_unit_test(test_all_zero),         cmocka_unit_test(test_zero_run),
                cmocka_unit_test(test_dead_slots),       cmocka_unit_test(test_huge_ram),
                cmocka_unit_test(test_dump_and_compact), cmocka_unit_test(test_bad_parameters),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
