/* SPDX-License-Identifier: MIT */
/* QEMU's command line: one function of the machine and of the numbers under which descriptors are inherited. */
#pragma once

#include <stddef.h>

#include "common/err.h"
#include "forkd/vmm/vmm.h"

#define QEMU_ARGS_MAX 128

/** Descriptors in QEMU's process. 3 and up, no gaps needed; -1: not passed. */
enum qemu_fd {
        QEMU_FD_QMP = 3,     /* listening */
        QEMU_FD_AGENT = 4,   /* listening */
        QEMU_FD_CONSOLE = 5, /* O_WRONLY | O_APPEND */
        QEMU_FD_RAM = 6,     /* the dummy that the attach library replaces */
        QEMU_FD_LAYOUT = 7,
        QEMU_FD_PAGER = 9, /* the session's socket, from which the library gets the guest's memory */
        QEMU_FD_UFFD_DEV = 10,
        QEMU_FD_LIB = 11, /* the attach library, read-only as all from here to the disks */
        QEMU_FD_FIRMWARE = 12,
        QEMU_FD_KERNEL = 13,
        QEMU_FD_INITRD = 14,
        QEMU_FD_WAIT = 15, /* of a shell: what it waits on (pager/attach/wait.h) */
        QEMU_FD_DISK = 16, /* the first of VMM_MAX_DISKS, O_RDWR */
};

/** Sets of descriptors that QEMU opens as /dev/fdset/<n>. */
#define QEMU_FDSET_CONSOLE 1
#define QEMU_FDSET_STATE 2
#define QEMU_FDSET_DISK 8 /* the first of VMM_MAX_DISKS */

/** A descriptor of QEMU's as a path, for what it does not take from a set of descriptors. It is opened anew that way, so the
 *  file must be readable for QEMU's user; that its directories are not does not matter. */
#define QEMU_OWN_FD "/proc/self/fd/%d"

/** An argument list and the strings it owns. */
struct qemu_args {
        const char *argv[QEMU_ARGS_MAX + 1];
        size_t n;
        char *owned[QEMU_ARGS_MAX];
        size_t n_owned;
        int r; /* the first error: appending goes on as if nothing had happened */
};

void qemu_args_clear(struct qemu_args *a);
#define cleanup_qemu_args attr_cleanup(qemu_args_clear)

/** Names no file but @qemu: all others are the descriptors above. @firmware: whether there is one, else it is QEMU's own
 *  choice. @qemu and @s must outlive @ret; @cmdline_extra (NULL: none) is put behind the kernel's command line. -ENOMEM,
 *  -E2BIG. */
int qemu_args_build(const char *qemu, bool firmware, const struct vmm_start *s, const char *cmdline_extra,
                    struct qemu_args *ret) attr_warn_unused;

/** What the machine, the CPU and the accelerator are called; the probe boots the same. Appends. */
void qemu_args_machine(struct qemu_args *a, const struct vmm_machine *m, const char *firmware, const char *memory_backend);
void qemu_args_add(struct qemu_args *a, const char *option, const char *value);
void qemu_args_addf(struct qemu_args *a, const char *option, const char *fmt, ...) attr_printf(3, 4);
