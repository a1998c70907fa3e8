/* SPDX-License-Identifier: MIT */
/* What the kernel's userfaultfd offers and older headers (Debian 12: 6.1) do not name yet. Values from
 * include/uapi/linux/userfaultfd.h of Linux 6.18. Whether the running kernel has a feature is asked at
 * run time; a constant here promises nothing. */
#pragma once

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#ifndef USERFAULTFD_IOC
#define USERFAULTFD_IOC 0xAA
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(USERFAULTFD_IOC, 0x00) /* on /dev/userfaultfd, since 6.1 */
#endif

/* UFFDIO_POISON, since 6.6; under names of our own, for headers with and without it. */
struct uffd_poison_args {
        struct uffdio_range range;
        __u64 mode;
        __s64 updated;
};
#define UFFD_IOC_POISON _IOWR(UFFDIO, 0x08, struct uffd_poison_args)

#define UFFD_DEVICE "/dev/userfaultfd"

/** What a VMM's descriptor must have been opened with. EVENT_REMAP is asked for so that memory that moves
 *  keeps its registration and the pager hears of it: without it the moved range would silently read zeros,
 *  and put zero pages into the image that its siblings share. */
#define UFFD_FEATURES_NEEDED \
        (UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_MISSING_SHMEM)

/** Never switched on (registering for minor faults would end the kernel's fault-around), but a kernel that
 *  names it has UFFDIO_CONTINUE for shmem (5.14). */
#define UFFD_FEATURE_PROVES_CONTINUE UFFD_FEATURE_MINOR_SHMEM
