/* SPDX-License-Identifier: MIT */
/* Manifests from an enemy. The first byte says whether the rest is the whole file (0) or the map inside,
 * around which head and checksum are then put (1). What decodes must encode again, to the same. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "snapstore/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_INPUT (64u << 10)

static void require(bool ok) {
        if (!ok)
                abort();
}

static void check(const void *data, size_t len) {
        struct snap_manifest *m = calloc(1, sizeof(*m)), *again = calloc(1, sizeof(*again));
        void *out;
        size_t out_len;

        require(m && again);
        if (snap_manifest_decode(data, len, m) == 0) {
                require(snap_manifest_encode(m, &out, &out_len) == 0);
                require(snap_manifest_decode(out, out_len, again) == 0);
                require(memcmp(m, again, sizeof(*m)) == 0);
                free(out);
        }
        free(m);
        free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        uint32_t version = SNAP_MANIFEST_VERSION, map_len;
        uint8_t *file;
        uint64_t sum;
        size_t len;

        if (size < 1 || size > MAX_INPUT)
                return 0;
        if (data[0] == 0) {
                check(data + 1, size - 1);
                return 0;
        }
        map_len = (uint32_t) size - 1;
        len = 16 + map_len + sizeof(sum);
        file = malloc(len);
        require(file != NULL);
        memcpy(file, "FORKDMAN", 8);
        memcpy(file + 8, &version, 4);
        memcpy(file + 12, &map_len, 4);
        memcpy(file + 16, data + 1, map_len);
        sum = XXH3_64bits(file, len - sizeof(sum));
        memcpy(file + len - sizeof(sum), &sum, sizeof(sum));
        check(file, len);
        free(file);
        return 0;
}
