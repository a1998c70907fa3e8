/* SPDX-License-Identifier: MIT */
/* What a person sees on stderr while something takes its time: one line that is drawn over again and
 * disappears at the end. Nothing at all when stderr is no terminal, or with --json. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>

#include "forkctl/ctl.h"

struct progress {
        struct ctl *c;
        char text[160];
        int percent; /* -1: unknown, then the time that has passed is shown */
        uint64_t start_ns, drawn_ns;
        struct event *tick;
        bool shown;
        const uint64_t *done, *all; /* progress_bytes */
        /* progress_vms: clones that are there already, asked from forkd while it works */
        const char *prefix;
        unsigned total;
        bool asking;
        uint32_t ask_id;
};

/** Begins a line; while the client's loop runs it is redrawn with the time that has passed. */
void progress_start(struct progress *p, struct ctl *c, const char *fmt, ...) attr_printf(3, 4);
/** Shows how many of @total VMs named @prefix-1 … run already. @prefix stays the caller's. */
void progress_vms(struct progress *p, const char *prefix, unsigned total);
/** Shows how far *@done is on its way to *@all, which may be 0 (unknown) at first. Both stay the caller's. */
void progress_bytes(struct progress *p, const uint64_t *done, const uint64_t *all);
/** A new text or percentage (-1: unknown), drawn at most ten times a second. */
void progress_set(struct progress *p, int percent, const char *text);
/** Takes the line away. A struct of zeros, or one ended before, is fine. */
void progress_end(struct progress *p);
#define cleanup_progress attr_cleanup(progress_end)
