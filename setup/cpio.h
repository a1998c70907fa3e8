/* SPDX-License-Identifier: MIT */
/* A writer for cpio archives in the "newc" form that the Linux kernel unpacks as an initramfs. The archive is
 * built in memory. Owner is root and all times are zero, so equal input gives equal bytes. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"

#define CPIO_MAX_BYTES (256u << 20)
#define CPIO_MAX_NAME 1024

struct cpio {
        uint8_t *data;
        size_t len, cap;
        uint32_t ino;
        int r; /* first failure: -ENOMEM, -EFBIG, -EINVAL; later calls do nothing */
};

/** @path has no leading slash; parents come before their children, as the caller's duty. */
void cpio_dir(struct cpio *c, const char *path, unsigned mode);
void cpio_file(struct cpio *c, const char *path, unsigned mode, const void *data, size_t len);
void cpio_symlink(struct cpio *c, const char *path, const char *target);
void cpio_chardev(struct cpio *c, const char *path, unsigned mode, unsigned major, unsigned minor);
/** Writes the trailer. Returns the first failure of all calls, or 0. */
int cpio_finish(struct cpio *c) attr_warn_unused;
void cpio_clear(struct cpio *c);
#define cleanup_cpio attr_cleanup(cpio_clear)
