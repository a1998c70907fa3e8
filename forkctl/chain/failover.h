/* SPDX-License-Identifier: MIT */
/* --fail-over 'fork_p99_ms=80,slope=1.1': limits for CI, each an upper bound of one figure of the document. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

#define FAILOVER_MAX 32u
#define FAILOVER_KEY_MAX 40u

struct failover {
        struct {
                char key[FAILOVER_KEY_MAX];
                double most;
        } limit[FAILOVER_MAX];
        size_t n;
};

/** Parses "key=number[,key=number…]". Sizes may have a unit (private_bytes=2M). -EINVAL with @e: unknown key (with the nearest
 *  one), twice the same, no number, nothing at all. */
int failover_parse(const char *s, struct failover *ret, struct err *e) attr_warn_unused;

/** What a key stands for in @doc. False: the document does not know it (that step was never measured). */
bool failover_figure(const json_t *doc, const char *key, double *ret);

/** Checks all limits: [{"key","limit","value"|null,"ok"}]. A figure that is not known is not ok: what was to be guarded was not
 *  measured. *ret_ok tells whether all are. NULL when memory is short. */
json_t *failover_check(const struct failover *f, const json_t *doc, bool *ret_ok);
