/* SPDX-License-Identifier: MIT */
/* Images with pages in their ancestors' memories: which are whose, and a VMM that lives on such an image. */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "common/io.h"
#include "pager/image_internal.h"

#define PAGES 65536ull /* 256 MiB of which nothing is decoded here */
#define WORDS (PAGES / 64)

static struct image file;

static int setup(void **state) {
        struct snap_writer_params params = { .ram_bytes = PAGES * TEST_PAGE, .codec = SNAP_CODEC_LZ4 };
        cleanup_snap_writer struct snap_writer *w = NULL;

        file = (struct image){ .n_pages = PAGES };
        file.fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        assert_true(file.fd >= 0);
        assert_int_equal(snap_writer_new(file.fd, -1, &params, &w), 0);
        assert_int_equal(snap_writer_finish(w, &file.stats), 0);
        return 0;
}

static int teardown(void **state) {
        image_clear(&file);
        return 0;
}

static struct pager_image *open_image(void) {
        struct pager_image *img;

        assert_int_equal(pager_image_open(file.fd, NULL, &img), 0);
        return img;
}

static uint64_t *bits_new(void) {
        uint64_t *bits = calloc(WORDS, sizeof(*bits));

        assert_non_null(bits);
        return bits;
}

static void own(uint64_t *bits, uint64_t first, uint64_t n) {
        for (uint64_t p = first; p < first + n; p++)
                bits[p / 64] |= 1ull << (p % 64);
}

/** Extents ascend, cover all, and say what pager_image_owner says. */
static void check_extents(const struct pager_image *img) {
        size_t n = pager_image_n_extents(img);

        assert_true(n <= PAGER_MAX_EXTENTS);
        assert_true(pager_image_n_owners(img) <= PAGER_MAX_OWNERS);
        assert_ptr_equal(pager_image_owner_at(img, 0), img);
        for (size_t i = 0; i < n; i++) {
                struct pager_extent x = pager_image_extent(img, i);
                uint64_t end = i + 1 < n ? pager_image_extent(img, i + 1).first : PAGES, first, len;
                struct pager_image *owner = pager_image_owner_at(img, x.owner);

                assert_true(i > 0 || x.first == 0);
                assert_true(end > x.first);
                for (uint64_t p = x.first; p < end; p += MAX_OF(1ull, (end - x.first) / 3)) {
                        assert_ptr_equal(pager_image_owner(img, p, &first, &len), owner);
                        assert_int_equal(first, x.first);
                        assert_int_equal(len, end - x.first);
                }
                assert_ptr_equal(pager_image_owner(img, end - 1, NULL, NULL), owner);
        }
}

static struct pager_image *owner(const struct pager_image *img, uint64_t page) {
        return pager_image_owner(img, page, NULL, NULL);
}

static void test_alone(void **state) {
        cleanup_pager_image struct pager_image *img = open_image();

        check_extents(img);
        assert_int_equal(pager_image_n_extents(img), 1);
        assert_true(pager_image_uses(img, img));
}

static void test_three_generations(void **state) {
        cleanup_pager_image struct pager_image *a = open_image(), *b = open_image(), *c = open_image();
        cleanup_free uint64_t *of_b = bits_new(), *of_c = bits_new();
        uint64_t first, n;

        own(of_b, 1000, 100);
        own(of_b, 2000, 1);
        own(of_b, 2000 + PAGER_MIN_SHARED, 1); /* what is between the two is too short */
        own(of_c, 1050, 500);
        own(of_c, 2001 + PAGER_MIN_SHARED - 2, 2);
        own(of_c, PAGES - 1, 1);
        assert_int_equal(pager_image_set_base(b, a, of_b), 0);
        assert_int_equal(pager_image_set_base(c, b, of_c), 0);
        assert_int_equal(pager_image_set_base(c, b, of_c), -EALREADY);
        check_extents(b);
        check_extents(c);
        assert_ptr_equal(owner(b, 0), a);
        assert_ptr_equal(owner(b, 999), a);
        assert_ptr_equal(owner(b, 1000), b);
        assert_ptr_equal(owner(b, 1100), a);
        assert_ptr_equal(pager_image_owner(b, 2001, &first, &n), b);
        assert_int_equal(first, 2000);
        assert_int_equal(n, PAGER_MIN_SHARED + 1);
        assert_ptr_equal(owner(c, 0), a);
        assert_ptr_equal(owner(c, 1049), b);
        assert_ptr_equal(owner(c, 1050), c);
        assert_ptr_equal(owner(c, 1549), c);
        assert_ptr_equal(owner(c, 1550), a);
        assert_ptr_equal(owner(c, 2000), c); /* what is left of b's pages is too little to be mapped */
        assert_ptr_equal(owner(c, PAGES - 1), c);
        assert_true(pager_image_uses(c, a) && pager_image_uses(c, b) && !pager_image_uses(a, c));
        /* A bad ancestor makes all of them bad. */
        assert_false(pager_image_is_bad(c));
        pager_image_taint(a);
        assert_true(pager_image_is_bad(c) && pager_image_is_bad(b));
}

static void test_nothing_in_common(void **state) {
        cleanup_pager_image struct pager_image *a = open_image(), *b = open_image();
        cleanup_free uint64_t *bits = bits_new();

        for (uint64_t p = 0; p < PAGES; p += PAGER_MIN_SHARED) /* never so many in a row */
                own(bits, p, 1);
        assert_int_equal(pager_image_set_base(b, a, bits), 0);
        assert_int_equal(pager_image_n_owners(b), 1);
        check_extents(b);
}

/** More runs than there may be: the longest stay. */
static void test_many_runs(void **state) {
        cleanup_pager_image struct pager_image *a = open_image(), *b = open_image();
        cleanup_free uint64_t *bits = bits_new();
        uint64_t shared = 0;

        for (uint64_t i = 0; i < PAGES / 64; i++) /* 1024 runs of 16 or (each third) 32 pages */
                bits[i] = ~((1ull << (i % 3 ? 16 : 32)) - 1);
        assert_int_equal(pager_image_set_base(b, a, bits), 0);
        check_extents(b);
        for (size_t i = 0; i < pager_image_n_extents(b); i++)
                shared += pager_image_extent(b, i).owner == 1;
        assert_int_equal(shared, (PAGER_MAX_EXTENTS - 1) / 2);
        for (size_t i = 0; i + 1 < pager_image_n_extents(b); i++)
                if (pager_image_extent(b, i).owner == 1)
                        assert_int_equal(pager_image_extent(b, i + 1).first - pager_image_extent(b, i).first, 32);
}

/** A chain that is longer than the images an image may hold. */
static void test_long_chain(void **state) {
        struct pager_image *img[PAGER_MAX_OWNERS + 20];
        uint64_t step = PAGES / ARRAY_LEN(img);

        for (size_t i = 0; i < ARRAY_LEN(img); i++) {
                cleanup_free uint64_t *bits = bits_new();

                img[i] = open_image();
                if (i == 0)
                        continue;
                own(bits, i * step, step);
                assert_int_equal(pager_image_set_base(img[i], img[i - 1], bits), 0);
                check_extents(img[i]);
                assert_ptr_equal(owner(img[i], i * step), img[i]);
                assert_ptr_equal(owner(img[i], PAGES - 1), img[0]);
                assert_int_equal(pager_image_n_owners(img[i]), MIN_OF(i + 1, (size_t) PAGER_MAX_OWNERS));
        }
        /* The last one holds what it needs, whoever else lets go. */
        for (size_t i = 0; i + 1 < ARRAY_LEN(img); i++)
                pager_image_unref(img[i]);
        check_extents(img[ARRAY_LEN(img) - 1]);
        pager_image_unref(img[ARRAY_LEN(img) - 1]);
}

static void test_descriptions(void **state) {
        cleanup_pager_image struct pager_image *a = open_image(), *b = open_image();
        struct pager_image *const owners[] = { b, a }, *const twice[] = { b, a, a }, *const other[] = { a, b };
        static struct pager_extent many[PAGER_MAX_EXTENTS + 1];
        static const struct {
                struct pager_extent x[3];
                size_t n;
        } bad[] = {
                { { { 0, 0 } }, 0 },
                { { { 1, 0 } }, 1 },
                { { { 0, 2 } }, 1 },
                { { { 0, 0 }, { 0, 1 } }, 2 },
                { { { 0, 0 }, { 9, 1 }, { 8, 0 } }, 3 },
                { { { 0, 0 }, { PAGES, 1 } }, 2 },
        };

        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                assert_int_equal(pager_image_set_extents(b, owners, 2, bad[i].x, bad[i].n), -EINVAL);
        for (size_t i = 0; i < ARRAY_LEN(many); i++)
                many[i] = (struct pager_extent){ i, i % 2 };
        assert_int_equal(pager_image_set_extents(b, owners, 2, many, ARRAY_LEN(many)), -EINVAL);
        assert_int_equal(pager_image_set_extents(b, twice, 3, many, 2), -EINVAL);
        assert_int_equal(pager_image_set_extents(b, other, 2, many, 2), -EINVAL);
        assert_int_equal(pager_image_set_extents(b, owners, 2, many, ARRAY_LEN(many) - 1), 0);
        check_extents(b);
        assert_int_equal(pager_image_set_extents(b, owners, 2, many, 2), -EALREADY);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_alone, setup, teardown),
                cmocka_unit_test_setup_teardown(test_three_generations, setup, teardown),
                cmocka_unit_test_setup_teardown(test_nothing_in_common, setup, teardown),
                cmocka_unit_test_setup_teardown(test_many_runs, setup, teardown),
                cmocka_unit_test_setup_teardown(test_long_chain, setup, teardown),
                cmocka_unit_test_setup_teardown(test_descriptions, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
