/* SPDX-License-Identifier: MIT */
/* What the parts of the monitor share:
 *
 *      monitor.c     its life, the table of VMs, the turns
 *      watching.c    processes are watched, and what is read of them is added up
 *      questions.c   what others are told
 *      rings.c       the last window of one thread; sums
 *      lately.c      waits by the second, for who comes later
 *      judge.c       is a vCPU spinning, or stuck? Numbers in, a verdict out
 *      verdicts.c    what the judge is told, its verdicts' beginnings and ends, and asking a guest's agent
 *
 * A *look* reads all that is known of all watched threads and adds it up. A *turn* is a look by the timer, MONITOR_TICKS times in a
 * window; only turns are marks of a window. A turn that comes late tells of forkd or of a suspended host, not of the guests: every
 * window begins anew then. */
#pragma once

#include <event2/event.h>

#include "forkd/monitor/lately.h"
#include "forkd/monitor/monitor.h"

enum watched_kind { WATCHED_VM, WATCHED_PAGER };

/** A process that is watched. It outlives the process until the look that takes what was left. */
struct watched {
        TAILQ_ENTRY(watched) entry;
        enum watched_kind kind;
        struct monitor *m;
        struct monitor_vm *mv;   /* NULL: of a pager, or of a VM that is not remembered any more */
        struct pager_process *o; /* of a pager, while it lives; no reference */
        pid_t pid;
        bool gone; /* the process has ended */
        struct probes_watch *w;
        struct probes_sample last;    /* all of its threads together, the ended ones too */
        struct probes_sample look;    /* the same, while it is being read */
        struct probes_sample claimed; /* what vCPUs' threads, or the pager's, did since the look before */
        unsigned threads;
        uint64_t oldest_wait_ns; /* since when somebody waits for memory */
};
TAILQ_HEAD(watched_list, watched);
TAILQ_HEAD(monitor_vm_list, monitor_vm);

struct monitor {
        struct daemon *d;
        struct probes *probes; /* NULL: there are none */
        struct probes_options options;
        char reason[400], hint[240];
        bool retry; /* there was no memory for them */
        uint64_t tried_ns;
        struct event *timer;
        bool ticking;
        uint64_t turn_ns, look_ns; /* the last */
        uint64_t looks, voided;
        struct monitor_vm_list vms;
        unsigned n_ended;
        struct watched_list watches;
        struct monitor_pager pager;
        struct lately lately;
};

uint64_t monitor_turn_ns(const struct monitor *m); /* from one turn to the next */

/* ---- watching.c ---- */

/** Watches a process for @mv, or for @o; on failure says so, once for each kind of failure. */
int monitor_watch(struct monitor *m, struct monitor_vm *mv, struct pager_process *o, int pidfd, pid_t pid);
void monitor_unwatch(struct watched *w);
/** Its VMM has ended: what is left of it is taken at the next look. */
void monitor_leave(struct monitor_vm *mv);
/** Reads everything and adds it up; forgets the watches of processes that have ended. */
void monitor_read(struct monitor *m);
/** A mark for each thread, and what the window that ends now was spent on. */
void monitor_mark_all(struct monitor *m, uint64_t now);
/** Every window begins anew. */
void monitor_void(struct monitor *m);

/* ---- rings.c ---- */

void monitor_ring_clear(struct monitor_ring *r);
void monitor_ring_mark(struct monitor_ring *r, uint64_t now, const struct probes_sample *sum);
/** What was done since the oldest mark that is not before @since_ns: false, if there is none but the newest. */
bool monitor_ring_span(const struct monitor_ring *r, uint64_t since_ns, struct monitor_mark *ret);
/** What the last whole window was spent on. */
void monitor_ring_shares(const struct monitor_ring *r, struct monitor_shares *ret);
/** @now less @before, field by field, and never below nothing; `longest_ns` is @now's. */
void monitor_sample_since(const struct probes_sample *now, const struct probes_sample *before, struct probes_sample *ret);

/* ---- verdicts.c ---- */

/** After a turn: what is to be thought of each vCPU, and events of what has changed. */
void monitor_judge(struct monitor *m, uint64_t now);
/** All verdicts on @mv end: @why, for the event. */
void monitor_acquit(struct monitor_vm *mv, const char *why);
