/* SPDX-License-Identifier: MIT */
#include "tests/bench/uffd_bench/report.h"

#include <assert.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void bench_samples_add(struct bench_samples *s, double v) {
        assert(s->n < BENCH_MAX_SAMPLES);
        s->v[s->n++] = v;
}

static int compare(const void *a, const void *b) {
        double x = *(const double *) a, y = *(const double *) b;

        return (x > y) - (x < y);
}

double bench_median(const struct bench_samples *s) {
        struct bench_samples sorted = *s;

        if (s->n == 0)
                return 0;
        qsort(sorted.v, sorted.n, sizeof(sorted.v[0]), compare);
        return (sorted.v[(s->n - 1) / 2] + sorted.v[s->n / 2]) / 2;
}

double bench_min(const struct bench_samples *s) {
        double min = s->n ? s->v[0] : 0;

        for (unsigned i = 1; i < s->n; i++)
                min = fmin(min, s->v[i]);
        return min;
}

double bench_max(const struct bench_samples *s) {
        double max = s->n ? s->v[0] : 0;

        for (unsigned i = 1; i < s->n; i++)
                max = fmax(max, s->v[i]);
        return max;
}

struct bench_samples bench_ratios(const struct bench_samples *a, const struct bench_samples *b) {
        struct bench_samples s = { .n = a->n < b->n ? a->n : b->n };

        for (unsigned i = 0; i < s.n; i++)
                s.v[i] = b->v[i] > 0 ? a->v[i] / b->v[i] : 0;
        return s;
}

struct bench_line *bench_report_line(struct bench_report *r, const char *id, const struct bench_samples *s, const char *unit,
                                     double target, bool at_least, const char *what, ...) {
        struct bench_line *l = &r->line[r->n++];
        va_list ap;

        assert(r->n <= BENCH_MAX_LINES);
        *l = (struct bench_line){ .samples = *s, .target = target, .at_least = at_least };
        (void) snprintf(l->id, sizeof(l->id), "%s", id);
        (void) snprintf(l->unit, sizeof(l->unit), "%s", unit);
        va_start(ap, what);
        (void) vsnprintf(l->what, sizeof(l->what), what, ap);
        va_end(ap);
        return l;
}

void bench_line_part(struct bench_line *l, const struct bench_samples *s, const char *unit, const char *name, ...) {
        struct bench_part *p = &l->part[l->n_parts++];
        va_list ap;

        assert(l->n_parts <= BENCH_MAX_PARTS);
        p->samples = *s;
        (void) snprintf(p->unit, sizeof(p->unit), "%s", unit);
        va_start(ap, name);
        (void) vsnprintf(p->name, sizeof(p->name), name, ap);
        va_end(ap);
}

void bench_line_note(struct bench_line *l, const char *fmt, ...) {
        va_list ap;

        va_start(ap, fmt);
        (void) vsnprintf(l->note, sizeof(l->note), fmt, ap);
        va_end(ap);
}

bool bench_line_met(const struct bench_line *l) {
        double value = bench_median(&l->samples);

        if (l->target == 0)
                return true;
        return l->at_least ? value >= l->target : value <= l->target;
}

/* ---- text ---- */

static void print_samples(const struct bench_samples *s, const char *unit, FILE *out) {
        (void) fprintf(out, "%10.3f %-8s", bench_median(s), unit);
        if (s->n > 1)
                (void) fprintf(out, " (%.3f … %.3f, n %u)", bench_min(s), bench_max(s), s->n);
        (void) fputc('\n', out);
}

void bench_line_print(const struct bench_line *l, FILE *out) {
        const char *verdict = l->samples.n == 0 || l->target == 0 ? "told  " : bench_line_met(l) ? "met   " : "MISSED";

        if (l->samples.n == 0) {
                (void) fprintf(out, "%s  %s: %s\n\n", verdict, l->what, l->note);
                return;
        }
        (void) fprintf(out, "%s  %s: %.3f %s", verdict, l->what, bench_median(&l->samples), l->unit);
        if (l->samples.n > 1)
                (void) fprintf(out, " (%.3f … %.3f)", bench_min(&l->samples), bench_max(&l->samples));
        if (l->target != 0)
                (void) fprintf(out, ", wanted %s %g", l->at_least ? ">=" : "<=", l->target);
        (void) fputc('\n', out);
        for (unsigned i = 0; i < l->n_parts; i++) {
                (void) fprintf(out, "          %-52s", l->part[i].name);
                print_samples(&l->part[i].samples, l->part[i].unit, out);
        }
        if (l->note[0])
                (void) fprintf(out, "          %s\n", l->note);
        (void) fputc('\n', out);
        (void) fflush(out);
}

/* ---- JSON ---- */

static json_t *rounded(double v) {
        return json_real(round(v * 1e4) / 1e4);
}

static json_t *samples_json(const struct bench_samples *s, const char *unit) {
        json_t *o = json_object();

        (void) json_object_set_new(o, "median", rounded(bench_median(s)));
        (void) json_object_set_new(o, "min", rounded(bench_min(s)));
        (void) json_object_set_new(o, "max", rounded(bench_max(s)));
        (void) json_object_set_new(o, "n", json_integer(s->n));
        (void) json_object_set_new(o, "unit", json_string(unit));
        return o;
}

static json_t *line_json(const struct bench_line *l) {
        json_t *o = json_object(), *parts = json_object();

        (void) json_object_set_new(o, "id", json_string(l->id));
        (void) json_object_set_new(o, "what", json_string(l->what));
        (void) json_object_set_new(o, "value", rounded(bench_median(&l->samples)));
        (void) json_object_set_new(o, "min", rounded(bench_min(&l->samples)));
        (void) json_object_set_new(o, "max", rounded(bench_max(&l->samples)));
        (void) json_object_set_new(o, "unit", json_string(l->unit));
        (void) json_object_set_new(o, "note", json_string(l->note));
        if (l->target != 0) {
                (void) json_object_set_new(o, "target", json_real(l->target));
                (void) json_object_set_new(o, "bound", json_string(l->at_least ? "at least" : "at most"));
                (void) json_object_set_new(o, "met", json_boolean(bench_line_met(l)));
        }
        for (unsigned i = 0; i < l->n_parts; i++)
                (void) json_object_set_new(parts, l->part[i].name, samples_json(&l->part[i].samples, l->part[i].unit));
        (void) json_object_set_new(o, "parts", parts);
        return o;
}

int bench_report_json(const struct bench_report *r, const char *path, const char *host, struct err *e) {
        json_t *root = json_object(), *lines = json_array();
        int failed;

        for (unsigned i = 0; i < r->n; i++)
                (void) json_array_append_new(lines, line_json(&r->line[i]));
        (void) json_object_set_new(root, "host", json_string(host));
        (void) json_object_set_new(root, "lines", lines);
        if (!strcmp(path, "-")) {
                failed = json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
                (void) fputc('\n', stdout);
        } else {
                failed = json_dump_file(root, path, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
        }
        json_decref(root);
        return failed ? err_set(e, ERR_IO, -EIO, "writing %s failed", path) : 0;
}
