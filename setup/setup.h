/* SPDX-License-Identifier: MIT */
/* `forkctl setup` as a library: guest kernel, initramfs and the reflink store, made when missing.
 *
 * Idempotent: a second run finds everything and is quick. Two at once do the work once: the second waits
 * for the first one's lock, sees that all is there, and says so. Killed in the middle it leaves a
 * temporary directory that the next run removes. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "setup/assets.h"
#include "setup/store_mount.h"

#define SETUP_STATE_DEFAULT "/var/lib/forkd"
#define SETUP_MAX_MISSING 8
#define SETUP_KVM_TIMEOUT_MS 20000 /* a guest boots in under 2 s even with TCG; a KVM that hangs is cut off */

struct setup_params {
        const char *cache_dir;  /* NULL: assets_cache_dir() */
        const char *state_dir;  /* NULL: SETUP_STATE_DEFAULT */
        uint64_t store_bytes;   /* size of a store image if one must be made; 0: STORE_DEFAULT_BYTES */
        const char *agent_path; /* the guest's agent; NULL: forkd-agent as found beside this program */
        bool check_only;        /* change nothing: tell what is missing */
        bool skip_kvm;          /* do not try KVM: result.kvm is then the cached verdict, or false */
};

/** Called at each step, and several times a second during a download. @step is a stable word ("wait",
 *  "kernel", "initramfs", "store", "kvm"), @text a sentence for people, @percent 0…100 or -1 if unknown. */
typedef void setup_progress_fn(const char *step, const char *text, int percent, void *arg);

struct setup_result {
        struct assets assets; /* id empty when missing (check_only) */
        struct store_info store;
        bool assets_changed;
        bool store_created;
        bool waited;          /* somebody else held the lock first */
        bool kvm;             /* a Linux guest really booted under KVM here */
        char kvm_reason[240]; /* why not */
        /* check_only: one sentence for each thing that setup would make */
        size_t n_missing;
        char missing[SETUP_MAX_MISSING][160];
};

/** Does it all. @progress may be NULL. On failure *ret is untouched and @e says what failed and what to do.
 *  With check_only: 0 also when things are missing (n_missing > 0). Blocking: seconds, or as long as a
 *  download of 26 MiB takes. */
int setup_run(const struct setup_params *params, setup_progress_fn *progress, void *arg, struct setup_result *ret,
              struct err *e) attr_warn_unused;

/** Does KVM really run our guest on this host? 1 yes, 0 no (with the reason in @e->message), -errno when it
 *  cannot be told (no assets yet). The verdict is cached in @cache_dir for this host boot, QEMU version and
 *  assets; without a cached one a guest is booted (blocking, at most @timeout_ms). @timeout_ms 0 only looks
 *  at the cache: -ENODATA when there is nothing. What forkd's `--accel auto` asks. */
int setup_kvm_verdict(const char *cache_dir, int timeout_ms, struct err *e) attr_warn_unused;

/** "native", "loop", "copying", "none". */
const char *store_kind_name(enum store_kind kind);
