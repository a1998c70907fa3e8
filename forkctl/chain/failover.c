/* SPDX-License-Identifier: MIT */
#include "forkctl/chain/failover.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "common/ids.h"
#include "forkctl/chain/chain.h"

static const char *const quantiles[] = { "p50", "p95", "p99", "max" };
/* what is a figure of `overall` by itself; the alias last */
static const char *const figures[] = { "fork_slope",        "standby_slope", "source_pause_slope", "private_bytes",
                                       "private_max_bytes", "vmm_bytes",     "held_growth",        "stored_bytes",
                                       "disk_ratio",        "failures",      "total_ms",           "slope" };

/* Calls @fn with each key there is, until it returns true. */
static bool each_key(bool (*fn)(const char *key, void *arg), void *arg) {
        for (size_t s = 0; s < N_STEPS; s++)
                for (size_t q = 0; q < ARRAY_LEN(quantiles); q++) {
                        char key[FAILOVER_KEY_MAX];

                        (void) snprintf(key, sizeof(key), "%s_%s_ms", chain_steps[s].name, quantiles[q]);
                        if (fn(key, arg))
                                return true;
                }
        for (size_t i = 0; i < ARRAY_LEN(figures); i++)
                if (fn(figures[i], arg))
                        return true;
        return false;
}

static bool is_key(const char *key, void *arg) {
        return strcmp(key, arg) == 0;
}

struct near {
        const char *word;
        unsigned best;
        char key[FAILOVER_KEY_MAX];
};

static bool is_nearer(const char *key, void *arg) {
        struct near *n = arg;
        unsigned d = edit_distance(n->word, key, n->best);

        if (d < n->best) {
                n->best = d;
                (void) snprintf(n->key, sizeof(n->key), "%s", key);
        }
        return false;
}

static int unknown_key(const char *key, struct err *e) {
        struct near n = { .word = key, .best = (unsigned) strlen(key) / 3 + 2 };

        (void) each_key(is_nearer, &n);
        (void) err_set(e, ERR_USAGE, -EINVAL, "no figure is called '%.40s'", key);
        if (n.key[0])
                return err_hint(e, "did you mean %s?", n.key);
        return err_hint(e, "for example fork_p99_ms, source_pause_p50_ms, slope, private_bytes; the manual page lists them");
}

static int parse_number(const char *key, const char *s, double *ret, struct err *e) {
        uint64_t bytes;
        char *end;
        double v = strtod(s, &end);

        if ((*s >= '0' && *s <= '9' && !*end && isfinite(v))) {
                *ret = v;
                return 0;
        }
        if (size_parse(s, &bytes) == 0) {
                *ret = (double) bytes;
                return 0;
        }
        (void) err_set(e, ERR_USAGE, -EINVAL, "%s cannot be at most '%.40s'", key, s);
        return err_hint(e, "a number, 0 or more; of bytes also 512K or 2M");
}

static char *trim(char *s) {
        size_t n;

        s += strspn(s, " \t\n");
        n = strlen(s);
        while (n > 0 && strchr(" \t\n", s[n - 1]))
                s[--n] = '\0';
        return s;
}

static int parse_one(char *word, struct failover *f, struct err *e) {
        char *equals = strchr(word, '='), *key;
        double most = 0;
        int r;

        if (!equals)
                return err_set(e, ERR_USAGE, -EINVAL, "'%.40s' is no limit: key=number", word);
        *equals = '\0';
        key = trim(word);
        if (strlen(key) >= FAILOVER_KEY_MAX || !each_key(is_key, key))
                return unknown_key(key, e);
        r = parse_number(key, trim(equals + 1), &most, e);
        if (r < 0)
                return r;
        for (size_t i = 0; i < f->n; i++)
                if (strcmp(f->limit[i].key, key) == 0)
                        return err_set(e, ERR_USAGE, -EINVAL, "%s is limited twice", key);
        if (f->n == FAILOVER_MAX)
                return err_set(e, ERR_USAGE, -EINVAL, "more than %u limits", FAILOVER_MAX);
        (void) strcpy(f->limit[f->n].key, key);
        f->limit[f->n++].most = most;
        return 0;
}

int failover_parse(const char *s, struct failover *ret, struct err *e) {
        cleanup_free char *copy = strdup(s);
        struct failover f = { 0 };
        char *rest = copy, *word;

        if (!copy)
                return err_errno(e, -ENOMEM, "reading the limits");
        while ((word = strsep(&rest, ","))) {
                int r = parse_one(trim(word), &f, e);

                if (r < 0)
                        return r;
        }
        *ret = f;
        return 0;
}

bool failover_figure(const json_t *doc, const char *key, double *ret) {
        const json_t *overall = json_object_get(doc, "overall"), *v = NULL;

        if (strcmp(key, "slope") == 0)
                key = "fork_slope";
        for (size_t s = 0; s < N_STEPS; s++) {
                size_t n = strlen(chain_steps[s].name);
                char field[FAILOVER_KEY_MAX], quantile[8];

                /* "pause_p50_ms" is not of "source_pause": names are compared from their beginning */
                if (strncmp(key, chain_steps[s].name, n) != 0 || sscanf(key + n, "_%7[a-z0-9]_ms", quantile) != 1)
                        continue;
                (void) snprintf(field, sizeof(field), "%s_ms", chain_steps[s].name);
                v = json_object_get(json_object_get(overall, field), quantile);
        }
        if (!v)
                v = json_object_get(overall, key);
        if (!json_is_number(v))
                return false;
        *ret = json_number_value(v);
        return true;
}

json_t *failover_check(const struct failover *f, const json_t *doc, bool *ret_ok) {
        json_t *list = json_array();
        bool all = true;

        for (size_t i = 0; list && i < f->n; i++) {
                double v = 0;
                bool known = failover_figure(doc, f->limit[i].key, &v), ok = known && v <= f->limit[i].most;

                all &= ok;
                if (json_array_append_new(list,
                                          json_pack("{s:s, s:f, s:o, s:b}", "key", f->limit[i].key, "limit", f->limit[i].most,
                                                    "value", known ? json_real(v) : json_null(), "ok", ok)) < 0) {
                        json_decref(list);
                        return NULL;
                }
        }
        *ret_ok = all;
        return list;
}
