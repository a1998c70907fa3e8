/* SPDX-License-Identifier: MIT */
/* What the test images hold: a page's content follows from a seed and its number, so that a test VMM in
 * another process can check every byte without being told. About a quarter of the pages is zero, in runs;
 * the others compress a little. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define TEST_PAGE 4096u

static inline uint64_t mix64(uint64_t x) {
        x += 0x9e3779b97f4a7c15ull;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
        return x ^ (x >> 31);
}

static inline bool content_is_zero(uint64_t seed, uint64_t page) {
        return mix64(seed ^ (page / 5) * 31) % 4 == 0;
}

static inline void content_fill(uint64_t seed, uint64_t page, uint8_t *buf) {
        uint64_t x = mix64(seed * 0x10001 + page);

        memset(buf, 0, TEST_PAGE);
        if (content_is_zero(seed, page))
                return;
        for (unsigned i = 0; i < TEST_PAGE; i += 8) {
                uint64_t v = i % 128 < 32 ? (x = mix64(x)) : page;

                memcpy(buf + i, &v, 8);
        }
        buf[0] |= 1; /* never all zero */
}

/** For a permutation of @n pages: an odd multiplier works modulo powers of two only, so take the next one and skip
 *  what is beyond. */
static inline uint64_t next_pow2(uint64_t n) {
        uint64_t p = 1;

        while (p < n)
                p <<= 1;
        return p;
}
