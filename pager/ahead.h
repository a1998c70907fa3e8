/* SPDX-License-Identifier: MIT */
/* Ahead of the fault: a recorded working set is decoded into the image's memory before and while the VMM starts,
 * and mapped into the clone in bulk. */
#pragma once

#include "pager/fill.h"
#include "pager/image.h"
#include "snapstore/workingset.h"

struct pager_session;

/** A working set cut into units of at most PAGER_AHEAD_UNIT pages, which never change. Shared by the sessions
 *  that were opened with it; any thread may ref and unref. */
struct pager_ahead {
        _Atomic unsigned refs;
        struct pager_fill_job job; /* of the filling thread; it has an object of its own: PAGER_REPLAYED */
        _Atomic size_t next;       /* the first unit that nobody has begun to decode */
        uint64_t n_pages;
        size_t n_units;
        struct snap_run unit[];
};

/** Of @set for @img. NULL: out of memory. */
struct pager_ahead *pager_ahead_new(struct pager_image *img, const struct snap_workingset *set);
struct pager_ahead *pager_ahead_ref(struct pager_ahead *a);
void pager_ahead_unref(struct pager_ahead *a); /* NULL is fine */
DEFINE_CLEANUP(struct pager_ahead, pager_ahead_unref)

/** Decodes the next unit of @a that nobody has begun. 1: there may be more; 0: none was left; else an error of
 *  pager_image_fill, after which it is left to demand. */
int pager_ahead_decode(struct pager_ahead *a, struct pager_image *img, struct pager_scratch *s) attr_warn_unused;

/** The session's worker, when nothing else is to do: maps a unit into the clone, or decodes one. 1: there is
 *  more; 0: done, or given up; -EAGAIN: the VMM changes its layout, try again later. Nothing here fails a
 *  session: what stands in the way will be told by the fault that needs the page. */
int pager_ahead_step(struct pager_session *s, struct pager_scratch *scratch) attr_warn_unused;
