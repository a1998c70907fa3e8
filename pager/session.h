/* SPDX-License-Identifier: MIT */
/* A session: one VMM whose faults are served from one image.
 *
 * Who may touch what. The control thread makes sessions and owns everything but the fields marked as the
 * worker's. When the handshake is done it hands the session to a worker with a letter; from then on the
 * worker alone reads the userfaultfd. The worker returns it with a letter (PAGER_RELEASED) after the control
 * thread has asked for it (PAGER_DROP); only then are the descriptors closed and the image let go. So nothing
 * is freed under a worker, and no lock is held while a fault is served. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <pthread.h>

#include "common/hist.h"
#include "common/ids.h"
#include "pager/handshake.h"
#include "pager/image.h"
#include "pager/limits.h"
#include "pager/lineage.h"
#include "pager/mailbox.h"

/** Letters. To a worker: SERVE, DROP, MOVE, SYNC, POISON, BEAT. To the control thread: the rest (FILLED's, COPIED's and
 *  SURVEYED's object is an image, REPLAYED's a working set). */
enum pager_letter_kind {
        PAGER_SERVE,
        PAGER_DROP,
        PAGER_MOVE,
        PAGER_SYNC,
        PAGER_BEAT,
        PAGER_POISON,   /* of a session that has failed: whoever faults gets SIGBUS */
        PAGER_FAILED,   /* faults are not answered any more; ->fail_reason tells why */
        PAGER_VMM_GONE, /* its memory is gone */
        PAGER_RELEASED, /* the worker has let go, for good */
        PAGER_MOVED,    /* it has let go, for another worker to go on */
        PAGER_SYNCED,
        PAGER_FILLED,
        PAGER_COPIED,
        PAGER_LIVE_SYNC, /* to a worker, and back */
        PAGER_SURVEYED,
        PAGER_REPLAYED,
};

/** How a fault was answered. */
enum pager_fault_kind {
        PAGER_FAULT_MISSING,
        PAGER_FAULT_ZERO,
        PAGER_FAULT_PRESENT,
        PAGER_FAULT_REMOVED,
        PAGER_FAULT_WRITE,
        PAGER_N_FAULTS
};
extern const char *const pager_fault_names[PAGER_N_FAULTS];

struct pager_pending {
        uint64_t addr; /* of the page */
        uint64_t since_ns;
        bool write; /* to a page that is there and protected */
};

/** A request that is answered later. */
struct pager_waiter {
        struct rpc_conn *conn; /* a reference, or NULL: nobody waits */
        uint32_t msgid;
};

/** Guest pages that a VMM maps from other images than its session's tells: ascending runs, each with a reference. */
struct pager_view {
        size_t n, cap;
        struct pager_view_run {
                uint64_t first, n;
                struct pager_image *img;
        } run[];
};
struct pager_view *pager_view_new(size_t cap); /* NULL: out of memory */
void pager_view_free(struct pager_view *v);    /* NULL is fine */
/** Behind the others; a reference is taken. There must be room. */
void pager_view_add(struct pager_view *v, uint64_t first, uint64_t n, struct pager_image *img);

struct pager_session;

/** Who answers for a session in place of forkd. All are called by the control thread. */
struct pager_keeper {
        /** It has failed, and the log says why. @depends: its VMM has given us its userfaultfd, so it waits for us. */
        void (*on_failed)(struct pager_session *s, bool depends, void *arg);
        /** The VMM has closed its socket. True: it is not gone, the session goes on. */
        bool (*on_hangup)(struct pager_session *s, void *arg);
        /** The window of its recording is over (s->record). */
        void (*on_recorded)(struct pager_session *s, void *arg);
        /** It is about to be freed. */
        void (*on_released)(struct pager_session *s, void *arg);
};

struct pager_session {
        struct pager_session *next; /* control thread's list */
        struct pager *pager;
        id_str id;
        int64_t vm_pid; /* 0: not told */
        struct pager_image *image;
        struct pager_layout *layout; /* NULL until attached; then constant, but in copy mode the worker's, which may replace
                                      * it: nobody else looks at it */
        struct pager_worker *worker; /* NULL until attached; while it moves: the one that it goes to */
        struct pager_peer *peer;     /* the VMM's socket; NULL once closed */
        int uffd;
        enum pager_mode mode; /* valid when attached */
        bool attached, failed, ending, hung_up, moving;
        bool releasing;                    /* asked for by session.release; its worker has not let go yet */
        bool released;                     /* served by nobody here until session.resume */
        bool counted;                      /* among its image's n_released: by session.release */
        bool depends;                      /* the VMM has given us its userfaultfd */
        bool sync_deferred;                /* sync_waiter waits for the end of a move */
        bool recorded;                     /* session.recorded was sent */
        bool segments;                     /* its VMM was told of what its memory is made, by us */
        unsigned moves;                    /* from one worker to another */
        uint64_t unread_since_ns;          /* while its worker hangs: since when nobody reads a fault of it, 0: there is none */
        const struct pager_keeper *keeper; /* NULL: forkd hears of it by notifications */
        void *keeper_arg;
        uint64_t busy_seen_ns;    /* busy_ns when the load was last looked at */
        double share;             /* of the last interval, spent on its faults */
        struct event *record_end; /* while it records */
        char reason[PAGER_MAX_REASON];
        struct pager_cached *cached; /* the image's place in the cache */
        struct pager_cached **pin;   /* those of the images of its view, each in use once */
        size_t n_pins;
        struct pager_waiter close_waiter;   /* the session.close to answer when it is released */
        struct pager_waiter release_waiter; /* the session.release to answer when the image is left alone, too */
        struct pager_waiter sync_waiter;    /* the session.removed to answer when the worker has caught up */
        uint64_t sync_first_page;

        /* Of a VM that is, or has been, forked while it runs (live.c). */
        struct pager_live *live;    /* the fork under way, NULL: none */
        struct pager_cached *since; /* the last that was published: what is protected, or not written, is as it has it; in use */
        bool since_protected;       /* and what was written until then has been protected from then on */
        bool live_deferred;         /* protection waits for the end of a move */
        bool live_syncing;          /* the letter is under way; and */
        bool live_sync_again;       /* has to go once more when it is back */
        bool joined;                /* its missing pages are the kernel's */
        struct pager_letter live_sync;
        struct pager_rebase *rebase;       /* one that is under way (rebase.c), NULL: none */
        struct pager_view *old_view;       /* may be in its worker's hands until that has caught up */
        pthread_mutex_t lock;              /* guards what the control thread replaces under the worker: */
        struct pager_image *nascent;       /* what its written pages are copied into, NULL: nothing; a reference */
        struct pager_view *view;           /* NULL: it maps what its image tells */
        const struct pager_view *replaced; /* the VMM maps these runs anew: no discards */

        struct pager_letter to_worker_serve, to_worker_drop, to_worker_move, to_worker_poison, sync;
        struct pager_letter from_worker_failed, from_worker_gone, from_worker_released, from_worker_moved;

        /* Shared, atomic. */
        _Atomic bool holds_writes; /* those to protected pages wait */
        _Atomic bool protects;     /* some of its pages may be protected against writes */
        _Atomic bool stopped;      /* it has failed: serve no more, unless it is to poison */
        _Atomic bool dropping;     /* set with PAGER_DROP and PAGER_MOVE: serve no more */
        _Atomic uint64_t *removed; /* a bit a guest page: discarded, reads zero */
        _Atomic uint64_t removed_pages;
        _Atomic uint64_t faults[PAGER_N_FAULTS];
        _Atomic uint64_t pages_installed, zero_pages; /* mapped to answer faults */
        _Atomic uint64_t pages_ahead, zero_ahead;     /* mapped before one came */
        _Atomic uint64_t oldest_ns;                   /* when the oldest unanswered fault was read, 0: none */
        _Atomic uint64_t busy_ns;                     /* spent on its faults */
        struct hist wait;                             /* from a fault's reading to its turn */
        struct hist service;                          /* from its turn to the answer; faults in one frame share one turn */

        struct pager_ahead *ahead;   /* a reference, or NULL: no working set */
        struct pager_record *record; /* NULL: not asked for */

        /* The worker's. */
        struct pager_session *worker_next;
        TAILQ_ENTRY(pager_session) run, idle;
        size_t ahead_unit;                               /* what of the working set is to be mapped next, and */
        uint64_t ahead_at;                               /* where in that unit */
        struct pager_pending pending[PAGER_MAX_PENDING]; /* ascending by address */
        uint64_t early_addr, early_ns;                   /* of the present turn: answered before its end at this time, 0: not */
        uint64_t write_next;                             /* behind what was unprotected last, and */
        unsigned write_span;                             /* how many pages at once */
        uint64_t sweep;                                  /* faults at this address and above have their turn first */
        bool served;                                     /* in the epoll set */
        bool queued;                                     /* in the worker's queue of sessions that have something to do */
        bool poison;                                     /* it has failed, and its VMM cannot be killed */
        bool ahead_done;                                 /* nothing is left to map ahead, or it was given up */
        bool has_ahead;                                  /* in the worker's list of sessions with something left to map */
        bool dropped;         /* faults that were read are not in `pending`, and will be raised again */
        unsigned stuck;       /* huge pages that could not be copied because they were there, since the last that could */
        unsigned n_pending;   /* in `pending` */
        uint32_t retry_us;    /* how long it waits the next time */
        unsigned reads;       /* of the userfaultfd, in the present turn */
        uint64_t *copied;     /* copy mode: a bit a guest page that was copied into the VMM, as far as is known */
        uint64_t turn_ns;     /* when the present turn began */
        uint64_t retry_at_ns; /* 0: not waiting */
        char fail_reason[PAGER_MAX_REASON]; /* written before PAGER_FAILED is posted, read after */
};

/** @image: a reference is taken. -ENOMEM. */
int pager_session_new(const char *id, struct pager_image *image, struct pager_session **ret) attr_warn_unused;
/** The session must not be with a worker. Closes the userfaultfd. NULL is fine. */
void pager_session_free(struct pager_session *s);
DEFINE_CLEANUP(struct pager_session, pager_session_free)

/** The handshake is done: takes @layout and @uffd, or, on failure (-ENOMEM), nothing. */
int pager_session_attach(struct pager_session *s, struct pager_layout *layout, int uffd) attr_warn_unused;

/** Was the guest page discarded? */
bool pager_session_removed(const struct pager_session *s, uint64_t page);
/** Marks guest pages [@first, @end), which exist. */
void pager_session_mark_pages(struct pager_session *s, uint64_t first, uint64_t end);
/** Marks the guest pages that lie in [@start, @end) of the VMM's address space. */
void pager_session_mark_removed(struct pager_session *s, uint64_t start, uint64_t end);
/** Whose memory the VMM maps at @page, and the run around it of which that is so. Its worker; or the control thread. */
struct pager_span pager_session_span(struct pager_session *s, uint64_t page);
/** Control thread: what it maps from now on (taken), where that is not what its image tells. */
void pager_session_set_view(struct pager_session *s, struct pager_view *v);
/** Control thread: the runs of @v (not taken, or NULL) are being replaced. */
void pager_session_set_replaced(struct pager_session *s, const struct pager_view *v);
/** Are the addresses [@start, @end)? */
bool pager_session_replaces(struct pager_session *s, uint64_t start, uint64_t end);

/** What its written pages are being copied into, a reference; NULL: nothing. Any thread. */
struct pager_image *pager_session_nascent(struct pager_session *s);
/** Control thread: from now on that is @img (taken, or NULL). */
void pager_session_set_nascent(struct pager_session *s, struct pager_image *img);

/** The first run of removed pages at or after @page: false if there is none. */
bool pager_session_next_removed(const struct pager_session *s, uint64_t page, uint64_t *ret_first, uint64_t *ret_n);
