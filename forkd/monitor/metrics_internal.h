/* SPDX-License-Identifier: MIT */
/* One scrape, and who writes what of it. */
#pragma once

#include "forkd/daemon.h"
#include "forkd/monitor/expo.h"
#include "forkd/monitor/monitor.h"

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
};

/** Guests and their vCPUs. */
void families_vms(struct scrape *s);
/** forkd itself, and its probes. */
void families_self(struct scrape *s);
