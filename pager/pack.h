/* SPDX-License-Identifier: MIT */
/* `uffd-pager pack`: makes a snapshot that `uffd-pager serve` can serve out of a VMM's raw memory file. */
#pragma once

#include "common/err.h"
#include "snapstore/writer.h"

struct pager_pack_config {
        const char *memory;   /* the raw file: the guest's RAM, as Firecracker writes it; holes are zero */
        const char *snapshot; /* the directory; made if it is not there, must have no memory.img */
        enum snap_codec codec;
        int level;
};

/** Writes @cfg->snapshot/memory.img, synced, whole or not at all. *ret_ram, *ret_stored: bytes of the guest's memory, and of
 *  the file. */
int pager_pack(const struct pager_pack_config *cfg, uint64_t *ret_ram, uint64_t *ret_stored, struct err *e) attr_warn_unused;
