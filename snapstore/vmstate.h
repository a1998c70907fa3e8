/* SPDX-License-Identifier: MIT */
/* Device state as one compressed blob. Private to snapstore. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "snapstore/manifest.h"

struct snap_vmstate {
        uint64_t raw_bytes, bytes;
        uint64_t xxh3; /* of the bytes as stored */
        enum snap_codec codec;
};

/** Compresses @raw and writes it to @fd (empty). */
int snap_vmstate_write(int fd, const void *raw, size_t len, struct snap_vmstate *ret) attr_warn_unused;

/** Reads the blob that @m describes from @fd, verifies and decompresses it; *ret_data (malloc'ed) has
 *  m->vmstate_raw_bytes. -EBADMSG: not what @m says. */
int snap_vmstate_read(int fd, const struct snap_manifest *m, void **ret_data) attr_warn_unused;
