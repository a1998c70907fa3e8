/* SPDX-License-Identifier: MIT */
/* How long a page takes: BENCH_MIB=256 pager_bench_serve. One toucher, every page once, random order, of
 *   an image's first clone   each frame is decoded
 *   its second clone         pages are there; zero pages are asked for
 *   a clone after prefetch   of another image
 *   anonymous memory         what no pager can beat
 * The memory is warmed first: otherwise the host's own first touch is measured. Not a test; prints a table. */
#include "tests/unit/pager/harness.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

static void warm(uint64_t bytes) {
        uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

        assert_ptr_not_equal(p, MAP_FAILED);
        assert_int_equal(munmap(p, bytes), 0);
}

static void measure(struct harness *h, const char *what, struct vmm *v, uint64_t pages) {
        unsigned long long ns = 0;

        assert_int_equal(sscanf(vmm_cmd(v, "time"), "ok %llu", &ns), 1);
        printf("%-28s %8.2f us/page   faults: missing %.0f zero %.0f present %.0f\n", what, (double) ns / 1000 / (double) pages,
               harness_status(h, "sessions", v->session, "faults.missing"),
               harness_status(h, "sessions", v->session, "faults.zero"),
               harness_status(h, "sessions", v->session, "faults.present"));
}

static void bench(void **state) {
        const char *mib = getenv("BENCH_MIB");
        uint64_t pages = (mib ? strtoull(mib, NULL, 10) : 256) * 256;
        struct harness h;
        struct image img, other;
        struct vmm v, w;

        harness_start(&h, NULL);
        image_make(&img, pages, 1, SNAP_CODEC_LZ4);
        image_make(&other, pages, 2, SNAP_CODEC_LZ4);
        warm(2 * pages * TEST_PAGE);
        printf("%llu MiB, %llu stored pages in %llu frames, lz4\n", (unsigned long long) pages / 256,
               (unsigned long long) img.n_stored, (unsigned long long) img.stats.frames);

        vmm_start(&h, &v, &img);
        measure(&h, "first clone", &v, pages);
        vmm_start(&h, &w, &img);
        measure(&h, "second clone", &w, pages);
        vmm_end(&h, &w);
        vmm_end(&h, &v);

        cleanup_mp_buf struct mp_buf b = { 0 };
        vmm_start(&h, &v, &other);
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", v.session);
        struct answer a = harness_call(&h, "image.prefetch", &b, NULL, 0);
        answer_clear(&a);
        (void) harness_note(&h, "image.filled", NULL);
        measure(&h, "clone of a prefetched image", &v, pages);
        vmm_end(&h, &v);

        vmm_spawn_fresh(&v, pages * TEST_PAGE);
        (void) vmm_cmd(&v, "map");
        unsigned long long ns;
        assert_int_equal(sscanf(vmm_cmd(&v, "time"), "ok %llu", &ns), 1);
        printf("%-28s %8.2f us/page\n", "anonymous memory (reads)", (double) ns / 1000 / (double) pages);
        vmm_kill(&v);
        image_clear(&img);
        image_clear(&other);
        harness_stop(&h);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(bench) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
