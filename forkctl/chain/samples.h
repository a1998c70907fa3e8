/* SPDX-License-Identifier: MIT */
/* Measured values, and what may be said of them. Nothing here assumes a distribution: times of a busy host have none. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/cleanup.h"

#define SAMPLES_MAX (1u << 20)

/** Values in the order of their coming. Zeroed memory is an empty one. */
struct samples {
        double *v;
        size_t n, cap;
        bool failed; /* memory was short: what is told of them would be wrong */
};

void samples_add(struct samples *s, double v);
void samples_add_all(struct samples *s, const struct samples *other);
void samples_clear(struct samples *s);

/** The value that a share @q (0 … 1) of them does not exceed, one that was measured (nearest rank). NaN when there are none. Of few
 *  values a high quantile is the greatest: the 99th of fewer than a hundred. */
double samples_quantile(const struct samples *s, double q);

/** Median of @n values, the mean of the middle two; NaN without any. */
double median_of(const double *v, size_t n);

/** The straight line through (i + 1, @y[i]) by the median of all pairwise slopes (Theil and Sen): values far off do not bend it.
 *  Values that are NaN are left out. *ret_first and *ret_last are the line at 1 and at @n. False with fewer than two points. */
bool line_through(const double *y, size_t n, double *ret_first, double *ret_last);

/** A pair of order statistics between which the median of what @v are samples of lies with a confidence of at least 95 %
 *  (a sign test turned round). False with fewer than six values, of which nothing can be said with it. */
bool median_interval(const double *v, size_t n, double *ret_low, double *ret_high);
