/* SPDX-License-Identifier: MIT */
/* Theory of operation. One picture of all lines, top to bottom: a line's headline, then a bar for each of its parts with
 * a whisker from the least to the greatest value. Bars of one unit in one line share a scale, which is logarithmic where
 * they differ by more than twenty times. Greys and one hue that can be read on white and on black; no background. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "common/cleanup.h"
#include "tests/bench/uffd_bench/report.h"

#define WIDTH 860
#define LEFT 330 /* where bars begin */
#define BAR_MAX 360
#define BAR_HEIGHT 14
#define ROW 22
#define HEAD 34
#define TOP 44

/** @s as XML text. */
static void put_text(FILE *f, const char *s) {
        for (; *s; s++) {
                if (*s == '<')
                        (void) fputs("&lt;", f);
                else if (*s == '>')
                        (void) fputs("&gt;", f);
                else if (*s == '&')
                        (void) fputs("&amp;", f);
                else
                        (void) fputc(*s, f);
        }
}

/** From a value to a bar's length. */
struct scale {
        double lo, hi;
        bool log;
};

static struct scale scale_of(const struct bench_line *l, const char *unit) {
        struct scale s = { .lo = INFINITY, .hi = 0 };

        for (unsigned i = 0; i < l->n_parts; i++) {
                if (strcmp(l->part[i].unit, unit) != 0)
                        continue;
                s.hi = fmax(s.hi, bench_max(&l->part[i].samples));
                if (bench_min(&l->part[i].samples) > 0)
                        s.lo = fmin(s.lo, bench_min(&l->part[i].samples));
        }
        s.log = s.lo < INFINITY && s.hi > 20 * s.lo;
        s.lo /= 2; /* the least is to be seen, too */
        return s;
}

static double length_of(const struct scale *s, double v) {
        if (v <= 0 || s->hi <= 0)
                return 0;
        if (!s->log)
                return BAR_MAX * v / s->hi;
        return v <= s->lo ? 0 : BAR_MAX * log(v / s->lo) / log(s->hi / s->lo);
}

static void put_part(FILE *f, const struct bench_line *l, const struct bench_part *p, unsigned y) {
        struct scale s = scale_of(l, p->unit);
        double mid = length_of(&s, bench_median(&p->samples)), min = length_of(&s, bench_min(&p->samples)),
               max = length_of(&s, bench_max(&p->samples));
        double cy = y + BAR_HEIGHT / 2.0;

        (void) fprintf(f, "<text class=\"n\" x=\"%d\" y=\"%u\">", LEFT - 8, y + 11);
        put_text(f, p->name);
        (void) fprintf(f, "</text>\n<rect class=\"b\" x=\"%d\" y=\"%u\" width=\"%.1f\" height=\"%d\"/>\n", LEFT, y, fmax(mid, 1),
                       BAR_HEIGHT);
        if (max - min >= 1)
                (void) fprintf(f, "<path class=\"w\" d=\"M%.1f %.1fH%.1fM%.1f %.1fv6M%.1f %.1fv6\"/>\n", LEFT + min, cy,
                               LEFT + max, LEFT + min, cy - 3, LEFT + max, cy - 3);
        (void) fprintf(f, "<text class=\"v\" x=\"%.1f\" y=\"%u\">%.4g ", LEFT + fmax(mid, max) + 6, y + 11,
                       bench_median(&p->samples));
        put_text(f, p->unit);
        (void) fprintf(f, "%s</text>\n", s.log ? " (log)" : "");
}

static unsigned height_of(const struct bench_report *r) {
        unsigned h = TOP + 10;

        for (unsigned i = 0; i < r->n; i++)
                h += HEAD + r->line[i].n_parts * ROW;
        return h;
}

static void put_all(FILE *f, const struct bench_report *r, const char *host) {
        unsigned y = TOP;

        (void) fprintf(f,
                       "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%u\" viewBox=\"0 0 %d %u\" "
                       "font-family=\"system-ui, sans-serif\" font-size=\"12\">\n"
                       "<style>text{fill:#7a7f87}.t{font-size:14px;font-weight:600}.h{font-weight:600}.n{text-anchor:end}"
                       ".b{fill:#4f8fc0}.w{stroke:#7a7f87;stroke-width:1.5;fill:none}.ok{fill:#3c9a5f}.no{fill:#cf5c4a}</"
                       "style>\n",
                       WIDTH, height_of(r), WIDTH, height_of(r));
        (void) fputs("<text class=\"t\" x=\"10\" y=\"20\">uffd-bench</text>\n<text x=\"100\" y=\"20\">", f);
        put_text(f, host);
        (void) fputs("</text>\n", f);
        for (unsigned i = 0; i < r->n; i++) {
                const struct bench_line *l = &r->line[i];

                (void) fputs("<text class=\"h\" x=\"10\"", f);
                (void) fprintf(f, " y=\"%u\">", y + 16);
                put_text(f, l->what);
                (void) fprintf(f, ": %.3g ", bench_median(&l->samples));
                put_text(f, l->unit);
                if (l->target != 0)
                        (void) fprintf(f, " <tspan class=\"%s\">(%s %g: %s)</tspan>", bench_line_met(l) ? "ok" : "no",
                                       l->at_least ? "at least" : "at most", l->target, bench_line_met(l) ? "met" : "missed");
                (void) fputs("</text>\n", f);
                y += HEAD - 8;
                for (unsigned k = 0; k < l->n_parts; k++, y += ROW)
                        put_part(f, l, &l->part[k], y);
                y += 8;
        }
        (void) fputs("</svg>\n", f);
}

int bench_report_svg(const struct bench_report *r, const char *path, const char *host, struct err *e) {
        cleanup_fclose FILE *f = fopen(path, "we");

        if (!f)
                return err_errno(e, -errno, "making %s", path);
        put_all(f, r, host);
        return fflush(f) != 0 || ferror(f) ? err_errno(e, -EIO, "writing %s", path) : 0;
}
