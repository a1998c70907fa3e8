/* SPDX-License-Identifier: MIT */
/* What pagers have done, all of them since forkd started, and the state of the one that serves: from what each tells of itself. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/hist.h"
#include "common/mp.h"

#define PAGER_TOTALS_MS 200 /* who asks is not kept longer */

struct pager;

/* How a fault was answered: docs/protocol.md, "status". */
enum pager_total_fault {
        PAGER_TOTAL_MISSING,
        PAGER_TOTAL_ZERO,
        PAGER_TOTAL_PRESENT,
        PAGER_TOTAL_REMOVED,
        PAGER_TOTAL_WRITE,
        PAGER_N_TOTAL_FAULTS
};
const char *pager_total_fault_name(enum pager_total_fault f); /* "missing", "zero", "present", "removed", "write" */

/** These only grow. */
struct pager_figures {
        uint64_t faults[PAGER_N_TOTAL_FAULTS], decodes, pages_installed, refaults;
        struct hist_copy wait, service;
};

struct pager_totals {
        struct pager_figures sum; /* of all pagers. What one that died had done since it was asked last is not in it */
        bool known;               /* the one that serves has answered: */
        uint64_t at_ns;           /* CLOCK_MONOTONIC, when */
        uint64_t sessions, images, present_bytes, budget_bytes;
        double oldest_fault_ms;
};

/** Asks the pager that serves, if there is one; several who ask at a time get one answer. One that does not answer in time leaves
 *  what was known. A coroutine call of at most about PAGER_TOTALS_MS. */
void pager_totals_refresh(struct pager *p);
/** What is known. */
void pager_totals_get(const struct pager *p, struct pager_totals *ret);
/** All that the one that serves has answered last (docs/protocol.md, section 2, "status"), at its `at_ns`; NULL: nothing. Stays
 *  until the caller waits. */
const msgpack_object *pager_totals_answer(const struct pager *p);
/** A histogram of such an answer, @map's entry @key; what makes no sense in it, or is not there, counts for nothing. */
void pager_totals_read_hist(const msgpack_object *map, const char *key, struct hist_copy *ret);
