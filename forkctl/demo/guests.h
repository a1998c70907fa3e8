/* SPDX-License-Identifier: MIT */
/* What the demonstration asks of its guests. */
#pragma once

#include <stdbool.h>

#include "forkctl/ctl.h"

#define GUEST_TEXT 80

/** What a guest holds: random data, and a process that keeps a secret in its memory alone, and counts how often it was asked. */
struct keeper {
        char digest[GUEST_TEXT]; /* of the data */
        char secret[GUEST_TEXT];
        long asked;
};

/** What must differ between any two clones. */
struct likeness {
        char digest[GUEST_TEXT]; /* of the part that was overwritten */
        char hostname[GUEST_TEXT], machine_id[GUEST_TEXT], random[GUEST_TEXT];
};

/** Makes the data and starts the process; *ret is what it holds then. */
int keeper_start(struct ctl *c, const char *name, struct keeper *ret) attr_warn_unused;
/** Asks for all of it (once more). */
int keeper_ask(struct ctl *c, const char *name, struct keeper *ret) attr_warn_unused;
/** Has @now what @then had, asked once since? */
bool keeper_same(const struct keeper *now, const struct keeper *then);
/** Overwrites a part of the data with what is this guest's alone, and leaves its mark; *ret is what it is like now. */
int guest_part(struct ctl *c, const char *name, struct likeness *ret) attr_warn_unused;
/** Is the mark still its own? */
int guest_mark_is_own(struct ctl *c, const char *name, bool *ret) attr_warn_unused;
