/* SPDX-License-Identifier: Dual MIT/GPL */
/* What the programs (probes.bpf.c) and their loader (probes.c) share: the values of the maps. */
#pragma once

#ifdef __bpf__
typedef __u64 uint64_t;
typedef __u32 uint32_t;
typedef __u8 uint8_t;
#else
#include <stdint.h>
#endif

#define PROBES_FIRST_LOG2 10u /* the first bucket of waits ends at 2^10 ns, about a microsecond */
#define PROBES_BUCKETS 28u    /* … the last but one at 2^36 ns, 68 s; the last takes all that is above */
#define PROBES_COMM 16
#define PROBES_STACK 16  /* frames of the kernel's stack that are looked at, at most */
#define PROBES_CALLS 512 /* system calls whose kind is told to the programs */

/* Where a thread is. */
enum probes_state {
        PROBES_UNKNOWN, /* nothing seen of it yet */
        PROBES_ONCPU,
        PROBES_RUNQUEUE, /* could run, has no CPU */
        PROBES_IDLE,     /* sleeps for want of work: all that is none of the next */
        PROBES_MEMORY,   /* waits for guest memory, in handle_userfault */
        PROBES_LOCK,     /* in a futex, or in the kernel without a signal's reach and not for a disk */
        PROBES_DISK,     /* in an I/O wait */
        PROBES_N_STATES,
};

/* What a thread that sleeps in a system call sleeps for. */
enum probes_call {
        PROBES_CALL_ANY, /* that is to be looked at */
        PROBES_CALL_IDLE,
        PROBES_CALL_LOCK,
};

/** Of one thread, or the sum of several. Only grows. A wait for memory lasts until the thread has a CPU again, which is how the
 *  guest feels it; of ns, the part after its wake-up is PROBES_RUNQUEUE's. */
struct probes_sample {
        uint64_t ns[PROBES_N_STATES];  /* time spent in each state */
        uint64_t preempted, slept;     /* times the CPU was taken from it; times it gave it up */
        uint64_t exits, halts;         /* KVM: leaving the guest, for any reason; because the guest had nothing to do */
        uint64_t waits;                /* for guest memory: how many have ended, … */
        uint64_t wait_ns;              /* … their sum, … */
        uint64_t longest_ns;           /* … the longest, … */
        uint64_t wait[PROBES_BUCKETS]; /* … and how many took how long */
};

/* Value of `processes`, by tgid. */
struct probes_process {
        uint64_t watch;             /* the number of the watch */
        uint64_t start;             /* of its leader, as the kernel knows it; 0: not looked yet */
        struct probes_sample ended; /* what threads that have ended had counted */
};

/* Value of `threads`, by tid. Written by whoever moves the thread, which is one CPU at a time: it counts `begun` up first and
 * `done` last. A copy, which runs upwards, is of one moment if the two are equal. */
struct probes_thread_entry {
        uint64_t done;
        uint64_t watch;      /* of its process */
        uint64_t start;      /* tells it from another thread with its tid; 0: not looked yet */
        uint64_t since;      /* in this state; 0: not known */
        uint64_t wait_since; /* the wait for memory that is under way; 0: none */
        uint64_t exec;       /* the scheduler's account of its time on CPUs when it left the last one, ns */
        uint32_t state, tgid;
        uint32_t fault; /* it is in handle_userfault, where that is traced */
        uint32_t held;  /* the CPU was taken from it on its way to sleep there: its wait goes on when it gets one */
        char comm[PROBES_COMM];
        struct probes_sample sum;
        uint64_t begun;
};
