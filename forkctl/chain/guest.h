/* SPDX-License-Identifier: MIT */
/* What the chain does inside of guests: through the agent, with sh, dd, head and sha256sum, which every guest has. */
#pragma once

#include "forkctl/chain/content.h"
#include "forkctl/client.h"

/** Runs `/bin/sh -c @script` in VM @name with @input (may be NULL) as its stdin. *ret_out (may be NULL) gets its stdout, which is the
 *  caller's. 0 when it exited with 0; else -errno and c->e, with the last line of what it said. */
int guest_sh(struct ctl *c, const char *name, const char *script, const char *input, size_t len, char **ret_out) attr_warn_unused;

/** Makes the place for contents, and fills every slot. Finds out whether there is a disk of ours. */
int guest_prepare(struct ctl *c, const char *name, struct content *content) attr_warn_unused;

/** Overwrites slot and piece number @turn (taken modulo) with what @writer writes. On failure @content is as before. */
int guest_dirty(struct ctl *c, const char *name, struct content *content, unsigned turn, uint64_t writer) attr_warn_unused;

/** Is everything in VM @name as @content has it? -EBADMSG with c->e: which part is not. @spoil: afterwards the guest overwrites a part
 *  of all, which no other guest may ever see. */
int guest_verify(struct ctl *c, const char *name, const struct content *content, bool spoil) attr_warn_unused;
