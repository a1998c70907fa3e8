/* SPDX-License-Identifier: MIT */
/* A thread of our own that waits for memory when it is told to: what the kernel does then is known, so what the programs see of it
 * can be checked. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "common/cleanup.h"

struct trial;

/** Starts the thread, which sleeps until it is told to go on. -EPERM and others of userfaultfd(2); -ENOMEM. */
int trial_new(struct trial **ret) attr_warn_unused;
/** Lets go of the thread, whatever it waits for, and waits for its end. NULL is fine. */
void trial_free(struct trial *t);
static inline void cleanup_trialp(struct trial **t) {
        trial_free(*t);
}
pid_t trial_tid(const struct trial *t);

/** Has it touch the page, and returns when it sleeps for that. -ETIMEDOUT. */
int trial_fault(struct trial *t) attr_warn_unused;
/** Gives it the page; it sleeps again until it is let go. */
int trial_answer(struct trial *t) attr_warn_unused;
