/* SPDX-License-Identifier: MIT */
/* The published snapshots, as forkd keeps them in memory: every manifest of the store, by id and tag. */
#pragma once

#include <stdbool.h>
#include <sys/queue.h>

#include "common/err.h"
#include "common/mp.h"
#include "snapstore/store.h"

struct catalog;
struct daemon;
struct vm;

struct snap_entry {
        TAILQ_ENTRY(snap_entry) entry;
        struct snap_manifest m;
        bool durable;
        unsigned users; /* operations that read it now: it cannot be removed meanwhile */
        bool recording; /* a VM's session records for its working set */
        bool workingset_known;
        uint64_t workingset_pages; /* catalog_workingset_pages() */
};

/** A tag that a snapshot under way will have: taken from the beginning, so that two cannot end with the same. Lives on
 *  the stack of whoever makes the snapshot. */
struct tag_claim {
        LIST_ENTRY(tag_claim) entry;
        char tag[NAME_MAX_LEN + 1]; /* "": claims nothing */
};
/** -EINVAL: no valid tag; -EEXIST: a snapshot has it, or will. @tag may be NULL or "". */
int catalog_claim_tag(struct catalog *c, const char *tag, struct tag_claim *claim, struct err *e) attr_warn_unused;
void catalog_release_tag(struct tag_claim *claim);

int catalog_new(struct daemon *d, struct catalog **ret) attr_warn_unused;
void catalog_free(struct catalog *c);
/** Reads the store anew. What cannot be read is logged and left out. */
int catalog_load(struct catalog *c, struct err *e) attr_warn_unused;

struct snap_entry *catalog_by_id(struct catalog *c, const char *id); /* NULL */
struct snap_entry *catalog_by_tag(struct catalog *c, const char *tag);
struct snap_entry *catalog_first(struct catalog *c); /* by age; follow entry with TAILQ_NEXT */
/** By id or tag. -ENOENT. */
int catalog_find(struct catalog *c, const char *id_or_tag, struct snap_entry **ret, struct err *e) attr_warn_unused;
int catalog_add(struct catalog *c, const struct snap_manifest *m, bool durable, struct snap_entry **ret) attr_warn_unused;
/** Removes a snapshot from store and catalog. Refuses (-EBUSY) one that is being read, and one that a VM on standby
 *  needs, unless @force: that VM has failed then. */
int catalog_remove(struct catalog *c, struct snap_entry *s, bool force, struct err *e) attr_warn_unused;

/** Removes a snapshot that was made for an operation that failed, if it is still there; logs what goes wrong. */
void catalog_drop(struct catalog *c, const char *id);

/** Makes a snapshot that was published without waiting for the disk durable, in the background; its children then do
 *  not pay for its writeback. */
void catalog_sync_later(struct catalog *c, const struct snap_entry *s);

/** Notes in @vm's record that it stands by in, or is about to be restored from, the snapshot that @m describes. */
void catalog_vm_stands_by(struct vm *vm, const struct snap_manifest *m);
/** Notes that its next snapshot is a child of that one: the VM lives on. */
void catalog_vm_descends(struct vm *vm, const struct snap_manifest *m);

/** The size of the recorded working set; 0: none, or none of use. Read when first asked for: clear s->workingset_known
 *  when it changes. */
uint64_t catalog_workingset_pages(struct catalog *c, struct snap_entry *s);

/** The *snap* map of docs/protocol.md. */
void catalog_encode(struct catalog *c, struct snap_entry *s, struct mp_buf *b);
