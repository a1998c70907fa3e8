/* SPDX-License-Identifier: MIT */
/* A snapshot that is being taken: between op_snapshot.c, which has the order of its steps, and op_live.c, which has those of a
 * guest that runs on while its memory is copied. */
#pragma once

#include "forkd/catalog.h"
#include "forkd/vm/origin.h"
#include "forkd/vm/recording.h"
#include "forkd/vm/stages.h"
#include "forkd/vm/vm.h"
#include "forkd/worker/worker.h"

#define COPY_TIMEOUT_MS 600000
#define MAX_REGIONS 16

struct taking {
        struct vm *vm;
        const struct vm_snap_params *p;
        struct vm_snap_result *result;
        struct worker *worker;
        struct snap_manifest *m;
        struct tag_claim claim;
        struct admission_claim claim_disk;
        int base_fd, vmstate_fd;
        struct vmm_region regions[MAX_REGIONS]; /* of guest RAM in the VMM; found before the pause */
        size_t n_regions;
        struct recorded recorded; /* of the restore that the guest came from */
        bool paused_by_us;
        bool none_removed; /* the guest has discarded nothing: nobody needs to be asked */
        uint64_t t0, t_pause;
        struct stages stages;
        struct pager_live *live; /* NULL: the guest stands still until its memory is read */
};

/** What a worker needs to look at a guest that stands still: its memory, its disks, what it has discarded. A coroutine call. */
int taking_put_source(struct taking *t, struct mp_buf *b, struct err *e) attr_warn_unused;

/* ---- op_live.c: coroutine calls, in this order ---- */

/** Sets t->live if the guest may run on while its memory is copied. -errno only if the snapshot cannot be taken in any way. */
int op_live_prepare(struct taking *t, struct err *e) attr_warn_unused;
/** During the pause, beside the device state. */
int op_live_protect(struct taking *t, struct err *e) attr_warn_unused;
/** The guest runs again: whoever waits for the nascent snapshot has it. */
int op_live_tell(struct taking *t, struct err *e) attr_warn_unused;
/** All pages have been copied, and are in the image when this returns. */
int op_live_copy(struct taking *t, struct err *e) attr_warn_unused;
/** It is published: clones live on an image like any other, and the source goes on from this snapshot. */
int op_live_settle(struct taking *t, struct snap_entry *s, struct err *e) attr_warn_unused;
/** After a failure, at any step. */
void op_live_undo(struct taking *t);
