/* SPDX-License-Identifier: MIT */
/* Answering the faults of one session. */
#pragma once

#include "pager/image.h"
#include "pager/session.h"

/** Reads what the session's userfaultfd has to tell and gives at most PAGER_QUANTUM answers, without waiting
 *  for the VMM. Called by the session's worker only.
 *  0: all that was read is answered (more may have come; the descriptor is readable then); 1: it is not, call
 *  again when others had their turn; -EAGAIN: the VMM changes its memory layout, call again a little later;
 *  -ESRCH: its memory is gone; -ECANCELED: the control thread wants the session back; others: the session has
 *  failed, with the reason in s->fail_reason, and its faults must stay unanswered. */
int pager_session_serve(struct pager_session *s, struct pager_scratch *scratch) attr_warn_unused;
