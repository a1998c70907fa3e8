/* SPDX-License-Identifier: MIT */
/* Moves of a VMM's memory, against an array that holds what each page of a small address space should be. The input:
 * a byte with the number of regions, two bytes for each (pages, gap), then five bytes for each move: from, to, length
 * (the first two of 16 bits). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pager/layout.h"

#define PAGES 1024u
#define UNKNOWN (-1)
#define ZERO (-2)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok) {
        if (!ok)
                abort();
}

static void check_model(const struct pager_layout *l, const int *at) {
        for (uint64_t p = 0; p < PAGES; p++) {
                const struct pager_region *g = pager_layout_find(l, p * PAGER_PAGE);

                if (!g)
                        check(at[p] == UNKNOWN);
                else if (g->offset == PAGER_READS_ZERO)
                        check(at[p] == ZERO);
                else
                        check(at[p] == (int) ((p * PAGER_PAGE - g->base + g->offset) / PAGER_PAGE));
        }
        for (size_t i = 0; i < l->n; i++)
                check(l->region[i].size > 0 && (i == 0 || l->region[i - 1].base + l->region[i - 1].size <= l->region[i].base));
}

static void move(struct pager_layout **l, int *at, uint64_t from, uint64_t to, uint64_t n) {
        bool overlap = from < to + n && to < from + n;

        check(pager_layout_move(l, from * PAGER_PAGE, to * PAGER_PAGE, n * PAGER_PAGE) == (n == 0 || overlap ? -EINVAL : 0));
        if (n == 0 || overlap)
                return;
        for (uint64_t i = 0; i < n; i++) {
                at[to + i] = at[from + i];
                at[from + i] = at[from + i] == UNKNOWN ? UNKNOWN : ZERO;
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        cleanup_free struct pager_layout *l = pager_layout_new(256);
        static int at[PAGES];
        uint64_t page = 1, guest = 0;
        size_t i = 1;
        char why[128];

        if (!l || size < 3)
                return 0;
        for (unsigned p = 0; p < PAGES; p++)
                at[p] = UNKNOWN;
        for (unsigned n = data[0]; n > 0 && i + 2 <= size; n--, i += 2) {
                uint64_t pages = 1 + data[i] % 64, gap = data[i + 1] % 8;

                if (page + pages > PAGES)
                        break;
                l->region[l->n++] = (struct pager_region){ page * PAGER_PAGE, pages * PAGER_PAGE, guest * PAGER_PAGE };
                for (uint64_t k = 0; k < pages; k++)
                        at[page + k] = (int) (guest + k);
                page += pages + gap;
                guest += pages + gap / 2;
        }
        check(pager_layout_finish(l, why, sizeof(why)) == 0);
        for (unsigned moves = 0; i + 5 <= size && moves < 200; i += 5, moves++) {
                uint64_t n = data[i + 4], room = PAGES - n;

                move(&l, at, (data[i] | data[i + 1] << 8) % room, (data[i + 2] | data[i + 3] << 8) % room, n);
                check_model(l, at);
        }
        /* numbers of any size harm nobody */
        if (size >= 24) {
                uint64_t v[3];

                memcpy(v, data + size - sizeof(v), sizeof(v));
                (void) !pager_layout_move(&l, v[0], v[1], v[2]);
                (void) pager_layout_find(l, v[0]);
        }
        return 0;
}
