/* SPDX-License-Identifier: MIT */
#include "common/hist.h"

#include "common/cleanup.h"

unsigned hist_bucket(uint64_t ns) {
        unsigned msb, octave;

        if (ns < 1u << HIST_LINEAR_BITS)
                return (unsigned) (ns >> (HIST_LINEAR_BITS - HIST_SUB_BITS));
        msb = 63u - (unsigned) __builtin_clzll(ns);
        octave = msb - HIST_LINEAR_BITS;
        if (octave >= HIST_OCTAVES)
                return HIST_BUCKETS - 1;
        return HIST_SUB + octave * HIST_SUB + (unsigned) (ns >> (msb - HIST_SUB_BITS) & (HIST_SUB - 1));
}

uint64_t hist_upper_ns(unsigned bucket) {
        unsigned octave, sub;

        if (bucket < HIST_SUB)
                return (uint64_t) (bucket + 1) << (HIST_LINEAR_BITS - HIST_SUB_BITS);
        if (bucket >= HIST_BUCKETS - 1)
                return UINT64_MAX;
        octave = (bucket - HIST_SUB) / HIST_SUB;
        sub = (bucket - HIST_SUB) % HIST_SUB;
        return (uint64_t) (HIST_SUB + sub + 1) << (HIST_LINEAR_BITS + octave - HIST_SUB_BITS);
}

static void bump(_Atomic uint64_t *v, uint64_t n) {
        /* One writer: no locked instruction needed. */
        atomic_store_explicit(v, atomic_load_explicit(v, memory_order_relaxed) + n, memory_order_relaxed);
}

void hist_add(struct hist *h, uint64_t ns) {
        bump(&h->bucket[hist_bucket(ns)], 1);
        bump(&h->sum_ns, ns);
        if (ns > atomic_load_explicit(&h->max_ns, memory_order_relaxed))
                atomic_store_explicit(&h->max_ns, ns, memory_order_relaxed);
}

void hist_collect(const struct hist *h, struct hist_copy *sum) {
        for (unsigned i = 0; i < HIST_BUCKETS; i++) {
                uint64_t n = atomic_load_explicit(&h->bucket[i], memory_order_relaxed);

                sum->bucket[i] += n;
                sum->count += n;
        }
        sum->sum_ns += atomic_load_explicit(&h->sum_ns, memory_order_relaxed);
        sum->max_ns = MAX_OF(sum->max_ns, atomic_load_explicit(&h->max_ns, memory_order_relaxed));
}

void hist_merge(struct hist_copy *sum, const struct hist_copy *other) {
        for (unsigned i = 0; i < HIST_BUCKETS; i++)
                sum->bucket[i] += other->bucket[i];
        sum->count += other->count;
        sum->sum_ns += other->sum_ns;
        sum->max_ns = MAX_OF(sum->max_ns, other->max_ns);
}

uint64_t hist_quantile_ns(const struct hist_copy *h, double q) {
        uint64_t want = (uint64_t) (q * (double) h->count), seen = 0;

        if (h->count == 0)
                return 0;
        want = MIN_OF(MAX_OF(want, 1ull), h->count);
        for (unsigned i = 0; i < HIST_BUCKETS; i++) {
                seen += h->bucket[i];
                if (seen >= want)
                        return MIN_OF(hist_upper_ns(i), h->max_ns);
        }
        return h->max_ns;
}
