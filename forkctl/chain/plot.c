/* SPDX-License-Identifier: MIT */
/* The picture is W × H units; the page scales it. Numbers come from documents that may be anybody's: only finite ones in a sane range
 * are drawn, and coordinates are clamped to the picture. */
#include "forkctl/chain/plot.h"

#include <math.h>
#include <string.h>

#include "common/ids.h"
#include "forkctl/table.h"

#define W 640.0
#define H 280.0
#define LEFT 74.0
#define RIGHT 12.0
#define TOP 12.0
#define BOTTOM 38.0
#define MAX_TICKS 12
#define MARKS_UP_TO 48 /* more points than that need no marks of their own */
#define VALUE_MAX 1e18

void html_text(FILE *f, const char *s) {
        for (; *s; s++) {
                unsigned char c = (unsigned char) *s;

                switch (c) {
                case '&':
                        (void) fputs("&amp;", f);
                        break;
                case '<':
                        (void) fputs("&lt;", f);
                        break;
                case '>':
                        (void) fputs("&gt;", f);
                        break;
                case '"':
                        (void) fputs("&quot;", f);
                        break;
                case '\'':
                        (void) fputs("&#39;", f);
                        break;
                default:
                        (void) fputc(c < 0x20 || c == 0x7f ? '?' : c, f);
                }
        }
}

char *plot_value(enum plot_unit unit, double v, char *buf, size_t size) {
        if (!(v >= 0 && v < VALUE_MAX))
                (void) snprintf(buf, size, "–");
        else if (unit == PLOT_BYTES)
                (void) size_format((uint64_t) v, buf, size);
        else if (v == 0)
                (void) snprintf(buf, size, "0");
        else
                (void) text_ms(v, buf, size);
        return buf;
}

static bool drawable(double v) {
        return v >= 0 && v < VALUE_MAX; /* false for NaN */
}

/* ---- the axes ---- */

struct axis {
        double low, high; /* of values; log: of their binary logarithms */
        double step;
        bool log;
};

/* A step of 1, 2 or 5 times a power of ten (of two for bytes), so that there are at most @want of them. */
static double nice_step(double range, unsigned want, enum plot_unit unit) {
        double raw = range / want, power;

        if (unit == PLOT_BYTES)
                return exp2(ceil(log2(raw)));
        power = pow(10, floor(log10(raw)));
        return raw <= power ? power : raw <= 2 * power ? 2 * power : raw <= 5 * power ? 5 * power : 10 * power;
}

static double column_sum(const struct plot *p, size_t i) {
        double sum = 0;

        for (size_t s = 0; s < p->n_series; s++)
                if (drawable(p->series[s].y[i]))
                        sum += p->series[s].y[i];
        return sum;
}

/* False when there is nothing to draw. */
static bool find_axis(const struct plot *p, struct axis *ret) {
        double least = INFINITY, most = -INFINITY;

        for (size_t s = 0; s < p->n_series; s++)
                for (size_t i = 0; i < p->n; i++) {
                        double v = p->series[s].y[i];

                        if (!drawable(v) || (p->log && v < 1))
                                continue;
                        least = fmin(least, v);
                        most = fmax(most, p->bars ? column_sum(p, i) : v);
                }
        if (!isfinite(least))
                return false;
        *ret = (struct axis){ .log = p->log };
        if (p->log) {
                ret->low = floor(log2(least));
                ret->high = fmax(ceil(log2(most)), ret->low + 1);
                ret->step = fmax(1, ceil((ret->high - ret->low) / 8));
                return true;
        }
        most = fmax(most, p->unit == PLOT_BYTES ? 4096 : 0.1);
        ret->step = nice_step(most, 6, p->unit);
        ret->high = ceil(most / ret->step) * ret->step;
        return true;
}

static double at_x(const struct plot *p, double depth) {
        double room = W - LEFT - RIGHT;

        if (p->bars)
                return LEFT + room * (depth - 0.5) / (double) p->n;
        return p->n < 2 ? LEFT + room / 2 : LEFT + 8 + (room - 16) * (depth - 1) / (double) (p->n - 1);
}

static double at_y(const struct axis *a, double v) {
        double share = a->log ? (log2(fmax(v, 1)) - a->low) / (a->high - a->low) : (v - a->low) / (a->high - a->low);

        return TOP + (H - TOP - BOTTOM) * (1 - fmin(fmax(share, 0), 1));
}

static void draw_axes(const struct plot *p, const struct axis *a, FILE *f) {
        unsigned every = (unsigned) MAX_OF((p->n + 11) / 12, (size_t) 1);
        unsigned n = 0;
        char text[48];

        for (double t = a->low; t <= a->high * 1.0001 && n < MAX_TICKS; t += a->step, n++) {
                double v = a->log ? exp2(t) : t, y = at_y(a, v);

                (void) fprintf(f,
                               "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/><text class=\"tick\" x=\"%.1f\" y=\"%.1f\" "
                               "text-anchor=\"end\">",
                               LEFT, y, W - RIGHT, LEFT - 8, y + 4);
                html_text(f, plot_value(p->unit, v, text, sizeof(text)));
                (void) fputs("</text>", f);
        }
        for (size_t d = 1; d <= p->n; d++)
                if (d == 1 || d == p->n || (d % every == 0 && p->n - d >= every))
                        (void) fprintf(f, "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%zu</text>",
                                       at_x(p, (double) d), H - BOTTOM + 17, d);
        (void) fprintf(f, "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">depth</text>",
                       LEFT + (W - LEFT - RIGHT) / 2, H - 4);
}

/* ---- what is drawn ---- */

static void draw_mark(const struct plot *p, const struct plot_series *s, size_t i, double x, double y, FILE *f) {
        char text[48];

        (void) fprintf(f, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>", s->look, x, y);
        html_text(f, s->label);
        (void) fprintf(f, ", depth %zu: ", i + 1);
        html_text(f, plot_value(p->unit, s->y[i], text, sizeof(text)));
        (void) fputs("</title></circle>", f);
}

static void draw_line(const struct plot *p, const struct axis *a, const struct plot_series *s, FILE *f) {
        bool down = false;

        (void) fprintf(f, "<path class=\"line %s\" d=\"", s->look);
        for (size_t i = 0; i < p->n; i++) {
                if (drawable(s->y[i]))
                        (void) fprintf(f, "%c%.1f %.1f", down ? 'L' : 'M', at_x(p, (double) i + 1), at_y(a, s->y[i]));
                down = drawable(s->y[i]);
        }
        (void) fputs("\"/>", f);
        for (size_t i = 0; p->n <= MARKS_UP_TO && i < p->n; i++)
                if (drawable(s->y[i]))
                        draw_mark(p, s, i, at_x(p, (double) i + 1), at_y(a, s->y[i]), f);
}

static void draw_bars(const struct plot *p, const struct axis *a, FILE *f) {
        double width = fmin((W - LEFT - RIGHT) / (double) p->n * 0.7, 36);

        for (size_t i = 0; i < p->n; i++) {
                double below = 0;

                for (size_t s = 0; s < p->n_series; s++) {
                        double v = p->series[s].y[i], y;
                        char text[48];

                        if (!drawable(v))
                                continue;
                        y = at_y(a, below + v);
                        (void) fprintf(f, "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>",
                                       p->series[s].look, at_x(p, (double) i + 1) - width / 2, y, width, at_y(a, below) - y);
                        html_text(f, p->series[s].label);
                        (void) fprintf(f, ", depth %zu: ", i + 1);
                        html_text(f, plot_value(p->unit, v, text, sizeof(text)));
                        (void) fputs("</title></rect>", f);
                        below += v;
                }
        }
}

static bool has_values(const struct plot *p, const struct plot_series *s) {
        for (size_t i = 0; i < p->n; i++)
                if (drawable(s->y[i]))
                        return true;
        return false;
}

static void draw_legend(const struct plot *p, FILE *f) {
        (void) fputs("<ul class=\"legend\">", f);
        for (size_t s = 0; s < p->n_series; s++) {
                if (!has_values(p, &p->series[s]))
                        continue;
                (void) fprintf(f,
                               "<li><svg viewBox=\"0 0 22 10\" aria-hidden=\"true\"><path class=\"line %s\" d=\"M1 "
                               "5H21\"/></svg>",
                               p->series[s].look);
                html_text(f, p->series[s].label);
                (void) fputs("</li>", f);
        }
        (void) fputs("</ul>", f);
}

void plot_svg(const struct plot *p, FILE *f) {
        struct axis a;

        if (p->n == 0 || !find_axis(p, &a))
                return;
        (void) fputs("<figure class=\"card\"><figcaption><h3>", f);
        html_text(f, p->title);
        (void) fputs("</h3>", f);
        draw_legend(p, f);
        (void) fprintf(f, "</figcaption><svg class=\"plot\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", W, H);
        html_text(f, p->what);
        (void) fputs("\">", f);
        draw_axes(p, &a, f);
        if (p->bars)
                draw_bars(p, &a, f);
        else
                for (size_t s = 0; s < p->n_series; s++)
                        draw_line(p, &a, &p->series[s], f);
        (void) fputs("</svg><p class=\"soft\">", f);
        html_text(f, p->what);
        (void) fputs("</p></figure>\n", f);
}
