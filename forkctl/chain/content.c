/* SPDX-License-Identifier: MIT */
/* A block is lines of 64 bytes, half of them random and half the same everywhere: lz4 makes about half of it, as of the memory of
 * many a program. A slot that is longer than a block repeats it, each time with another mark in front, so that no two of its pages
 * are alike. */
#include "forkctl/chain/content.h"

#include <errno.h>
#include <string.h>

#define PAGE 4096u
#define LINE 64u
static const char pattern[] = "forkctl chain: verified content."; /* half a line */

void content_init(struct content *c, uint64_t seed, uint64_t dirty, uint64_t mem, bool has_disk) {
        uint64_t fit = mem / 4 / MAX_OF(dirty, (uint64_t) PAGE);

        *c = (struct content){ .seed = seed, .slot_bytes = dirty / PAGE * PAGE, .has_disk = has_disk };
        c->n_slots = (unsigned) MIN_OF(MAX_OF(fit, (uint64_t) 1), (uint64_t) CONTENT_MAX_SLOTS);
        c->piece_bytes = MIN_OF(c->slot_bytes, (uint64_t) CONTENT_DISK_PIECE);
}

/* SplitMix64 (Steele, Lea and Flood 2014): a good mixer of a counter, whatever the seed. */
static uint64_t next(uint64_t *state) {
        uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
        return z ^ z >> 31;
}

int content_block(const struct content *c, uint64_t writer, char **ret, size_t *ret_len) {
        size_t len = (size_t) MIN_OF(c->slot_bytes, (uint64_t) CONTENT_BLOCK);
        uint64_t state = c->seed;
        char *block = malloc(len);

        if (!block)
                return -ENOMEM;
        state = next(&state) ^ writer * 0xd6e8feb86659fd93ULL;
        for (size_t i = 0; i < len; i += LINE) {
                for (size_t k = 0; k < LINE / 2; k += sizeof(uint64_t)) {
                        uint64_t v = next(&state);

                        memcpy(block + i + k, &v, sizeof(v));
                }
                memcpy(block + i + LINE / 2, pattern, LINE / 2);
        }
        *ret = block;
        *ret_len = len;
        return 0;
}

void content_written(struct content *c, unsigned slot, unsigned piece, uint64_t writer, const char *block, size_t len) {
        struct sha256 s;

        sha256_init(&s);
        sha256_add(&s, block, len);
        for (uint64_t done = len, i = 1; done < c->slot_bytes; done += CONTENT_BLOCK, i++) {
                char mark[CONTENT_MARK + 1];

                (void) snprintf(mark, sizeof(mark), "%0*llu", (int) CONTENT_MARK, (unsigned long long) i);
                sha256_add(&s, mark, CONTENT_MARK);
                sha256_add(&s, block, (size_t) MIN_OF(c->slot_bytes - done, (uint64_t) CONTENT_BLOCK) - CONTENT_MARK);
        }
        sha256_end(&s, c->sum[slot]);
        c->writer[slot] = writer;
        if (c->has_disk)
                c->disk_writer[piece] = writer;
}

int content_disk_sum(const struct content *c, char ret[SHA256_HEX]) {
        cleanup_free char *zeros = calloc(1, c->piece_bytes);
        struct sha256 s;

        sha256_init(&s);
        for (unsigned i = 0; i < CONTENT_DISK_SLOTS; i++) {
                cleanup_free char *block = NULL;
                size_t len;

                if (!zeros || (c->disk_writer[i] && content_block(c, c->disk_writer[i], &block, &len) < 0))
                        return -ENOMEM;
                sha256_add(&s, block ? block : zeros, c->piece_bytes);
        }
        sha256_end(&s, ret);
        return 0;
}
