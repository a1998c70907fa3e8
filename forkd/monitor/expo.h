/* SPDX-License-Identifier: MIT */
/* Writes Prometheus' text format, version 0.0.4: families with their help and type, samples with labels. Pure: bytes into memory.
 * Nothing that is written can break the format: label values are escaped, and what is no UTF-8 in them is replaced. Numbers are
 * exact decimals: nanoseconds become seconds without passing through a float. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/hist.h"

#define EXPO_TYPE "text/plain; version=0.0.4; charset=utf-8"
#define EXPO_LABELS_LEN 400

/* Histograms of times, as everybody gets to see them: bounds of 2^14 … 2^34 ns, 16 µs to 17 s; powers of two are ends of
 * buckets in everything that is counted inside. */
#define EXPO_FIRST_LOG2 14u
#define EXPO_BOUNDS 21u

/** Zeroed memory is an empty one. After a failure (out of memory) everything else does nothing. */
struct expo {
        char *text; /* of malloc; not a string */
        size_t len, size;
        bool failed;
        const char *name; /* of the family */
};
void expo_clear(struct expo *x);

/** Labels as they are written: `vm="a",vcpu="0"`. Zeroed memory has none. One that does not fit is left out. */
struct expo_labels {
        size_t len;
        char text[EXPO_LABELS_LEN];
};
void expo_label(struct expo_labels *l, const char *name, const char *value);
void expo_label_u64(struct expo_labels *l, const char *name, uint64_t value);

/** Times in buckets that are not cumulative: n[i] are those below 2^(EXPO_FIRST_LOG2 + i) ns and not below the bound before; the last are
 *  all above. Zeroed memory is empty. */
struct expo_hist {
        uint64_t n[EXPO_BOUNDS + 1];
        uint64_t sum_ns;
};
/** Adds @n values below @end_ns (and, for the bucket's sake, not below half of that). The sum is the caller's. */
void expo_hist_add(struct expo_hist *h, uint64_t end_ns, uint64_t n);
void expo_hist_from(struct expo_hist *ret, const struct hist_copy *h);

/** Begins a family. @type: "counter" (whose name ends in _total), "gauge" or "histogram". All its samples follow, and no family comes
 *  twice. @name and @help are constants. */
void expo_family(struct expo *x, const char *name, const char *type, const char *help);
/* Samples; @l may be NULL. */
void expo_u64(struct expo *x, const struct expo_labels *l, uint64_t value);
void expo_seconds(struct expo *x, const struct expo_labels *l, uint64_t ns);
void expo_double(struct expo *x, const struct expo_labels *l, double value);
void expo_hist(struct expo *x, const struct expo_labels *l, const struct expo_hist *h);

/* A family of one sample. */
void expo_one(struct expo *x, const char *name, const char *type, const char *help, uint64_t value);
void expo_one_seconds(struct expo *x, const char *name, const char *type, const char *help, uint64_t ns);
