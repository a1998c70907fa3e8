/* SPDX-License-Identifier: MIT */
/* What forkd sees of its VMMs and of the pager from outside, by the kernel's word (bpf/probes.h): how long each vCPU ran, waited for
 * a CPU and waited for memory, whether one burns a core for nothing, and whether one waits for ever.
 *
 * A VM is here from the birth of its first VMM until it leaves forkd's table, and keep_ended_seconds longer. Its counters only grow,
 * also over a standby: they belong to the VM (its id), not to a process. A VM that takes the name of an ended one takes its place.
 *
 * Where there are no probes everything is here all the same, and says nothing: no sums, health unknown.
 *
 * All functions belong to the loop's thread and none of them waits. What they return stays until the caller waits. Those that tell
 * of what happened to a VM take a NULL monitor, too. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "bpf/probes.h"
#include "common/err.h"
#include "common/ids.h"
#include "common/mp.h"

#define MONITOR_TICKS 5u /* looks in a window */
#define MONITOR_MAX_ENDED 2048u
#define MONITOR_MAX_PAGER_THREADS 64u
#define MONITOR_WHY_SIZE 120

struct daemon;
struct monitor;
struct pager_process;
struct vm;
struct watched;

/* ---- what is told ---- */

/** The last looks at a thread, of at most a window: the monitor's own. */
struct monitor_ring {
        unsigned n, newest;
        struct monitor_mark {
                uint64_t at_ns, ns[PROBES_N_STATES], halts;
        } mark[MONITOR_TICKS + 1];
};

/** How a thread spent the last whole window: parts of it, 0 … 1. */
struct monitor_shares {
        bool known; /* false: it was not seen for a whole window, or the host was suspended in it */
        double part[PROBES_N_STATES];
};

struct monitor_vcpu {
        unsigned vcpu;
        pid_t tid;                /* 0: there is no such thread at the moment */
        enum probes_state state;  /* at the last look, */
        uint64_t since_ns;        /* CLOCK_MONOTONIC, since then; 0: not known */
        uint64_t waiting_ns;      /* for memory, for so long at the last look; 0: it does not */
        struct probes_sample sum; /* since the VM is watched; for a vCPU idle is also what the probes call lock and disk */
        struct monitor_shares window;
        bool spinning, stuck;       /* at most one of them */
        char why[MONITOR_WHY_SIZE]; /* it is that; else "" */
        struct monitor_ring ring;   /* the monitor's own, from here on */
        struct probes_sample last;
        bool seen;
};

enum monitor_health {
        MONITOR_UNKNOWN, /* it is not watched */
        MONITOR_OK,
        MONITOR_SPINNING,
        MONITOR_STUCK,
        MONITOR_ORPHAN, /* nobody serves its memory */
};
const char *monitor_health_name(enum monitor_health h); /* "unknown", "ok", "spinning", "stuck", "orphan" */

enum monitor_session { MONITOR_NO_SESSION, MONITOR_SERVED, MONITOR_LOST };
const char *monitor_session_name(enum monitor_session s); /* "none", "serving", "lost" */

struct monitor_vm {
        TAILQ_ENTRY(monitor_vm) entry;
        struct monitor *m;
        id_str id;
        char name[NAME_MAX_LEN + 1];
        struct vm *vm;             /* NULL: it is no more, since */
        uint64_t ended_ns;         /* CLOCK_MONOTONIC; 0: it is */
        bool watched;              /* its VMM is, at this moment */
        bool refused;              /* it is not, for the probes have no place for it, or it could not be watched */
        struct probes_sample sum;  /* of all of its threads; `wait` of it is how long its guest waited for memory */
        uint64_t waiting_ns;       /* the longest wait for memory under way at the last look, of any of its threads */
        uint64_t waiting_since_ns; /* since when, CLOCK_MONOTONIC; 0: nobody waits */
        struct {
                unsigned threads; /* now */
                struct probes_sample sum;
        } others; /* the threads that are no vCPU: devices, the VMM's own */
        unsigned n_vcpus;
        struct monitor_vcpu *vcpu;          /* [n_vcpus] */
        struct watched *watch;              /* the monitor's own, from here on */
        uint64_t served[MONITOR_TICKS + 1]; /* waits that had ended by each of the last turns, the newest first */
        uint64_t asked_ns, asked_oncpu_ns, orphan_ns;
};

enum monitor_role { MONITOR_FAULT, MONITOR_FILL, MONITOR_CONTROL, MONITOR_OTHER, MONITOR_N_ROLES };
const char *monitor_role_name(enum monitor_role r); /* "fault", "fill", "control", "other" */

/** A thread of the pager; of each of them, while one takes over from another. */
struct monitor_thread {
        pid_t pid, tid;
        char name[16]; /* as the thread calls itself: printable ASCII */
        enum monitor_role role;
        enum probes_state state;
        uint64_t since_ns;
        struct probes_sample sum; /* since it is watched */
        struct monitor_shares window;
        struct monitor_ring ring; /* the monitor's own, from here on */
        struct probes_sample last;
        bool seen;
};

struct monitor_pager {
        unsigned n_threads;
        struct monitor_thread thread[MONITOR_MAX_PAGER_THREADS];
        struct probes_sample role[MONITOR_N_ROLES]; /* of all pagers since forkd started */
};

struct monitor_probes {
        bool ok;                             /* there are probes */
        struct probes_status status;         /* zeros while there are none */
        char reason[400], hint[240];         /* why there are none, or not the best; else "" */
        unsigned watched_vms, unwatched_vms; /* VMMs that live and are watched; that are not */
        uint64_t looks, voided;              /* at all that is watched; that came so late that a window began anew */
};

/* ---- life ---- */

/** Loads the probes as the configuration says; without them forkd goes on, and the log says why. Blocks for as long as that takes,
 *  so this is done before anybody is served. */
int monitor_new(struct daemon *d, struct monitor **ret) attr_warn_unused;
void monitor_free(struct monitor *m); /* NULL is fine */
/** Every few seconds: forgets who ended long ago, and tries again to get probes that there was no memory for. */
void monitor_housekeeping(struct monitor *m);

/* ---- what happens to VMs and to the pager ---- */

/** A VMM of @vm exists: process @pid, of which @pidfd is (it stays the caller's). */
void monitor_vm_born(struct monitor *m, struct vm *vm, int pidfd, pid_t pid);
/** It is about to be ended: what it did until now is read, if it was not a moment ago. */
void monitor_vm_ending(struct monitor *m, struct vm *vm);
/** It has ended. What it did last is noted at the next look. No VMM is fine. */
void monitor_vm_gone(struct monitor *m, struct vm *vm);
/** It has another name. */
void monitor_vm_renamed(struct monitor *m, struct vm *vm);
/** @vm itself goes: it leaves the table. One that waited in a pool leaves no trace. */
void monitor_vm_forget(struct monitor *m, struct vm *vm);
/** A pager process exists, or has ended. */
void monitor_pager_born(struct monitor *m, struct pager_process *o);
void monitor_pager_gone(struct monitor *m, struct pager_process *o);

/* ---- questions ---- */

/** In the order in which they came to be; ended ones among them. NULL: that was the last. */
const struct monitor_vm *monitor_first_vm(const struct monitor *m);
const struct monitor_vm *monitor_next_vm(const struct monitor_vm *mv);
/** Of a VM in forkd's table; NULL: it never had a VMM in this forkd's life, or there is no monitor. */
const struct monitor_vm *monitor_of(const struct vm *vm);
/** What is to be thought of it; @why (may be NULL) gets the reason, "" for one that is well. */
enum monitor_health monitor_vm_health(const struct monitor_vm *mv, char why[MONITOR_WHY_SIZE]);
/** Also of one that has no VMM. */
enum monitor_session monitor_vm_session(const struct vm *vm);
const struct monitor_pager *monitor_get_pager(const struct monitor *m);
void monitor_get_probes(const struct monitor *m, struct monitor_probes *ret);
/** Does anything look at how threads spend their time? */
bool monitor_is_up(const struct monitor *m);
/** It does, but has no method to see waits for memory: of those nothing is known. */
bool monitor_is_blind(const struct monitor *m);
unsigned monitor_window_ms(const struct monitor *m);
/** How long was waited for memory lately (lately.h). @m NULL: nothing is known. */
void monitor_put_lately(const struct monitor *m, struct mp_buf *out);
/** Looks now, out of turn: what is told afterwards is of this moment. No more than ten times a second. */
void monitor_look(struct monitor *m);
