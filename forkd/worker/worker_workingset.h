/* SPDX-License-Identifier: MIT */
/* What a worker does with working sets. @params are those of its methods; there "runs" is what the pager recorded of a
 * restore: [[first page, pages], …] in the order of need, absent if there is nothing. */
#pragma once

#include "common/err.h"
#include "common/mp.h"
#include "snapstore/store.h"

/** Of "came_from", the snapshot that the guest was restored from ("": none), with "runs" behind it: what the snapshot in
 *  the making begins with. Without that it is as good, only slower at first, so a failure is logged and no more. */
void worker_inherit_workingset(struct snap_txn *t, const msgpack_object *params);

/** Merges "runs" into the working set of snapshot @id: *ret_new pages were new. */
int worker_learn_workingset(struct snap_store *s, const char *id, const msgpack_object *params, uint64_t *ret_new,
                            struct err *e) attr_warn_unused;

/** What there is to say about the snapshot's working set: NULL if nothing. One that is of no use damages nothing. */
const char *worker_workingset_note(struct snap_store *s, const char *id);
