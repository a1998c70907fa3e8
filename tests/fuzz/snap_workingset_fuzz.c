/* SPDX-License-Identifier: MIT */
/* Working sets from an enemy. The first byte says what the rest is:
 *   0  the whole file
 *   1  the runs of a file, around which head and checksum are then put
 *   2  a recording that is merged into another one: both are halves of the rest
 * What decodes must be whole, and encode again to the same bytes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "snapstore/workingset.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_INPUT (64u << 10)
#define RAM_PAGES 4096u
#define HEAD_LEN 48u

static const uint8_t uuid[SNAP_UUID_LEN] = "fuzzed-workingse";

static void require(bool ok) {
        if (!ok)
                abort();
}

/* As naively as can be: page by page. */
static void check_whole(const struct snap_workingset *w) {
        uint8_t *seen = calloc(RAM_PAGES, 1);
        uint64_t n = 0;

        require(seen && w->n_runs <= SNAP_WORKINGSET_MAX_RUNS);
        for (size_t i = 0; i < w->n_runs; i++) {
                require(w->run[i].n > 0);
                for (uint64_t p = w->run[i].first; p < w->run[i].first + w->run[i].n; p++, n++)
                        require(p < RAM_PAGES && !seen[p]++);
        }
        require(n == w->n_pages);
        free(seen);
}

static void check_file(const void *data, size_t len) {
        struct snap_workingset w;
        size_t out_len;
        void *out;

        if (snap_workingset_decode(data, len, uuid, RAM_PAGES, &w) < 0)
                return;
        check_whole(&w);
        require(snap_workingset_encode(&w, uuid, RAM_PAGES, &out, &out_len) == 0);
        require(out_len == len && memcmp(out, data, len) == 0);
        free(out);
        snap_workingset_clear(&w);
}

static void check_runs(const uint8_t *data, size_t size) {
        size_t n = size / 8, len = HEAD_LEN + n * 8 + sizeof(uint64_t);
        uint32_t version = SNAP_WORKINGSET_VERSION, n_runs = (uint32_t) n;
        uint64_t ram_pages = RAM_PAGES, sum;
        uint8_t *file = calloc(1, len);

        require(file != NULL);
        memcpy(file, "FORKDWKS", 8);
        memcpy(file + 8, &version, sizeof(version));
        memcpy(file + 16, uuid, sizeof(uuid));
        memcpy(file + 32, &ram_pages, sizeof(ram_pages));
        memcpy(file + 40, &n_runs, sizeof(n_runs));
        memcpy(file + HEAD_LEN, data, n * 8);
        sum = XXH3_64bits(file, len - sizeof(sum));
        memcpy(file + len - sizeof(sum), &sum, sizeof(sum));
        check_file(file, len);
        free(file);
}

/* Runs of 16 bits each for page and number: mostly inside the RAM, so that merging is reached. */
static struct snap_run *parse_runs(const uint8_t *data, size_t size, size_t *ret_n) {
        size_t n = size / 4;
        struct snap_run *run = calloc(n + 1, sizeof(*run));

        require(run != NULL);
        for (size_t i = 0; i < n; i++, data += 4)
                run[i] = (struct snap_run){ (data[0] | data[1] << 8) % (RAM_PAGES + 1), (data[2] | data[3] << 8) % 1024 };
        *ret_n = n;
        return run;
}

static void check_merge(const uint8_t *data, size_t size) {
        struct snap_workingset old, w;
        struct snap_run *a, *b;
        uint64_t max, n_new;
        size_t n_a, n_b;

        if (size < 2)
                return;
        max = (data[0] | data[1] << 8) % (2 * RAM_PAGES);
        size = (size - 2) / 2;
        a = parse_runs(data + 2, size, &n_a);
        b = parse_runs(data + 2 + size, size, &n_b);
        if (snap_workingset_merge(NULL, a, n_a, RAM_PAGES, max, &old, &n_new) == 0) {
                check_whole(&old);
                require(old.n_pages <= max && n_new == old.n_pages && old.restores == 1);
                if (snap_workingset_merge(&old, b, n_b, RAM_PAGES, max, &w, &n_new) == 0) {
                        check_whole(&w);
                        require(w.n_pages <= max && w.n_pages == old.n_pages + n_new && w.restores == 2);
                        snap_workingset_clear(&w);
                }
                snap_workingset_clear(&old);
        }
        free(a);
        free(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        if (size < 1 || size > MAX_INPUT)
                return 0;
        if (data[0] == 0)
                check_file(data + 1, size - 1);
        else if (data[0] == 1)
                check_runs(data + 1, size - 1);
        else
                check_merge(data + 1, size - 1);
        return 0;
}
