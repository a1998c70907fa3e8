/* SPDX-License-Identifier: MIT */
/* What a snapshot says about itself: the file `manifest` in its directory (docs/snapshot-format.md). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "common/ids.h"
#include "snapstore/image.h"

#define SNAP_MANIFEST_VERSION 1u
#define SNAP_MANIFEST_MAX_BYTES (256u << 10)
#define SNAP_MAX_DISKS 8u /* VMM_MAX_DISKS */
#define SNAP_MAX_DISK_BYTES (1ull << 46)
#define SNAP_MAX_VCPUS 1024u
#define SNAP_MAX_CHAIN 256u /* ancestors that a manifest names; depth goes on counting */
#define SNAP_MAX_DEPTH 1000000u
#define SNAP_MAX_VMSTATE (256ull << 20) /* device state, uncompressed */

struct snap_manifest {
        /* set by whoever makes the snapshot */
        id_str id;
        char tag[NAME_MAX_LEN + 1];    /* may be empty */
        char source[NAME_MAX_LEN + 1]; /* name of the VM */
        id_str parent;                 /* empty: none */
        uint32_t depth;                /* number of ancestors */
        unsigned n_chain;              /* the nearest ancestors, parent first; at most SNAP_MAX_CHAIN */
        id_str chain[SNAP_MAX_CHAIN];
        int64_t created_ns; /* unix time */
        char vmm[16], vmm_version[32], accel[8];
        char cpu[128];    /* CPU model as the VMM was told, or empty */
        char machine[64]; /* machine type, or empty */
        uint32_t vcpus;
        uint64_t mem_bytes;
        char kernel[65], initrd[65]; /* ids of the guest assets (hex digest), or empty */
        char net[16];                /* "nat", "none", or empty */
        uint64_t dirty_bytes;        /* memory that differed from the parent (from zero, for a base) */

        /* filled by snap_txn_publish from the files of the transaction */
        uint8_t image_uuid[SNAP_UUID_LEN];
        uint64_t pages_stored, pages_zero;
        uint64_t image_bytes;  /* size of memory.img */
        uint64_t stored_bytes; /* what this snapshot added: appended image bytes and vmstate */
        unsigned n_disks;
        uint64_t disk_bytes[SNAP_MAX_DISKS];
        uint64_t vmstate_raw_bytes, vmstate_bytes; /* 0: the snapshot has no vmstate */
        uint64_t vmstate_xxh3;                     /* of the file, as stored */
        enum snap_codec vmstate_codec;
};

/** Encodes @m; *ret_data is malloc'ed. -EINVAL: a field is malformed (bad id, name or count). */
int snap_manifest_encode(const struct snap_manifest *m, void **ret_data, size_t *ret_len) attr_warn_unused;

/** Decodes and validates every field. -EBADMSG: corrupt or malformed; -EPROTONOSUPPORT: another version. */
int snap_manifest_decode(const void *data, size_t len, struct snap_manifest *ret) attr_warn_unused;

/** Makes @m a child of @parent: parent, depth and chain. */
void snap_manifest_set_parent(struct snap_manifest *m, const struct snap_manifest *parent);
