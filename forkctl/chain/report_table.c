/* SPDX-License-Identifier: MIT */
/* The document as text. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "common/ids.h"
#include "common/json.h"
#include "forkctl/chain/chain.h"
#include "forkctl/table.h"

#define FEW 100u /* of fewer values the 99th of a hundred is the greatest */

/* Nothing for what was not measured: a column without a value is left out. */
static const char *ms_text(const json_t *map, const char *step, const char *quantile, char *buf, size_t size) {
        char field[40];
        double v;

        (void) snprintf(field, sizeof(field), "%s_ms", step);
        v = json_num(json_object_get(map, field), quantile, -1);
        return v < 0 ? "" : text_ms(v, buf, size);
}

static uint64_t count_of(const json_t *map, const char *step) {
        char field[40];

        (void) snprintf(field, sizeof(field), "%s_ms", step);
        return json_u64(json_object_get(map, field), "n", 0);
}

static void print_head(const json_t *doc, FILE *f) {
        const json_t *plan = json_object_get(doc, "plan"), *host = json_object_get(doc, "host"),
                     *base = json_object_get(doc, "base");
        char a[64], b[64], c[64], safe[256];

        (void) fprintf(f, "%s chain of %llu, %llu forks each, %s dirtied before each %s; guest of %s, seed %llu\n",
                       text_safe(json_str(plan, "mode", "?"), safe, sizeof(safe)),
                       (unsigned long long) json_u64(plan, "depth", 0),
                       (unsigned long long) json_u64(plan, "fanout", 0) * (unsigned long long) json_u64(plan, "rounds", 1),
                       text_size(plan, "dirty_bytes", a, sizeof(a)),
                       strcmp(json_str(plan, "mode", ""), "live") == 0 ? "fork" : "standby",
                       text_size(plan, "mem_bytes", b, sizeof(b)), (unsigned long long) json_u64(plan, "seed", 0));
        (void) fprintf(f, "%s, %s; ", text_safe(json_str(host, "kernel", "?"), safe, sizeof(safe)),
                       text_size(host, "memory_bytes", c, sizeof(c)));
        (void) fprintf(f, "%llu CPUs: %s; ", (unsigned long long) json_u64(host, "cpus", 0),
                       text_safe(json_str(host, "cpu", "?"), safe, sizeof(safe)));
        (void) fprintf(f, "%s ", text_safe(json_str(host, "vmm", "?"), safe, sizeof(safe)));
        (void) fprintf(f, "%s, ", text_safe(json_str(host, "vmm_version", "?"), safe, sizeof(safe)));
        (void) fprintf(f, "%s; forkd ", text_safe(json_str(host, "accel", "?"), safe, sizeof(safe)));
        (void) fprintf(f, "%s\n", text_safe(json_str(host, "forkd", "?"), safe, sizeof(safe)));
        (void) fprintf(f, "base: %s stored of %s\n\n", text_size(base, "stored_bytes", a, sizeof(a)),
                       text_size(base, "raw_bytes", b, sizeof(b)));
}

static int print_depths(const json_t *doc, FILE *f) {
        static const char *const head[] = { ">DEPTH", ">STANDBY", ">PAUSE",      ">FORK P50", ">P99",    ">AT DEPTH 1",
                                            ">LOAD",  ">ACK",     ">FIRST EXEC", ">DIRTIED",  ">STORED", ">PRIVATE" };
        bool live = strcmp(json_str(json_object_get(doc, "plan"), "mode", ""), "live") == 0;
        cleanup_table struct table t = { 0 };
        char text[64];
        json_t *d;
        size_t i;

        table_init(&t, head, ARRAY_LEN(head));
        json_array_foreach (json_list(doc, "depths"), i, d) {
                table_cell(&t, "%llu", (unsigned long long) json_u64(d, "depth", 0));
                table_cell(&t, "%s", ms_text(d, "standby", "p50", text, sizeof(text)));
                table_cell(&t, "%s", ms_text(d, live ? "source_pause" : "pause", "p50", text, sizeof(text)));
                table_cell(&t, "%s", ms_text(d, "fork", "p50", text, sizeof(text)));
                table_cell(&t, "%s", ms_text(d, "fork", "p99", text, sizeof(text)));
                table_cell(&t, "%s", ms_text(json_object_get(d, "reference"), "fork", "p50", text, sizeof(text)));
                table_cell(&t, "%s", ms_text(d, "load", "p50", text, sizeof(text)));
                table_cell(&t, "%s", ms_text(d, "ack", "p50", text, sizeof(text)));
                table_cell(&t, "%s", ms_text(d, "first_exec", "p50", text, sizeof(text)));
                table_cell(&t, "%s", text_size(d, "dirty_bytes", text, sizeof(text)));
                table_cell(&t, "%s", text_size(d, "stored_bytes", text, sizeof(text)));
                table_cell(&t, "%s", text_size(d, "private_bytes", text, sizeof(text)));
        }
        return table_print(&t, f);
}

static int print_overall(const json_t *doc, FILE *f) {
        static const char *const head[] = { "STEP", ">P50", ">P95", ">P99", ">MAX", ">N" };
        const json_t *overall = json_object_get(doc, "overall");
        cleanup_table struct table t = { 0 };
        char text[64];

        table_init(&t, head, ARRAY_LEN(head));
        for (size_t s = 0; s < N_STEPS; s++) {
                static const char *const quantiles[] = { "p50", "p95", "p99", "max" };
                uint64_t n = count_of(overall, chain_steps[s].name);

                if (n == 0)
                        continue;
                table_cell(&t, "%s", chain_steps[s].title);
                for (size_t q = 0; q < ARRAY_LEN(quantiles); q++)
                        /* of a few values a high quantile is one of the few */
                        table_cell(&t, "%s%s", q == 2 && n < FEW ? "≤ " : "",
                                   ms_text(overall, chain_steps[s].name, quantiles[q], text, sizeof(text)));
                table_cell(&t, "%llu", (unsigned long long) n);
        }
        return table_print(&t, f);
}

static void print_slope(const json_t *overall, const char *key, const char *what, FILE *f) {
        double v = json_num(overall, key, NAN);

        if (isfinite(v))
                (void) fprintf(f, "%s at the last depth against the first: %.2f ×\n", what, v);
}

static void print_faults(const json_t *overall, FILE *f) {
        const char *kind, *separator = "";
        char safe[64];
        json_t *n;

        if (!json_object_size(json_object_get(overall, "faults")))
                return;
        (void) fputs("faults served: ", f);
        json_object_foreach (json_object_get(overall, "faults"), kind, n) {
                (void) fprintf(f, "%s%s %.0f", separator, text_safe(kind, safe, sizeof(safe)), json_number_value(n));
                separator = ", ";
        }
        (void) fputc('\n', f);
}

static void print_sums(const json_t *doc, FILE *f) {
        const json_t *overall = json_object_get(doc, "overall");
        double ratio = json_num(overall, "disk_ratio", NAN), growth = json_num(overall, "held_growth", NAN);
        char a[64], b[64];

        print_slope(overall, "fork_slope", "fork", f);
        print_slope(overall, "standby_slope", "standby", f);
        print_slope(overall, "source_pause_slope", "source pause", f);
        (void) fprintf(f, "on disk: %s of %s raw", text_size(overall, "stored_bytes", a, sizeof(a)),
                       text_size(overall, "raw_bytes", b, sizeof(b)));
        if (isfinite(ratio))
                (void) fprintf(f, ", %.1f %%", ratio * 100);
        (void) fprintf(f, "\nprivate guest memory of a clone: %s, at most %s", text_size(overall, "private_bytes", a, sizeof(a)),
                       text_size(overall, "private_max_bytes", b, sizeof(b)));
        if (json_is_number(json_object_get(overall, "vmm_bytes")))
                (void) fprintf(f, "; its VMM beside it: %s", text_size(overall, "vmm_bytes", a, sizeof(a)));
        (void) fputc('\n', f);
        if (isfinite(growth))
                (void) fprintf(f, "memory held grows by %.2f × what a link dirties\n", growth);
        print_faults(overall, f);
        (void) fprintf(f, "verified by checksum: %llu clones; %.0f s in all\n",
                       (unsigned long long) json_u64(overall, "verified", 0), json_num(overall, "total_ms", 0) / 1e3);
}

static void print_failures(const json_t *doc, FILE *f) {
        uint64_t all = json_u64(json_object_get(doc, "overall"), "failures", 0);
        size_t told = json_array_size(json_list(doc, "failures")), i;
        char step[64], reason[512];
        json_t *o;

        if (json_flag(doc, "interrupted"))
                (void) fputs("interrupted: this is what was measured before\n", f);
        json_array_foreach (json_list(doc, "failures"), i, o)
                (void) fprintf(f, "FAILED at depth %llu, %s: %s\n", (unsigned long long) json_u64(o, "depth", 0),
                               text_safe(json_str(o, "step", "?"), step, sizeof(step)),
                               text_safe(json_str(o, "reason", "?"), reason, sizeof(reason)));
        if (all > told)
                (void) fprintf(f, "FAILED %llu times more\n", (unsigned long long) (all - told));
        json_array_foreach (json_list(doc, "fail_over"), i, o) {
                const json_t *v = json_object_get(o, "value");

                (void) text_safe(json_str(o, "key", "?"), step, sizeof(step));
                if (json_flag(o, "ok"))
                        (void) fprintf(f, "met: %s is %.6g, at most %.6g\n", step, json_number_value(v),
                                       json_num(o, "limit", NAN));
                else if (json_is_number(v))
                        (void) fprintf(f, "OVER: %s is %.6g, more than %.6g\n", step, json_number_value(v),
                                       json_num(o, "limit", NAN));
                else
                        (void) fprintf(f, "OVER: %s was not measured\n", step);
        }
}

int chain_table(const json_t *doc, FILE *f) {
        int r;

        print_head(doc, f);
        r = print_depths(doc, f);
        if (r == 0)
                (void) fputc('\n', f);
        if (r == 0)
                r = print_overall(doc, f);
        if (r < 0)
                return r;
        (void) fputc('\n', f);
        print_sums(doc, f);
        print_failures(doc, f);
        return ferror(f) ? -EIO : 0;
}
