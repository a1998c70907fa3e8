/* SPDX-License-Identifier: MIT */
/* The kernel's word that memory is short: pressure stall triggers of the host and of the own cgroup. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "pager/memcg.h"

#define PAGER_MAX_PRESSURE_SOURCES 3u

struct pager_pressure {
        int fd[PAGER_MAX_PRESSURE_SOURCES];
        unsigned n;
        uint64_t deaf_until_ns; /* one event was enough for a while */
};

/** Sets the triggers that can be had: memory.pressure of @memcg's v2 group where it is not the whole host, and
 *  /proc/pressure/memory below @root. Says in the log which of the two is missing and why. */
void pager_pressure_open(struct pager_pressure *p, const char *root, const struct pager_memcg *memcg);
void pager_pressure_close(struct pager_pressure *p);

/** One more source: a descriptor that is POLLPRI when memory is short. Taken. -ENOSPC: enough of them. */
int pager_pressure_add(struct pager_pressure *p, int fd) attr_warn_unused;

/** Waits for @timeout_ms (-1: for ever) or until @wake_fd is readable or memory is short: *ret_short, at most
 *  once in PAGER_PRESSURE_PAUSE_MS, however many sources say so. A source that ends is closed. 0 or -errno. */
int pager_pressure_wait(struct pager_pressure *p, int wake_fd, int timeout_ms, bool *ret_short) attr_warn_unused;
