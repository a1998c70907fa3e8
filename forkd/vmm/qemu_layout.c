/* SPDX-License-Identifier: MIT */
/* Where guest RAM is in QEMU's address space, as the attach library wrote it down. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "forkd/vmm/qemu.h"

#define PAGE 4096u
#define ADDR_LIMIT (1ull << 56) /* user addresses with five-level page tables */

static int get_u64(const json_t *o, const char *key, uint64_t *ret) {
        const json_t *v = json_object_get(o, key);

        if (!json_is_integer(v) || json_integer_value(v) < 0)
                return -EBADMSG;
        *ret = (uint64_t) json_integer_value(v);
        return 0;
}

static int parse_region(const char *line, size_t len, uint64_t mem_bytes, struct vmm_region *ret) {
        cleanup_json json_t *o = json_loadb(line, len, 0, NULL);
        struct vmm_region g;

        if (!json_is_object(o) || get_u64(o, "host_addr", &g.host_addr) < 0 || get_u64(o, "size", &g.size) < 0 ||
            get_u64(o, "offset", &g.offset) < 0)
                return -EBADMSG;
        if (g.size == 0 || (g.host_addr | g.size | g.offset) % PAGE != 0)
                return -EBADMSG;
        if (g.size > mem_bytes || g.offset > mem_bytes - g.size)
                return -EBADMSG;
        if (g.size > ADDR_LIMIT || g.host_addr > ADDR_LIMIT - g.size)
                return -EBADMSG;
        *ret = g;
        return 0;
}

static bool overlap(const struct vmm_region *a, const struct vmm_region *b) {
        return (a->offset < b->offset + b->size && b->offset < a->offset + a->size) ||
               (a->host_addr < b->host_addr + b->size && b->host_addr < a->host_addr + a->size);
}

int qemu_layout_parse(const char *text, size_t len, uint64_t mem_bytes, struct vmm_region *ret, size_t max, size_t *ret_n) {
        uint64_t total = 0;
        size_t n = 0;

        while (len > 0) {
                const char *nl = memchr(text, '\n', len);
                size_t line = nl ? (size_t) (nl - text) : len;
                int r;

                if (!nl)
                        return -EBADMSG; /* cut */
                if (n == max)
                        return -E2BIG;
                r = parse_region(text, line, mem_bytes, &ret[n]);
                if (r < 0)
                        return r;
                for (size_t i = 0; i < n; i++)
                        if (overlap(&ret[i], &ret[n]))
                                return -EBADMSG;
                total += ret[n++].size;
                text += line + 1;
                len -= line + 1;
        }
        /* A page that no region covers would be missing from a snapshot. */
        if (total != mem_bytes)
                return -EBADMSG;
        *ret_n = n;
        return 0;
}
