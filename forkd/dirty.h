/* SPDX-License-Identifier: MIT */
/* Which pages a guest has written, and their content, out of the living VMM.
 *
 * Guest RAM is a private mapping (of the image's memfd, or of nothing for a VM that booted), so what the guest
 * wrote is exactly what is anonymous in it: nothing had to be armed, and nothing is missed. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "common/cleanup.h"
#include "forkd/vmm/vmm.h"
#include "snapstore/writer.h"

struct dirty_stats {
        uint64_t pages;   /* copied, zero ones included */
};

/** Copies the dirty pages of process @pid's @regions into @w, ascending. The guest must be paused.
 *  -ESRCH, -EFAULT: the VMM is gone or its memory is not as described; errors of the writer. */
int dirty_copy(pid_t pid, const struct vmm_region *regions, size_t n_regions, struct snap_writer *w,
               struct dirty_stats *ret) attr_warn_unused;
