/* SPDX-License-Identifier: MIT */
/* Two images over one memory, as two pagers have them: what each finds out about what the other has done. */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "pager/image_internal.h"

#define PAGES 4096ull
#define SEED 61
#define LARGE (1ull << 30 >> 12)

static struct image img;
static struct pager_scratch scratch;

static int setup(void **state) {
        image_make(&img, PAGES, SEED, SNAP_CODEC_LZ4);
        return pager_scratch_init(&scratch);
}

static int teardown(void **state) {
        image_clear(&img);
        pager_scratch_clear(&scratch);
        return 0;
}

static void fill(struct pager_image *image, uint64_t first, uint64_t n) {
        struct pager_fill_result res;

        for (uint64_t p = first; p < first + n; p++)
                assert_int_equal(pager_image_fill(image, &scratch, p, PAGER_DEMAND, &res), 0);
}

static int survey(struct pager_image *image) {
        uint64_t page = 0;
        int r;

        while ((r = pager_image_survey_step(image, &scratch, &page)) > 0) {
        }
        return r;
}

static uint64_t count_present(const struct pager_image *image, uint64_t n_pages) {
        uint64_t n = 0;

        for (uint64_t p = 0; p < n_pages; p++)
                n += pager_image_present(image, p);
        return n;
}

/** What the bitmap, the counts and the kernel say is the same. */
static void check_counts(struct pager_image *image) {
        struct pager_image_stats st;

        pager_image_get_stats(image, &st);
        assert_int_equal(count_present(image, PAGES), st.resident_pages);
        assert_int_equal(st.resident_pages, st.present_bytes / PAGER_PAGE);
}

static void open_two(struct pager_image **ret_old, struct pager_image **ret_new) {
        assert_int_equal(pager_image_open(img.fd, NULL, ret_old), 0);
        fill(*ret_old, 0, 1000);
        assert_int_equal(pager_image_adopt(img.fd, pager_image_memfd(*ret_old), NULL, ret_new), 0);
}

static void test_finds_what_is_there(void **state) {
        cleanup_pager_image struct pager_image *old = NULL, *new = NULL;

        open_two(&old, &new);
        assert_int_equal(count_present(new, PAGES), 0);
        assert_int_equal(pager_image_audit(new), -EINPROGRESS);
        /* without knowing it: what is there is met */
        fill(new, 100, 100);
        assert_true(count_present(new, PAGES) > 0);
        assert_int_equal(survey(new), 0);
        assert_int_equal(count_present(new, PAGES), count_present(old, PAGES));
        check_counts(new);
        assert_int_equal(pager_image_audit(new), 0);
        /* what the other one adds and takes away later */
        pager_image_share(old);
        fill(old, 2000, 600);
        assert_true(pager_image_evict(old, 0, 512) > 0);
        assert_int_equal(pager_image_audit(new), -EINPROGRESS);
        assert_int_equal(survey(new), 0);
        check_counts(new);
        assert_int_equal(count_present(new, 512), 0);
        assert_int_equal(pager_image_audit(new), 0);
        assert_false(pager_image_is_bad(new) || pager_image_is_bad(old));
        /* and the other way round */
        assert_true(pager_image_evict(new, 2048, 512) > 0);
        fill(new, 3000, 200);
        assert_int_equal(survey(old), 0);
        check_counts(old);
}

/** A chunk with pages of another pager is not punched out before they were looked at. */
static void test_reclaim_waits(void **state) {
        cleanup_pager_image struct pager_image *old = NULL, *new = NULL;

        open_two(&old, &new);
        fill(new, 0, 1);
        assert_int_equal(pager_image_evict(new, 512, 16), 0);
        assert_int_equal(survey(new), 0);
        assert_true(pager_image_evict(new, 512, 512) > 0);
        check_counts(new);
        assert_false(pager_image_is_bad(new));
}

static void test_stranger(void **state) {
        cleanup_pager_image struct pager_image *old = NULL, *new = NULL, *again = NULL;

        open_two(&old, &new);
        harness_trespass(pager_image_readonly_fd(old), image_zero_page(&img, 3000));
        assert_int_equal(survey(new), 0);
        assert_false(pager_image_is_bad(new)); /* zeros where zeros belong */
        check_counts(new);
        harness_trespass(pager_image_readonly_fd(old), image_stored_page(&img, 3000));
        assert_int_equal(survey(new), 0);
        assert_int_equal(pager_image_audit(new), -EUCLEAN);
        /* and by who comes on it first */
        struct pager_fill_result res;
        assert_int_equal(pager_image_adopt(img.fd, pager_image_memfd(old), NULL, &again), 0);
        assert_int_equal(pager_image_fill(again, &scratch, image_stored_page(&img, 3000), PAGER_DEMAND, &res), -EUCLEAN);
        assert_int_equal(pager_image_audit(again), -EUCLEAN);
}

/** A quiet image is left alone, but for those who wait for a page. */
static void test_quiet(void **state) {
        cleanup_pager_image struct pager_image *image = NULL;
        struct pager_fill_result res;

        assert_int_equal(pager_image_open(img.fd, NULL, &image), 0);
        fill(image, 0, 1000);
        pager_image_set_quiet(image, true);
        assert_int_equal(pager_image_evict(image, 0, 512), 0);
        assert_int_equal(pager_image_audit(image), -EAGAIN);
        assert_int_equal(survey(image), -ECANCELED);
        assert_int_equal(pager_image_fill(image, &scratch, image_stored_page(&img, 2000), PAGER_AHEAD, &res), -ESHUTDOWN);
        assert_false(pager_image_claimed(image));
        fill(image, image_stored_page(&img, 2000), 1);
        pager_image_set_quiet(image, false);
        assert_true(pager_image_evict(image, 0, 512) > 0);
        assert_int_equal(pager_image_audit(image), 0);
}

static double cpu_ms(void) {
        struct timespec ts;

        assert_int_equal(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts), 0);
        return (double) ts.tv_sec * 1e3 + (double) ts.tv_nsec / 1e6;
}

/** What a survey costs: of a memory with a page in each place, and of one that is empty. */
static void test_cost(void **state) {
        cleanup_pager_image struct pager_image *old = NULL, *new = NULL, *empty = NULL, *none = NULL;
        struct image large;
        double ms, start;

        image_make(&large, LARGE / 4, SEED, SNAP_CODEC_LZ4);
        assert_int_equal(pager_image_open(large.fd, NULL, &old), 0);
        fill(old, 0, LARGE / 4);
        assert_int_equal(pager_image_adopt(large.fd, pager_image_memfd(old), NULL, &new), 0);
        start = cpu_ms();
        assert_int_equal(survey(new), 0);
        ms = cpu_ms() - start;
        assert_int_equal(count_present(new, LARGE / 4), large.n_stored);
        assert_int_equal(pager_image_open(large.fd, NULL, &empty), 0);
        assert_int_equal(pager_image_adopt(large.fd, pager_image_memfd(empty), NULL, &none), 0);
        start = cpu_ms();
        assert_int_equal(survey(none), 0);
        print_message("CPU time for %llu MiB: %.1f ms (%.0f us for each 64 pages); for as much of holes %.3f ms\n",
                      (unsigned long long) LARGE * PAGER_PAGE / 4 >> 20, ms, ms * 1e3 / ((double) LARGE / 4 / 64),
                      cpu_ms() - start);
        assert_true(ms < 20000);
        image_clear(&large);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_finds_what_is_there),
                cmocka_unit_test(test_reclaim_waits),
                cmocka_unit_test(test_stranger),
                cmocka_unit_test(test_quiet),
                cmocka_unit_test(test_cost),
        };

        return cmocka_run_group_tests(tests, setup, teardown);
}
