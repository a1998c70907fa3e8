/* SPDX-License-Identifier: MIT */
/* Compressed things that come with a kernel: the kernel itself inside its bzImage, and modules. */
#pragma once

#include <stddef.h>

#include "common/err.h"

#define UNPACK_MAX_KERNEL (256u << 20)
#define UNPACK_MAX_MODULE (32u << 20)

/** The uncompressed ELF kernel inside the bzImage @data. -EBADMSG if there is none that we can unpack. */
int unpack_vmlinux(const void *data, size_t len, char **ret, size_t *ret_len, struct err *e) attr_warn_unused;

/** @data by its own magic: xz, gzip, zstd, lz4 (the kernel's kind), or a plain ELF file, which is copied.
 *  At most @max bytes come out (-EFBIG). @what is named in the error. */
int unpack_any(const void *data, size_t len, size_t max, const char *what, char **ret, size_t *ret_len,
               struct err *e) attr_warn_unused;

/** The kernel's lz4 kind ("legacy": magic, then blocks of at most 8 MiB each with its size), at level 9: the
 *  highest level takes four times as long for 0.3 % less. */
int pack_lz4(const void *data, size_t len, char **ret, size_t *ret_len) attr_warn_unused;
