/* SPDX-License-Identifier: MIT */
/* The handshake that a VMM sends to its pager. What is accepted must keep its promises; the scanner must find
 * the same end whether the bytes come at once or one by one. */
#include <stdlib.h>
#include <string.h>

#include "pager/handshake.h"

#define RAM (1ull << 30)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok) {
        if (!ok)
                abort();
}

static void check_layout(const struct pager_layout *l) {
        check(l->n >= 1 && l->n <= PAGER_MAX_REGIONS);
        check(l->page_size == PAGER_PAGE || (l->page_size == PAGER_HUGE_PAGE && l->mode == PAGER_MODE_COPY));
        for (size_t i = 0; i < l->n; i++) {
                const struct pager_region *g = &l->region[i];

                check(g->size > 0 && (g->base | g->size | g->offset) % l->page_size == 0);
                check(g->offset <= RAM && g->size <= RAM - g->offset);
                check(g->base + g->size > g->base);
                check(i == 0 || l->region[i - 1].base + l->region[i - 1].size <= g->base);
                check(pager_layout_find(l, g->base) == g);
                check(pager_layout_find(l, g->base + g->size - 1) == g);
                for (size_t k = 0; k < i && i < 16; k++) {
                        const struct pager_region *o = &l->region[k];

                        check(o->offset + o->size <= g->offset || g->offset + g->size <= o->offset);
                }
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        cleanup_free struct pager_layout *layout = NULL;
        struct pager_handshake_scan once = { 0 }, steps = { 0 };
        size_t end_once = 0, end_steps = 0;
        char why[256] = "";
        int r, s = 0;

        r = pager_handshake_scan(&once, (const char *) data, size, &end_once);
        for (size_t i = 1; i <= size && s == 0; i++)
                s = pager_handshake_scan(&steps, (const char *) data, i, &end_steps);
        check(r == s && end_once == end_steps);

        r = pager_handshake_parse((const char *) data, size, RAM, &layout, why, sizeof(why));
        if (r == 0)
                check_layout(layout);
        else
                check(why[0] != '\0');
        return 0;
}
