/* SPDX-License-Identifier: MIT */
/* A run under way: what its files share. */
#pragma once

#include <limits.h>

#include "common/ids.h"
#include "forkctl/chain/chain.h"
#include "forkctl/chain/content.h"
#include "forkctl/client.h"
#include "forkctl/progress.h"
#include "forkctl/watch.h"

#define RUN_PREFIX "chain-" /* of the names of all VMs that a run makes; 8 hex digits follow */

struct run {
        struct ctl *c;
        const struct chain_plan *plan;
        struct chain_result *res;
        char prefix[24];
        unsigned serial;     /* of names */
        char disk[PATH_MAX]; /* a temporary file, until the guest has booted; empty: none */
        id_str base;         /* what all begins with; empty until it is there */
        id_str own;          /* the snapshot of a VM of the user's that was forked; empty: none */

        /* the chain's end: what the next link goes on from */
        id_str last;                /* its snapshot */
        char cur[NAME_MAX_LEN + 1]; /* a running clone of it; empty: one must be forked first */
        struct content content;     /* what it holds */
        uint64_t writer;            /* counts what was written */
        unsigned idle;              /* links in a row in which nothing succeeded */

        struct progress progress;
        double done, all; /* of the progress: forks that were made, and that there will be */

        struct watch watch;
        char left[64]; /* for it */
};

/** Is there no sense in going on: a signal, or a forkd that is gone? */
bool run_over(const struct run *x);

/* ---- steps.c: single steps. All return 0, or -errno with c->e set ---- */

/** A name that no other VM of this run has. */
void run_name(struct run *x, unsigned depth, char ret[NAME_MAX_LEN + 1]);
/** Notes the failure in c->e, if the run was not told to end. */
void run_fail(struct run *x, unsigned depth, const char *step);
/** Tells the progress; @forks more are done. */
void run_progress(struct run *x, double forks, const char *fmt, ...) attr_printf(3, 4);

/** Forks @source into VM @name. @ms (N_STEPS of them; NULL: not measured) get how long it took. */
int run_fork(struct run *x, const char *source, const char *name, struct samples *ms) attr_warn_unused;
/** The first command in a fresh clone, and the memory that it has by then, in @link (NULL: not measured). */
int run_first_exec(struct run *x, const char *name, struct samples *ms, struct chain_link *link) attr_warn_unused;
/** Puts @name on standby and removes its record; *ret is the snapshot. @link (NULL: not measured) gets its sizes. */
int run_standby(struct run *x, const char *name, struct samples *ms, struct chain_link *link, id_str ret) attr_warn_unused;
/** The snapshot that VM @name was made from. */
int run_snapshot_of(struct run *x, const char *name, id_str ret) attr_warn_unused;
/** Adds snapshot @id's sizes to @link. */
int run_sizes(struct run *x, const char *id, struct chain_link *link) attr_warn_unused;
/** Removes a VM or a snapshot. A failure is noted under @depth, and looked after at the end again. */
void run_rm_vm(struct run *x, unsigned depth, const char *name);
void run_rm_snapshot(struct run *x, unsigned depth, const char *id);

/* ---- links.c: the links ---- */

/** All of them. Failures are noted. */
void run_links(struct run *x);
/** The same as a link of depth 1, thrown away. */
int run_warmup(struct run *x) attr_warn_unused;

/* ---- host.c: what is looked at ---- */

/** What the result is worth depends on: host, versions. NULL when memory is short. */
json_t *run_host(struct run *x);
/** Faults by kind, served so far; NULL when that is not known. */
json_t *run_faults(struct run *x);
/** @after less @before; the caller's, or NULL. */
json_t *run_faults_between(const json_t *before, const json_t *after);
/** Private memory of all guests of the run, and what the pager has decoded for living guests. False: not known. */
bool run_held(struct run *x, uint64_t *ret);

/* ---- undo.c ---- */

/** Removes whatever this run has made, also what it was not told of: VMs by their names, snapshots by the VM they are of. With --keep
 *  nothing. A failure is noted. */
void run_undo(struct run *x);
