/* SPDX-License-Identifier: MIT */
/* The document as one page: no script, no font, no picture from anywhere. Whatever is in it as text is escaped, for a document may be
 * anybody's file. Plots are in plot.c. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "common/ids.h"
#include "common/json.h"
#include "forkctl/chain/chain.h"
#include "forkctl/chain/plot.h"
#include "forkctl/chain/report_style.h"
#include "forkctl/table.h"

#define FEW 100u

static bool is_live(const json_t *doc) {
        return strcmp(json_str(json_object_get(doc, "plan"), "mode", ""), "live") == 0;
}

static double step_value(const json_t *map, const char *step, const char *quantile) {
        char field[40];

        (void) snprintf(field, sizeof(field), "%s_ms", step);
        return json_num(json_object_get(map, field), quantile, NAN);
}

static uint64_t step_count(const json_t *map, const char *step) {
        char field[40];

        (void) snprintf(field, sizeof(field), "%s_ms", step);
        return json_u64(json_object_get(map, field), "n", 0);
}

static char *ratio_text(double v, char *buf, size_t size) {
        if (isfinite(v) && fabs(v) < 1e6)
                (void) snprintf(buf, size, "%.2f ×", v);
        else
                (void) snprintf(buf, size, "–");
        return buf;
}

/* ---- tiles ---- */

static void tile(FILE *f, const char *what, const char *value, const char *more, const char *class) {
        (void) fputs("<div><dt>", f);
        html_text(f, what);
        (void) fprintf(f, "</dt><dd class=\"%s\">", class);
        html_text(f, value);
        (void) fputs("</dd><dd>", f);
        html_text(f, more);
        (void) fputs("</dd></div>\n", f);
}

static void time_tile(FILE *f, const json_t *overall, enum chain_step step, const char *what) {
        char value[48], p99[48], more[160];
        uint64_t n = step_count(overall, chain_steps[step].name);

        if (n == 0)
                return;
        (void) plot_value(PLOT_MS, step_value(overall, chain_steps[step].name, "p50"), value, sizeof(value));
        (void) plot_value(PLOT_MS, step_value(overall, chain_steps[step].name, "p99"), p99, sizeof(p99));
        (void) snprintf(more, sizeof(more), "%s %s, n %llu", n < FEW ? "greatest" : "p99", p99, (unsigned long long) n);
        tile(f, what, value, more, "");
}

static void slope_tile(FILE *f, const json_t *overall, const char *key, const char *what) {
        double v = json_num(overall, key, NAN);
        char value[48];

        if (isfinite(v))
                tile(f, what, ratio_text(v, value, sizeof(value)), "last depth against first", "");
}

static void put_tiles(const json_t *doc, FILE *f) {
        const json_t *overall = json_object_get(doc, "overall");
        char a[48], b[48], more[160];
        uint64_t failures = json_u64(overall, "failures", 0);

        (void) fputs("<dl class=\"tiles\">\n", f);
        time_tile(f, overall, STEP_FORK, "fork, median");
        time_tile(f, overall, STEP_STANDBY, "standby, median");
        time_tile(f, overall, STEP_SOURCE_PAUSE, "source paused, median");
        slope_tile(f, overall, "fork_slope", "what depth costs a fork");
        slope_tile(f, overall, "standby_slope", "what depth costs a standby");
        slope_tile(f, overall, "source_pause_slope", "what depth costs the pause");
        (void) plot_value(PLOT_BYTES, json_num(overall, "raw_bytes", NAN), b, sizeof(b));
        (void) snprintf(more, sizeof(more), "of %s of memory in snapshots", b);
        tile(f, "on disk", plot_value(PLOT_BYTES, json_num(overall, "stored_bytes", NAN), a, sizeof(a)), more, "");
        (void) plot_value(PLOT_BYTES, json_num(overall, "private_max_bytes", NAN), b, sizeof(b));
        (void) snprintf(more, sizeof(more), "at most %s", b);
        tile(f, "memory of a clone alone", plot_value(PLOT_BYTES, json_num(overall, "private_bytes", NAN), a, sizeof(a)), more,
             "");
        if (json_is_number(json_object_get(overall, "held_growth")))
                tile(f, "memory held, a link more", ratio_text(json_num(overall, "held_growth", NAN), a, sizeof(a)),
                     "of what it dirties", "");
        (void) snprintf(a, sizeof(a), "%llu", (unsigned long long) json_u64(overall, "verified", 0));
        (void) snprintf(more, sizeof(more), failures ? "%llu failures" : "no failure", (unsigned long long) failures);
        tile(f, "clones verified", a, more, failures ? "bad" : "ok");
        (void) fputs("</dl>\n", f);
}

/* ---- what is wrong ---- */

static void put_failures(const json_t *doc, FILE *f) {
        json_t *o;
        size_t i;

        if (json_flag(doc, "interrupted"))
                (void) fputs("<p class=\"banner\"><strong>Interrupted.</strong> This is what was measured before.</p>\n", f);
        json_array_foreach (json_list(doc, "fail_over"), i, o) {
                double v = json_num(o, "value", NAN);

                (void) fprintf(f, "<p class=\"%s\"><strong>%s</strong>: ", json_flag(o, "ok") ? "card" : "banner",
                               json_flag(o, "ok") ? "Met" : "Over the limit");
                html_text(f, json_str(o, "key", "?"));
                if (isfinite(v))
                        (void) fprintf(f, " is %.6g, at most %.6g</p>\n", v, json_num(o, "limit", NAN));
                else
                        (void) fputs(" was not measured</p>\n", f);
        }
        json_array_foreach (json_list(doc, "failures"), i, o) {
                (void) fprintf(f, "<p class=\"banner\"><strong>Depth %llu, ", (unsigned long long) json_u64(o, "depth", 0));
                html_text(f, json_str(o, "step", "?"));
                (void) fputs("</strong>: ", f);
                html_text(f, json_str(o, "reason", "?"));
                (void) fputs("</p>\n", f);
        }
}

/* ---- plots ---- */

/* Values by depth; depths that are missing are gaps. */
struct columns {
        double *v[12];
        size_t n, used;
};

static void columns_clear(struct columns *c) {
        for (size_t i = 0; i < c->used; i++)
                free(c->v[i]);
        c->used = 0;
}

/* NULL when memory is short: then nothing is drawn. */
static double *column(struct columns *c, const json_t *doc, const char *reference, const char *field, const char *quantile) {
        double *v = c->used < ARRAY_LEN(c->v) ? malloc(MAX_OF(c->n, (size_t) 1) * sizeof(*v)) : NULL;
        json_t *d;
        size_t i;

        if (!v)
                return NULL;
        c->v[c->used++] = v;
        for (i = 0; i < c->n; i++)
                v[i] = NAN;
        json_array_foreach (json_list(doc, "depths"), i, d) {
                uint64_t depth = json_u64(d, "depth", 0);
                const json_t *map = reference ? json_object_get(d, reference) : d;

                if (depth >= 1 && depth <= c->n)
                        v[depth - 1] =
                                quantile ? json_num(json_object_get(map, field), quantile, NAN) : json_num(map, field, NAN);
        }
        return v;
}

/* Each depth's value becomes the sum of all up to it, on top of @start. */
static void add_up(double *v, size_t n, double start) {
        double sum = start;

        for (size_t i = 0; i < n; i++) {
                sum += isfinite(v[i]) ? v[i] : 0;
                v[i] = sum;
        }
}

/* The last column may be missing for want of memory: then so are those before it. */
static bool complete(const struct plot_series *s, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (!s[i].y)
                        return false;
        return true;
}

static void put_plot(FILE *f, size_t n, const char *title, const char *what, enum plot_unit unit, const struct plot_series *s,
                     size_t n_series, bool log, bool bars) {
        if (complete(s, n_series))
                plot_svg(&(struct plot){ .title = title,
                                         .what = what,
                                         .unit = unit,
                                         .n = n,
                                         .series = s,
                                         .n_series = n_series,
                                         .log = log,
                                         .bars = bars },
                         f);
}

static void plot_fork(const json_t *doc, struct columns *c, FILE *f) {
        const struct plot_series lines[] = {
                { "median", column(c, doc, NULL, "fork_ms", "p50"), "s1" },
                { "99th of 100", column(c, doc, NULL, "fork_ms", "p99"), "s2" },
                { "median at depth 1, measured beside it", column(c, doc, "reference", "fork_ms", "p50"), "s1 dashed" },
        };

        put_plot(f, c->n, "Fork", chain_steps[STEP_FORK].what, PLOT_MS, lines, ARRAY_LEN(lines), false, false);
        columns_clear(c);
}

static void plot_save(const json_t *doc, struct columns *c, FILE *f) {
        bool live = is_live(doc);
        const struct plot_series lines[] = {
                { live ? "median" : "standby, median", column(c, doc, NULL, live ? "source_pause_ms" : "standby_ms", "p50"),
                  "s1" },
                { live ? "greatest" : "pause in it, median",
                  column(c, doc, NULL, live ? "source_pause_ms" : "pause_ms", live ? "max" : "p50"), "s3" },
                { "at depth 1, measured beside it", column(c, doc, "reference", live ? "source_pause_ms" : "standby_ms", "p50"),
                  "s1 dashed" },
        };

        put_plot(f, c->n, live ? "Source pause" : "Standby", chain_steps[live ? STEP_SOURCE_PAUSE : STEP_STANDBY].what, PLOT_MS,
                 lines, ARRAY_LEN(lines), false, false);
        columns_clear(c);
}

static void plot_parts(const json_t *doc, struct columns *c, FILE *f) {
        const struct plot_series parts[] = {
                { "device state loaded", column(c, doc, NULL, "load_ms", "p50"), "s1" },
                { "acknowledged", column(c, doc, NULL, "ack_ms", "p50"), "s3" },
                { "first command", column(c, doc, NULL, "first_exec_ms", "p50"), "s4" },
        };

        put_plot(f, c->n, "What a clone takes", "Medians of the parts of a fork, and of the first command in the clone.", PLOT_MS,
                 parts, ARRAY_LEN(parts), false, true);
        columns_clear(c);
}

static void plot_disk(const json_t *doc, struct columns *c, FILE *f) {
        const json_t *base = json_object_get(doc, "base");
        double *stored = column(c, doc, NULL, "stored_bytes", NULL), *raw = column(c, doc, NULL, "raw_bytes", NULL);
        double *dirty = column(c, doc, NULL, "dirty_bytes", NULL);
        const struct plot_series lines[] = { { "raw: all memory", raw, "s2" },
                                             { "dirtied", dirty, "s4" },
                                             { "stored", stored, "s1" } };

        if (complete(lines, ARRAY_LEN(lines))) {
                add_up(stored, c->n, json_num(base, "stored_bytes", 0));
                add_up(raw, c->n, json_num(base, "raw_bytes", 0));
                add_up(dirty, c->n, json_num(base, "dirty_bytes", 0));
        }
        put_plot(f, c->n, "On disk, in all", "The base and all links up to this one; each step up is twice as much or more.",
                 PLOT_BYTES, lines, ARRAY_LEN(lines), true, false);
        columns_clear(c);
}

static void plot_memory(const json_t *doc, struct columns *c, FILE *f) {
        const struct plot_series clone[] = { { "median", column(c, doc, NULL, "private_bytes", NULL), "s1" },
                                             { "greatest", column(c, doc, NULL, "private_max_bytes", NULL), "s2" } };

        put_plot(f, c->n, "Memory of a clone alone", "Guest memory that a clone shares with nobody, after its first command.",
                 PLOT_BYTES, clone, ARRAY_LEN(clone), false, false);
        columns_clear(c);
}

static void plot_held(const json_t *doc, struct columns *c, FILE *f) {
        const struct plot_series held[] = { { "held", column(c, doc, NULL, "held_bytes", NULL), "s1" },
                                            { "dirtied so far", column(c, doc, NULL, "dirty_bytes", NULL), "s4 dashed" } };

        if (complete(held, ARRAY_LEN(held)))
                add_up(c->v[1], c->n, 0);
        put_plot(f, c->n, "Memory of the living chain",
                 "Private guest memory of all guests and what the pager has decoded, beside all that was dirtied.", PLOT_BYTES,
                 held, ARRAY_LEN(held), false, false);
        columns_clear(c);
}

static void put_plots(const json_t *doc, FILE *f) {
        struct columns c = { .n = MIN_OF(json_array_size(json_list(doc, "depths")), (size_t) CHAIN_MAX_DEPTH) };

        (void) fputs("<section class=\"plots\" aria-label=\"Plots\">\n", f);
        plot_fork(doc, &c, f);
        plot_save(doc, &c, f);
        plot_parts(doc, &c, f);
        plot_disk(doc, &c, f);
        plot_memory(doc, &c, f);
        if (is_live(doc))
                plot_held(doc, &c, f);
        (void) fputs("</section>\n", f);
}

/* ---- tables ---- */

static void cell(FILE *f, enum plot_unit unit, double v) {
        char text[48];

        (void) fputs("<td>", f);
        html_text(f, plot_value(unit, v, text, sizeof(text)));
        (void) fputs("</td>", f);
}

static void put_overall(const json_t *doc, FILE *f) {
        static const char *const quantiles[] = { "p50", "p95", "p99", "max" };
        const json_t *overall = json_object_get(doc, "overall");
        bool few = false;

        (void) fputs("<section class=\"card\"><h2>Over all depths</h2><div "
                     "class=\"wide\"><table><thead><tr><th>step</th><th>p50</th><th>p95</th>"
                     "<th>p99</th><th>max</th><th>n</th></tr></thead><tbody>\n",
                     f);
        for (size_t s = 0; s < N_STEPS; s++) {
                uint64_t n = step_count(overall, chain_steps[s].name);

                if (n == 0)
                        continue;
                few |= n < FEW;
                (void) fputs("<tr><td>", f);
                html_text(f, chain_steps[s].title);
                (void) fputs("</td>", f);
                for (size_t q = 0; q < ARRAY_LEN(quantiles); q++)
                        cell(f, PLOT_MS, step_value(overall, chain_steps[s].name, quantiles[q]));
                (void) fprintf(f, "<td>%llu</td></tr>\n", (unsigned long long) n);
        }
        (void) fputs("</tbody></table></div>", f);
        if (few)
                (void) fputs(
                        "<p class=\"soft\">All are values that were measured; of fewer than 100 the p99 is the greatest.</p>", f);
        (void) fputs("</section>\n", f);
}

static void put_depths(const json_t *doc, FILE *f) {
        static const char *const columns[] = { "standby", "pause", "source_pause", "fork", "load", "ack", "first_exec" };
        static const char *const sizes[] = { "dirty_bytes", "stored_bytes", "private_bytes", "held_bytes" };
        bool live = is_live(doc);
        json_t *d;
        size_t i;

        (void) fputs("<section class=\"card\"><h2>Each depth</h2><div class=\"wide\"><table><thead><tr><th>depth</th>", f);
        for (size_t k = 0; k < ARRAY_LEN(columns); k++)
                if (live ? k > 1 : k != 2) {
                        (void) fputs("<th>", f);
                        html_text(f, chain_steps[k].title);
                        (void) fputs("</th>", f);
                }
        (void) fprintf(f,
                       "<th>fork p99</th><th>fork at depth "
                       "1</th><th>dirtied</th><th>stored</th><th>private</th>%s</tr></thead><tbody>\n",
                       live ? "<th>held</th>" : "");
        json_array_foreach (json_list(doc, "depths"), i, d) {
                (void) fprintf(f, "<tr><td>%llu</td>", (unsigned long long) json_u64(d, "depth", 0));
                for (size_t k = 0; k < ARRAY_LEN(columns); k++)
                        if (live ? k > 1 : k != 2)
                                cell(f, PLOT_MS, step_value(d, columns[k], "p50"));
                cell(f, PLOT_MS, step_value(d, "fork", "p99"));
                cell(f, PLOT_MS, step_value(json_object_get(d, "reference"), "fork", "p50"));
                for (size_t k = 0; k < ARRAY_LEN(sizes) - !live; k++)
                        cell(f, PLOT_BYTES, json_num(d, sizes[k], NAN));
                (void) fputs("</tr>\n", f);
        }
        (void) fputs("</tbody></table></div></section>\n", f);
}

static void fact(FILE *f, const char *what, const json_t *v) {
        char text[64];

        if (!v || json_is_null(v))
                return;
        (void) fputs("<div><dt>", f);
        html_text(f, what);
        (void) fputs("</dt><dd>", f);
        if (json_is_string(v))
                html_text(f, json_string_value(v));
        else if (json_is_boolean(v))
                html_text(f, json_is_true(v) ? "yes" : "no");
        else if (strstr(what, "_bytes"))
                html_text(f, plot_value(PLOT_BYTES, json_number_value(v), text, sizeof(text)));
        else if (json_is_number(v)) {
                (void) snprintf(text, sizeof(text), "%.6g", json_number_value(v));
                html_text(f, text);
        }
        (void) fputs("</dd></div>\n", f);
}

static void put_facts(const char *title, const json_t *map, FILE *f) {
        const char *key;
        json_t *v;

        if (!json_object_size(map))
                return;
        (void) fputs("<section class=\"card\"><h2>", f);
        html_text(f, title);
        (void) fputs("</h2><dl class=\"facts\">\n", f);
        json_object_foreach ((json_t *) map, key, v)
                fact(f, key, v);
        (void) fputs("</dl></section>\n", f);
}

int chain_html(const json_t *doc, FILE *f) {
        const json_t *plan = json_object_get(doc, "plan");
        char size[48];

        (void) fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
                     "content=\"width=device-width,"
                     "initial-scale=1\"><title>forkctl chain</title>\n<style>" REPORT_STYLE
                     "</style></head><body>\n<header><h1>forkctl chain</h1><p>",
                     f);
        (void) fprintf(f, "%s, %llu deep, %llu forks of each link, %s dirtied before each %s",
                       is_live(doc) ? "Live forks" : "Standby and fork", (unsigned long long) json_u64(plan, "depth", 0),
                       (unsigned long long) json_u64(plan, "fanout", 0) * (unsigned long long) json_u64(plan, "rounds", 1),
                       plot_value(PLOT_BYTES, json_num(plan, "dirty_bytes", NAN), size, sizeof(size)),
                       is_live(doc) ? "fork" : "standby");
        (void) fprintf(f, "; a guest of %s. ", plot_value(PLOT_BYTES, json_num(plan, "mem_bytes", NAN), size, sizeof(size)));
        (void) fputs("<span class=\"soft\">", f);
        html_text(f, json_str(json_object_get(doc, "host"), "when", ""));
        (void) fputs("</span></p></header><main>\n", f);
        put_failures(doc, f);
        put_tiles(doc, f);
        put_plots(doc, f);
        put_overall(doc, f);
        put_depths(doc, f);
        put_facts("Faults that the pager served, by kind", json_object_get(json_object_get(doc, "overall"), "faults"), f);
        put_facts("What was asked for", plan, f);
        put_facts("Host and versions", json_object_get(doc, "host"), f);
        (void) fputs("</main><footer>Every clone's memory and disk were compared by checksum with what its ancestors wrote. At "
                     "each depth the same was "
                     "measured at depth 1 in turn: what depth costs is the straight line through the "
                     "ratios.</footer></body></html>\n",
                     f);
        return ferror(f) ? -EIO : 0;
}
