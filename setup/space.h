/* SPDX-License-Identifier: MIT */
/* Is there room for what setup is about to write? Asked before the work, with an answer that tells how much
 * is missing, where, and what may be deleted. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct space_need {
        const char *path; /* where it will be written; need not exist yet */
        uint64_t bytes;
        const char *what;   /* "the guest kernel and initramfs" */
        const char *advice; /* what to delete or to pass */
};

/** Longest part of @path that exists, into @buf. */
int space_existing_parent(const char *path, char *buf, size_t size) attr_warn_unused;

#define SPACE_MAX_NEEDS 8

/** Needs on one file system are added up, and the largest is named. -ENOSPC with the whole story. */
int space_check(const struct space_need *needs, size_t n, struct err *e) attr_warn_unused;
