/* SPDX-License-Identifier: MIT */
/* What takes the store's room. */
#pragma once

#include <stdint.h>

struct daemon;

struct store_use {
        uint64_t total, free; /* of its file system; UINT64_MAX: there is no store */
        uint64_t reserve;     /* stays free whatever happens */
        uint64_t snapshots;   /* as they are stored */
        uint64_t vms;         /* allocated by VMs' disks; what one shares with its snapshot counts, too */
};

void store_use_get(const struct daemon *d, struct store_use *ret);
