/* SPDX-License-Identifier: MIT */
/* Working sets, forkd's part: which pages a restored guest needs first is recorded by the pager, merged into the
 * snapshot's file by a worker, and handed to the pager at the next restore.
 *
 * All of it is a help and never a condition: what fails here is logged, and costs the next guest some time. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/mp.h"

struct catalog;
struct snap_entry;
struct vm;

/** What was recorded of one guest: @n runs [first page, pages], encoded one behind the other in @runs. */
struct recorded {
        struct mp_buf runs;
        uint64_t n;
        bool complete; /* the time for it was over */
};
void recorded_init(struct recorded *rec);
void recorded_clear(struct recorded *rec);
#define cleanup_recorded attr_cleanup(recorded_clear)

/** Before @vm's session on snapshot @s is opened: decides whether it records (vm->recording; one VM of a snapshot at a
 *  time), and returns the snapshot's working set, opened, or -1. */
int recording_begin(struct vm *vm, struct snap_entry *s);

/** What @vm's session has recorded by now; it goes on. Empty if it does not record or cannot be asked. A coroutine call. */
void recording_fetch(struct vm *vm, struct recorded *ret);

/** Merges what was recorded of a guest into the working set of snapshot @id, in the background; @rec is empty
 *  afterwards. */
void recording_learn(struct vm *vm, const char *id, struct recorded *rec);

/** Before a guest that lives is ended: what it recorded is kept. A coroutine call. */
void recording_keep(struct vm *vm);

/** The pager says that @vm's time to record is over: fetched and kept in the background. */
void recording_done(struct vm *vm);

/** For a guest that an earlier forkd restored: finds out whether it records, or did and nobody heard of the end. A
 *  coroutine call. */
void recording_adopt(struct vm *vm);

/** @vm's session is no more, or records no longer: another VM of its snapshot may. */
void recording_end(struct vm *vm);
