/* SPDX-License-Identifier: MIT */
/* What the indexes of two images of one chain tell of their difference, against what the guest's memory was. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "snap_test.h"

#define LINKS 6
#define PAGES (9 * SNAP_REGION_PAGES + 77)
#define BITS_LEN (10 * SNAP_REGION_PAGES / 8)

struct link {
        struct model m;
        struct snap_image *img;
        int fd;
};

static struct link chain[LINKS];

static int setup(void **state) {
        struct rng r = { .state = 5 };

        for (unsigned i = 0; i < LINKS; i++) {
                struct snap_writer_stats stats;
                struct snap_writer *w;

                model_init(&chain[i].m, PAGES);
                if (i > 0)
                        memcpy(chain[i].m.ram, chain[i - 1].m.ram, (size_t) PAGES * SNAP_PAGE_SIZE);
                chain[i].fd = temp_fd();
                w = writer_start(chain[i].fd, i ? chain[i - 1].fd : -1, &chain[i].m, SNAP_CODEC_LZ4);
                write_random(&r, &chain[i].m, w, i ? 3 : 200);
                assert_ok(snap_writer_finish(w, &stats));
                snap_writer_free(w);
                assert_ok(snap_image_open(chain[i].fd, &chain[i].img));
        }
        return 0;
}

static int teardown(void **state) {
        for (unsigned i = 0; i < LINKS; i++) {
                snap_image_close(chain[i].img);
                (void) close(chain[i].fd);
                model_clear(&chain[i].m);
        }
        return 0;
}

static bool differs(unsigned i, unsigned k, uint64_t page) {
        return memcmp(model_page(&chain[i].m, page), model_page(&chain[k].m, page), SNAP_PAGE_SIZE) != 0;
}

/** @max: how many pages may be called different though they are not. */
static void check_diff(unsigned i, unsigned k, uint64_t max_regions, uint64_t max) {
        uint64_t bits[BITS_LEN / 8] = { 0 }, wrong = 0;

        assert_ok(snap_image_diff(chain[i].img, chain[k].img, max_regions, bits));
        for (uint64_t p = 0; p < PAGES; p++) {
                bool own = bits[p / 64] >> (p % 64) & 1;

                if (!own && differs(i, k, p))
                        fail_msg("page %llu differs between %u and %u, and nobody says so", (unsigned long long) p, i, k);
                wrong += own && !differs(i, k, p);
        }
        assert_true(wrong <= max);
}

static void test_all_pairs(void **state) {
        for (unsigned i = 1; i < LINKS; i++)
                for (unsigned k = 0; k < i; k++) {
                        assert_int_equal(snap_image_descends(chain[i].img, chain[k].img), 1);
                        assert_int_equal(snap_image_descends(chain[k].img, chain[i].img), 0);
                        /* Pages that were written again with what they had: content of few kinds is among it. */
                        check_diff(i, k, UINT64_MAX, 40 * 3 * (i - k));
                        check_diff(i, k, 1, PAGES);
                        check_diff(i, k, 0, PAGES);
                }
        assert_int_equal(snap_image_descends(chain[1].img, chain[1].img), 0);
}

static void test_the_same_twice(void **state) {
        uint64_t bits[BITS_LEN / 8] = { 0 }, zero[BITS_LEN / 8] = { 0 };
        struct snap_writer_stats stats;
        struct snap_writer *w;
        struct snap_image *img;
        int fd = temp_fd();

        w = writer_start(fd, chain[2].fd, &chain[2].m, SNAP_CODEC_LZ4);
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        assert_ok(snap_image_open(fd, &img));
        assert_int_equal(snap_image_descends(img, chain[2].img), 1);
        assert_ok(snap_image_diff(img, chain[2].img, 0, bits));
        assert_memory_equal(bits, zero, sizeof(bits));
        /* a sibling is no ancestor, though all that it has is the same */
        assert_int_equal(snap_image_descends(img, chain[3].img), 0);
        assert_int_equal(snap_image_descends(chain[3].img, img), 0);
        snap_image_close(img);
        (void) close(fd);
}

/** The same content, and another family: references mean nothing. */
static void test_strangers(void **state) {
        struct snap_writer_stats stats;
        struct snap_image *img;
        int fd = image_of(&chain[0].m, SNAP_CODEC_LZ4), compact = temp_fd();

        assert_ok(snap_image_open(fd, &img));
        for (unsigned i = 0; i < LINKS; i++) {
                assert_int_equal(snap_image_descends(chain[i].img, img), 0);
                assert_int_equal(snap_image_descends(img, chain[i].img), 0);
        }
        snap_image_close(img);
        assert_ok(snap_image_compact(chain[4].img, compact, SNAP_CODEC_LZ4, 0, &stats));
        assert_ok(snap_image_open(compact, &img));
        assert_int_equal(snap_image_descends(img, chain[0].img), 0);
        assert_int_equal(snap_image_descends(chain[5].img, img), 0);
        snap_image_close(img);
        (void) close(fd);
        (void) close(compact);
}

/** A leaf that cannot be read is an error, not an answer. */
static void test_corrupt(void **state) {
        uint64_t bits[BITS_LEN / 8] = { 0 };
        struct snap_image *img;
        uint8_t junk[SNAP_PAGE_SIZE];
        int fd = temp_fd(), r;
        uint64_t at = snap_image_info(chain[0].img)->file_bytes;

        assert_ok(io_clone_file(chain[5].fd, fd, NULL));
        memset(junk, 0xa5, sizeof(junk));
        for (; at + sizeof(junk) < snap_image_info(chain[5].img)->file_bytes; at += sizeof(junk)) {
                if (at + sizeof(junk) == snap_image_info(chain[0].img)->file_bytes)
                        continue;
                assert_ok(io_pwrite_full(fd, junk, 1024, at)); /* the footers at the ends of blocks stay */
        }
        r = snap_image_open(fd, &img);
        if (r == 0) {
                r = snap_image_diff(img, chain[0].img, UINT64_MAX, bits);
                snap_image_close(img);
        }
        assert_int_equal(r, -EBADMSG);
        (void) close(fd);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_all_pairs, setup, teardown),
                cmocka_unit_test_setup_teardown(test_the_same_twice, setup, teardown),
                cmocka_unit_test_setup_teardown(test_strangers, setup, teardown),
                cmocka_unit_test_setup_teardown(test_corrupt, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
