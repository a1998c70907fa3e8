/* SPDX-License-Identifier: MIT */
/* The source of a live fork goes on with the new image below it; rebase.c tells how. Control thread. */
#pragma once

#include "common/err.h"
#include "common/rpc.h"

struct pager_image;
struct pager_session;

/** Begins to have the VMM of @s map what it has unchanged since from @img, which has just been published. @pagemap_fd: of its
 *  /proc/<pid>/pagemap, taken. What cannot be done is left as it was: the VMM's pages stay its own. `session.rebased` is
 *  told at the end, whatever it is. -EOPNOTSUPP: it cannot be told to; -ENOMEM: then nothing has begun. */
int pager_rebase_begin(struct pager_session *s, struct pager_image *img, int pagemap_fd) attr_warn_unused;
/** Its worker has caught up. */
void pager_rebase_synced(struct pager_session *s);
/** The VMM has done it. */
void pager_rebase_answered(struct pager_session *s);
/** Not before it is over may anything be unprotected: answered then. */
int pager_rebase_unprotect(struct pager_session *s, struct rpc_conn *conn, uint32_t msgid, struct err *e) attr_warn_unused;
/** The session ends. */
void pager_rebase_forget(struct pager_session *s);
