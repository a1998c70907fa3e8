/* SPDX-License-Identifier: MIT */
/* Is a vCPU spinning, or stuck? Numbers in, a verdict out.
 *
 * *Stuck*: it waits for a page of its memory, for longer than a window.
 *
 * *Spinning*: it has, or would have, the CPU all the time, and nothing comes of it: it was not idle for a moment, no page was served to
 * its VM, and the agent in the guest does not answer. A guest that computes looks the same from outside until its agent is asked: it
 * answers. Only a guest that has lost its pager needs not be asked: whatever it does there, it does not get far. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum judge_agent {
        JUDGE_NOT_ASKED, /* nothing was heard of it in the window, and it was not asked */
        JUDGE_ASKED,     /* and has not answered, but had no time to */
        JUDGE_SILENT,    /* and does not answer */
        JUDGE_MOVES,     /* it was heard of in the window */
};

struct judge_facts {
        uint64_t window_ns;
        bool running;  /* the guest is meant to run, and nobody is about to change that */
        bool orphan;   /* nobody serves its memory; the span is since then, at most a window */
        bool spinning; /* said the last verdict */
        enum judge_agent agent;
        uint64_t waiting_ns; /* the wait for memory under way */
        /* What was done in the last @span_ns; 0: that is not known. */
        uint64_t span_ns, oncpu_ns, runqueue_ns;
        uint64_t halts;  /* times that the guest had nothing to do, where KVM tells */
        uint64_t served; /* pages that any thread of its VM has waited for, and got */
};

enum judge_verdict {
        JUDGE_OK,
        JUDGE_ASK, /* it must be told apart from one that computes: ask its agent */
        JUDGE_SPINNING,
        JUDGE_STUCK,
};

enum judge_verdict judge_vcpu(const struct judge_facts *f);
