/* SPDX-License-Identifier: MIT */
/* Faults of good VMMs: the right bytes, decoded once, shared, and private once written. */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/io.h"

#define PAGES 4096ull

static struct harness h;
static struct image img;

static int setup(void **state) {
        harness_start(&h, NULL);
        image_make(&img, PAGES, 42, SNAP_CODEC_LZ4);
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        harness_stop(&h);
        return 0;
}

static void test_every_page_right(void **state) {
        struct vmm v;

        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 42 4"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 1"), "ok");
        /* zero pages cost no memory, and nothing was decoded twice, whatever the number of threads */
        assert_int_equal(harness_status(&h, "images", NULL, "present_bytes"), img.n_stored * TEST_PAGE);
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), img.stats.frames);
        assert_true(harness_status(&h, "sessions", v.session, "faults.missing") >= img.stats.frames);
        assert_true(harness_status(&h, "sessions", v.session, "faults.zero") > 0);
        assert_int_equal(harness_status(&h, "sessions", v.session, "faults.removed"), 0);
        /* a page that a vCPU's own fault mapped at the same moment is not counted again */
        assert_true(harness_status(&h, "sessions", v.session, "pages_installed") <= img.n_stored);
        assert_true(harness_status(&h, "sessions", v.session, "pages_installed") > img.n_stored / 2);
        assert_int_equal(harness_status(&h, "sessions", v.session, "zero_pages"), PAGES - img.n_stored);
        assert_int_equal(harness_status(&h, "sessions", v.session, "oldest_fault_ms"), 0);
        vmm_end(&h, &v);
        assert_true(harness_status(&h, "totals", NULL, "faults.missing") >= img.stats.frames);
}

static void test_zstd_and_odd_size(void **state) {
        struct image odd;
        struct vmm v;

        image_make(&odd, 777, 3, SNAP_CODEC_ZSTD);
        vmm_start(&h, &v, &odd);
        assert_string_equal(vmm_cmd(&v, "verify 3 3"), "ok");
        vmm_end(&h, &v);
        image_clear(&odd);
}

/** A child's frames hold pages that later frames replace: only what is live may be shown. */
static void test_child_image(void **state) {
        struct snap_writer_params params = { .ram_bytes = PAGES * TEST_PAGE, .codec = SNAP_CODEC_LZ4 };
        cleanup_snap_writer struct snap_writer *w = NULL;
        struct image child = { .n_pages = PAGES };
        uint8_t page[TEST_PAGE];
        struct raw_vmm r;
        struct vmm v;

        child.fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        assert_true(child.fd >= 0);
        assert_int_equal(snap_writer_new(child.fd, img.fd, &params, &w), 0);
        for (uint64_t p = 0; p < PAGES; p++)
                if (mix64(p) % 3 == 0) {
                        content_fill(43, p, page);
                        assert_int_equal(snap_writer_put(w, p, page, 1), 0);
                }
        assert_int_equal(snap_writer_finish(w, &child.stats), 0);

        vmm_open(&h, &v, &child);
        raw_map(&r, v.memfd, v.ram_bytes);
        raw_attach(&r, v.sock);
        for (uint64_t i = 0; i < PAGES; i++) {
                uint64_t p = i * 1031 % PAGES;

                content_fill(mix64(p) % 3 == 0 ? 43 : 42, p, page);
                assert_memory_equal(r.map + p * TEST_PAGE, page, TEST_PAGE);
        }
        (void) close_fd(v.sock);
        (void) harness_note(&h, "session.gone", v.session);
        raw_unmap(&r);
        (void) close_fd(v.memfd);
        image_clear(&child);
}

static void test_two_clones_at_once(void **state) {
        struct vmm a, b, c;

        vmm_start(&h, &a, &img);
        vmm_start(&h, &b, &img);
        vmm_send(&a, "verify 42 2");
        vmm_send(&b, "verify 42 2");
        assert_string_equal(vmm_answer(&a), "ok");
        assert_string_equal(vmm_answer(&b), "ok");
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), img.stats.frames);
        assert_int_equal(harness_status(&h, "images", NULL, "sessions"), 2);
        assert_int_equal(harness_status(&h, "totals", NULL, "images"), 1);

        /* the next one finds every page there */
        vmm_start(&h, &c, &img);
        assert_string_equal(vmm_cmd(&c, "verify 42 2"), "ok");
        assert_int_equal(harness_status(&h, "sessions", c.session, "faults.missing"), 0);
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), img.stats.frames);

        /* what one writes is its own */
        for (unsigned i = 0; i < 64; i++)
                assert_string_equal(vmm_cmd(&a, "write %u %u", i * 61, i + 1), "ok");
        assert_string_equal(vmm_cmd(&a, "verify 42 1"), "ok");
        assert_string_equal(vmm_cmd(&b, "verify 42 1"), "ok");
        assert_string_equal(vmm_cmd(&c, "verify 42 1"), "ok");
        assert_int_equal(harness_status(&h, "images", NULL, "present_bytes"), img.n_stored * TEST_PAGE);
        vmm_end(&h, &a);
        assert_string_equal(vmm_cmd(&b, "verify 42 1"), "ok");
        vmm_end(&h, &b);
        vmm_end(&h, &c);
}

static void test_write_before_read(void **state) {
        struct vmm v, w;

        vmm_start(&h, &v, &img);
        for (unsigned i = 0; i < PAGES; i += 3)
                assert_string_equal(vmm_cmd(&v, "write %u %u", i, 1 + i % 250), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        vmm_start(&h, &w, &img);
        assert_string_equal(vmm_cmd(&w, "verify 42 2"), "ok");
        vmm_end(&h, &v);
        vmm_end(&h, &w);
}

static void test_prefetch(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct vmm v;

        vmm_start(&h, &v, &img);
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", v.session);
        struct answer a = harness_call(&h, "image.prefetch", &b, NULL, 0);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        /* demand goes on meanwhile */
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        assert_string_equal(harness_note(&h, "image.filled", NULL)->text, "");
        assert_int_equal(harness_status(&h, "images", NULL, "present_bytes"), img.n_stored * TEST_PAGE);
        assert_int_equal(harness_status(&h, "images", NULL, "decodes"), img.stats.frames);
        assert_int_equal(harness_status(&h, "images", NULL, "filling"), 0);
        vmm_end(&h, &v);

        /* a filled image's clone asks for zero pages only */
        vmm_start(&h, &v, &img);
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        assert_int_equal(harness_status(&h, "sessions", v.session, "faults.missing"), 0);
        assert_int_equal(harness_status(&h, "sessions", v.session, "faults.present"), 0);
        vmm_end(&h, &v);
}

/* The order of everything: pages of one frame are faulted by many threads while the layout changes. */
static void test_discards_under_load(void **state) {
        struct vmm v, w;

        vmm_start(&h, &v, &img);
        vmm_start(&h, &w, &img);
        vmm_send(&v, "storm 42 300");
        vmm_send(&w, "verify 42 3");
        assert_string_equal(vmm_answer(&w), "ok");
        assert_string_equal(vmm_answer(&v), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        assert_true(harness_status(&h, "sessions", v.session, "removed_pages") > 300);
        vmm_end(&h, &v);
        vmm_end(&h, &w);
}

/** session.removed as a bitmap; the counts are checked on the way. */
static void get_removed(struct vmm *v, uint8_t removed[PAGES]) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        const msgpack_object *ranges;
        uint64_t end = 0;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", v->session);
        struct answer a = harness_call(&h, "session.removed", &b, NULL, 0);
        assert_int_equal(a.r, 0);
        ranges = mp_get_array(&a.doc.root, "ranges");
        assert_non_null(ranges);
        memset(removed, 0, PAGES);
        for (uint32_t i = 0; i < ranges->via.array.size; i++) {
                const msgpack_object *r = ranges->via.array.ptr[i].via.array.ptr;
                uint64_t first = r[0].via.u64, n = r[1].via.u64;

                assert_true(first >= end && n > 0 && first + n <= PAGES);
                memset(removed + first, 1, n);
                end = first + n + 1; /* neighbours would have been one range */
        }
        answer_clear(&a);
}

static void test_removed_ranges(void **state) {
        static const struct {
                unsigned page, n;
        } discards[] = { { 0, 1 }, { 63, 2 }, { 64, 64 }, { 500, 13 }, { 505, 20 }, { 1024, 512 }, { PAGES - 1, 1 } };
        static uint8_t want[PAGES], got[PAGES];
        struct vmm v;

        vmm_start(&h, &v, &img);
        get_removed(&v, got);
        assert_memory_equal(got, want, PAGES);
        /* half of them after the pages were there, half before they were ever touched */
        for (unsigned pass = 0; pass < 2; pass++) {
                for (unsigned i = pass; i < ARRAY_LEN(discards); i += 2) {
                        assert_string_equal(vmm_cmd(&v, "advise %u %u %d", discards[i].page, discards[i].n, MADV_DONTNEED), "ok");
                        memset(want + discards[i].page, 1, discards[i].n);
                }
                get_removed(&v, got);
                assert_memory_equal(got, want, PAGES);
                assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        }
        /* pages that are written again stay in the list: the dirty page counts then */
        assert_string_equal(vmm_cmd(&v, "write 500 9"), "ok");
        assert_string_equal(vmm_cmd(&v, "verify 42 2"), "ok");
        get_removed(&v, got);
        assert_memory_equal(got, want, PAGES);
        vmm_end(&h, &v);
}

static void test_vmm_dies_in_the_middle(void **state) {
        struct vmm v, w;

        vmm_start(&h, &v, &img);
        vmm_start(&h, &w, &img);
        vmm_send(&v, "verify 42 4");
        vmm_end(&h, &v);
        assert_string_equal(vmm_cmd(&w, "verify 42 4"), "ok");
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions"), 1);
        assert_int_equal(harness_status(&h, "totals", NULL, "sessions_failed"), 0);
        assert_false(harness_has_note(&h, "session.failed", NULL));
        vmm_end(&h, &w);
}

static void test_close_under_load(void **state) {
        for (unsigned i = 0; i < 20; i++) {
                struct image own;
                struct vmm v;

                image_make(&own, 1024, 100 + i, SNAP_CODEC_LZ4);
                vmm_start(&h, &v, &own);
                vmm_send(&v, "verify %u 4", 100 + i);
                /* from the middle of it to before it began */
                while (i % 2 == 0 && harness_status(&h, "sessions", v.session, "faults.missing") == 0) {
                }
                harness_close(&h, v.session);
                assert_int_equal(harness_status(&h, "totals", NULL, "sessions"), 0);
                assert_false(harness_has_note(&h, "session.gone", v.session));
                /* Its faults wait now, they are not answered with zeros: it can only be killed, or it had all
                 * pages before. */
                vmm_kill(&v);
                image_clear(&own);
        }
}

static bool one_moves(struct harness *two, unsigned round) {
        struct image own[2];
        struct vmm busy, idle, other;
        double moves = 0;

        image_make(&own[0], 8 * PAGES, 42 + round, SNAP_CODEC_LZ4);
        image_make(&own[1], 8 * PAGES, 142 + round, SNAP_CODEC_LZ4);
        vmm_start(two, &busy, &own[0]);
        vmm_start(two, &idle, &own[0]);
        vmm_start(two, &other, &own[1]);
        assert_true(harness_status(two, "sessions", busy.session, "worker") !=
                    harness_status(two, "sessions", idle.session, "worker"));
        assert_true(harness_status(two, "sessions", busy.session, "worker") ==
                    harness_status(two, "sessions", other.session, "worker"));
        vmm_send(&busy, "verify %u 4", 42 + round);
        vmm_send(&other, "verify %u 4", 142 + round);
        assert_string_equal(vmm_answer(&busy), "ok");
        assert_string_equal(vmm_answer(&other), "ok");
        moves = harness_status(two, "sessions", busy.session, "moves") + harness_status(two, "sessions", other.session, "moves");
        vmm_end(two, &busy);
        vmm_end(two, &idle);
        vmm_end(two, &other);
        image_clear(&own[0]);
        image_clear(&own[1]);
        return moves > 0;
}

/** Two sessions that work share a worker while the other worker's one is idle: one of them moves, in the middle of
 *  its faults, and nobody sees a wrong byte. On a busy host it may take more than one round of them. */
static void test_moves_to_the_idle_worker(void **state) {
        struct pager_config cfg = { .workers = 2 };
        uint64_t deadline = now_ns() + DEADLINE_MS * 1000000ull;
        struct harness two;

        harness_start(&two, &cfg);
        for (unsigned round = 0; !one_moves(&two, round); round++)
                assert_true(now_ns() < deadline);
        harness_stop(&two);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_every_page_right, setup, teardown),
                cmocka_unit_test_setup_teardown(test_zstd_and_odd_size, setup, teardown),
                cmocka_unit_test_setup_teardown(test_child_image, setup, teardown),
                cmocka_unit_test_setup_teardown(test_two_clones_at_once, setup, teardown),
                cmocka_unit_test_setup_teardown(test_write_before_read, setup, teardown),
                cmocka_unit_test_setup_teardown(test_prefetch, setup, teardown),
                cmocka_unit_test_setup_teardown(test_discards_under_load, setup, teardown),
                cmocka_unit_test_setup_teardown(test_removed_ranges, setup, teardown),
                cmocka_unit_test_setup_teardown(test_vmm_dies_in_the_middle, setup, teardown),
                cmocka_unit_test_setup_teardown(test_close_under_load, setup, teardown),
                cmocka_unit_test(test_moves_to_the_idle_worker),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
