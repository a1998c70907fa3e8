/* SPDX-License-Identifier: MIT */
/* QEMU's command line: one function of the machine and of the numbers under which descriptors are inherited. */
#pragma once

#include <stddef.h>

#include "common/err.h"
#include "forkd/vmm/vmm.h"

#define QEMU_ARGS_MAX 96

/** Descriptors in QEMU's process. 3 and up, no gaps needed; -1: not passed. */
enum qemu_fd {
        QEMU_FD_QMP = 3,     /* listening */
        QEMU_FD_AGENT = 4,   /* listening */
        QEMU_FD_CONSOLE = 5, /* O_WRONLY | O_APPEND */
        QEMU_FD_RAM = 6,     /* the dummy that the attach library replaces */
        QEMU_FD_LAYOUT = 7,
        QEMU_FD_IMAGE = 8,
        QEMU_FD_PAGER = 9,
        QEMU_FD_UFFD_DEV = 10,
};

/** Sets of descriptors that QEMU opens as /dev/fdset/<n>. */
#define QEMU_FDSET_CONSOLE 1
#define QEMU_FDSET_STATE 2

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

/** @qemu, @firmware (NULL: QEMU's own choice) and @s must outlive @ret; @cmdline_extra (NULL: none) is put
 *  behind the kernel's command line. -ENOMEM, -E2BIG. */
int qemu_args_build(const char *qemu, const char *firmware, const struct vmm_start *s, const char *cmdline_extra,
                    struct qemu_args *ret) attr_warn_unused;

/** What the machine, the CPU and the accelerator are called; the probe boots the same. Appends. */
void qemu_args_machine(struct qemu_args *a, const struct vmm_machine *m, const char *firmware, const char *memory_backend);
void qemu_args_add(struct qemu_args *a, const char *option, const char *value);
void qemu_args_addf(struct qemu_args *a, const char *option, const char *fmt, ...) attr_printf(3, 4);
