/* SPDX-License-Identifier: MIT */
#include "tests/bench/uffd_bench/hist.h"

#include <math.h>

#include "common/cleanup.h"

/** Below 2^SUB_BITS each value has a bucket; above, the highest bit chooses a row and the next ones the place in it. */
static unsigned bucket_of(uint64_t ns) {
        unsigned high;

        if (ns < BENCH_HIST_SUB)
                return (unsigned) ns;
        high = 63u - (unsigned) __builtin_clzll(ns);
        if (high >= BENCH_HIST_MAX_BITS)
                return BENCH_HIST_BUCKETS - 1;
        return (high - BENCH_HIST_SUB_BITS + 1) * BENCH_HIST_SUB +
               (unsigned) ((ns >> (high - BENCH_HIST_SUB_BITS)) - BENCH_HIST_SUB);
}

/** The largest value of a bucket. */
static uint64_t upper_of(unsigned bucket) {
        unsigned row = bucket / BENCH_HIST_SUB, place = bucket % BENCH_HIST_SUB;

        if (row == 0)
                return place;
        return ((uint64_t) (BENCH_HIST_SUB + place + 1) << (row - 1)) - 1;
}

void bench_hist_add(struct bench_hist *h, uint64_t ns) {
        h->bucket[bucket_of(ns)]++;
        h->count++;
        h->sum_ns += ns;
        h->max_ns = MAX_OF(h->max_ns, ns);
}

void bench_hist_merge(struct bench_hist *h, const struct bench_hist *other) {
        for (unsigned i = 0; i < BENCH_HIST_BUCKETS; i++)
                h->bucket[i] += other->bucket[i];
        h->count += other->count;
        h->sum_ns += other->sum_ns;
        h->max_ns = MAX_OF(h->max_ns, other->max_ns);
}

uint64_t bench_hist_quantile(const struct bench_hist *h, double q) {
        uint64_t rank = (uint64_t) ceil(q * (double) h->count), seen = 0;

        if (h->count == 0)
                return 0;
        rank = MAX_OF(rank, 1ull);
        for (unsigned i = 0; i < BENCH_HIST_BUCKETS; i++) {
                seen += h->bucket[i];
                if (seen >= rank)
                        return MIN_OF(upper_of(i), h->max_ns);
        }
        return h->max_ns;
}
