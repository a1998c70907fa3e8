/* SPDX-License-Identifier: MIT */
/* Bitmaps with a bit a page, a word at a time. */
#pragma once

#include <stdint.h>

#include "common/cleanup.h"

/** Of the word that holds bit @first, the bits in [@first, @end); @first < @end. */
static inline uint64_t pager_word_mask(uint64_t first, uint64_t end) {
        uint64_t n = MIN_OF(end, (first | 63) + 1) - first;

        return (n == 64 ? UINT64_MAX : (1ull << n) - 1) << (first % 64);
}
