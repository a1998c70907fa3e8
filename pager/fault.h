/* SPDX-License-Identifier: MIT */
/* Answering the faults of one session. */
#pragma once

#include "pager/image.h"
#include "pager/session.h"

/** A worker's counters, read by the control thread at any time. */
struct pager_worker_stats {
        /* faults by the time from reading to answering: bucket i: less than 2^i us, the last: all others */
        _Atomic uint64_t service[PAGER_SERVICE_BUCKETS];
        _Atomic uint64_t service_ns; /* their sum */
};

/** Reads what the session's userfaultfd has to tell and answers it, without waiting for the VMM. Called by
 *  the session's worker only.
 *  0: done for now (more may have come; the descriptor is readable then); -EAGAIN: the VMM changes its
 *  memory layout, call again soon; -ESRCH: its memory is gone; others: the session has failed, with the
 *  reason in s->fail_reason, and its faults must stay unanswered. */
int pager_session_serve(struct pager_session *s, struct pager_scratch *scratch,
                        struct pager_worker_stats *stats) attr_warn_unused;
