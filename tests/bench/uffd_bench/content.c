/* SPDX-License-Identifier: MIT */
/* Theory of operation. The mix follows what was seen in warm Linux guests: zero pages mostly in long runs (free memory
 * that was never used) and some scattered; of the other pages a quarter is incompressible (compressed files, random
 * data), and the rest is made of pieces of 128 bytes that are random, zero, repeated from nearby, or arrays of pointers.
 * As a whole the stored pages compress by lz4 to about 1 : 1.6. */
#include "tests/bench/uffd_bench/content.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "common/ids.h"
#include "common/io.h"
#include "snapstore/writer.h"

#define ZERO_BLOCK 64u    /* pages: long runs of zero pages */
#define ZERO_SCATTERED 4u /* pages: short ones */
#define HARD_PERCENT 25u  /* of the stored pages: incompressible */
#define PIECE_WORDS 16u
#define PAGE_WORDS (BENCH_PAGE / 8)
#define DICT_PIECES 16u
#define WRITE_PAGES 512u /* generated at once */

bool bench_page_is_zero(const struct bench_content *c, uint64_t page) {
        /* Three quarters of the zero pages in whole blocks; the scattered ones are a share of what is left. */
        uint64_t in_blocks = c->zero_percent * 75ull;
        uint64_t scattered = in_blocks < 10000 ? (c->zero_percent * 25ull) * 10000 / (10000 - in_blocks) : 0;

        if (c->zero_percent >= 100)
                return true;
        if (bench_mix(c->seed ^ bench_mix(page / ZERO_BLOCK)) % 10000 < in_blocks)
                return true;
        return bench_mix(c->seed + 1 + bench_mix(page / ZERO_SCATTERED)) % 10000 < scattered;
}

static void fill_random(uint64_t *w, unsigned n, uint64_t x) {
        for (unsigned i = 0; i < n; i++)
                w[i] = bench_mix(x + i);
}

void bench_page_fill(const struct bench_content *c, uint64_t page, void *buf) {
        uint64_t *w = buf, x = bench_mix(c->seed * 0x100000001b3ull + page);
        uint64_t near = bench_mix(c->seed ^ (page / BENCH_CHUNK_PAGES)); /* pages of one frame repeat each other's pieces */

        if (bench_page_is_zero(c, page)) {
                memset(buf, 0, BENCH_PAGE);
                return;
        }
        if (x % 100 < HARD_PERCENT) {
                fill_random(w, PAGE_WORDS, x);
                return;
        }
        for (unsigned i = 0; i < PAGE_WORDS; i += PIECE_WORDS) {
                uint64_t k = bench_mix(x + (uint64_t) i * 0x10001);

                switch (k % 8) {
                case 0:
                case 1:
                case 2:
                        fill_random(w + i, PIECE_WORDS, k);
                        break;
                case 3:
                case 4:
                        memset(w + i, 0, PIECE_WORDS * 8);
                        break;
                case 5:
                case 6:
                        fill_random(w + i, PIECE_WORDS, near + (k >> 8) % DICT_PIECES * PIECE_WORDS);
                        break;
                default:
                        for (unsigned j = 0; j < PIECE_WORDS; j++)
                                w[i + j] = 0x7f0000000000ull + (k >> 40 << 12) + (uint64_t) j * 64;
                        break;
                }
        }
        w[0] |= 1; /* never all zero */
}

bool bench_page_check(const struct bench_content *c, uint64_t page, const void *buf) {
        uint64_t expected[PAGE_WORDS];

        bench_page_fill(c, page, expected);
        return memcmp(expected, buf, BENCH_PAGE) == 0;
}

/* ---- images ---- */

static int check_space(const char *dir, uint64_t bytes, struct err *e) {
        char want[32], have[32];
        uint64_t free_bytes;
        int r = io_free_bytes(dir, &free_bytes);

        if (r < 0)
                return err_errno(e, r, "asking for the free space of %s", dir);
        if (free_bytes < bytes)
                return err_set(e, ERR_NO_SPACE, -ENOSPC, "an image of %s may need all of it, and %s has %s left",
                               size_format(bytes, want, sizeof(want)), dir, size_format(free_bytes, have, sizeof(have)));
        return 0;
}

static int write_pages(struct snap_writer *w, struct bench_image *img) {
        cleanup_free uint8_t *buf = aligned_alloc(BENCH_PAGE, WRITE_PAGES * BENCH_PAGE);

        if (!buf)
                return -ENOMEM;
        for (uint64_t page = 0; page < img->n_pages;) {
                uint64_t n = MIN_OF(img->n_pages - page, (uint64_t) WRITE_PAGES);

                for (uint64_t i = 0; i < n; i++) {
                        bench_page_fill(&img->content, page + i, buf + i * BENCH_PAGE);
                        img->n_stored += !bench_page_is_zero(&img->content, page + i);
                }
                int r = snap_writer_put(w, page, buf, n);
                if (r < 0)
                        return r;
                page += n;
        }
        return 0;
}

int bench_image_make(const char *dir, uint64_t n_pages, const struct bench_content *content, enum snap_codec codec, int level,
                     struct bench_image *ret, struct err *e) {
        const struct snap_writer_params params = { .ram_bytes = n_pages * BENCH_PAGE, .codec = codec, .level = level };
        struct bench_image img = { .content = *content, .n_pages = n_pages };
        cleanup_snap_writer struct snap_writer *w = NULL;
        struct snap_writer_stats stats;
        cleanup_fd int fd = -1;
        int r = check_space(dir, params.ram_bytes, e);

        if (r < 0)
                return r;
        fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (fd < 0)
                return err_errno(e, -errno, "making a file in %s", dir);
        r = snap_writer_new(fd, -1, &params, &w);
        if (r == 0)
                r = write_pages(w, &img);
        if (r == 0)
                r = snap_writer_finish(w, &stats);
        if (r < 0)
                return err_errno(e, r, "writing an image into %s", dir);
        img.n_frames = stats.frames;
        img.file_bytes = stats.file_bytes;
        img.fd = TAKE_FD(fd);
        *ret = img;
        return 0;
}

void bench_image_clear(struct bench_image *img) {
        img->fd = close_fd(img->fd);
}

int bench_raw_make(const struct bench_image *img, struct bench_raw *ret, struct err *e) {
        cleanup_fd int fd = memfd_create("uffd-bench-raw", MFD_CLOEXEC);
        uint64_t bytes = img->n_pages * BENCH_PAGE;
        uint8_t *map;

        if (fd < 0 || ftruncate(fd, (off_t) bytes) < 0)
                return err_errno(e, -errno, "making a memfd");
        map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
                return err_errno(e, -errno, "mapping a memfd");
        for (uint64_t p = 0; p < img->n_pages; p++)
                bench_page_fill(&img->content, p, map + p * BENCH_PAGE);
        *ret = (struct bench_raw){ TAKE_FD(fd), map, img->n_pages };
        return 0;
}

void bench_raw_clear(struct bench_raw *raw) {
        if (raw->map)
                (void) munmap((void *) (uintptr_t) raw->map, raw->n_pages * BENCH_PAGE);
        raw->map = NULL;
        raw->memfd = close_fd(raw->memfd);
}
