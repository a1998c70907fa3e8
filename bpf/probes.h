/* SPDX-License-Identifier: MIT */
/* What the kernel knows of our threads: how long they ran, waited for a CPU, slept, and waited for guest memory, taken from
 * the scheduler by BPF programs. Nothing is pinned: everything ends with the object, or with the process.
 *
 * A *process* is watched as a whole: each thread that it has or gets is found by the programs themselves. What a thread has
 * counted is kept under the number of the watch, never under a pid alone, so a pid that is used again is another's. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "bpf/probes_maps.h"
#include "common/cleanup.h"
#include "common/err.h"

enum probes_method {                /* how waits for guest memory are seen */
                     PROBES_NONE,   /* not at all: the rest may still work */
                     PROBES_FENTRY, /* fentry and fexit of handle_userfault */
                     PROBES_KPROBE, /* kprobe and kretprobe of it */
                     PROBES_SWITCH, /* the scheduler's switch, and where in the kernel the thread stands then */
                     PROBES_N_METHODS,
};
const char *probes_method_name(enum probes_method m); /* "none", "fentry", "kprobe", "sched_switch" */

struct probes_thread {
        pid_t tid;
        char comm[16];
        enum probes_state state; /* now */
        uint64_t since_ns;       /* CLOCK_MONOTONIC, since when; 0 if that is not known */
        uint64_t wait_since_ns;  /* of the wait for memory that is under way (also when it is over, and no CPU free); 0: none */
        struct probes_sample sum;
};

struct probes_options {
        unsigned max_processes, max_threads; /* 0: 1024, 8192 */
        int method;                          /* an enum probes_method that must be used, or -1: the best that works */
};

struct probes_status {
        enum probes_method method;
        bool kvm;      /* the KVM tracepoints speak */
        char why[256]; /* the best method is not in use, or none: what stood in the way of each better one */
        unsigned processes, max_processes, threads, max_threads;
        uint64_t overflows; /* threads that found no place: of them nothing is known */
        uint64_t recycled;  /* pids that came back as another's thread, noticed and thrown away */
        uint64_t missed;    /* events that the kernel did not let us note */
};

struct probes;
struct probes_watch;

/** Loads and attaches. -EPERM, -EOPNOTSUPP (no BTF, lockdown, …), -ENOMEM …, with a sentence in @e that says what is missing and a
 *  hint: whoever asked goes on without. Takes up to a second: methods are tried out with a fault of our own. */
int probes_open(const struct probes_options *opt, struct probes **ret, struct err *e) attr_warn_unused;
void probes_close(struct probes *p); /* and all watches; NULL is fine */
void probes_get_status(const struct probes *p, struct probes_status *ret);

/** Watches the process of @pidfd, which must be a process's and stays the caller's; @pid is its number. -ESRCH: it has ended;
 *  -ENOSPC: as many as possible are watched already. @data is the caller's. */
int probes_watch(struct probes *p, int pidfd, pid_t pid, void *data, struct probes_watch **ret) attr_warn_unused;
/** Forgets it. What its threads counted is gone: probes_read before, if it is wanted. NULL is fine. */
void probes_unwatch(struct probes_watch *w);
void *probes_watch_data(const struct probes_watch *w);

/** Reads everything that is known, in a few system calls: calls @each for every living thread of a watched process, and once
 *  for each watch with @thread NULL and the sum of the process's threads that have ended in @ended (also when the process itself
 *  has). In any order. A thread that ends meanwhile is in one of the two, or, where threads end without a pause, in neither until
 *  the next read; never in both. Callbacks must not watch or unwatch. */
typedef void probes_each_fn(void *arg, struct probes_watch *w, const struct probes_thread *thread,
                            const struct probes_sample *ended);
int probes_read(struct probes *p, probes_each_fn *each, void *arg) attr_warn_unused;

void probes_add(struct probes_sample *sum, const struct probes_sample *s);
/** The end of bucket @i in ns; the last one's is UINT64_MAX. */
uint64_t probes_bucket_end_ns(unsigned i);
