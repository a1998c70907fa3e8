/* SPDX-License-Identifier: MIT */
/* A disk that a user names becomes the VM's own: a copy, so that the original is never written to. */
#pragma once

#include <stdbool.h>

#include "common/err.h"
#include "forkd/api/caller.h"

/** Copies the raw disk image @from (absolute) to the new file @to (mode 0600), as a reflink where the file system can.
 *  @from is looked up, opened and read with the rights of @who (NULL: root). Symbolic links are followed, with those
 *  rights; the links of /proc are not, for they lead past permissions, and /proc/self is this process. What is no regular
 *  file of whole sectors, or lives in one of the kernel's own file systems, is no disk: -EINVAL. */
int worker_copy_disk(const struct caller *who, const char *from, const char *to, bool *ret_reflinked,
                     struct err *e) attr_warn_unused;
