/* SPDX-License-Identifier: MIT */
/* The `totals` of a pager's status, from a pager that may be anybody: whatever it says is a number of each kind, and a histogram whose
 * count is its buckets' sum. */
#include <stdint.h>
#include <stdlib.h>

#include "forkd/pager/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* abort, not assert: a build with NDEBUG must find things too */
static void must(int ok) {
        if (!ok)
                abort();
}

static void check(const struct hist_copy *h) {
        uint64_t sum = 0;

        for (unsigned i = 0; i < HIST_BUCKETS; i++)
                sum += h->bucket[i];
        must(sum == h->count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct pager_figures f = { 0 };
        struct mp_doc doc = { 0 };
        size_t len;

        if (mp_scan(data, size, &len) == 1 && mp_parse(data, len, &doc) == 0) {
                pager_totals_read(&doc.root, &f);
                check(&f.wait);
                check(&f.service);
        }
        mp_doc_clear(&doc);
        return 0;
}
