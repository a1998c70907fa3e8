/* SPDX-License-Identifier: MIT */
/* A gate in front of an image's file: the kernel asks this test before each read of it (fanotify), so a read can be held for
 * as long as it takes, and refused. One at a time. */
#pragma once

#include "tests/unit/pager/harness.h"

enum { PASS, HOLD, REFUSE };

extern struct gate {
        int fan, end[2];
        pthread_t thread;
        _Atomic int mode;
        _Atomic unsigned waiting;
        int held[64]; /* events that wait for their answer, the thread's */
        unsigned n_held;
} gate;

/** For the file of @i, which is opened anew. Skips the test where the host does not allow it. */
void gate_open(struct image *i);
void gate_set(int mode);
void gate_close(void);
