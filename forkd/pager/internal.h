/* SPDX-License-Identifier: MIT */
/* Between the parts of forkd's side of the pager:
 *
 *      process.c     how a pager process comes and goes, and how it is asked
 *      sessions.c    the sessions that VMs have with it
 *      live.c        forks of VMs that run on, and VMs that join
 *      memories.c    the images whose memories VMs map besides their own
 *      moving.c      how a session goes from one process to another
 *      watch.c       the heartbeat: a pager that hangs is ended
 *      lost.c        the wait seen from the guests' side: faults that it has lost
 *      succession.c  when one has ended: its guests are killed, or handed to a successor
 *      upgrade.c     the same planned: another process takes over while both live
 *      suspects.c    which fault a pager had in hand when it died
 *      unmapped.c    what a VMM has discarded, as the kernel tells
 *      totals.c      what all of them have done since forkd started
 *
 * There is one pager at a time, `serving`; `next` is there during an upgrade only. Who replaces it holds `turn`, and sets
 * `replacing`: nobody else opens or asks a session meanwhile, so while a VM has a session its struct stays. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>
#include <time.h>

#include "common/co.h"
#include "forkd/daemon.h"
#include "forkd/pager/link.h"
#include "forkd/pager/totals.h"
#include "pager/limits.h"

#define PAGER_CALL_TIMEOUT_MS 10000
/* A pager ends sessions by itself whose faults wait too long for a disk; one that does not come to that hangs. */
#define PAGER_PATIENCE_MS ((PAGER_FAULT_SECONDS + 10) * 1000)
#define PAGER_SUSPECTS 64

/** A pager process, as long as forkd has to do with it. */
struct pager_process {
        unsigned refs;
        struct pager *p;
        struct rpc_conn *conn; /* NULL: lost */
        uint64_t serial;       /* from 1 on */
        pid_t pid;
        int pidfd; /* -1: it has ended and was reaped */
        struct event *death;
        char version[32];
        void *flight; /* its flight recorder, mapped; NULL: it has none */
        bool suspected, leaving;
        bool hung;                         /* we have killed it for that */
        bool watched;                      /* a coroutine watches its heart: */
        struct co_wait *pause, *unwatched; /* between two beats; who waits for the coroutine's end */
        uint64_t at_work_ns;               /* when a heartbeat told last that it had a fault in hand, or read from a disk */
        struct pager_figures figures;      /* what it has told last */
};

/** A fault that a pager had in hand when it ended. */
struct pager_suspect {
        uint64_t dev, ino, page;
};

struct pager {
        struct daemon *d;
        /* The serving one's; those of one that is about to take over have PAGER_NEXT behind. */
        char socket_path[FORKD_MAX_RUN_DIR + 24], pid_path[FORKD_MAX_RUN_DIR + 24];
        struct pager_process *serving, *next;
        struct pager_process *leaving; /* the one before, while it ends; no reference */
        struct co_sem turn;            /* held while a pager is brought up or replaced */
        unsigned replacing;            /* sessions are moved, or wait for that */
        bool succeeding;               /* by succession.c */
        uint64_t lost_ns;              /* since when */
        bool closed;                   /* no session may be opened at the moment */
        unsigned lives;                /* live forks under way */
        struct pager_memory *memories; /* that any VM maps (memories.c) */
        uint64_t n_processes;          /* ever */
        struct co_wait *attached;      /* woken when a VMM has attached, or a session was closed */
        struct pager_suspect suspect[PAGER_SUSPECTS], condemned[PAGER_SUSPECTS];
        unsigned n_suspects, n_condemned; /* ever: the oldest give way */
        struct pager_counts counts;
        struct pager_figures past; /* of processes that have ended */
        struct pager_totals told;  /* by `serving`, without the sum */
        struct rpc_answer answer;  /* where `told` is from */
        struct co_sem asking;      /* held while it is asked for that */
};

#define PAGER_NEXT ".next"

/* ---- process.c ---- */

/** Brings up a pager, or finds the one that is there. The caller holds `turn`. */
int pager_bring_up(struct pager *p, struct err *e) attr_warn_unused;
/** Starts another process at <socket_path>@suffix. */
int pager_process_spawn(struct pager *p, const char *suffix, struct pager_process **ret, struct err *e) attr_warn_unused;
/** Connects to the one at <socket_path>@suffix. -ENOENT: nobody is there; then *e is as it was. */
int pager_process_find(struct pager *p, const char *suffix, struct pager_process **ret, struct err *e) attr_warn_unused;
struct pager_process *pager_process_ref(struct pager_process *o);
void pager_process_unref(struct pager_process *o); /* NULL is fine */
DEFINE_CLEANUP(struct pager_process, pager_process_unref)
bool pager_process_is_up(const struct pager_process *o);
/** SIGKILL, with a reason for the log; its end is noticed as any other. */
void pager_process_kill(struct pager_process *o, const char *why);
/** The same, for it hangs. */
void pager_process_hangs(struct pager_process *o, const char *why);
/** Asks it to end, kills it if it does not; reaped when this returns. */
void pager_process_end(struct pager_process *o);
/** Asks and waits for the answer, at most PAGER_CALL_TIMEOUT_MS. One that answers nothing any more is ended.
 *  A coroutine call; parameters as of rpc_call_co. -EPIPE: it is gone, or was before it answered. */
int pager_process_call(struct pager_process *o, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
                       struct rpc_answer *ret, struct err *e) attr_warn_unused;

/** The same with another deadline; one that misses it is left to its heartbeat. */
int pager_process_call_within(struct pager_process *o, unsigned timeout_ms, const char *method, const struct mp_buf *params,
                              const int *fds, size_t n_fds, struct rpc_answer *ret, struct err *e) attr_warn_unused;

/* ---- sessions.c ---- */

/** What a process tells without being asked; @arg is the struct pager_process. */
void pager_on_message(struct rpc_msg *m, void *arg);
/** {"session": id} and room for @more pairs. */
void pager_put_session(struct mp_buf *b, const struct vm *vm, size_t more);
/** Waits until a session may be opened, and brings up a pager if there is none. A coroutine call. */
int pager_ensure(struct pager *p, struct err *e) attr_warn_unused;
/** Asks whoever serves @vm, when nobody is being replaced. Parameters as of pager_process_call. */
int pager_session_call(struct pager *p, struct vm *vm, const char *method, const struct mp_buf *params, const int *fds,
                       size_t n_fds, struct rpc_answer *ret, struct err *e) attr_warn_unused;
/** An upgrade that waits for VMMs to attach, for live forks or sessions to end, looks again. */
void pager_wake_attached(struct pager *p);
/** From now on @o (NULL: nobody) serves @vm. */
void pager_hold_set_process(struct vm *vm, struct pager_process *o);
/** Does any VM live on @o? */
bool pager_has_sessions(const struct pager_process *o);
/** Has another process everything it needs to go on with this session? */
bool pager_hold_complete(const struct vm *vm);
/** What the guest discarded, asked of @o. */
int pager_removed_of(struct pager_process *o, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, struct err *e) attr_warn_unused;

/* ---- memories.c ---- */

#define PAGER_HOLD_LISTS 4u /* pairs in hold->mapping */
/** Reads what a VMM maps out of an answer of @o, which has it open, and gets hold of it. A coroutine call. */
int pager_hold_read_mapping(struct pager_process *o, struct pager_hold *h, const msgpack_object *params,
                            struct err *e) attr_warn_unused;
void pager_hold_drop_memories(struct pager_hold *h);
/** What the VMM maps is not as it was: asks whoever serves it, in a coroutine of its own. */
void pager_hold_refresh(struct vm *vm);
/** Is this inode a memory that the VMM maps, other than its own image's? */
bool pager_hold_maps(const struct pager_hold *h, uint64_t dev, uint64_t ino);
/** @to has them open from now on. A coroutine call. */
int pager_hold_give_memories(struct pager_process *to, struct pager_hold *h, struct err *e) attr_warn_unused;

/* ---- moving.c ---- */

/** Gets the session's descriptors from the process that serves it. */
int pager_hold_fetch(struct pager_process *o, struct vm *vm, struct err *e) attr_warn_unused;
/** @to takes the session over: from what the VMM's mappings and @removed tell (an array of ranges [first page, pages], or
 *  NULL) was discarded. */
int pager_session_adopt(struct pager_process *to, struct vm *vm, const struct mp_buf *removed, uint64_t n_removed,
                        struct err *e) attr_warn_unused;
/** A call that names the session and nothing else, and whose answer is empty. */
int pager_session_tell(struct pager_process *o, struct vm *vm, const char *method, unsigned timeout_ms,
                       struct err *e) attr_warn_unused;
/** @o, which has released the session, goes on with it, and is told what was discarded since: what the VMM's mappings tell,
 *  and @removed. */
int pager_session_give_back(struct pager_process *o, struct vm *vm, const struct mp_buf *removed, uint64_t n_removed,
                            struct err *e) attr_warn_unused;
/** Reads the "regions" of @params. Of a layout that does not fit nothing is held: its guest cannot be handed over. */
void pager_hold_read_regions(struct pager_hold *h, const msgpack_object *params);

#define PAGER_EACH_AT_ONCE 64u
/** Calls @fn for each VM that @wants, each in a coroutine of its own, PAGER_EACH_AT_ONCE at a time, and waits for all. Every
 *  one of them must have a session, and sessions must be kept as they are (`replacing`). The first error ends it after its batch. */
struct pager_each {
        bool (*wants)(void *arg, const struct vm *vm);
        int (*fn)(void *arg, struct vm *vm, struct err *e);
        void *arg;
};
int pager_each(struct daemon *d, const struct pager_each *all, struct err *e) attr_warn_unused;

/* ---- watch.c ---- */

/** From now on until its end, while it has sessions. */
void pager_watch(struct pager_process *o);
/** No more, for it is about to be left alone: waits for the end of the coroutine. A coroutine call. */
void pager_unwatch(struct pager_process *o);

/* ---- lost.c ---- */

/** After a heartbeat that said that the oldest fault is @oldest_ms old: guests that wait for longer than @deadline_ms for faults that @o
 *  has lost are woken, and when that did not help ended. Why @o must be taken for hung, or NULL. */
const char *pager_lost_faults(struct pager_process *o, uint64_t oldest_ms, uint64_t deadline_ms);

/* ---- succession.c ---- */

/** Kills a guest that has lost its memory, and counts it. */
void pager_kill_guest(struct vm *vm, const char *reason);

/** @o has ended: its guests die, or get another. Not a coroutine call. */
void pager_lost(struct pager *p, struct pager_process *o);
/** Gives those guests that have no pager another; they die when that takes too long. The caller holds `turn`. */
void pager_succeed(struct pager *p);

/* ---- upgrade.c ---- */

/** Removes what a process that was to take over has left in the run directory. */
void pager_remove_next(struct pager *p);

/* ---- suspects.c ---- */

/** Reads the flight recorder of one that has ended. */
void pager_suspects_note(struct pager *p, const struct pager_process *o);
/** Was a fault of this image the end of two pagers? *ret_page (may be NULL): which. */
bool pager_condemned(const struct pager *p, uint64_t dev, uint64_t ino, uint64_t *ret_page);
void pager_suspects_forget(struct pager *p);

/* ---- totals.c ---- */

/** Asks @o what it has done. A coroutine call of at most PAGER_TOTALS_MS. */
void pager_totals_ask(struct pager_process *o);
/** Reads what @totals has of them; the rest stays as it was. */
void pager_totals_read(const msgpack_object *totals, struct pager_figures *ret);
/** @o has ended: what it has done stays. */
void pager_totals_fold(struct pager_process *o);

/* ---- unmapped.c ---- */

/** The parts of guest memory that the VMM has mapped over: *ret_n ranges [first page, pages], encoded one behind the
 *  other in @ret. -E2BIG: the VMM has so many mappings that the kernel may have refused it one, so this cannot be told; -ESTALE: it maps
 *  files that we do not know of. */
int pager_unmapped(const struct vm *vm, struct mp_buf *ret, uint64_t *ret_n) attr_warn_unused;
/** The same of the text of a /proc/<pid>/maps. */
int pager_unmapped_parse(FILE *maps, const struct pager_hold *hold, uint64_t max_maps, struct mp_buf *ret,
                         uint64_t *ret_n) attr_warn_unused;
