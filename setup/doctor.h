/* SPDX-License-Identifier: MIT */
/* What this host can do for forkd, found out by trying it. Each check tells what the feature is for and
 * how to get it. Only what makes forkd unusable is a failure. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

#define DOCTOR_MAX_CHECKS 40

enum doctor_status { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL };

struct doctor_check {
        char name[32]; /* "userfaultfd", "kvm", … stable: scripts look for them */
        enum doctor_status status;
        char detail[240]; /* what was found, and what it is for */
        char hint[240];   /* what to do about it; empty when ok */
};

struct doctor_params {
        const char *cache_dir; /* of the guest assets; NULL: assets_cache_dir() */
        const char *state_dir; /* NULL: /var/lib/forkd */
        const char *socket;    /* forkd's; NULL: /run/forkd/forkd.sock */
        int kvm_timeout_ms;    /* for the boot under KVM, when no verdict is cached; 0: SETUP_KVM_TIMEOUT_MS */
};

struct doctor_report {
        bool ok; /* no check failed */
        size_t n;
        struct doctor_check checks[DOCTOR_MAX_CHECKS];
};

/** Fills @ret (22 KiB: not for a small stack). Never fails as a whole; changes nothing but the cached KVM
 *  verdict. Blocking: half a second, up to kvm_timeout_ms more when KVM has to be tried. */
void doctor_run(const struct doctor_params *params, struct doctor_report *ret);

/** "ok", "warn", "fail": as in --json. */
const char *doctor_status_name(enum doctor_status s);
