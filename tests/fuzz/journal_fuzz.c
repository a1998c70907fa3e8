/* SPDX-License-Identifier: MIT */
/* Entries of the journal from an enemy. What decodes names only valid ids, and encodes again to the same. */
#include <stdlib.h>
#include <string.h>

#include "forkd/vm/journal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok) {
        if (!ok)
                abort();
}

static void same(const struct journal_ids *a, const struct journal_ids *b) {
        require(a->n == b->n);
        for (size_t i = 0; i < a->n; i++)
                require(id_valid(a->ids[i]) && strcmp(a->ids[i], b->ids[i]) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        cleanup_journal struct journal_entry j = { 0 }, again = { 0 };
        cleanup_free void *out = NULL;
        size_t len;

        if (journal_decode(data, size, &j) < 0) {
                require(j.vms.n == 0 && j.snapshots.n == 0);
                return 0;
        }
        require(journal_encode(&j, &out, &len) == 0);
        require(journal_decode(out, len, &again) == 0);
        require(j.op == again.op && j.force == again.force);
        same(&j.vms, &again.vms);
        same(&j.snapshots, &again.snapshots);
        return 0;
}
