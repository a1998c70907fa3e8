/* SPDX-License-Identifier: MIT */
/* What the host has to give: refused early, with numbers, instead of failing half-way. */
#pragma once

#include <stdint.h>

#include "common/err.h"

/** Memory that a VMM needs beside the guest's: a QEMU process and its translation buffer. */
#define HOST_VMM_OVERHEAD (40ull << 20)

/** -ENOMEM with figures when @count VMs that will each touch @bytes of new memory do not fit into what is
 *  available. */
int host_check_memory(uint64_t bytes, unsigned count, struct err *e) attr_warn_unused;
/** -ENOSPC with figures when fewer than @bytes are free where @path is. */
int host_check_disk(const char *path, uint64_t bytes, const char *what, struct err *e) attr_warn_unused;
