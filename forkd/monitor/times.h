/* SPDX-License-Identifier: MIT */
/* How long forkd's operations took that went well, how many did not, and how many guests had to be killed: since it started.
 * What was refused before anything began (a name that is taken, no room) has not failed. */
#pragma once

#include "common/hist.h"

struct daemon;

enum operation {
        OP_BOOT,      /* `run`: as its result's boot_ms */
        OP_STANDBY,   /* total_ms */
        OP_RESTORE,   /* total_ms */
        OP_FORK,      /* of each clone, total_ms; a fork that fails has failed once, however many clones were asked for */
        OP_POOL_TAKE, /* take_ms, warm or not */
        N_OPERATIONS,
};
const char *operation_name(enum operation op); /* "boot", "standby", … */

enum killed {
        KILLED_PAGER_LOST,   /* its pager was, and no other could serve it */
        KILLED_PAGER_FAILED, /* its pager could not serve it: a damaged image, a disk that cannot be read */
        N_KILLED,
};
const char *killed_name(enum killed k); /* "pager-lost", "pager-failed" */

/** Zeroed: nothing has happened. */
struct times {
        struct hist took[N_OPERATIONS];
        uint64_t failed[N_OPERATIONS], killed[N_KILLED];
};

void times_took(struct daemon *d, enum operation op, double ms);
/** @r: why. What was given up because its client left or forkd ends (-ECANCELED), and a tag that is taken (-EEXIST), do not count. */
void times_failed(struct daemon *d, enum operation op, int r);
/** @reason: of a VM: "pager-lost …", "pager: …". */
void times_killed(struct daemon *d, const char *reason);
