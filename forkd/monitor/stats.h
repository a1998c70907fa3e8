/* SPDX-License-Identifier: MIT */
/* All that forkd can tell of how things go, in one document: the method `stats`, and what the page shows. docs/protocol.md has its
 * form. It never grows beyond a message: where there are more VMs, sessions or snapshots than fit, it says how many are left out. */
#pragma once

#include "common/err.h"
#include "common/mp.h"

struct daemon;

/* Of an encoded document, RPC_MAX_MESSAGE together. */
#define STATS_MAX_VMS_BYTES (2u << 20)
#define STATS_MAX_SERVED_BYTES (768u << 10)
#define STATS_MAX_SNAPSHOTS_BYTES (512u << 10)

/** Appends the document to @out. @name: of this VM only, by name or id, also of one that has ended lately; NULL: of all. Asks the pager,
 *  for PAGER_TOTALS_MS at most: a coroutine call. -ENOENT: there is no such VM; -ENOMEM. @e may be NULL. */
int stats_document(struct daemon *d, const char *name, struct mp_buf *out, struct err *e) attr_warn_unused;
