/* SPDX-License-Identifier: MIT */
/* The guest's root file system: busybox, the agent, the modules, and the files of setup/guest/. */
#pragma once

#include <stddef.h>

#include "common/err.h"
#include "setup/kernel.h"

#define INITRAMFS_MAX_PROGRAM (64u << 20)

/** The two programs, read into memory: static x86-64 executables. */
struct initramfs_inputs {
        char *busybox, *agent;
        size_t busybox_len, agent_len;
        char busybox_path[512], agent_path[512];
};

/** Finds busybox (from busybox-static) and the agent (@agent_path, or if NULL beside our own program and
 *  where it is installed), and reads them. */
int initramfs_inputs_read(const char *agent_path, struct initramfs_inputs *ret, struct err *e) attr_warn_unused;
void initramfs_inputs_clear(struct initramfs_inputs *in);
#define cleanup_initramfs_inputs attr_cleanup(initramfs_inputs_clear)

/** 128-bit hash (32 hex digits and a NUL) over kernel, programs, guest files and the builder's own version. */
void initramfs_id(const struct initramfs_inputs *in, const struct kernel *k, char id[33]);

/** Builds the compressed archive. */
int initramfs_build(const struct initramfs_inputs *in, const struct kernel *k, char **ret, size_t *ret_len,
                    struct err *e) attr_warn_unused;
