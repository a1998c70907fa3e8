/* SPDX-License-Identifier: MIT */
/* Starting the pager's threads. */
#pragma once

#include <pthread.h>

#include "common/cleanup.h"

/** Starts @main(@arg) as a thread of the name @name (15 bytes at most) that takes no signals: those are the control
 *  loop's. -EAGAIN: the host, or a limit, has no room for it. */
int pager_thread_start(void *(*main)(void *), void *arg, const char *name, pthread_t *ret) attr_warn_unused;
