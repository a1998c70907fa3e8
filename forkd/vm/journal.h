/* SPDX-License-Identifier: MIT */
/* The journal: what an operation on several things is about to change, for the forkd that finds it half done.
 *
 * One rule for all of them: *what an entry names is gone after the next start*. A fork's entry names its clones, and the
 * snapshot that was made for them; they become somebody's when the entry goes, which is the operation's commit. A
 * removal's entry names what is to go, so a removal of eight that was cut off ends with none of them.
 *
 * What happens to a single VM (pause, standby, restore, stop …) needs no entry: its record says it, see adopt.c. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/ids.h"

struct daemon;
struct journal_found;

#define JOURNAL_VERSION 1
#define JOURNAL_MAX_IDS 100000       /* VMs and snapshots of one entry: as many as there may be VMs */
#define JOURNAL_MAX_BYTES (2u << 20) /* 18 bytes an id */
#define JOURNAL_MAX_ENTRIES 4096     /* that a start reads; more are told of and left for the next */

enum journal_op { JOURNAL_FORK, JOURNAL_SNAPSHOT, JOURNAL_RM, JOURNAL_SNAPSHOT_RM };

struct journal_ids {
        size_t n, cap;
        id_str *ids;
};

struct journal_entry {
        enum journal_op op;
        bool force;   /* snapshots go also when VMs stand by in them */
        bool written; /* there is a file */
        id_str id;    /* its name */
        struct journal_ids vms, snapshots;
};

/** An entry that names nothing yet, and is not on disk. */
void journal_init(struct journal_entry *j, enum journal_op op);
/** Frees memory; the file stays as it is. */
void journal_clear(struct journal_entry *j);
#define cleanup_journal attr_cleanup(journal_clear)

/** -ENOMEM, -E2BIG. */
int journal_add_vm(struct journal_entry *j, const char *id) attr_warn_unused;
int journal_add_snapshot(struct journal_entry *j, const char *id) attr_warn_unused;

/** Writes the entry as it is now: before the first side effect that it names. On failure what was written before
 *  holds. */
int journal_write(struct daemon *d, struct journal_entry *j, struct err *e) attr_warn_unused;

/** The operation has ended, well or undone: the entry goes. Not written: 0. On failure it is still there, and what it
 *  names must not be promised to anybody. */
int journal_end(struct daemon *d, struct journal_entry *j, struct err *e) attr_warn_unused;
/** The operation has failed, and what it names was removed: the entry goes, unless something of it is still there after
 *  all; then the next start sees to it. */
void journal_undone(struct daemon *d, struct journal_entry *j);

/* ---- the file ---- */

/** *ret_data is the caller's, to be freed. -ENOMEM. */
int journal_encode(const struct journal_entry *j, void **ret_data, size_t *ret_len) attr_warn_unused;
/** From bytes that may be anything. -EBADMSG, -EPROTONOSUPPORT (another version), -E2BIG, -ENOMEM. The entry has no name and is
 *  not `written`. */
int journal_decode(const void *data, size_t len, struct journal_entry *ret) attr_warn_unused;

/* ---- after a restart ---- */

/** Reads what the last forkd left and marks the VMs that are to go (vm->removing), before any VM is taken back. What
 *  cannot be read is logged and stays. */
int journal_load(struct daemon *d, struct err *e) attr_warn_unused;
/** When those VMs are gone: removes the snapshots, then the entries. An entry of which something could not be removed
 *  stays for the next start. */
void journal_settle(struct daemon *d);
void journal_free(struct daemon *d);

/** Calls @fn for every file in the journal that is no readable entry: its path, and why. For orphans.c. */
void journal_each_bad(struct daemon *d, void (*fn)(const char *path, const char *why, void *arg), void *arg);
