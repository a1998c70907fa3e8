/* SPDX-License-Identifier: MIT */
#include "forkctl/draw.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"

#define LEVELS 8

static const char *const heights[] = { "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" };
static const char *const heights_ascii[] = { "_", ".", ":", "-", "=", "+", "*", "#" };
static const char *const eighths[] = { "", "▏", "▎", "▍", "▌", "▋", "▊", "▉" };

static void add(char *buf, size_t size, size_t *n, const char *s) {
        size_t len = strlen(s);

        if (*n + len >= size)
                return;
        memcpy(buf + *n, s, len + 1);
        *n += len;
}

/* Lowest is kept for what is nothing at all, so that a little can be told from nothing. */
static unsigned level_of(double v, double max) {
        double level;

        if (!(v > 0) || !(max > 0))
                return 0;
        level = ceil(MIN_OF(v / max, 1.0) * (LEVELS - 1));
        return (unsigned) MAX_OF(level, 1.0);
}

char *draw_spark(char *buf, size_t size, const float *v, size_t n, unsigned width, double max, bool utf8) {
        size_t at = 0;

        buf[0] = '\0';
        width = MIN_OF(width, DRAW_MAX);
        for (size_t i = n; i < width; i++)
                add(buf, size, &at, " ");
        for (size_t i = n > width ? n - width : 0; i < n; i++)
                add(buf, size, &at, isnan(v[i]) ? " " : (utf8 ? heights : heights_ascii)[level_of(v[i], max)]);
        return buf;
}

char *draw_bar(char *buf, size_t size, double share, unsigned width, bool utf8) {
        unsigned steps, full;
        size_t at = 0;

        buf[0] = '\0';
        width = MIN_OF(width, DRAW_MAX);
        if (!(share > 0))
                share = 0;
        steps = (unsigned) lround(MIN_OF(share, 1.0) * width * 8);
        if (share > 0 && width > 0)
                steps = MAX_OF(steps, 1u);
        if (!utf8) /* no part of a column can be shown, but nothing is told from something */
                steps = MIN_OF((steps + 4) / 8 + (steps > 0 && steps < 4), width) * 8;
        full = steps / 8;
        for (unsigned i = 0; i < full; i++)
                add(buf, size, &at, utf8 ? "█" : "#");
        if (steps % 8)
                add(buf, size, &at, eighths[steps % 8]);
        for (unsigned i = full + (steps % 8 > 0); i < width; i++)
                add(buf, size, &at, " ");
        return buf;
}

const char *draw_share(double share, bool utf8) {
        static const char *const digits[] = { "0", "1", "2", "3", "4", "5", "6", "7", "8", "9" };

        if (isnan(share))
                return utf8 ? "·" : ".";
        share = MIN_OF(MAX_OF(share, 0.0), 1.0);
        return utf8 ? heights[level_of(share < DRAW_IDLE ? 0 : share, 1.0)] : digits[(unsigned) MIN_OF(share * 10, 9.0)];
}

/* ---- numbers ---- */

/* Two or three digits, whatever the size. */
static void digits(char *buf, size_t size, double v, const char *unit) {
        (void) snprintf(buf, size, "%.*f%s", v < 9.95 ? 1 : 0, v, unit);
}

char *draw_seconds(char *buf, size_t size, double s, bool utf8) {
        unsigned long long whole;

        if (!(s >= 0) || s > 1e12)
                (void) snprintf(buf, size, "-");
        else if (s < 5e-8)
                (void) snprintf(buf, size, "0");
        else if (s < 999.5e-6)
                digits(buf, size, s * 1e6, utf8 ? " µs" : " us");
        else if (s < 999.5e-3)
                digits(buf, size, s * 1e3, " ms");
        else if (s < 99.5)
                digits(buf, size, s, " s");
        else {
                whole = (unsigned long long) s;
                if (whole < 3600)
                        (void) snprintf(buf, size, "%llum%02llus", whole / 60, whole % 60);
                else if (whole < 86400)
                        (void) snprintf(buf, size, "%lluh%02llum", whole / 3600, whole / 60 % 60);
                else
                        (void) snprintf(buf, size, "%llud%02lluh", whole / 86400, whole / 3600 % 24);
        }
        return buf;
}

char *draw_count(char *buf, size_t size, double n) {
        static const char *const units[] = { "", "k", "M", "G", "T", "P", "E" };
        size_t u = 0;

        if (!(n >= 0) || n > 1e20) {
                (void) snprintf(buf, size, "-");
                return buf;
        }
        for (; n >= 999.5 && u + 1 < ARRAY_LEN(units); u++)
                n /= 1000;
        if (n == floor(n) && u == 0)
                (void) snprintf(buf, size, "%.0f", n);
        else
                digits(buf, size, n, units[u]);
        return buf;
}

char *draw_percent(char *buf, size_t size, double share) {
        double p = share * 100;

        if (!(p >= 0) || p > 1e9)
                (void) snprintf(buf, size, "-");
        else if (p == 0 || p >= 9.95)
                (void) snprintf(buf, size, "%.0f%%", p);
        else
                (void) snprintf(buf, size, "%.1f%%", p);
        return buf;
}
