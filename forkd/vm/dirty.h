/* SPDX-License-Identifier: MIT */
/* Which pages a guest has written, and their content, out of the living VMM.
 *
 * Guest RAM is a private mapping (of the image's memfd, or of nothing for a VM that booted), so what the guest
 * wrote is exactly what is anonymous in it: nothing had to be armed, and nothing is missed. Of a VM that has been forked
 * while it ran, what it has not written since is write-protected (pager/live.h), and does not count. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "common/cleanup.h"
#include "forkd/vmm/vmm.h"
#include "snapstore/writer.h"

struct dirty_stats {
        uint64_t pages; /* read, zero ones included */
};

/** Pages that were read and are not yet written, at most 64 MiB. Reused from snapshot to snapshot. */
struct dirty_buf;
int dirty_buf_new(struct dirty_buf **ret) attr_warn_unused;
void dirty_buf_free(struct dirty_buf *b); /* NULL is fine */
DEFINE_CLEANUP(struct dirty_buf, dirty_buf_free)
/** Forgets the pages. */
void dirty_buf_clear(struct dirty_buf *b);
/** Hands the pages to @w, ascending, and forgets them. Errors of the writer. */
int dirty_buf_write(struct dirty_buf *b, struct snap_writer *w) attr_warn_unused;

/** Reads the dirty pages of process @pid's @regions, ascending, into @buf, and what does not fit in there into
 *  @w; dirty_buf_write does the rest. The guest must be paused until it returns.
 *  -ESRCH, -EFAULT: the VMM is gone or its memory is not as described: all of @regions mapped, privately;
 *  errors of the writer. */
int dirty_copy(pid_t pid, const struct vmm_region *regions, size_t n_regions, struct dirty_buf *buf, struct snap_writer *w,
               struct dirty_stats *ret) attr_warn_unused;

/** Guest pages. */
struct dirty_range {
        uint64_t first, n;
};
/** Sets to zero in @w what the guest has discarded, @gone, and not written since: it reads zero, whatever the parent has there.
 *  What it did write since is anonymous; it is dirty, or in the parent as it is now. The guest must be paused. Errors as above;
 *  -ERANGE: a range lies outside of the guest's memory. */
int dirty_put_discarded(pid_t pid, const struct vmm_region *regions, size_t n_regions, const struct dirty_range *gone,
                        size_t n_gone, struct snap_writer *w) attr_warn_unused;

/** Hands @w what @memfd holds: every page that is no hole, at its place. Nobody may write to it meanwhile. *ret: pages.
 *  Errors of reading and of the writer. */
int dirty_copy_memfd(int memfd, struct dirty_buf *buf, struct snap_writer *w, uint64_t *ret) attr_warn_unused;

/** How many pages dirty_copy would read now; the guest may run. */
int dirty_count(pid_t pid, const struct vmm_region *regions, size_t n_regions, uint64_t *ret) attr_warn_unused;

/** The same by one method, for tests. -ENOTTY: the kernel does not know it. */
enum dirty_method { DIRTY_ANY, DIRTY_SCAN, DIRTY_WORDS };
int dirty_put_discarded_by(enum dirty_method method, pid_t pid, const struct vmm_region *regions, size_t n_regions,
                           const struct dirty_range *gone, size_t n_gone, struct snap_writer *w) attr_warn_unused;
int dirty_copy_by(enum dirty_method method, pid_t pid, const struct vmm_region *regions, size_t n_regions, struct dirty_buf *buf,
                  struct snap_writer *w, struct dirty_stats *ret) attr_warn_unused;
