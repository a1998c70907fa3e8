/* SPDX-License-Identifier: MIT */
/* A result as a document, and documents out of files.
 *
 * A *slope* says what depth costs: at each depth the median time of a step against the median of the reference, the same step at depth 1
 * measured in the same minutes; the straight line through these ratios (line_through); its value at the last depth against that at the
 * first. 1.00: none. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/json.h"
#include "forkctl/chain/chain.h"

#define FILE_MAX (64u << 20)
#define MAX_NESTING 16

static json_t *number(double v) {
        return isfinite(v) ? json_real(v) : json_null();
}

static json_t *bytes(bool known, uint64_t v) {
        return known ? json_integer((json_int_t) v) : json_null();
}

static json_t *times(const struct samples *s) {
        return json_pack("{s:o, s:o, s:o, s:o, s:I}", "p50", number(samples_quantile(s, 0.5)), "p95",
                         number(samples_quantile(s, 0.95)), "p99", number(samples_quantile(s, 0.99)), "max",
                         number(samples_quantile(s, 1)), "n", (json_int_t) s->n);
}

/* Adds one "<step>_ms" for each step. */
static int put_steps(json_t *map, const struct samples ms[N_STEPS]) {
        int r = 0;

        for (size_t i = 0; i < N_STEPS; i++) {
                char key[40];

                (void) snprintf(key, sizeof(key), "%s_ms", chain_steps[i].name);
                r |= json_object_set_new(map, key, times(&ms[i]));
        }
        return r;
}

static json_t *steps(const struct samples ms[N_STEPS]) {
        json_t *map = json_object();

        if (map && put_steps(map, ms) < 0) {
                json_decref(map);
                return NULL;
        }
        return map;
}

static json_t *plan_json(const struct chain_result *r) {
        const struct chain_plan *p = r->plan;

        return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:o}", "mode", p->live ? "live" : "standby", "depth",
                         (json_int_t) p->depth, "fanout", (json_int_t) p->fanout, "rounds", (json_int_t) p->rounds, "warmup",
                         (json_int_t) p->warmup, "seed", (json_int_t) p->seed, "dirty_bytes", (json_int_t) p->dirty, "mem_bytes",
                         (json_int_t) r->mem_bytes, "disk", r->disk, "sync", !p->no_sync, "guest",
                         json_text(r->guest, strlen(r->guest)));
}

static json_t *link_json(const struct chain_link *l) {
        json_t *map = json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:o}", "depth", (json_int_t) l->depth,
                                "reference", steps(l->reference), "dirty_bytes", bytes(l->saved, l->dirty_bytes), "stored_bytes",
                                bytes(l->saved, l->stored_bytes), "raw_bytes", bytes(l->saved, l->raw_bytes), "private_bytes",
                                number(samples_quantile(&l->private_bytes, 0.5)), "private_max_bytes",
                                number(samples_quantile(&l->private_bytes, 1)), "vmm_bytes",
                                number(samples_quantile(&l->vmm_bytes, 0.5)), "held_bytes", bytes(l->held, l->held_bytes),
                                "verified", (json_int_t) l->verified, "faults", l->faults ? json_incref(l->faults) : json_null());

        if (map && put_steps(map, l->ms) < 0) {
                json_decref(map);
                return NULL;
        }
        return map;
}

/* ---- over all ---- */

static double slope(const struct chain_result *r, enum chain_step step) {
        double ratio[CHAIN_MAX_DEPTH], first, last;

        if (r->n_links < 2)
                return NAN;
        ratio[0] = 1; /* the first link is what the reference repeats */
        for (unsigned i = 1; i < r->n_links; i++)
                ratio[i] = samples_quantile(&r->links[i].ms[step], 0.5) / samples_quantile(&r->links[i].reference[step], 0.5);
        return line_through(ratio, r->n_links, &first, &last) ? last / first : NAN;
}

/* Bytes of memory that a link more holds, against the bytes that it dirtied: 1 is what cannot be less. */
static double held_growth(const struct chain_result *r) {
        const struct chain_link *first = &r->links[0], *last = r->n_links ? &r->links[r->n_links - 1] : NULL;
        uint64_t dirty = 0;

        if (r->n_links < 2 || !first->held || !last->held)
                return NAN;
        for (unsigned i = 1; i < r->n_links; i++)
                dirty += r->links[i].dirty_bytes;
        return dirty ? ((double) last->held_bytes - (double) first->held_bytes) / (double) dirty : NAN;
}

static void add_faults(json_t *sum, const json_t *faults) {
        const char *kind;
        json_t *n;

        json_object_foreach ((json_t *) faults, kind, n)
                (void) json_object_set_new(sum, kind,
                                           json_integer(json_integer_value(json_object_get(sum, kind)) + json_integer_value(n)));
}

static json_t *overall_json(const struct chain_result *r) {
        struct chain_link all = { .dirty_bytes = r->base.dirty_bytes,
                                  .stored_bytes = r->base.stored_bytes,
                                  .raw_bytes = r->base.raw_bytes };
        json_t *map = NULL, *faults = json_object(), *reference;
        bool known = false;

        for (unsigned i = 0; i < r->n_links; i++) {
                const struct chain_link *l = &r->links[i];

                for (unsigned s = 0; s < N_STEPS; s++) {
                        samples_add_all(&all.ms[s], &l->ms[s]);
                        samples_add_all(&all.reference[s], &l->reference[s]);
                }
                samples_add_all(&all.private_bytes, &l->private_bytes);
                samples_add_all(&all.vmm_bytes, &l->vmm_bytes);
                all.dirty_bytes += l->dirty_bytes;
                all.stored_bytes += l->stored_bytes;
                all.raw_bytes += l->raw_bytes;
                all.verified += l->verified;
                known |= l->faults != NULL;
                add_faults(faults, l->faults);
        }
        reference = steps(all.reference);
        map = json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:I, s:I, s:O}", "fork_slope",
                        number(slope(r, STEP_FORK)), "standby_slope", number(slope(r, STEP_STANDBY)), "source_pause_slope",
                        number(slope(r, STEP_SOURCE_PAUSE)), "held_growth", number(held_growth(r)), "disk_ratio",
                        number((double) all.stored_bytes / (double) all.raw_bytes), "reference", reference, "dirty_bytes",
                        (json_int_t) all.dirty_bytes, "stored_bytes", (json_int_t) all.stored_bytes, "raw_bytes",
                        (json_int_t) all.raw_bytes, "private_bytes", number(samples_quantile(&all.private_bytes, 0.5)),
                        "private_max_bytes", number(samples_quantile(&all.private_bytes, 1)), "vmm_bytes",
                        number(samples_quantile(&all.vmm_bytes, 0.5)), "total_ms", number(r->total_ms), "verified",
                        (json_int_t) all.verified, "failures", (json_int_t) r->n_failures, "faults",
                        known ? faults : json_null());
        if (map && put_steps(map, all.ms) < 0) {
                json_decref(map);
                map = NULL;
        }
        for (unsigned s = 0; s < N_STEPS; s++) {
                samples_clear(&all.ms[s]);
                samples_clear(&all.reference[s]);
        }
        samples_clear(&all.private_bytes);
        samples_clear(&all.vmm_bytes);
        json_decref(faults);
        return map;
}

json_t *chain_document(const struct chain_result *r) {
        cleanup_json json_t *depths = json_array(), *failures = json_array();
        size_t told = (size_t) MIN_OF(r->n_failures, (uint64_t) CHAIN_MAX_FAILURES);

        for (unsigned i = 0; i < r->n_links; i++)
                if (json_array_append_new(depths, link_json(&r->links[i])) < 0)
                        return NULL;
        for (size_t i = 0; i < told; i++) {
                const struct chain_failure *f = &r->failures[i];

                if (json_array_append_new(failures, json_pack("{s:I, s:s, s:o}", "depth", (json_int_t) f->depth, "step", f->step,
                                                              "reason", json_text(f->reason, strlen(f->reason)))) < 0)
                        return NULL;
        }
        return json_pack("{s:s, s:i, s:o, s:o, s:{s:o, s:o, s:o, s:o, s:o}, s:O, s:o, s:O, s:b}", "format", CHAIN_FORMAT,
                         "version", CHAIN_VERSION, "host", r->host ? json_incref(r->host) : json_object(), "plan", plan_json(r),
                         "base", "boot_ms", number(r->boot_ms < 0 ? NAN : r->boot_ms), "standby_ms",
                         times(&r->base.ms[STEP_STANDBY]), "dirty_bytes", bytes(r->base.saved, r->base.dirty_bytes),
                         "stored_bytes", bytes(r->base.saved, r->base.stored_bytes), "raw_bytes",
                         bytes(r->base.saved, r->base.raw_bytes), "depths", depths, "overall", overall_json(r), "failures",
                         failures, "interrupted", r->signal != 0);
}

/* ---- out of files ---- */

/* jansson's own bound on nesting is 2048, and its destructor recurses: what is deeper than any document of ours is refused before. */
static bool nests_deep(const char *data, size_t len) {
        unsigned depth = 0;
        bool text = false;

        for (size_t i = 0; i < len; i++) {
                if (text) {
                        i += data[i] == '\\';
                        text = i >= len || data[i] != '"' || data[i - 1] == '\\';
                } else if (data[i] == '"') {
                        text = true;
                } else if (data[i] == '{' || data[i] == '[') {
                        if (++depth > MAX_NESTING)
                                return true;
                } else if ((data[i] == '}' || data[i] == ']') && depth > 0) {
                        depth--;
                }
        }
        return false;
}

int chain_document_parse(const char *data, size_t len, const char *name, json_t **ret, struct err *e) {
        cleanup_json json_t *doc = NULL;
        json_error_t why;

        if (nests_deep(data, len))
                return err_set(e, ERR_CORRUPT, -EBADMSG, "%.200s nests too deep for a result of 'forkctl chain'", name);
        doc = json_loadb(data, len, JSON_REJECT_DUPLICATES, &why);
        if (!doc)
                return err_set(e, ERR_CORRUPT, -EBADMSG, "%.120s is no JSON: line %d: %.100s", name, why.line, why.text);
        if (strcmp(json_str(doc, "format", ""), CHAIN_FORMAT) != 0 || !json_is_object(json_object_get(doc, "overall"))) {
                (void) err_set(e, ERR_CORRUPT, -EBADMSG, "%.200s is no result of 'forkctl chain'", name);
                return err_hint(e, "forkctl --json chain … > FILE makes one");
        }
        if (json_u64(doc, "version", 0) != CHAIN_VERSION)
                return err_set(e, ERR_VERSION, -EBADMSG, "%.200s is of version %llu, and this forkctl reads %d", name,
                               (unsigned long long) json_u64(doc, "version", 0), CHAIN_VERSION);
        if (json_array_size(json_list(doc, "depths")) > CHAIN_MAX_DEPTH)
                return err_set(e, ERR_CORRUPT, -EBADMSG, "%.200s has more than %u depths", name, CHAIN_MAX_DEPTH);
        *ret = TAKE_PTR(doc);
        return 0;
}

int chain_document_read(struct ctl *c, const char *path, json_t **ret) {
        cleanup_free char *data = NULL;
        size_t len;
        int r = io_read_file(AT_FDCWD, path, FILE_MAX, &data, &len);

        if (r < 0)
                return err_errno(&c->e, r, "reading %.200s", path);
        return chain_document_parse(data, len, path, ret, &c->e);
}
