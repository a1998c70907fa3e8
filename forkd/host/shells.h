/* SPDX-License-Identifier: MIT */
/* VMM shells: VMMs that wait, started and with their machine built, to become those of VMs that are restored or forked. Their
 * start is then what a fork does not have to wait for. [vmm] shells says how many of each *shape* are kept: driver, vCPUs, memory
 * and disks by their sizes, of what was restored lately. */
#pragma once

#include <stdbool.h>

#include "common/err.h"
#include "common/mp.h"
#include "forkd/vmm/vmm.h"

struct daemon;
struct shells;
struct vm;

int shells_new(struct daemon *d, struct shells **ret) attr_warn_unused;
/** After shells_end; NULL is fine. */
void shells_free(struct shells *s);

/** Gives @vm a VMM that was started for its shape, with all of it: process, user, cgroup, directory. It is what ops->start with
 *  @start would have made. 1: done. 0: there is none, and nothing has changed. -errno: there was one that failed, and is gone;
 *  its session in the pager is spent. A coroutine call. */
int shells_take(struct shells *s, struct vm *vm, const struct vmm_start *start, struct err *e) attr_warn_unused;

/** A VM of this shape was restored, with these disks: others may follow. */
void shells_want(struct shells *s, const struct vm *vm);

/** Ends what nobody has asked for in a while, and what would be started otherwise today. Every few seconds. */
void shells_housekeeping(struct shells *s);

/** Ends all that can be spared, for something that is refused otherwise: false if there was none. No new ones for a while. A
 *  coroutine call. */
bool shells_yield(struct shells *s);

/** Ends all, and starts no more. A coroutine call. */
void shells_end(struct shells *s);

struct shells_counts {
        unsigned ready, starting;
        uint64_t used, missed; /* VMs that were restored into one; for which there was none */
        uint64_t failed;       /* that did not start, or ended by themselves */
};
/** Is it the id of a shell, of which its cgroup and its directory are named? */
bool shells_has(const struct shells *s, const char *id);
/** NULL is fine: none. */
void shells_count(const struct shells *s, struct shells_counts *ret);
/** The value of `shells` of docs/protocol.md. */
void shells_encode(const struct shells *s, struct mp_buf *b);
