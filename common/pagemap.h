/* SPDX-License-Identifier: MIT */
/* Which pages of a process's private memory are its own: anonymous, that is written since they were mapped. Read from
 * /proc/<pid>/pagemap, whose descriptor may come from somebody else. */
#pragma once

#include <stdint.h>

#include "common/cleanup.h"

#define PAGEMAP_PAGE 4096u

/** How it is found out. PAGEMAP_SCAN (Linux 6.7) walks the page table and knows the shared zero page; older kernels offer
 *  one word a page (admin-guide/mm/pagemap.rst), where the zero page looks like a written one. */
enum pagemap_method { PAGEMAP_ANY, PAGEMAP_BY_SCAN, PAGEMAP_BY_WORDS };

/** A run of @n pages from @addr on. Not 0: ends the walk, which returns it. */
typedef int pagemap_fn(uint64_t addr, uint64_t n, void *arg);

/** Tells @fn of the anonymous pages in [@start, @end), present or swapped, that are not write-protected by a userfaultfd: where
 *  none is, of all. Ascending; the walk is no snapshot of a process that runs. -ENOTTY: the kernel does not know that
 *  @method; -EFAULT: the range is misaligned; errors of reading. A process that has ended has none. */
int pagemap_written(int fd, enum pagemap_method method, uint64_t start, uint64_t end, pagemap_fn *fn, void *arg) attr_warn_unused;
/** The same, sooner where most pages are write-protected: those are passed over without a look at what they are. */
int pagemap_written_of_few(int fd, uint64_t start, uint64_t end, pagemap_fn *fn, void *arg) attr_warn_unused;
/** The same by any method, sooner where most pages are write-protected: they are passed over without a look at what they are. */
int pagemap_written_of_few(int fd, uint64_t start, uint64_t end, pagemap_fn *fn, void *arg) attr_warn_unused;
/** The same of all anonymous pages, write-protected or not. */
int pagemap_anonymous(int fd, enum pagemap_method method, uint64_t start, uint64_t end, pagemap_fn *fn,
                      void *arg) attr_warn_unused;
