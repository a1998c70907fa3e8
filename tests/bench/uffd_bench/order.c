/* SPDX-License-Identifier: MIT */
#include "tests/bench/uffd_bench/order.h"

#include <errno.h>
#include <math.h>
#include <string.h>

static const char *const names[BENCH_N_PATTERNS] = { "sequential", "random", "zipf", "frames", "recorded" };

const char *bench_pattern_name(enum bench_pattern p) {
        return names[p];
}

int bench_pattern_parse(const char *s, enum bench_pattern *ret) {
        for (unsigned i = 0; i < BENCH_N_PATTERNS; i++)
                if (!strcmp(s, names[i])) {
                        *ret = i;
                        return 0;
                }
        return -EINVAL;
}

void bench_shuffle(uint32_t *v, size_t n, uint64_t seed) {
        for (size_t i = n; i > 1; i--) {
                size_t j = (size_t) (bench_mix(seed ^ i) % i);
                uint32_t t = v[i - 1];

                v[i - 1] = v[j];
                v[j] = t;
        }
}

/** The pages that the pattern is about, ascending. */
static size_t candidates(const struct bench_order *o, const struct bench_content *content, uint64_t n_pages, uint32_t *v) {
        size_t n = 0;

        for (uint64_t p = 0; p < n_pages; p++) {
                uint64_t page = p;

                if (o->pattern == BENCH_FRAMES) {
                        if (p % BENCH_CHUNK_PAGES)
                                continue;
                        page += MIN_OF(bench_mix(o->seed + p) % BENCH_CHUNK_PAGES, n_pages - p - 1);
                }
                if (!o->stored_only || !bench_page_is_zero(content, page))
                        v[n++] = (uint32_t) page;
        }
        return n;
}

/** Draws @n times from the @k shuffled pages by Zipf's law: Gray and others, "Quickly generating billion-record
 *  synthetic databases", 1994. */
static void draw_zipf(const struct bench_order *o, const uint32_t *from, size_t k, uint32_t *v, size_t n) {
        double zeta = 0, zeta2 = 1 + pow(0.5, o->theta), alpha = 1 / (1 - o->theta), eta;

        for (size_t i = 1; i <= k; i++)
                zeta += pow(1 / (double) i, o->theta);
        eta = (1 - pow(2 / (double) k, 1 - o->theta)) / (1 - zeta2 / zeta);
        for (size_t i = 0; i < n; i++) {
                double u = (double) (bench_mix(o->seed * 31 + i) >> 11) * 0x1p-53, uz = u * zeta;
                size_t rank = uz < 1 ? 0 : uz < zeta2 ? 1 : (size_t) ((double) k * pow(eta * u - eta + 1, alpha));

                v[i] = from[MIN_OF(rank, k - 1)];
        }
}

int bench_order_make(const struct bench_order *o, const struct bench_content *content, uint64_t n_pages, uint32_t **ret,
                     size_t *ret_n) {
        cleanup_free uint32_t *v = malloc(n_pages * sizeof(*v)), *drawn = NULL;
        size_t n, k;

        if (o->pattern == BENCH_RECORDED || n_pages == 0 || n_pages > UINT32_MAX)
                return -EINVAL;
        if (!v)
                return -ENOMEM;
        k = candidates(o, content, n_pages, v);
        if (o->pattern != BENCH_SEQUENTIAL)
                bench_shuffle(v, k, o->seed);
        n = o->n == 0 ? k : o->pattern == BENCH_ZIPF ? o->n : MIN_OF(o->n, (uint64_t) k);
        if (o->pattern == BENCH_ZIPF && k > 2) {
                drawn = malloc(n * sizeof(*drawn));
                if (!drawn)
                        return -ENOMEM;
                draw_zipf(o, v, k, drawn, n);
                *ret = TAKE_PTR(drawn);
        } else {
                n = MIN_OF(n, k);
                *ret = TAKE_PTR(v);
        }
        *ret_n = n;
        return 0;
}
