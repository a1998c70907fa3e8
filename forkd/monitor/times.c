/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/times.h"

#include <errno.h>
#include <string.h>

#include "forkd/daemon.h"

const char *operation_name(enum operation op) {
        static const char *const names[N_OPERATIONS] = {
                [OP_BOOT] = "boot", [OP_STANDBY] = "standby",     [OP_RESTORE] = "restore",
                [OP_FORK] = "fork", [OP_POOL_TAKE] = "pool_take",
        };

        return names[op];
}

const char *killed_name(enum killed k) {
        static const char *const names[N_KILLED] = {
                [KILLED_PAGER_LOST] = "pager-lost",
                [KILLED_PAGER_FAILED] = "pager-failed",
        };

        return names[k];
}

void times_took(struct daemon *d, enum operation op, double ms) {
        hist_add(&d->times.took[op], ms > 0 ? (uint64_t) (ms * 1e6) : 0);
}

void times_failed(struct daemon *d, enum operation op, int r) {
        if (r != -ECANCELED && r != -EEXIST)
                d->times.failed[op]++;
}

void times_killed(struct daemon *d, const char *reason) {
        const char *lost = killed_name(KILLED_PAGER_LOST);

        d->times.killed[strncmp(reason, lost, strlen(lost)) == 0 ? KILLED_PAGER_LOST : KILLED_PAGER_FAILED]++;
}
