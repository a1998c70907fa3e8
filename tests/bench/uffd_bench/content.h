/* SPDX-License-Identifier: MIT */
/* What the synthetic guests have in memory, and the images of it. A page's content follows from the seed and its
 * number alone, so that a guest in another process checks every byte without being told. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "snapstore/image.h"

#define BENCH_PAGE 4096ull
#define BENCH_PAGES_PER_MIB (1048576u / BENCH_PAGE)
#define BENCH_CHUNK_PAGES 16ull /* what the floor fills at once, and a frame's pages at most */

struct bench_content {
        uint64_t seed;
        uint32_t zero_percent; /* of the pages, most of them in long runs */
};

/** A well mixed 64-bit number for each @x. */
static inline uint64_t bench_mix(uint64_t x) {
        x += 0x9e3779b97f4a7c15ull;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
        return x ^ (x >> 31);
}

bool bench_page_is_zero(const struct bench_content *c, uint64_t page);
/** Fills @buf (a page, aligned to 8). */
void bench_page_fill(const struct bench_content *c, uint64_t page, void *buf);
/** Does @buf hold what the page should? */
bool bench_page_check(const struct bench_content *c, uint64_t page, const void *buf);

/** A snapshot's memory image with that content, in a file without a name. */
struct bench_image {
        int fd;
        struct bench_content content;
        uint64_t n_pages, n_stored, n_frames, file_bytes;
};

/** Writes it in @dir. Refused with ERR_NO_SPACE and numbers where the file system is too small. */
int bench_image_make(const char *dir, uint64_t n_pages, const struct bench_content *content, enum snap_codec codec, int level,
                     struct bench_image *ret, struct err *e) attr_warn_unused;
void bench_image_clear(struct bench_image *img);

/** The same memory uncompressed, in a memfd that has every page. */
struct bench_raw {
        int memfd;
        const uint8_t *map;
        uint64_t n_pages;
};
int bench_raw_make(const struct bench_image *img, struct bench_raw *ret, struct err *e) attr_warn_unused;
void bench_raw_clear(struct bench_raw *raw);
