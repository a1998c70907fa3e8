/* SPDX-License-Identifier: MIT */
/* `uffd-pager serve`: one snapshot, offered at a unix socket to every VMM that connects and speaks Firecracker's
 * handshake. No forkd takes part, so the verdict over a VMM whose memory cannot be served is passed here. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>

#include "common/err.h"

struct pager;
struct pager_serve;

struct pager_serve_config {
        const char *snapshot; /* a directory with memory.img */
        const char *path;     /* of the socket: mode 0600 */
        int64_t peer_uid;     /* allowed beside root and ourselves, -1: nobody */
        bool record;          /* learn the file `workingset` in the snapshot from its VMMs */
};

/** Opens the image once, to be sure that it is one, and listens. @pager outlives the result. */
int pager_serve_new(struct event_base *base, struct pager *pager, const struct pager_serve_config *cfg, struct pager_serve **ret,
                    struct err *e) attr_warn_unused;
/** Listens no more and removes the socket. VMMs that are attached are served on. NULL is fine. */
void pager_serve_close(struct pager_serve *s);
/** Kills the VMMs that are still there: without their pager they would wait for ever. */
void pager_serve_kill(struct pager_serve *s);
/** Only when the pager has no session of it any more (pager_free comes before). NULL is fine. */
void pager_serve_free(struct pager_serve *s);
