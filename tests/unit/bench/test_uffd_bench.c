/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "common/ids.h"
#include "common/io.h"
#include "common/spawn.h"
#include "tests/bench/uffd_bench/content.h"
#include "tests/bench/uffd_bench/guest.h"
#include "tests/bench/uffd_bench/options.h"
#include "tests/bench/uffd_bench/order.h"
#include "tests/bench/uffd_bench/proc.h"
#include "tests/bench/uffd_bench/report.h"

#define PAGES 8192ull

static const struct bench_content content = { .seed = 5, .zero_percent = 28 };

/* ---- orders ---- */

static uint32_t *order(enum bench_pattern pattern, uint64_t n, bool stored_only, size_t *ret_n) {
        const struct bench_order o = { .pattern = pattern, .seed = 3, .n = n, .theta = 0.99, .stored_only = stored_only };
        uint32_t *v = NULL;

        assert_int_equal(bench_order_make(&o, &content, PAGES, &v, ret_n), 0);
        for (size_t i = 0; i < *ret_n; i++)
                assert_true(v[i] < PAGES);
        return v;
}

static void test_each_page_once(void **state) {
        static const enum bench_pattern patterns[] = { BENCH_SEQUENTIAL, BENCH_RANDOM };

        for (size_t k = 0; k < ARRAY_LEN(patterns); k++) {
                bool seen[PAGES] = { false };
                size_t n, ascents = 0;
                cleanup_free uint32_t *v = order(patterns[k], 0, false, &n);

                assert_int_equal(n, PAGES);
                for (size_t i = 0; i < n; i++) {
                        assert_false(seen[v[i]]);
                        seen[v[i]] = true;
                        ascents += i > 0 && v[i] > v[i - 1];
                }
                if (patterns[k] == BENCH_SEQUENTIAL)
                        assert_int_equal(ascents, PAGES - 1);
                else
                        assert_true(ascents > PAGES * 45 / 100 && ascents < PAGES * 55 / 100);
        }
}

static void test_frames_take_one_of_each(void **state) {
        bool seen[PAGES / BENCH_CHUNK_PAGES] = { false };
        size_t n;
        cleanup_free uint32_t *v = order(BENCH_FRAMES, 0, false, &n);

        assert_int_equal(n, PAGES / BENCH_CHUNK_PAGES);
        for (size_t i = 0; i < n; i++) {
                assert_false(seen[v[i] / BENCH_CHUNK_PAGES]);
                seen[v[i] / BENCH_CHUNK_PAGES] = true;
        }
}

static void test_zipf_is_skewed(void **state) {
        cleanup_free unsigned *count = calloc(PAGES, sizeof(*count));
        unsigned most = 0, never = 0;
        size_t n;
        cleanup_free uint32_t *v = order(BENCH_ZIPF, 100000, false, &n);

        assert_int_equal(n, 100000);
        for (size_t i = 0; i < n; i++)
                count[v[i]]++;
        for (uint64_t p = 0; p < PAGES; p++) {
                most = MAX_OF(most, count[p]);
                never += count[p] == 0;
        }
        /* The first rank's share is 1 / zeta(8192, 0.99), a tenth. */
        assert_true(most > 9000 && most < 11500);
        assert_true(never > PAGES / 20 && never < PAGES / 2);
}

static void test_orders_may_be_cut_and_skip_zeros(void **state) {
        size_t n, stored = 0;
        cleanup_free uint32_t *all = order(BENCH_RANDOM, 0, true, &n), *some = NULL;

        for (uint64_t p = 0; p < PAGES; p++)
                stored += !bench_page_is_zero(&content, p);
        assert_int_equal(n, stored);
        for (size_t i = 0; i < n; i++)
                assert_false(bench_page_is_zero(&content, all[i]));
        some = order(BENCH_RANDOM, 100, true, &n);
        assert_int_equal(n, 100);
        assert_memory_equal(all, some, 100 * sizeof(*all));
}

/* ---- contents ---- */

static void test_zero_share(void **state) {
        static const unsigned shares[] = { 0, 10, 28, 60, 95 };

        for (size_t i = 0; i < ARRAY_LEN(shares); i++) {
                const struct bench_content c = { .seed = 9, .zero_percent = shares[i] };
                uint64_t zero = 0, n = 1u << 18;

                for (uint64_t p = 0; p < n; p++)
                        zero += bench_page_is_zero(&c, p);
                assert_true(fabs((double) zero * 100 / (double) n - shares[i]) < 2);
        }
}

static void test_pages_are_checked(void **state) {
        uint64_t page[BENCH_PAGE / 8];
        uint8_t *bytes = (uint8_t *) page;

        for (uint64_t p = 0; p < 256; p++) {
                bench_page_fill(&content, p, page);
                assert_int_equal(bench_page_is_zero(&content, p), !memcmp(bytes, bytes + 1, BENCH_PAGE - 1) && bytes[0] == 0);
                assert_true(bench_page_check(&content, p, page));
                bytes[p * 16 % BENCH_PAGE] ^= 0x40;
                assert_false(bench_page_check(&content, p, page));
        }
        /* No page passes for its neighbour. */
        bench_page_fill(&content, 1000, page);
        for (uint64_t p = 1001; p < 1064; p++)
                if (!bench_page_is_zero(&content, p))
                        assert_false(bench_page_check(&content, p, page));
}

static void test_image_holds_the_content(void **state) {
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        cleanup_snap_image struct snap_image *snap = NULL;
        struct bench_image img;
        uint64_t page[BENCH_PAGE / 8];
        struct err e = { 0 };
        char dir[256];
        double ratio;
        char size[32];

        temp_dir(dir, sizeof(dir));
        assert_int_equal(bench_image_make(dir, PAGES, &content, SNAP_CODEC_LZ4, 0, &img, &e), 0);
        assert_int_equal(snap_image_open(img.fd, &snap), 0);
        assert_int_equal(snap_decoder_new(&d), 0);
        assert_int_equal(snap_image_info(snap)->n_stored_pages, img.n_stored);
        for (uint64_t p = 0; p < PAGES; p += 7) {
                assert_int_equal(snap_image_read_page(snap, d, p, page), 0);
                assert_true(bench_page_check(&content, p, page));
        }
        /* What docs/benchmarks.md says of it. */
        ratio = (double) (img.n_stored * BENCH_PAGE) / (double) img.file_bytes;
        assert_true(ratio > 1.4 && ratio < 2);
        bench_image_clear(&img);
        assert_int_equal(bench_image_make(dir, 1ull << 40, &content, SNAP_CODEC_LZ4, 0, &img, &e), -ENOSPC);
        assert_non_null(strstr(e.message, size_format(1ull << 52, size, sizeof(size))));
        temp_dir_remove(dir);
}

/* ---- guests; these need no userfaultfd ---- */

static int raw_file(const struct bench_content *c, uint64_t spoilt) {
        int fd = memfd_create("bench-test", MFD_CLOEXEC);
        uint64_t page[BENCH_PAGE / 8];

        assert_true(fd >= 0);
        for (uint64_t p = 0; p < 256; p++) {
                bench_page_fill(c, p, page);
                page[100] ^= p == spoilt;
                assert_int_equal(io_pwrite_full(fd, page, sizeof(page), p * BENCH_PAGE), 0);
        }
        return fd;
}

static void start_guest(int file, const struct bench_touch *touch, struct bench_guest *g) {
        const struct bench_setup setup = { BENCH_MEM_FILE, 4, 256, content };
        struct err e = { 0 };

        assert_int_equal(bench_guest_start(&setup, g, &e), 0);
        assert_int_equal(bench_guest_prepare(g, touch, -1, &e), 0);
        assert_int_equal(bench_guest_connect(g, file, -1, &e), 0);
        assert_int_equal(bench_guest_go(g, &e), 0);
}

static void test_guest_touches_all_and_checks(void **state) {
        const struct bench_touch touch = { .order = { .pattern = BENCH_RANDOM }, .verify = true, .latency = true };
        cleanup_fd int good = raw_file(&content, UINT64_MAX), bad = raw_file(&content, 77);
        struct bench_result res;
        struct bench_guest g;
        struct err e = { 0 };

        start_guest(good, &touch, &g);
        assert_int_equal(bench_guest_result(&g, NULL, &res, &e), 0);
        assert_int_equal(res.touched, 256);
        assert_int_equal(res.latency.count, 256);
        assert_true(res.attached_ns <= res.start_ns && res.start_ns < res.end_ns);
        bench_guest_end(&g);

        start_guest(bad, &touch, &g);
        assert_int_equal(bench_guest_result(&g, NULL, &res, &e), -EUCLEAN);
        assert_int_equal(res.bad_page, 77);
        assert_non_null(strstr(e.message, "page 77"));
        bench_guest_end(&g);
}

static void test_guest_that_dies_is_noticed(void **state) {
        const struct bench_touch touch = { .order = { .pattern = BENCH_SEQUENTIAL }, .lead_ns = 600000000000 };
        cleanup_fd int file = raw_file(&content, UINT64_MAX);
        unsigned fds = count_fds();
        struct bench_result res;
        struct bench_guest g;
        struct err e = { 0 };

        start_guest(file, &touch, &g);
        assert_false(bench_guest_done(&g));
        assert_int_equal(spawn_kill(g.pidfd, SIGKILL), 0);
        assert_int_equal(bench_guest_result(&g, NULL, &res, &e), -EPIPE);
        bench_guest_end(&g);
        assert_int_equal(count_fds(), fds);
}

static void test_lead_is_kept(void **state) {
        const struct bench_touch touch = { .order = { .pattern = BENCH_SEQUENTIAL }, .lead_ns = 20000000 };
        cleanup_fd int file = raw_file(&content, UINT64_MAX);
        struct bench_result res;
        struct bench_guest g;
        struct err e = { 0 };

        start_guest(file, &touch, &g);
        assert_int_equal(bench_guest_result(&g, NULL, &res, &e), 0);
        assert_true(res.start_ns - res.attached_ns >= touch.lead_ns);
        bench_guest_end(&g);
}

/* ---- figures ---- */

static void test_memory_is_refused_with_numbers(void **state) {
        struct err e = { 0 };
        char size[32];

        assert_int_equal(bench_need_memory(4096, "little", &e), 0);
        assert_int_equal(bench_need_memory(1ull << 50, "much", &e), -ENOSPC);
        assert_non_null(strstr(e.message, size_format(1ull << 50, size, sizeof(size))));
}

static void test_cpu_time_grows(void **state) {
        volatile uint64_t spin = 0;
        uint64_t before, after;
        struct err e = { 0 };

        assert_int_equal(bench_cpu_ns(getpid(), &before, &e), 0);
        do {
                for (unsigned i = 0; i < 10000000; i++)
                        spin = spin * 3 + i;
                assert_int_equal(bench_cpu_ns(getpid(), &after, &e), 0);
        } while (after == before); /* the kernel counts at its ticks; time that never grew would end in ctest's timeout */
        assert_true(after > before);
}

static struct bench_samples samples(const double *v, unsigned n) {
        struct bench_samples s = { 0 };

        for (unsigned i = 0; i < n; i++)
                bench_samples_add(&s, v[i]);
        return s;
}

static void test_medians_and_ratios(void **state) {
        struct bench_samples odd = samples((double[]){ 5, 1, 3 }, 3), even = samples((double[]){ 4, 1, 2, 3 }, 4), none = { 0 },
                             r;

        assert_true(bench_median(&odd) == 3 && bench_min(&odd) == 1 && bench_max(&odd) == 5);
        assert_true(bench_median(&even) == 2.5);
        assert_true(bench_median(&none) == 0);
        r = bench_ratios(&odd, &even);
        assert_int_equal(r.n, 3);
        assert_true(r.v[0] == 1.25 && r.v[1] == 1 && r.v[2] == 1.5);
}

static void test_bounds(void **state) {
        struct bench_samples two = samples((double[]){ 2 }, 1);
        struct bench_report *r = calloc(1, sizeof(*r));

        assert_non_null(r);
        assert_true(bench_line_met(bench_report_line(r, "a", &two, "x", 2, false, "a")));
        assert_false(bench_line_met(bench_report_line(r, "b", &two, "x", 1.9, false, "b")));
        assert_true(bench_line_met(bench_report_line(r, "c", &two, "x", 2, true, "c")));
        assert_false(bench_line_met(bench_report_line(r, "d", &two, "x", 2.1, true, "d")));
        assert_true(bench_line_met(bench_report_line(r, "e", &two, "x", 0, true, "told only")));
        free(r);
}

static void test_report_files(void **state) {
        struct bench_samples s = samples((double[]){ 1, 2, 30 }, 3);
        struct bench_report *r = calloc(1, sizeof(*r));
        cleanup_free char *svg = NULL;
        struct err e = { 0 };
        char dir[256];
        size_t len;

        assert_non_null(r);
        temp_dir(dir, sizeof(dir));
        struct bench_line *l = bench_report_line(r, "id", &s, "x", 1.5, false, "a < b & %d", 7);
        bench_line_part(l, &s, "us", "part");
        bench_line_note(l, "note");
        assert_int_equal(bench_report_json(r, in_dir(dir, "r.json"), "host", &e), 0);
        assert_int_equal(bench_report_svg(r, in_dir(dir, "r.svg"), "host", &e), 0);
        assert_int_equal(bench_report_json(r, in_dir(dir, "no/r.json"), "host", &e), -EIO);
        assert_true(bench_report_svg(r, in_dir(dir, "no/r.svg"), "host", &e) < 0);

        json_t *root = json_load_file(in_dir(dir, "r.json"), 0, NULL);
        json_t *line = json_array_get(json_object_get(root, "lines"), 0);
        assert_non_null(line);
        assert_true(json_number_value(json_object_get(line, "value")) == 2);
        assert_true(json_is_false(json_object_get(line, "met")));
        assert_string_equal(json_string_value(json_object_get(line, "what")), "a < b & 7");
        assert_true(json_number_value(json_object_get(json_object_get(json_object_get(line, "parts"), "part"), "max")) == 30);
        json_decref(root);

        assert_int_equal(io_read_file(AT_FDCWD, in_dir(dir, "r.svg"), 1u << 20, &svg, &len), 0);
        assert_non_null(strstr(svg, "a &lt; b &amp; 7"));
        assert_non_null(strstr(svg, "</svg>"));
        free(r);
        temp_dir_remove(dir);
}

/* ---- the command line ---- */

static int parse(struct bench_args *a, const char *line) {
        char copy[256], *argv[16], *save = NULL;
        int argc = 0;

        (void) snprintf(copy, sizeof(copy), "uffd-bench %s", line);
        for (char *word = strtok_r(copy, " ", &save); word && argc < 15; word = strtok_r(NULL, " ", &save))
                argv[argc++] = word;
        argv[argc] = NULL;
        optind = 0; /* getopt begins anew */
        return bench_args_parse(argc, argv, a);
}

static void test_command_line(void **state) {
        static const char *const wrong[] = {
                "",
                "walk",
                "run x",
                "line",
                "line nope",
                "line cpu --modes first",
                "line cpu --threads 2",
                "run --size 17G",
                "run --size 0",
                "run --size 1000001",
                "run --threads 65",
                "run --threads -1",
                "run --rounds 0",
                "run --lead-ms -1",
                "run --lead-ms nan",
                "run --modes first,what",
                "run --pattern bad",
                "run --theta 1",
                "run --codec gzip",
                "run --zero 100",
                "run --seed 1x",
                "run --bogus",
        };
        struct bench_args a;

        for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
                assert_int_equal(parse(&a, wrong[i]), 2);
        assert_int_equal(parse(&a, "--help"), 0);

        assert_int_equal(parse(&a, "run"), -1);
        assert_int_equal(a.n_lines, 0);
        assert_int_equal(a.n_modes, BENCH_N_MODES);
        assert_int_equal(a.cfg.n_pages, 256 * BENCH_PAGES_PER_MIB);
        assert_int_equal(parse(&a, "run --size 16G --modes floor,first --threads 64 --codec zstd:3 --pattern zipf --quick"), -1);
        assert_int_equal(a.cfg.n_pages, 16384 * BENCH_PAGES_PER_MIB);
        assert_int_equal(a.n_modes, 2);
        assert_int_equal(a.modes[0], BENCH_FLOOR);
        assert_int_equal(a.cfg.threads, 64);
        assert_int_equal(a.cfg.level, 3);
        assert_int_equal(a.cfg.pattern, BENCH_ZIPF);
        assert_true(a.cfg.quick && a.cfg.verify && a.cfg.rounds == 1);
        assert_int_equal(parse(&a, "line memory cpu first-clone cpu"), -1);
        assert_int_equal(a.n_lines, 3);
        assert_string_equal(a.lines[0]->name, "first-clone");
        assert_int_equal(a.cfg.n_pages, 0); /* each line's own */
        assert_int_equal(parse(&a, "line all"), -1);
        assert_int_equal(a.n_lines, bench_n_presets);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_each_page_once),
                cmocka_unit_test(test_frames_take_one_of_each),
                cmocka_unit_test(test_zipf_is_skewed),
                cmocka_unit_test(test_orders_may_be_cut_and_skip_zeros),
                cmocka_unit_test(test_zero_share),
                cmocka_unit_test(test_pages_are_checked),
                cmocka_unit_test(test_image_holds_the_content),
                cmocka_unit_test(test_guest_touches_all_and_checks),
                cmocka_unit_test(test_guest_that_dies_is_noticed),
                cmocka_unit_test(test_lead_is_kept),
                cmocka_unit_test(test_memory_is_refused_with_numbers),
                cmocka_unit_test(test_cpu_time_grows),
                cmocka_unit_test(test_medians_and_ratios),
                cmocka_unit_test(test_bounds),
                cmocka_unit_test(test_report_files),
                cmocka_unit_test(test_command_line),
        };

        if (argc == 2 && !strcmp(argv[1], BENCH_GUEST_ARG)) /* a synthetic guest is this program again */
                return bench_guest_main();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
