/* SPDX-License-Identifier: MIT */
/* Two results side by side.
 *
 * Single figures of two runs differ by chance. What can be told apart from that is told: a run has a value of each step at each depth;
 * the ratios of the two runs, depth by depth, have a median, and an interval in which that lies with a confidence of 95 %
 * (median_interval). Only when 1 is outside of it the verdict is "slower" or "faster" ("more", "less"), else "alike": nothing was shown.
 * With fewer than six depths there is no such interval, and the verdict is "too few". Sums are of one value each, and have no verdict. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "common/ids.h"
#include "common/json.h"
#include "forkctl/chain/chain.h"
#include "forkctl/table.h"

struct figure {
        const char *name, *unit; /* as in JSON; "ms" or "bytes" */
        bool time;
};

/* The median of @name at a depth. */
static double at_depth(const json_t *depth, const struct figure *f) {
        const json_t *v = json_object_get(depth, f->name);

        return json_is_object(v) ? json_num(v, "p50", NAN) : json_is_number(v) ? json_number_value(v) : NAN;
}

static const json_t *of_depth(const json_t *doc, uint64_t depth) {
        json_t *d;
        size_t i;

        json_array_foreach (json_list(doc, "depths"), i, d)
                if (json_u64(d, "depth", 0) == depth)
                        return d;
        return NULL;
}

/* The ratios b / a of @f, one for each depth that both have. */
static size_t ratios(const json_t *a, const json_t *b, const struct figure *f, double ret[CHAIN_MAX_DEPTH]) {
        size_t n = 0, i;
        json_t *d;

        json_array_foreach (json_list(a, "depths"), i, d) {
                double x = at_depth(d, f), y = at_depth(of_depth(b, json_u64(d, "depth", 0)), f);

                if (n < CHAIN_MAX_DEPTH && isfinite(x) && isfinite(y) && x > 0 && y >= 0)
                        ret[n++] = y / x;
        }
        return n;
}

static const char *verdict(const struct figure *f, size_t n, bool known, double low, double high) {
        if (!known)
                return n ? "too few" : "";
        if (low > 1)
                return f->time ? "slower" : "more";
        if (high < 1)
                return f->time ? "faster" : "less";
        return "alike";
}

static json_t *number(double v) {
        return isfinite(v) ? json_real(v) : json_null();
}

static json_t *row(const json_t *a, const json_t *b, const struct figure *f) {
        double r[CHAIN_MAX_DEPTH], low = NAN, high = NAN;
        const json_t *x = json_object_get(a, "overall"), *y = json_object_get(b, "overall");
        size_t n = ratios(a, b, f, r);
        bool known = median_interval(r, n, &low, &high);

        return json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:I, s:s}", "name", f->name, "unit", f->unit, "a",
                         number(at_depth(x, f)), "b", number(at_depth(y, f)), "ratio", number(median_of(r, n)), "low",
                         number(low), "high", number(high), "n", (json_int_t) n, "verdict", verdict(f, n, known, low, high));
}

/* A figure of the whole run. */
static json_t *single(const json_t *a, const json_t *b, const char *name, const char *unit) {
        double x = json_num(json_object_get(a, "overall"), name, NAN), y = json_num(json_object_get(b, "overall"), name, NAN);

        return json_pack("{s:s, s:s, s:o, s:o, s:o, s:n, s:n, s:i, s:s}", "name", name, "unit", unit, "a", number(x), "b",
                         number(y), "ratio", number(x > 0 ? y / x : NAN), "low", "high", "n", 1, "verdict", "");
}

/* ---- what makes two runs hard to compare ---- */

static int note_difference(json_t *notes, const char *what, const json_t *a, const json_t *b) {
        cleanup_free char *x = NULL, *y = NULL;
        char text[400];

        if (a == b || json_equal(a, b)) /* two that are missing are no values for json_equal */
                return 0;
        x = json_dumps(a, JSON_ENCODE_ANY);
        y = json_dumps(b, JSON_ENCODE_ANY);
        (void) snprintf(text, sizeof(text), "%s differs: %.150s and %.150s", what, x ? x : "none", y ? y : "none");
        return json_array_append_new(notes, json_text(text, strlen(text)));
}

static json_t *notes_of(const json_t *a, const json_t *b) {
        static const char *const host[] = { "kernel", "cpu",         "cpus",  "memory_bytes", "forkd",
                                            "vmm",    "vmm_version", "accel", "reflink" };
        static const char *const plan[] = { "mode",      "depth", "fanout", "rounds", "dirty_bytes",
                                            "mem_bytes", "seed",  "disk",   "sync" };
        json_t *notes = json_array();
        int r = notes ? 0 : -1;

        for (size_t i = 0; r == 0 && i < ARRAY_LEN(plan); i++)
                r = note_difference(notes, plan[i], json_object_get(json_object_get(a, "plan"), plan[i]),
                                    json_object_get(json_object_get(b, "plan"), plan[i]));
        for (size_t i = 0; r == 0 && i < ARRAY_LEN(host); i++)
                r = note_difference(notes, host[i], json_object_get(json_object_get(a, "host"), host[i]),
                                    json_object_get(json_object_get(b, "host"), host[i]));
        if (r < 0) {
                json_decref(notes);
                return NULL;
        }
        return notes;
}

static json_t *who(const json_t *doc) {
        const json_t *host = json_object_get(doc, "host");

        return json_pack("{s:s, s:s, s:I, s:I}", "when", json_str(host, "when", "?"), "forkd", json_str(host, "forkd", "?"),
                         "verified", (json_int_t) json_u64(json_object_get(doc, "overall"), "verified", 0), "failures",
                         (json_int_t) json_u64(json_object_get(doc, "overall"), "failures", 0));
}

json_t *chain_compare(const json_t *a, const json_t *b) {
        static const char *const per_depth[] = { "dirty_bytes", "stored_bytes", "private_bytes", "vmm_bytes", "held_bytes" };
        static const char *const whole[] = { "fork_slope", "standby_slope", "source_pause_slope", "held_growth", "disk_ratio" };
        cleanup_json json_t *rows = json_array();
        int r = rows ? 0 : -1;

        for (size_t s = 0; r == 0 && s < N_STEPS; s++) {
                char name[40];

                (void) snprintf(name, sizeof(name), "%s_ms", chain_steps[s].name);
                r = json_array_append_new(rows, row(a, b, &(struct figure){ name, "ms", true }));
        }
        for (size_t i = 0; r == 0 && i < ARRAY_LEN(per_depth); i++)
                r = json_array_append_new(rows, row(a, b, &(struct figure){ per_depth[i], "bytes", false }));
        for (size_t i = 0; r == 0 && i < ARRAY_LEN(whole); i++)
                r = json_array_append_new(rows, single(a, b, whole[i], "×"));
        return r < 0 ? NULL : json_pack("{s:o, s:o, s:O, s:o}", "a", who(a), "b", who(b), "rows", rows, "notes", notes_of(a, b));
}

static const char *value_text(const json_t *row, const char *key, char *buf, size_t size) {
        const char *unit = json_str(row, "unit", "");
        double v = json_num(row, key, NAN);

        if (!isfinite(v))
                (void) snprintf(buf, size, "-");
        else if (strcmp(unit, "ms") == 0)
                (void) text_ms(v, buf, size);
        else if (strcmp(unit, "bytes") == 0 && v >= 0 && v < 1e19)
                (void) size_format((uint64_t) v, buf, size);
        else
                (void) snprintf(buf, size, "%.3f", v);
        return buf;
}

int chain_compare_table(const json_t *cmp, FILE *f) {
        static const char *const head[] = { "FIGURE", ">A", ">B", ">B / A", ">95 % BETWEEN", ">AND", ">DEPTHS", "VERDICT" };
        cleanup_table struct table t = { 0 };
        char text[64], safe[400];
        json_t *o;
        size_t i;
        int r;

        table_init(&t, head, ARRAY_LEN(head));
        json_array_foreach (json_list(cmp, "rows"), i, o) {
                static const char *const ratio[] = { "ratio", "low", "high" };

                if (json_is_null(json_object_get(o, "a")) && json_is_null(json_object_get(o, "b")))
                        continue;
                table_cell(&t, "%s", json_str(o, "name", "?"));
                table_cell(&t, "%s", value_text(o, "a", text, sizeof(text)));
                table_cell(&t, "%s", value_text(o, "b", text, sizeof(text)));
                for (size_t k = 0; k < ARRAY_LEN(ratio); k++) {
                        double v = json_num(o, ratio[k], NAN);

                        table_cell(&t, isfinite(v) ? "%.3f" : "-", v);
                }
                table_cell(&t, "%llu", (unsigned long long) json_u64(o, "n", 0));
                table_cell(&t, "%s", json_str(o, "verdict", ""));
        }
        r = table_print(&t, f);
        if (r < 0)
                return r;
        (void) fputs("\nB / A is the median of the ratios at each depth; between the two bounds it lies with a confidence of 95 "
                     "%.\n",
                     f);
        json_array_foreach (json_list(cmp, "notes"), i, o)
                (void) fprintf(f, "mind: %s\n", text_safe(json_string_value(o) ? json_string_value(o) : "?", safe, sizeof(safe)));
        json_array_foreach (json_list(cmp, "fail_over"), i, o)
                (void) fprintf(f, "%s: %s of B, at most %.6g\n", json_flag(o, "ok") ? "met" : "OVER",
                               text_safe(json_str(o, "key", "?"), text, sizeof(text)), json_num(o, "limit", NAN));
        return ferror(f) ? -EIO : 0;
}
