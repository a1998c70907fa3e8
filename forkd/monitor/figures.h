/* SPDX-License-Identifier: MIT */
/* Times that were measured, as they are told to people: how many took less than each power of two of nanoseconds, and what most of
 * them took. The parts of forkd measure with finer buckets, or coarser ones; here they are all alike. */
#pragma once

#include <stdint.h>

#include "bpf/probes.h"
#include "common/hist.h"
#include "common/mp.h"

#define FIGURES_FIRST_LOG2 10u /* the first bucket ends at 2^10 ns; what is below is in it */
#define FIGURES_BUCKETS 28u    /* the last but one ends at 2^36 ns; the last has no end */

/** Zeroed: nothing was measured. Bucket i holds what is below 2^(FIGURES_FIRST_LOG2 + i) ns, and not in the one before. */
struct figures {
        uint64_t bucket[FIGURES_BUCKETS], count, sum_ns, max_ns;
};

/** Adds @n times below @upper_ns (and above half of it) each. */
void figures_add(struct figures *f, uint64_t upper_ns, uint64_t n);
/** Waits for memory. */
void figures_of_waits(const struct probes_sample *s, struct figures *ret);
/** Of which finer buckets are known. */
void figures_of_hist(const struct hist_copy *h, struct figures *ret);

/** What a share @q (0 … 1) of them does not exceed, in seconds: between a bucket's ends in proportion, never more than the
 *  longest. 0 when there are none. */
double figures_quantile(const struct figures *f, double q);

/** {count, sum_s, max_s, p50_s, p90_s, p95_s, p99_s, buckets: [[end_s | nil, n]…]}, the last without the buckets that are empty. */
void figures_put(const struct figures *f, struct mp_buf *b);
void figures_kv(struct mp_buf *b, const char *key, const struct figures *f);
