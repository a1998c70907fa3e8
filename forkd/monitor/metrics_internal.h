/* SPDX-License-Identifier: MIT */
/* One scrape, and who writes what of it. */
#pragma once

#include "forkd/daemon.h"
#include "forkd/monitor/expo.h"
#include "forkd/monitor/monitor.h"
#include "forkd/pager/totals.h"

/* A VM that is listed, with its label. */
struct scrape_vm {
        const struct monitor_vm *mv;
        struct expo_labels labels;
};

struct scrape {
        struct daemon *d;
        struct expo x;
        struct scrape_vm *vms;
        unsigned n_vms, unlisted;
        uint64_t now_ns;
        double started; /* forkd did, seconds since 1970 */
        bool blind;     /* the probes look, and have no method to see waits for memory */
};

/** Guests that live on a pager's memory; not those that are being ended because theirs is lost. */
unsigned metrics_need_pager(const struct daemon *d);

/** Guests and their vCPUs. */
void families_vms(struct scrape *s);
/** What was killed, the pager, its threads. */
void families_pager(struct scrape *s);
/** Operations, store, admission, events. */
void families_ops(struct scrape *s);
/** forkd itself, and its probes. */
void families_self(struct scrape *s);
