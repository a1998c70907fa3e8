/* SPDX-License-Identifier: MIT */
/* Making guest assets; see assets.h for what is where. Internal to setup/. */
#pragma once

#include <stdbool.h>

#include "setup/assets.h"
#include "setup/initramfs.h"
#include "setup/kernel.h"

#define ASSETS_KERNEL "vmlinux" /* the ELF kernel: boots by its PVH entry, see unpack.c */
#define ASSETS_INITRD "initrd"
#define ASSETS_INFO "info.json"
#define ASSETS_CURRENT "current"

/** A set that `current` does not name any more is removed by a later setup, this long after it was replaced:
 *  a forkd that located it before has long booted its VM by then. */
#define ASSETS_KEEP_SECONDS 3600

/** Room for one set: initrd, and the kernel where it cannot be hard-linked. */
#define ASSETS_WORK_BYTES (96ull << 20)

/** Reads and checks the set @id. -ENOENT, -EBADMSG when it is damaged. */
int assets_read(const char *cache_dir, const char *id, struct assets *ret) attr_warn_unused;

/** Makes the set @id (if it is not there, whole) and points `current` at it. The caller holds the cache's
 *  lock; @tmp_dir as in kernel_get. */
int assets_publish(const char *cache_dir, const char *tmp_dir, const char *id, const struct initramfs_inputs *in,
                   const struct kernel *k, struct assets *ret, struct err *e) attr_warn_unused;

/** Points `current` at @id if it does not already. *ret_changed tells. */
int assets_set_current(const char *cache_dir, const char *id, bool *ret_changed, struct err *e) attr_warn_unused;

/** Removes old sets and the temporary directories of runs that were interrupted. */
void assets_clean(const char *cache_dir);
