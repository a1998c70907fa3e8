/* SPDX-License-Identifier: MIT */
/* The userfaultfd calls, with their two-fold answers (a count and an error) made one.
 *
 * The range calls go on until all of [start, start + len) is done or an error stops them; *ret_done is the
 * number of bytes that were done, also when the result is negative. Addresses and lengths are multiples of
 * the page size. Errors, and what they mean here:
 *   -EEXIST  the page at start + *ret_done is there already: somebody was faster. Nobody was woken for it
 *   -EAGAIN  the process changes its memory layout: its events must be read first
 *   -ENOENT  the range is not, or no longer, registered with this descriptor
 *   -ESRCH   the process is gone
 *   -EFAULT  (continue) the file has no page there; (copy) the source cannot be read
 *   -ENOMEM  out of memory */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "pager/uffd_compat.h"

/** A new descriptor (CLOEXEC, non-blocking), agreed on with the kernel, for @features. From UFFD_DEVICE
 *  where it can be opened, else by the system call. -EOPNOTSUPP: the kernel lacks one of @features. */
int uffd_open(uint64_t features, int *ret_fd) attr_warn_unused;

/** Opens the device now, for all later calls of uffd_open. Before there are threads. */
void uffd_keep_device(void);
/** Was there one? */
bool uffd_has_device(void);

/** Registers for missing pages. */
int uffd_register(int fd, uint64_t start, uint64_t len) attr_warn_unused;
/** The same for missing pages or not, and for writes to protected ones or not; also of what is registered already. With neither
 *  it is registered no more, and nothing is protected. -EOPNOTSUPP: the kernel cannot protect such memory (needs 5.19). */
int uffd_register_as(int fd, uint64_t start, uint64_t len, bool missing, bool writes) attr_warn_unused;
/** Protects what is there in the range against writes, or (@on false) not any more, and wakes who waits there. */
int uffd_protect(int fd, uint64_t start, uint64_t len, bool on) attr_warn_unused;

/** Is @fd a userfaultfd at all, one whose UFFDIO_API was called? @addr: a page of its process. -EINVAL. */
int uffd_check(int fd, uint64_t addr) attr_warn_unused;

/** Is @fd a userfaultfd, whatever its state? */
bool uffd_is(int fd);

/** Is the process changing its memory layout just now? Then some event is unread, or its cause not over. */
bool uffd_changing(int fd);

int uffd_copy(int fd, uint64_t dst, const void *src, uint64_t len, uint64_t *ret_done) attr_warn_unused;
int uffd_continue(int fd, uint64_t start, uint64_t len, uint64_t *ret_done) attr_warn_unused;
int uffd_zeropage(int fd, uint64_t start, uint64_t len, uint64_t *ret_done) attr_warn_unused;
/** Whoever touches these pages gets SIGBUS. -EOPNOTSUPP before Linux 6.6. */
int uffd_poison(int fd, uint64_t start, uint64_t len, uint64_t *ret_done) attr_warn_unused;

/** Wakes whoever waits in the range: they look again. Works for ranges that are unmapped by now. */
int uffd_wake(int fd, uint64_t start, uint64_t len);

/** Reads at most @max messages without ever waiting, even if the VMM, which shares the open file, has made
 *  it blocking. Returns how many, or -EAGAIN, -EBADF … */
int uffd_read(int fd, struct uffd_msg *msgs, size_t max) attr_warn_unused;
