/* SPDX-License-Identifier: MIT */
/* What a link of the chain writes into its guest, and what must be there afterwards.
 *
 * A guest has SLOTS files of --dirty bytes in its memory (a file system of RAM), and on its disk a region of DISK_SLOTS pieces. A link
 * overwrites one slot and one piece, the next link the next ones; so at any time a clone holds what several generations wrote.
 * The bytes follow from the seed and from who wrote them: both sides compute the same checksums, and none asks the other. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/cleanup.h"
#include "forkctl/chain/sha256.h"

#define CONTENT_BLOCK (1u << 20) /* what is sent at most; longer contents are made of it in the guest */
#define CONTENT_MARK 16u         /* bytes: decimal digits that make each repetition of a block another one */
#define CONTENT_MAX_SLOTS 4u
#define CONTENT_DISK_SLOTS 16u
#define CONTENT_DISK_PIECE (256u << 10) /* at most; not more than a slot */

/** What one guest holds. A copy is another guest's that was forked from it. */
struct content {
        uint64_t seed, slot_bytes; /* of a slot: whole pages */
        unsigned n_slots;
        uint64_t writer[CONTENT_MAX_SLOTS]; /* who wrote the slot */
        char sum[CONTENT_MAX_SLOTS][SHA256_HEX];
        bool has_disk;
        uint64_t piece_bytes;
        uint64_t disk_writer[CONTENT_DISK_SLOTS]; /* 0: still zeros */
};

/** For --dirty @dirty in a guest of @mem bytes: a quarter of its memory at most, in one to CONTENT_MAX_SLOTS slots. */
void content_init(struct content *c, uint64_t seed, uint64_t dirty, uint64_t mem, bool has_disk);

/** The first min(slot, CONTENT_BLOCK) bytes of what @writer (not 0) writes: what has to be sent. *ret is the caller's. -ENOMEM. */
int content_block(const struct content *c, uint64_t writer, char **ret, size_t *ret_len) attr_warn_unused;

/** Notes that @writer has overwritten slot @slot, and its piece of the disk @piece. @block is content_block's. */
void content_written(struct content *c, unsigned slot, unsigned piece, uint64_t writer, const char *block, size_t len);

/** The checksum of the disk's whole region. -ENOMEM. */
int content_disk_sum(const struct content *c, char ret[SHA256_HEX]) attr_warn_unused;
