/* SPDX-License-Identifier: MIT */
/* What a child's image has changed.
 *
 * Theory of operation. A child's file begins with all bytes of its parent's file, so a reference that both indexes have names the
 * same bytes: pages need not be compared. That a file really began so is told by the parent's footer, with its random uuid, which
 * stands in the child's file where it stood in the parent's. Index nodes are written anew only where something below them
 * changed: most regions are known to be equal by one comparison, and of the others the leaves are compared. */
#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "snapstore/image_internal.h"

int snap_image_descends(const struct snap_image *img, const struct snap_image *base) {
        struct snap_disk_footer ours, theirs;
        int r;

        if (img->src.salt != base->src.salt || img->info.ram_bytes != base->info.ram_bytes ||
            img->info.file_bytes <= base->info.file_bytes || img->info.depth <= base->info.depth)
                return 0;
        r = io_pread_full(base->src.fd, &theirs, sizeof(theirs), base->src.end);
        if (r == 0)
                r = io_pread_full(img->src.fd, &ours, sizeof(ours), base->src.end);
        if (r < 0)
                return r;
        return memcmp(&ours, &theirs, sizeof(ours)) == 0 && memcmp(theirs.uuid, base->info.uuid, SNAP_UUID_LEN) == 0;
}

/** The record that @entry names, and the slot in it; 0 for a zero page. */
static uint64_t place(const struct snap_leaf *leaf, unsigned page, unsigned *ret_slot) {
        unsigned entry = leaf ? leaf->entry[page] : SNAP_ENTRY_ZERO;

        *ret_slot = entry == SNAP_ENTRY_ZERO ? 0 : entry & 15;
        return entry == SNAP_ENTRY_ZERO ? 0 : leaf->frame[entry >> 4];
}

static int diff_region(struct snap_image *img, struct snap_image *base, uint64_t region, uint64_t *bits) {
        uint64_t first = region * SNAP_REGION_PAGES, n = MIN_OF(img->index.n_pages - first, (uint64_t) SNAP_REGION_PAGES);
        const struct snap_leaf *a, *b;
        int r = snap_image_leaf(img, region, &a);

        if (r == 0)
                r = snap_image_leaf(base, region, &b);
        if (r < 0)
                return r;
        for (unsigned i = 0; i < n; i++) {
                unsigned slot_a, slot_b;

                if (place(a, i, &slot_a) != place(b, i, &slot_b) || slot_a != slot_b)
                        bits[(first + i) / 64] |= 1ull << ((first + i) % 64);
        }
        return 0;
}

int snap_image_diff(struct snap_image *img, struct snap_image *base, uint64_t max_regions, uint64_t *bits) {
        for (uint64_t region = 0; region < img->index.n_regions; region++) {
                int r;

                if (img->index.ref[0][region] == base->index.ref[0][region])
                        continue;
                if (max_regions == 0) { /* whoever wants to know reads them when he has to */
                        memset(bits + region * (SNAP_REGION_PAGES / 64), 0xff, SNAP_REGION_PAGES / 8);
                        continue;
                }
                max_regions--;
                r = diff_region(img, base, region, bits);
                if (r < 0)
                        return r;
        }
        return 0;
}
