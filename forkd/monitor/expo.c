/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/expo.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/utf8.h"

#define FIRST_SIZE 65536u
#define NS_DIGITS 9

void expo_clear(struct expo *x) {
        free(x->text);
        *x = (struct expo){ 0 };
}

static bool grow(struct expo *x, size_t more) {
        size_t size = MAX_OF(x->size, (size_t) FIRST_SIZE);
        char *text;

        if (x->failed)
                return false;
        if (more <= x->size - x->len)
                return true;
        while (size - x->len < more)
                if (__builtin_mul_overflow(size, 2, &size)) {
                        x->failed = true;
                        return false;
                }
        text = realloc(x->text, size);
        if (!text) {
                x->failed = true;
                return false;
        }
        x->text = text;
        x->size = size;
        return true;
}

static void put(struct expo *x, const char *s, size_t len) {
        if (!grow(x, len))
                return;
        memcpy(x->text + x->len, s, len);
        x->len += len;
}

static void put_str(struct expo *x, const char *s) {
        put(x, s, strlen(s));
}

/* ---- numbers ---- */

#define DECIMAL_LEN 32

/** Writes @v, with at least @digits digits, so that it ends at @end; returns where it begins. */
static char *decimal(uint64_t v, unsigned digits, char *end) {
        for (; v > 0 || digits > 0; v /= 10, digits = digits ? digits - 1 : 0)
                *--end = (char) ('0' + v % 10);
        return end;
}

static void put_u64(struct expo *x, uint64_t v) {
        char buf[DECIMAL_LEN], *end = buf + sizeof(buf), *p = decimal(v, 1, end);

        put(x, p, (size_t) (end - p));
}

static void put_seconds(struct expo *x, uint64_t ns) {
        char buf[DECIMAL_LEN], *end = buf + sizeof(buf), *p;

        p = decimal(ns % 1000000000u, NS_DIGITS, end);
        *--p = '.';
        p = decimal(ns / 1000000000u, 1, p);
        while (end[-1] == '0')
                end--;
        if (end[-1] == '.')
                end--;
        put(x, p, (size_t) (end - p));
}

/* ---- labels ---- */

/* The next character of a label's value, as it is written; *s goes behind it. */
static const char *escaped(const unsigned char **s, size_t *ret_len) {
        const char *p = (const char *) *s;
        int n = utf8_sequence(*s, strnlen(p, 4));

        *s += MAX_OF(n, 1);
        *ret_len = 2;
        switch (p[0]) {
        case '\\':
                return "\\\\";
        case '"':
                return "\\\"";
        case '\n':
                return "\\n";
        default:
                break;
        }
        *ret_len = n > 0 ? (size_t) n : 3;
        return n > 0 ? p : "\xef\xbf\xbd";
}

static bool append(struct expo_labels *l, const char *s, size_t len) {
        if (len > sizeof(l->text) - l->len)
                return false;
        memcpy(l->text + l->len, s, len);
        l->len += len;
        return true;
}

void expo_label(struct expo_labels *l, const char *name, const char *value) {
        const unsigned char *s = (const unsigned char *) value;
        size_t before = l->len, n;
        bool ok;

        ok = (before == 0 || append(l, ",", 1)) && append(l, name, strlen(name)) && append(l, "=\"", 2);
        while (ok && *s) {
                const char *c = escaped(&s, &n);

                ok = append(l, c, n);
        }
        if (!ok || !append(l, "\"", 1))
                l->len = before;
}

void expo_label_u64(struct expo_labels *l, const char *name, uint64_t value) {
        char buf[24];

        (void) snprintf(buf, sizeof(buf), "%llu", (unsigned long long) value);
        expo_label(l, name, buf);
}

/* ---- families and samples ---- */

void expo_family(struct expo *x, const char *name, const char *type, const char *help) {
        x->name = name;
        put_str(x, "# HELP ");
        put_str(x, name);
        put(x, " ", 1);
        put_str(x, help);
        put_str(x, "\n# TYPE ");
        put_str(x, name);
        put(x, " ", 1);
        put_str(x, type);
        put(x, "\n", 1);
}

/* All of a line before its value. */
static void sample(struct expo *x, const char *suffix, const struct expo_labels *l, const char *le) {
        bool has = l && l->len > 0;

        put_str(x, x->name);
        put_str(x, suffix);
        if (has || le)
                put(x, "{", 1);
        if (has)
                put(x, l->text, l->len);
        if (le) {
                put_str(x, has ? ",le=\"" : "le=\"");
                put_str(x, le);
                put(x, "\"", 1);
        }
        if (has || le)
                put(x, "}", 1);
        put(x, " ", 1);
}

void expo_u64(struct expo *x, const struct expo_labels *l, uint64_t value) {
        sample(x, "", l, NULL);
        put_u64(x, value);
        put(x, "\n", 1);
}

void expo_seconds(struct expo *x, const struct expo_labels *l, uint64_t ns) {
        sample(x, "", l, NULL);
        put_seconds(x, ns);
        put(x, "\n", 1);
}

void expo_double(struct expo *x, const struct expo_labels *l, double value) {
        char buf[40];

        sample(x, "", l, NULL);
        if (isnan(value))
                put_str(x, "NaN");
        else if (isinf(value))
                put_str(x, value > 0 ? "+Inf" : "-Inf");
        else
                put(x, buf, (size_t) snprintf(buf, sizeof(buf), "%.15g", value));
        put(x, "\n", 1);
}

void expo_one(struct expo *x, const char *name, const char *type, const char *help, uint64_t value) {
        expo_family(x, name, type, help);
        expo_u64(x, NULL, value);
}

void expo_one_seconds(struct expo *x, const char *name, const char *type, const char *help, uint64_t ns) {
        expo_family(x, name, type, help);
        expo_seconds(x, NULL, ns);
}

/* ---- histograms ---- */

void expo_hist_add(struct expo_hist *h, uint64_t end_ns, uint64_t n) {
        unsigned i = 0;

        while (i < EXPO_BOUNDS && end_ns > 1ull << (EXPO_FIRST_LOG2 + i))
                i++;
        h->n[i] += n;
}

void expo_hist_from(struct expo_hist *ret, const struct hist_copy *h) {
        *ret = (struct expo_hist){ .sum_ns = h->sum_ns };
        for (unsigned i = 0; i < HIST_BUCKETS; i++)
                if (h->bucket[i])
                        expo_hist_add(ret, hist_upper_ns(i), h->bucket[i]);
}

void expo_hist(struct expo *x, const struct expo_labels *l, const struct expo_hist *h) {
        /* 2^14 … 2^34 ns in seconds, exactly */
        static const char *const bounds[EXPO_BOUNDS + 1] = {
                "0.000016384", "0.000032768", "0.000065536",  "0.000131072", "0.000262144", "0.000524288",
                "0.001048576", "0.002097152", "0.004194304",  "0.008388608", "0.016777216", "0.033554432",
                "0.067108864", "0.134217728", "0.268435456",  "0.536870912", "1.073741824", "2.147483648",
                "4.294967296", "8.589934592", "17.179869184", "+Inf",
        };
        uint64_t seen = 0;

        for (unsigned i = 0; i <= EXPO_BOUNDS; i++) {
                seen += h->n[i];
                sample(x, "_bucket", l, bounds[i]);
                put_u64(x, seen);
                put(x, "\n", 1);
        }
        sample(x, "_sum", l, NULL);
        put_seconds(x, h->sum_ns);
        put(x, "\n", 1);
        sample(x, "_count", l, NULL);
        put_u64(x, seen);
        put(x, "\n", 1);
}
