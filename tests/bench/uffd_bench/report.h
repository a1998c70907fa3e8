/* SPDX-License-Identifier: MIT */
/* What was measured, as text, JSON and a picture. */
#pragma once

#include <stdbool.h>
#include <stdio.h>

#include "common/err.h"

#define BENCH_MAX_SAMPLES 512u
#define BENCH_MAX_PARTS 24u
#define BENCH_MAX_LINES 32u

/** Values of one thing, one a round. */
struct bench_samples {
        double v[BENCH_MAX_SAMPLES];
        unsigned n;
};
void bench_samples_add(struct bench_samples *s, double v);
/** Of an even number of values the mean of the middle two; 0 of none. */
double bench_median(const struct bench_samples *s);
double bench_min(const struct bench_samples *s);
double bench_max(const struct bench_samples *s);
/** a[i] / b[i]. */
struct bench_samples bench_ratios(const struct bench_samples *a, const struct bench_samples *b);

struct bench_part {
        char name[96], unit[16];
        struct bench_samples samples;
};

/** Something that is promised, or (target 0) only told. */
struct bench_line {
        char id[24], what[160], unit[16], note[512];
        struct bench_samples samples; /* its median is the value */
        double target;
        bool at_least;
        struct bench_part part[BENCH_MAX_PARTS];
        unsigned n_parts;
};

struct bench_report {
        struct bench_line line[BENCH_MAX_LINES];
        unsigned n;
};

struct bench_line *bench_report_line(struct bench_report *r, const char *id, const struct bench_samples *s, const char *unit,
                                     double target, bool at_least, const char *what, ...) attr_printf(7, 8);
void bench_line_part(struct bench_line *l, const struct bench_samples *s, const char *unit, const char *name, ...)
        attr_printf(4, 5);
void bench_line_note(struct bench_line *l, const char *fmt, ...) attr_printf(2, 3);
bool bench_line_met(const struct bench_line *l);

void bench_line_print(const struct bench_line *l, FILE *out);
/** @path "-": stdout. @host: a sentence. */
int bench_report_json(const struct bench_report *r, const char *path, const char *host, struct err *e) attr_warn_unused;
int bench_report_svg(const struct bench_report *r, const char *path, const char *host, struct err *e) attr_warn_unused;
