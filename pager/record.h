/* SPDX-License-Identifier: MIT */
/* Recording the order in which a session first needs its pages. Written by the session's worker, read by the
 * control thread at any time. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "snapstore/workingset.h"

/** Runs in the order of need. */
struct pager_record_list {
        _Atomic uint64_t n;
        /* first page << 32 | pages: one word, so that a reader sees all of a run or none. The last one may grow. */
        _Atomic uint64_t run[SNAP_WORKINGSET_MAX_RUNS];
};

struct pager_record {
        _Atomic bool closed;      /* the control thread ends it */
        _Atomic uint64_t n_pages; /* in both lists */
        uint64_t max_pages;
        struct pager_record_list needed, gifts;
};

/** For guest RAM of @ram_pages. Costs memory only as it fills. NULL: out of memory. */
struct pager_record *pager_record_new(uint64_t ram_pages);
void pager_record_free(struct pager_record *rec); /* NULL is fine */

/** The worker: pages [@first, @first + @n) were needed. What does not fit any more is left out. */
void pager_record_add(struct pager_record *rec, uint64_t first, uint64_t n);
/** They were given on the occasion, and nobody will tell whether they are needed. They come last. */
void pager_record_add_gift(struct pager_record *rec, uint64_t first, uint64_t n);

bool pager_record_is_full(const struct pager_record *rec);
uint64_t pager_record_runs(const struct pager_record *rec);
/** The run @i, less than what pager_record_runs has said. While the worker adds, one may be seen twice or not at
 *  all. */
struct snap_run pager_record_get(const struct pager_record *rec, uint64_t i);
