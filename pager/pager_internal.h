/* SPDX-License-Identifier: MIT */
/* The control thread's state: shared by pager.c (life, sessions), control.c (methods), status.c. */
#pragma once

#include "common/rpc.h"
#include "pager/cache.h"
#include "pager/fill.h"
#include "pager/pager.h"
#include "pager/peer.h"
#include "pager/reclaim.h"
#include "pager/session.h"
#include "pager/worker.h"

struct pager_conn {
        struct pager_conn *next;
        struct rpc_conn *rpc;
        struct pager *pager;
};

struct pager {
        struct event_base *base;
        struct pager_config cfg;
        uint64_t started_ns;
        struct rpc_listener *listener;
        dev_t socket_dev; /* what we bound: another pager's socket at this path is not ours to remove */
        ino_t socket_ino;
        char *control_path;

        struct pager_conn *conns;
        unsigned n_conns;
        struct pager_session *sessions;
        unsigned n_sessions;
        unsigned other_fds; /* descriptors that neither sessions nor images have */
        struct pager_cache *cache;
        struct pager_reclaim *reclaim;

        struct pager_mailbox inbox;
        struct event *inbox_ev, *end_ev, *balance_ev, *audit_ev;
        uint64_t balanced_ns;
        struct pager_load load;
        struct pager_worker *workers[PAGER_MAX_WORKERS];
        unsigned n_workers;
        struct pager_filler *filler;

        bool draining;
        unsigned end_polls;
        /* Of sessions that have gone: totals count what they did, too. */
        uint64_t past_faults[PAGER_N_FAULTS], past_pages_installed, past_zero_pages, past_pages_ahead, past_zero_ahead,
                past_sessions, past_failed;
        struct hist_copy past_wait, past_service;
};

/* ---- sessions.c ---- */
struct pager_session *pager_find_session(struct pager *p, const char *id);
/** What session.open brings. */
struct pager_opening {
        const char *id;
        uint64_t ram_bytes;
        pid_t vm_pid; /* 0: not told */
        bool expect;  /* session.expect will name the VMM */
        bool record;  /* the order in which its pages are needed */
        int image_fd, vmm_sock;
        int workingset_fd; /* -1: none */
};
/** Takes the descriptors of @o. */
int pager_open_session(struct pager *p, const struct pager_opening *o, struct pager_session **ret,
                       struct err *e) attr_warn_unused;
/** From now on the session's VMM is known to be the process of @pidfd, taken. */
int pager_expect_vmm(struct pager_session *s, int pidfd, struct err *e) attr_warn_unused;
/** Takes it back from its worker; it is freed when that is done, and close_waiter answered. */
void pager_end_session(struct pager *p, struct pager_session *s);
/** When no worker has it. */
void pager_release_session(struct pager *p, struct pager_session *s);
void pager_fail_session(struct pager *p, struct pager_session *s, const char *reason);
/** Of a session that has failed, whose VMM cannot be ended in another way: what it touches from now on is poisoned.
 *  -ESRCH: nobody serves it. */
int pager_poison_session(struct pager *p, struct pager_session *s) attr_warn_unused;

/* ---- audit.c ---- */
int pager_audit_init(struct pager *p) attr_warn_unused;
/** From now on, until there is no session any more. */
int pager_audit_start(struct pager *p) attr_warn_unused;

/* ---- balance.c ---- */
int pager_balance_init(struct pager *p) attr_warn_unused;
/** There is one more session. */
void pager_balance_start(struct pager *p);
/** The worker that the session leaves has let go. */
void pager_on_moved(struct pager *p, struct pager_session *s);

/* ---- workingset.c ---- */
/** The session has the working set in @fd (stays the caller's), which is decoded from now on. An unusable one is
 *  left aside. */
void pager_workingset_open(struct pager *p, struct pager_session *s, int fd);
void pager_workingset_replayed(struct pager_ahead *a);
/** The session is to record; the window opens when its VMM attaches. -ENOMEM. */
int pager_workingset_record(struct pager_session *s) attr_warn_unused;
void pager_workingset_attached(struct pager_session *s);
void pager_workingset_end(struct pager_session *s);
/** The answer to session.workingset. */
void pager_workingset_tell(const struct pager_session *s, struct mp_buf *b);

/* ---- control.c ---- */
void pager_accept(int fd, void *arg);
void pager_close_conns(struct pager *p);
/** To every connection. @fds as in rpc_notify. */
void pager_notify(struct pager *p, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds);
/** For a session that is gone: answers its session.close and refuses its session.removed, if any wait. */
void pager_answer_ended(struct pager_waiter *close, struct pager_waiter *sync);
void pager_answer_removed(struct pager_session *s);

/* ---- status.c ---- */
void pager_status(struct pager *p, struct mp_buf *b);
