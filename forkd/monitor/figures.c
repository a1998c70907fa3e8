/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/figures.h"

#include "common/cleanup.h"

_Static_assert(FIGURES_FIRST_LOG2 == PROBES_FIRST_LOG2 && FIGURES_BUCKETS == PROBES_BUCKETS, "the probes' buckets are these");

static uint64_t end_ns(unsigned i) {
        return 1ull << (FIGURES_FIRST_LOG2 + i);
}

void figures_add(struct figures *f, uint64_t upper_ns, uint64_t n) {
        unsigned i = 0;

        while (i < FIGURES_BUCKETS - 1 && upper_ns > end_ns(i))
                i++;
        f->bucket[i] += n;
        f->count += n;
}

void figures_of_waits(const struct probes_sample *s, struct figures *ret) {
        *ret = (struct figures){ .sum_ns = s->wait_ns, .max_ns = s->longest_ns };
        for (unsigned i = 0; i < FIGURES_BUCKETS; i++) {
                ret->bucket[i] = s->wait[i];
                ret->count += s->wait[i];
        }
}

void figures_of_hist(const struct hist_copy *h, struct figures *ret) {
        *ret = (struct figures){ .sum_ns = h->sum_ns, .max_ns = h->max_ns };
        for (unsigned i = 0; i < HIST_BUCKETS; i++)
                if (h->bucket[i])
                        figures_add(ret, hist_upper_ns(i), h->bucket[i]);
}

double figures_quantile(const struct figures *f, double q) {
        double want = q * (double) f->count, seen = 0, max = (double) f->max_ns / 1e9;

        for (unsigned i = 0; i < FIGURES_BUCKETS - 1; i++) {
                double n = (double) f->bucket[i], begin = i ? (double) end_ns(i - 1) : 0, v;

                if (n > 0 && seen + n >= want) {
                        v = (begin + ((double) end_ns(i) - begin) * (want - seen) / n) / 1e9;
                        return max > 0 ? MIN_OF(v, max) : v;
                }
                seen += n;
        }
        return max;
}

void figures_put(const struct figures *f, struct mp_buf *b) {
        unsigned n = 0;

        for (unsigned i = 0; i < FIGURES_BUCKETS; i++)
                n += f->bucket[i] > 0;
        mp_map(b, 8);
        mp_kv_u64(b, "count", f->count);
        mp_kv_double(b, "sum_s", (double) f->sum_ns / 1e9);
        mp_kv_double(b, "max_s", (double) f->max_ns / 1e9);
        mp_kv_double(b, "p50_s", figures_quantile(f, 0.5));
        mp_kv_double(b, "p90_s", figures_quantile(f, 0.9));
        mp_kv_double(b, "p95_s", figures_quantile(f, 0.95));
        mp_kv_double(b, "p99_s", figures_quantile(f, 0.99));
        mp_key(b, "buckets");
        mp_array(b, n);
        for (unsigned i = 0; i < FIGURES_BUCKETS; i++) {
                if (f->bucket[i] == 0)
                        continue;
                mp_array(b, 2);
                if (i < FIGURES_BUCKETS - 1)
                        mp_double(b, (double) end_ns(i) / 1e9);
                else
                        mp_nil(b);
                mp_u64(b, f->bucket[i]);
        }
}

void figures_kv(struct mp_buf *b, const char *key, const struct figures *f) {
        mp_key(b, key);
        figures_put(f, b);
}
