/* SPDX-License-Identifier: MIT */
#include "forkctl/chain/samples.h"

#include <math.h>
#include <string.h>

void samples_add(struct samples *s, double v) {
        if (s->n == s->cap) {
                size_t cap = s->cap ? s->cap * 2 : 16;
                double *p = cap <= SAMPLES_MAX ? reallocarray(s->v, cap, sizeof(*p)) : NULL;

                if (!p) {
                        s->failed = true;
                        return;
                }
                s->v = p;
                s->cap = cap;
        }
        s->v[s->n++] = v;
}

void samples_add_all(struct samples *s, const struct samples *other) {
        for (size_t i = 0; i < other->n; i++)
                samples_add(s, other->v[i]);
        s->failed |= other->failed;
}

void samples_clear(struct samples *s) {
        free(s->v);
        *s = (struct samples){ 0 };
}

static int by_value(const void *a, const void *b) {
        double x = *(const double *) a, y = *(const double *) b;

        return (x > y) - (x < y);
}

/* A sorted copy without what is no number; the caller's. NULL when there is nothing, or no memory. */
static double *sorted(const double *v, size_t n, size_t *ret_n) {
        double *copy = n ? malloc(n * sizeof(*copy)) : NULL;
        size_t k = 0;

        for (size_t i = 0; copy && i < n; i++)
                if (isfinite(v[i]))
                        copy[k++] = v[i];
        if (copy)
                qsort(copy, k, sizeof(*copy), by_value);
        *ret_n = copy ? k : 0;
        return copy;
}

double samples_quantile(const struct samples *s, double q) {
        size_t n, rank;
        cleanup_free double *v = sorted(s->v, s->n, &n);

        if (n == 0)
                return NAN;
        rank = (size_t) ceil(q * (double) n);
        return v[MIN_OF(MAX_OF(rank, (size_t) 1), n) - 1];
}

double median_of(const double *values, size_t count) {
        size_t n;
        cleanup_free double *v = sorted(values, count, &n);

        if (n == 0)
                return NAN;
        return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

bool line_through(const double *y, size_t n, double *ret_first, double *ret_last) {
        cleanup_free double *slopes = n >= 2 && n <= 4096 ? malloc(n * (n - 1) / 2 * sizeof(*slopes)) : NULL;
        cleanup_free double *rest = slopes ? malloc(n * sizeof(*rest)) : NULL;
        size_t k = 0;
        double slope, at0;

        if (!rest)
                return false;
        for (size_t i = 0; i < n; i++)
                for (size_t j = i + 1; j < n; j++)
                        if (isfinite(y[i]) && isfinite(y[j]))
                                slopes[k++] = (y[j] - y[i]) / (double) (j - i);
        if (k == 0)
                return false;
        slope = median_of(slopes, k);
        for (size_t i = 0; i < n; i++)
                rest[i] = isfinite(y[i]) ? y[i] - slope * (double) (i + 1) : NAN;
        at0 = median_of(rest, n);
        *ret_first = at0 + slope;
        *ret_last = at0 + slope * (double) n;
        return true;
}

/* The greatest k for which fewer than k of @n fair coins fall on one side with a probability of at most 2.5 %. */
static size_t tail_rank(size_t n) {
        double term = pow(0.5, (double) n), sum = 0;
        size_t k = 0;

        if (n > 1000) /* 0.5^n is nothing any more: the normal distribution is near enough */
                return (size_t) ((double) n / 2 - 0.98 * sqrt((double) n));
        for (; k < n; k++) {
                sum += term;
                if (sum > 0.025)
                        break;
                term = term * (double) (n - k) / (double) (k + 1);
        }
        return k;
}

bool median_interval(const double *values, size_t count, double *ret_low, double *ret_high) {
        size_t n, k;
        cleanup_free double *v = sorted(values, count, &n);

        k = tail_rank(n);
        if (n < 6 || k == 0)
                return false;
        *ret_low = v[k - 1];
        *ret_high = v[n - k];
        return true;
}
