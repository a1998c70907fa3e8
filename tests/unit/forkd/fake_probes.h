/* SPDX-License-Identifier: MIT */
/* Probes that tell what a test says: in the place of bpf/, of which nothing is linked then. */
#pragma once

#include "bpf/probes.h"

#define FAKE_THREADS 64

struct fake_thread {
        pid_t pid; /* 0: no thread */
        struct probes_thread t;
};

extern struct fake {
        unsigned max; /* processes that can be watched */
        int open_r, read_r;
        enum probes_method method;
        unsigned opens, reads, processes;
        struct fake_thread thread[FAKE_THREADS];
        struct fake_ended {
                pid_t pid;
                struct probes_sample sum;
        } ended[16];
} fake;

void fake_reset(void);
/** A thread of process @pid, which idles. */
struct fake_thread *fake_thread(pid_t pid, pid_t tid, const char *comm);
/** It ends: what it did is the process's. */
void fake_end(struct fake_thread *t);
