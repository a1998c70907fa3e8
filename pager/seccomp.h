/* SPDX-License-Identifier: MIT */
/* The system calls of a pager that is up. */
#pragma once

#include "common/cleanup.h"

/** From now on any other ends the process, whichever thread makes it. Builds with a sanitizer, whose runtime makes calls of
 *  its own, have no filter: 0 and nothing is done. */
int pager_seccomp(void) attr_warn_unused;
