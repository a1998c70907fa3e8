/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/judge.h"

/* Of the span, in per cent. */
#define BUSY 95u       /* on a CPU, or waiting for one */
#define STILL_BUSY 90u /* one that spins goes on spinning: its verdict does not flutter */
#define ON_CPU 10u     /* of that; who gets no CPU burns none */

/* A span ends a little after its last turn began, and begins a little after its first did. */
#define WHOLE 95u

static bool part(uint64_t ns, uint64_t of_ns, unsigned percent) {
        return ns >= of_ns / 100 * percent;
}

static bool burns(const struct judge_facts *f) {
        return part(f->oncpu_ns + f->runqueue_ns, f->span_ns, f->spinning ? STILL_BUSY : BUSY) &&
               part(f->oncpu_ns, f->span_ns, ON_CPU) && f->halts == 0 && f->served == 0;
}

enum judge_verdict judge_vcpu(const struct judge_facts *f) {
        if (f->waiting_ns > f->window_ns)
                return JUDGE_STUCK;
        if (!f->running)
                return JUDGE_OK;
        if (f->span_ns == 0) /* a void window says nothing new */
                return f->spinning ? JUDGE_SPINNING : JUDGE_OK;
        if (!burns(f))
                return JUDGE_OK;
        if (f->orphan)
                return JUDGE_SPINNING;
        if (f->agent == JUDGE_MOVES)
                return JUDGE_OK;
        if (f->spinning)
                return JUDGE_SPINNING;
        if (!part(f->span_ns, f->window_ns, WHOLE))
                return JUDGE_OK;
        return f->agent == JUDGE_SILENT ? JUDGE_SPINNING : JUDGE_ASK;
}
