/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/figures.h"

#include <math.h>

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

/* Microseconds of another process's. */
static uint64_t ns_of(double us) {
        return us >= 0 && us < 1e13 ? (uint64_t) (us * 1e3 + 0.5) : us > 0 ? UINT64_MAX : 0;
}

static double number(const msgpack_object *o) {
        if (o->type == MSGPACK_OBJECT_POSITIVE_INTEGER)
                return (double) o->via.u64;
        return o->type == MSGPACK_OBJECT_FLOAT64 || o->type == MSGPACK_OBJECT_FLOAT32 ? o->via.f64 : NAN;
}

void figures_of_pager(const msgpack_object *o, struct figures *ret) {
        const msgpack_object *buckets = mp_get_array(o, "buckets");
        double sum = 0, max = 0;

        (void) mp_get_double(o, "sum_us", &sum);
        (void) mp_get_double(o, "max_us", &max);
        *ret = (struct figures){ .sum_ns = ns_of(sum), .max_ns = ns_of(max) };
        for (uint32_t i = 0; buckets && i < buckets->via.array.size; i++) {
                const msgpack_object *pair = &buckets->via.array.ptr[i];

                if (pair->type == MSGPACK_OBJECT_ARRAY && pair->via.array.size == 2 &&
                    pair->via.array.ptr[1].type == MSGPACK_OBJECT_POSITIVE_INTEGER)
                        figures_add(ret, ns_of(number(&pair->via.array.ptr[0])), pair->via.array.ptr[1].via.u64);
        }
        if (!buckets) /* with many sessions theirs come without */
                (void) mp_get_u64(o, "count", &ret->count);
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
