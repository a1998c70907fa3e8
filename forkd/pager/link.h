/* SPDX-License-Identifier: MIT */
/* forkd's side of the pager: starts it, finds one that an earlier forkd started, opens and closes sessions,
 * and sees to it that no guest outlives its pager. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/mp.h"
#include "common/rpc.h"

struct daemon;
struct snap_manifest;
struct pager;
struct pager_memory;
struct pager_process;
struct vm;
struct vmm_region;

#define PAGER_HOLD_REGIONS 16

/** What forkd holds of a VM's session, so that another pager can go on with it. */
struct pager_hold {
        struct pager_process *process; /* a reference: who serves it; NULL: nobody at the moment */
        int uffd;                      /* duplicate of the VMM's userfaultfd: its faults wait as long as this is open */
        int memfd;                     /* the image's memory, writable */
        int sock;                      /* duplicate of the pager's end of the VMM's socket */
        pid_t pid;                     /* of the VMM, as soon as it is known */
        bool joined;                   /* its VMM has booted: what is not written is its own all the same, and sock a pidfd */
        bool remaps;                   /* it maps its memory anew, or it is being asked what it maps */
        bool mapped;                   /* it is known what the VMM maps: */
        struct mp_buf mapping;         /* the lists images, extents, view and since, as the pager tells and takes them */
        struct pager_memory **memory;  /* the images in them but its own (memories.c) */
        unsigned n_memories;
        uint64_t image_dev, image_ino; /* the file that is its memory's image; 0: there is none yet (a nascent one) */
        uint64_t woken_ns;             /* when all of its memory was woken, for its pager had lost a fault; 0: it was not */
        bool faults_lost;              /* and that did not help (lost.c) */
        uint64_t released_ns;          /* during an upgrade: when its pager let it go; 0: it has not */
        unsigned n_regions;            /* 0: not attached yet, or more than fit */
        struct pager_hold_region {
                uint64_t base, size, offset; /* in the VMM; in guest RAM */
        } region[PAGER_HOLD_REGIONS];
};
void pager_hold_init(struct pager_hold *h);
void pager_hold_clear(struct pager_hold *h);

/** Of this forkd's life. */
struct pager_counts {
        uint64_t deaths, hangs;     /* pagers that ended without being asked to; that were killed because they hung */
        uint64_t recovered, killed; /* guests, after that */
        uint64_t upgrades;          /* that went well */
        double longest_ms, last_ms; /* from a death's notice until all of its guests were served again */
};

int pager_new(struct daemon *d, struct pager **ret) attr_warn_unused;
void pager_free(struct pager *p); /* the process lives on */

/** Connects to a pager that runs already; 0 too when there is none. A coroutine call. */
int pager_find(struct pager *p, struct err *e) attr_warn_unused;
/** Finishes an upgrade in the middle of which an earlier forkd was ended. After pager_mark_sessions, and before VMMs are asked
 *  for anything: one whose faults nobody serves may not answer. A coroutine call. */
void pager_finish_upgrade(struct pager *p);
bool pager_is_up(const struct pager *p);
pid_t pager_pid(const struct pager *p);
/** Is process @pid a pager of ours: the one that serves, one that is about to, or one that is about to go? */
bool pager_owns(const struct pager *p, pid_t pid);
const struct pager_counts *pager_counts(const struct pager *p);

/** What a session is opened on. */
struct pager_open {
        int image_fd;                  /* the memory image, */
        const struct snap_manifest *m; /* of its snapshot; NULL: its descent is not told */
        int workingset_fd;             /* its recorded working set; -1: none */
        const char *live;              /* or the id of a nascent snapshot, which has no image yet; else NULL */
};
/** Opens a session for @vm; it records if vm->recording. On success *ret_sock is the VMM's end of the session's socket, from
 *  which it gets its memory; it is the caller's. From here on the watchdog holds this VM responsible: it dies with the pager,
 *  or is recovered. */
int pager_session_open(struct pager *p, struct vm *vm, const struct pager_open *on, int *ret_sock,
                       struct err *e) attr_warn_unused;
/** Names the process of @pidfd, which stays the caller's, as the VMM of @vm's session: only it may attach. A coroutine
 *  call. */
int pager_session_expect(struct pager *p, struct vm *vm, int pidfd, struct err *e) attr_warn_unused;
/** After the VMM was reaped. No session is no error. */
void pager_session_close(struct pager *p, struct vm *vm);
/** A VM that booted gets a session: from then on the watchdog holds it as any other. */
struct pager_join {
        int image_fd, uffd, pidfd; /* an empty image; the VMM's userfaultfd, registered with nothing; the VMM */
        const struct vmm_region *regions;
        size_t n_regions;
};
int pager_session_join(struct pager *p, struct vm *vm, const struct pager_join *j, struct err *e) attr_warn_unused;

/** The pager's part of copying the memory of @vm, which has a session and is held by the caller, while it runs on; @id is the
 *  snapshot's that comes of it. All are coroutine calls. -EPIPE: pager or source are gone. */
struct pager_live;
/** What needs no pause. -EOPNOTSUPP: this host cannot. */
int pager_live_begin(struct pager *p, struct vm *vm, const char *id, struct pager_live **ret, struct err *e) attr_warn_unused;
/** The guest stands still. When this has succeeded it may go on, and VMs may come to life on @id (struct pager_open).
 *  *ret_removed: how many pages it has discarded (pager_session_removed). */
int pager_live_protect(struct pager_live *l, uint64_t *ret_removed, struct err *e) attr_warn_unused;
/** All pages are in *ret_memfd, which is for reading and the caller's. */
int pager_live_wait(struct pager_live *l, int *ret_memfd, struct err *e) attr_warn_unused;
/** The snapshot's memory is in @image_fd: @id is an image like any other now. */
int pager_live_publish(struct pager_live *l, int image_fd, struct err *e) attr_warn_unused;
/** The end. What was not published is cancelled: VMs on it fail, and nothing of the source is write-protected any more. NULL is
 *  fine. */
void pager_live_free(struct pager_live *l);
/** The same of one that a forkd before began, if it is under way. */
void pager_live_cancel(struct pager *p, const char *id);
/** Nothing of @vm's memory is write-protected any more. */
int pager_session_unprotect(struct pager *p, struct vm *vm, struct err *e) attr_warn_unused;
/** What @vm lives on was nascent, and is in its base.img now. */
int pager_session_has_image(struct vm *vm) attr_warn_unused;

/** Marks the VMs for which a pager has an attached session that has not failed (vm->session_known), notes why one
 *  has (vm->lost), and gets hold of what a successor would need. */
int pager_mark_sessions(struct pager *p, struct err *e) attr_warn_unused;
/** What the guest discarded: *ret_n ranges [first page, pages], encoded one behind the other in @ret. */
int pager_session_removed(struct pager *p, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, struct err *e) attr_warn_unused;
/** What the guest needed since it was restored, in the order of need: *ret_n ranges as above, at most
 *  SNAP_WORKINGSET_MAX_RUNS; none of a session that does not record. *ret_complete: its time to record is over. @vm may be
 *  gone when it returns. */
int pager_session_workingset(struct pager *p, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, bool *ret_complete,
                             struct err *e) attr_warn_unused;

int pager_status(struct pager *p, struct mp_buf *ret, struct err *e) attr_warn_unused;

struct pager_upgrade_result {
        pid_t old_pid, new_pid;
        char old_version[32], new_version[32];
        unsigned sessions;
        double pause_p50_ms, pause_max_ms, total_ms; /* pause: a session's faults were answered by nobody for so long */
};
/** Starts the program anew and hands it all sessions; guests go on. On failure the old one serves on. A coroutine call. */
int pager_upgrade(struct pager *p, struct pager_upgrade_result *ret, struct err *e) attr_warn_unused;

/** Waits until no session is being moved, at most @timeout_ms: guests must not be left without a pager. A coroutine
 *  call. */
void pager_settle(struct pager *p, int timeout_ms);
/** forkd is about to end, and the pager stays: nobody watches it any more. A coroutine call. */
void pager_leave(struct pager *p);
/** Ends the pager, if no VM needs it. -EBUSY, with how many do. A coroutine call. */
int pager_stop(struct pager *p, struct err *e) attr_warn_unused;
/** Ends the pager; guests must be gone. */
void pager_shutdown(struct pager *p);
