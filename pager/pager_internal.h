/* SPDX-License-Identifier: MIT */
/* The control thread's state: shared by pager.c (life, sessions), control.c (methods), status.c. */
#pragma once

#include "common/rpc.h"
#include "pager/cache.h"
#include "pager/fill.h"
#include "pager/flight_writer.h"
#include "pager/live.h"
#include "pager/pager.h"
#include "pager/peer.h"
#include "pager/rebase.h"
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
        struct pager_live *lives;
        unsigned n_sessions;
        unsigned other_fds; /* descriptors that neither sessions nor images have */
        struct pager_cache *cache;
        struct pager_reclaim *reclaim;

        struct pager_mailbox inbox;
        struct event *inbox_ev, *end_ev, *balance_ev, *audit_ev, *settle_ev;
        uint64_t balanced_ns;
        struct pager_load load;
        struct pager_worker *workers[PAGER_MAX_WORKERS];
        unsigned n_workers;
        struct pager_filler *filler;
        struct pager_flight flight;

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
        pid_t vm_pid;     /* 0: not told */
        bool expect;      /* session.expect will name the VMM */
        bool record;      /* the order in which its pages are needed */
        bool segments;    /* the VMM is told by us of what its memory is made */
        const char *live; /* on the nascent image of this live fork; NULL: on that in image_fd */
        int image_fd, vmm_sock;
        int workingset_fd; /* -1: none */
        struct pager_descent descent;
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
/** May there be one more session? */
int pager_admit_session(struct pager *p, const char *id, struct err *e) attr_warn_unused;
void pager_link_session(struct pager *p, struct pager_session *s);
/** To the worker that it suits best. */
void pager_serve_session(struct pager *p, struct pager_session *s);
extern const struct pager_peer_handlers pager_vmm_handlers;
void pager_fail_session(struct pager *p, struct pager_session *s, const char *reason);
/** Of a session that has failed, whose VMM cannot be ended in another way: what it touches from now on is poisoned.
 *  -ESRCH: nobody serves it. */
int pager_poison_session(struct pager *p, struct pager_session *s) attr_warn_unused;

/* ---- handover.c ---- */
int pager_handover_init(struct pager *p) attr_warn_unused;
/** What session.adopt brings. The descriptors stay the caller's. */
struct pager_adoption {
        const char *id;
        uint64_t ram_bytes;
        pid_t vm_pid; /* 0: not told */
        bool hold;    /* not served before session.resume */
        const struct pager_layout *layout;
        const struct pager_removed_range { uint64_t first, n; } * removed; /* checked */
        size_t n_removed;
        const struct pager_mapping *mapping; /* NULL: its own image alone */
        int image_fd, vmm_sock, memfd, uffd; /* vmm_sock: or the VMM's pidfd; memfd -1: the image is opened as any other */
};
int pager_adopt_session(struct pager *p, const struct pager_adoption *a, struct pager_session **ret,
                        struct err *e) attr_warn_unused;
/** Can it be handed to another pager at all? */
int pager_handover_check(struct pager *p, const struct pager_session *s, struct err *e) attr_warn_unused;
/** Takes it from its worker; s->release_waiter is answered when that, and the image, are at rest. */
int pager_handover_release(struct pager *p, struct pager_session *s, struct rpc_conn *conn, uint32_t msgid,
                           struct err *e) attr_warn_unused;
int pager_handover_resume(struct pager *p, struct pager_session *s, struct err *e) attr_warn_unused;
/** Its worker has let go of a session that is being released. */
void pager_on_released(struct pager *p, struct pager_session *s);
/** It ends. */
void pager_handover_forget(struct pager_session *s);

/* ---- control_handover.c ---- */
int pager_do_handles(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_release(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_resume(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_mark_removed(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_adopt(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_heartbeat(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_flight(struct pager *p, struct rpc_msg *msg, struct err *e);

/* ---- control_images.c ---- */
int pager_do_image_handles(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_image_adopt(struct pager *p, struct rpc_msg *msg, struct err *e);

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
/** Its window is over, perhaps before its time; tells it. Does nothing where nothing is, or was, recorded. */
void pager_workingset_finish(struct pager_session *s);
void pager_workingset_end(struct pager_session *s);
/** The answer to session.workingset. */
void pager_workingset_tell(const struct pager_session *s, struct mp_buf *b);

/* ---- control.c ---- */
void pager_accept(int fd, void *arg);
void pager_close_conns(struct pager *p);
/** To every connection. @fds as in rpc_notify. */
void pager_notify(struct pager *p, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds);
/** For a session that is gone: answers its session.close and refuses its session.removed and session.release, if any wait. */
void pager_answer_ended(struct pager_waiter *close, struct pager_waiter *sync, struct pager_waiter *release);
/** The open session that the request names. */
int pager_named_session(struct pager *p, const struct rpc_msg *msg, struct pager_session **ret, struct err *e) attr_warn_unused;
/** Encodes a session's regions, as an array. */
void pager_put_regions(struct mp_buf *b, const struct pager_layout *l);
void pager_answer_removed(struct pager_session *s);

/* ---- status.c ---- */
void pager_status(struct pager *p, struct mp_buf *b);
