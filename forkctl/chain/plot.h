/* SPDX-License-Identifier: MIT */
/* Plots over the depth as inline SVG. Colours are classes (s1 … s4) of the page's style, so that a plot follows its light and dark. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/cleanup.h"

#define PLOT_MAX_SERIES 4u

enum plot_unit { PLOT_MS, PLOT_BYTES };

struct plot_series {
        const char *label;
        const double *y;  /* by depth; what is no number is a gap */
        const char *look; /* class of the line: "s1", "s2 dashed" … */
};

struct plot {
        const char *title, *what; /* what: one sentence for those who do not see the picture */
        enum plot_unit unit;
        size_t n; /* depths: 1 … n */
        const struct plot_series *series;
        size_t n_series;
        bool log;  /* the y axis in powers of two */
        bool bars; /* bars upon each other instead of lines */
};

/** Writes one <figure>. Nothing at all when no series has a value. */
void plot_svg(const struct plot *p, FILE *f);

/** @s as HTML text or as the value of an attribute in double quotes. */
void html_text(FILE *f, const char *s);
/** A value as the axis has it, in @buf. */
char *plot_value(enum plot_unit unit, double v, char *buf, size_t size);
