/* SPDX-License-Identifier: MIT */
/* A histogram of times, log-linear: eight buckets of equal width in each power of two, so that a bucket's
 * width is at most an eighth of its lower bound. The idea is HdrHistogram's (Gil Tene); this one has a fixed
 * range, no allocation, and one writer, which pays three plain stores a value. */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#define HIST_SUB_BITS 3u
#define HIST_SUB (1u << HIST_SUB_BITS)
#define HIST_LINEAR_BITS 8u /* below 256 ns: eight buckets of 32 ns */
#define HIST_OCTAVES 28u    /* up to 2^36 ns, 68 s; the last bucket takes all that is above */
#define HIST_BUCKETS (HIST_SUB + HIST_OCTAVES * HIST_SUB)

/** Zeroed memory is an empty histogram. Written by one thread at a time, read by any. */
struct hist {
        _Atomic uint64_t bucket[HIST_BUCKETS];
        _Atomic uint64_t sum_ns, max_ns;
};

/** A copy that stands still; sums of several are made of it. */
struct hist_copy {
        uint64_t bucket[HIST_BUCKETS], count, sum_ns, max_ns;
};

/** Which bucket holds @ns, and where that one ends: bucket i holds what is below hist_upper_ns(i) and not
 *  below hist_upper_ns(i - 1). */
unsigned hist_bucket(uint64_t ns);
uint64_t hist_upper_ns(unsigned bucket);

void hist_add(struct hist *h, uint64_t ns);

/** Adds @h to @sum. A value that is being added meanwhile is in it or not; count always is the buckets' sum. */
void hist_collect(const struct hist *h, struct hist_copy *sum);
void hist_merge(struct hist_copy *sum, const struct hist_copy *other);

/** The time that a share @q (0 … 1) of the values does not exceed: the upper bound of its bucket, but never
 *  more than the largest value. 0 for an empty one. */
uint64_t hist_quantile_ns(const struct hist_copy *h, double q);
