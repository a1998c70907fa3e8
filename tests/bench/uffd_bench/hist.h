/* SPDX-License-Identifier: MIT */
/* Durations in a log-linear histogram: 32 steps for each power of two, so within 3 %. Fixed size, so that it travels
 * in one message. */
#pragma once

#include <stdint.h>

#define BENCH_HIST_SUB_BITS 5u
#define BENCH_HIST_SUB (1u << BENCH_HIST_SUB_BITS)
#define BENCH_HIST_MAX_BITS 40u /* 18 minutes; longer ones count as that */
#define BENCH_HIST_BUCKETS ((BENCH_HIST_MAX_BITS - BENCH_HIST_SUB_BITS + 1) * BENCH_HIST_SUB)

struct bench_hist {
        uint64_t count, sum_ns, max_ns;
        uint32_t bucket[BENCH_HIST_BUCKETS];
};

void bench_hist_add(struct bench_hist *h, uint64_t ns);
void bench_hist_merge(struct bench_hist *h, const struct bench_hist *other);
/** The value below or at which a share @q (0 … 1) of all lie; 0 for an empty one. */
uint64_t bench_hist_quantile(const struct bench_hist *h, double q);
