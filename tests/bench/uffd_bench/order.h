/* SPDX-License-Identifier: MIT */
/* In which order a guest touches its pages. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/bench/uffd_bench/content.h"

enum bench_pattern {
        BENCH_SEQUENTIAL,
        BENCH_RANDOM,   /* each page once, shuffled */
        BENCH_ZIPF,     /* a few pages often, most of them hardly ever */
        BENCH_FRAMES,   /* one page of each 64 KiB, shuffled: each is a fault of its own */
        BENCH_RECORDED, /* a list, as it was recorded */
        BENCH_N_PATTERNS
};

const char *bench_pattern_name(enum bench_pattern p);
int bench_pattern_parse(const char *s, enum bench_pattern *ret) attr_warn_unused;

struct bench_order {
        enum bench_pattern pattern;
        uint64_t seed;
        uint64_t n;       /* touches at most; 0: each page of the pattern once (zipf: as many as pages) */
        double theta;     /* zipf: the skew, between 0 and 1 */
        bool stored_only; /* leave out zero pages */
};

/** The page numbers, malloc'ed. Not for BENCH_RECORDED, which is a list already. -ENOMEM, -EINVAL. */
int bench_order_make(const struct bench_order *o, const struct bench_content *content, uint64_t n_pages, uint32_t **ret,
                     size_t *ret_n) attr_warn_unused;

/** Fisher and Yates. */
void bench_shuffle(uint32_t *v, size_t n, uint64_t seed);
