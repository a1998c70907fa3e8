/* SPDX-License-Identifier: MIT */
/* One image, four readers that start at once: every lazily read leaf is raced for. Run under TSan, this is
 * what shows that readers need no lock. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "snap_test.h"

#define THREADS 4
#define ROUNDS 6

struct reader {
        struct snap_image *img;
        const struct model *m;
        pthread_barrier_t *barrier;
        uint64_t seed;
        uint64_t wrong;
};

static void *read_everything(void *arg) {
        struct reader *rd = arg;
        struct rng r = { .state = rd->seed };
        struct snap_decoder *d;
        uint8_t page[SNAP_PAGE_SIZE];

        if (snap_decoder_new(&d) < 0) {
                rd->wrong = 1;
                (void) pthread_barrier_wait(rd->barrier);
                return NULL;
        }
        (void) pthread_barrier_wait(rd->barrier);
        for (uint64_t i = 0; i < rd->m->n_pages / 2; i++) {
                uint64_t p = rng_below(&r, rd->m->n_pages), n;

                if (snap_image_zero_run(rd->img, p, 1, &n) < 0 || (n == 1) != snap_page_is_zero(model_page(rd->m, p)))
                        rd->wrong++;
                if (snap_image_read_page(rd->img, d, p, page) < 0 || memcmp(page, model_page(rd->m, p), SNAP_PAGE_SIZE) != 0)
                        rd->wrong++;
        }
        snap_decoder_free(d);
        return NULL;
}

static void test_readers(void **state) {
        struct rng r = { .state = 1 };
        struct snap_writer_stats stats;
        struct snap_writer *w;
        struct model m;
        int fd, child = temp_fd();

        model_init(&m, 8 * SNAP_REGION_PAGES);
        for (uint64_t i = 0; i < m.n_pages; i++)
                page_fill(&r, model_page(&m, i));
        fd = image_of(&m, SNAP_CODEC_ZSTD);
        w = writer_start(child, fd, &m, SNAP_CODEC_LZ4);
        write_random(&r, &m, w, 30);
        assert_ok(snap_writer_finish(w, &stats));
        snap_writer_free(w);
        for (unsigned round = 0; round < ROUNDS; round++) {
                struct reader rd[THREADS];
                pthread_t thread[THREADS];
                pthread_barrier_t barrier;
                struct snap_image *img;

                assert_ok(snap_image_open(child, &img));
                assert_int_equal(pthread_barrier_init(&barrier, NULL, THREADS), 0);
                for (unsigned i = 0; i < THREADS; i++) {
                        rd[i] = (struct reader){ .img = img, .m = &m, .barrier = &barrier, .seed = round * 100 + i % 2 };
                        assert_int_equal(pthread_create(&thread[i], NULL, read_everything, &rd[i]), 0);
                }
                for (unsigned i = 0; i < THREADS; i++) {
                        assert_int_equal(pthread_join(thread[i], NULL), 0);
                        assert_int_equal(rd[i].wrong, 0);
                }
                (void) pthread_barrier_destroy(&barrier);
                snap_image_close(img);
        }
        (void) close(fd);
        (void) close(child);
        model_clear(&m);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_readers) };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
