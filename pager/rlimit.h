/* SPDX-License-Identifier: MIT */
/* The limits that the kernel sets the process. What they would break in the middle of serving is refused before. */
#pragma once

#include "common/cleanup.h"
#include "common/err.h"

/** Raises what may be raised: descriptors, the size of files (an image's memory counts as one). */
void pager_rlimit_raise(void);

/** How many descriptors this process has open; -errno. */
int pager_rlimit_open_fds(void) attr_warn_unused;

/** Would one session more fit, with an image of its own? @others: descriptors that are open for neither. -EMFILE. */
int pager_rlimit_admit(unsigned others, unsigned sessions, unsigned images, struct err *e) attr_warn_unused;
