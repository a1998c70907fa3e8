/* SPDX-License-Identifier: MIT */
/* How QEMU comes to be a process: the descriptors it inherits, its environment, its jail. */
#pragma once

#include "forkd/vmm/qemu.h"
#include "forkd/vmm/qemu_args.h"

/** The descriptors that QEMU inherits, and the connection to it. */
struct qemu_launch {
        int qmp, agent, console, ram, layout, uffd_dev, log, lib, firmware, kernel, initrd, disks[VMM_MAX_DISKS];
        int wait; /* of a shell */
        int conn;
        uint64_t largest_disk;
};
#define QEMU_LAUNCH_INIT \
        ((struct qemu_launch){ -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, { -1, -1, -1, -1, -1, -1, -1, -1 }, -1, -1, 0 })
void qemu_launch_clear(struct qemu_launch *l);
#define cleanup_qemu_launch attr_cleanup(qemu_launch_clear)

/** Opens all of it and starts the process: v->pid and v->pidfd. */
int qemu_launch(struct vmm *v, const struct vmm_start *s, struct qemu_launch *l, struct err *e) attr_warn_unused;

/** The files that a VM has and a shell gets later. */
int qemu_open_log(const struct vmm_start *s, int *ret_fd, struct err *e) attr_warn_unused;
int qemu_open_console(const struct vmm_start *s, int *ret_fd, struct err *e) attr_warn_unused;
int qemu_open_disk(const struct vmm_start *s, unsigned i, int *ret_fd, uint64_t *ret_bytes, struct err *e) attr_warn_unused;

/** Notes what a shell was started as, with what it has in the place of a VM's files, and how it is told: v->shell.
 *  (qemu_shell.c) */
int qemu_shell_new(struct vmm *v, const struct vmm_start *s, struct qemu_launch *l, const char *program, const char *firmware,
                   struct err *e) attr_warn_unused;

/** Of a QEMU that answers: is its memory what the attach library was to make of it? The dynamic linker leaves out, with no
 *  more than a word in the log, a library that it cannot load, and a guest would run on the dummy's zeros. */
int qemu_launch_attached(const struct qemu_launch *l, struct err *e) attr_warn_unused;
