/* SPDX-License-Identifier: MIT */
/* uffd-pager as a library: everything behind the command line. */
#pragma once

#include <event2/event.h>

#include "common/err.h"
#include "pager/limits.h"

struct pager_config {
        const char *control_path;   /* of the control socket; NULL: there is none */
        int control_fd;             /* > 0: already listens there (whoever starts the pager can connect at once);
                                    * taken */
        unsigned workers;           /* 1 … PAGER_MAX_WORKERS; 0: one per online CPU */
        unsigned idle_seconds;      /* how long an image stays open after its last session */
        uint64_t memory_budget;     /* bytes of decoded pages, of all images; 0: a quarter of the memory there is */
        int pressure_fd;            /* > 0: POLLPRI on it is memory pressure, besides what the kernel tells; taken */
        unsigned handshake_seconds; /* 1 …; 0: PAGER_HANDSHAKE_SECONDS */
        unsigned fault_seconds;     /* a fault that waits so long because of a hung worker; 0: PAGER_FAULT_SECONDS */
        unsigned record_seconds;    /* how long a session that records does so; 0: PAGER_RECORD_SECONDS */
        const char *version;        /* told in hello; static */
};

struct pager;

/** Starts threads and listens. Everything else happens in @base's loop, which ends (event_base_loopbreak)
 *  when the pager has reached its end: see pager_drain and the method shutdown. */
int pager_new(struct event_base *base, const struct pager_config *cfg, struct pager **ret, struct err *e) attr_warn_unused;
/** Stops the threads, closes everything. Guests that are still there wait for their pages from now on. NULL
 *  is fine. */
void pager_free(struct pager *p);
DEFINE_CLEANUP(struct pager, pager_free)

/** Accepts no new session any more, and ends the loop when the last one has gone: at once, if there is none.
 *  This is what SIGTERM asks for. */
void pager_drain(struct pager *p);

/** Ends the loop once the answers that are queued have been sent, whatever is open. */
void pager_end(struct pager *p);
