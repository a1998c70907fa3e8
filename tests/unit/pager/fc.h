/* SPDX-License-Identifier: MIT */
/* For tests of copy mode: Firecracker-like VMMs (fc_client.c) as a struct vmm of the harness, and `uffd-pager serve` in a
 * process of its own. Functions fail the test themselves. */
#pragma once

#include <linux/userfaultfd.h>

#include "tests/unit/pager/harness.h"

#define FC_MOVES (UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP)

/** Skips the test because the host lacks something; a failure if FORKD_TEST_NO_SKIP is set. */
void fc_skip(const char *why);

/** How a handshake looks: as Firecracker's of these versions. */
enum { FC_1_6 = 0, FC_1_7 = 1, FC_TODAY = 2, FC_BYTEWISE = 10 };

/** Starts a client. @sock (-1: none) becomes its descriptor 12; stays the caller's. */
void fc_spawn(struct vmm *v, int sock);
/** A client of @regions regions ("" or "huge" pages), attached to a session of @h: `session.attached` was seen. */
void fc_start(struct harness *h, struct vmm *v, const struct image *img, size_t regions, const char *kind, uint64_t features,
              int how);

/** The same with more in its session.open. */
void fc_start_with(struct harness *h, struct vmm *v, const struct image *img, size_t regions, const char *kind,
                   const struct vmm_opening *o);

/** Sets vm.nr_hugepages so that @n huge pages are free, and remembers what it was. False: the host cannot. */
bool fc_huge_pages(unsigned n);
/** Sees to it that exactly one is free. False: the host has more of its own. */
bool fc_one_huge_page(void);
/** Restores it; does nothing if it was not changed. */
void fc_restore_huge_pages(void);

struct fc_server {
        struct harness h; /* the control connection: for harness_status */
        char dir[64], path[96], control[96];
        pid_t pid;
        int pidfd;
        FILE *log;
        char seen[16384]; /* of the log, so far */
};
/** Makes a snapshot directory out of @img. */
void fc_snapshot(struct fc_server *s, const struct image *img);
/** Starts `uffd-pager serve` for it, with more arguments (NULL-terminated, may be NULL), and waits until it listens.
 *  @own_pids: in a pid namespace of its own. */
void fc_server_start(struct fc_server *s, const char *const *more, bool own_pids);
/** Waits until the log says @what. */
void fc_server_says(struct fc_server *s, const char *what);
/** Waits for its end: the wait status. */
int fc_server_wait(struct fc_server *s);
/** SIGTERM, and waits for a good end. */
void fc_server_stop(struct fc_server *s);
void fc_snapshot_remove(struct fc_server *s);
/** A client of one region, attached to the server. */
void fc_attach(struct fc_server *s, struct vmm *v, const struct image *img);
