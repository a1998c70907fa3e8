/* SPDX-License-Identifier: MIT */
#include "pager/handshake.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

/* Above every user address of 64-bit Linux, and far from overflow. */
#define MAX_ADDRESS (1ull << 57)

int pager_handshake_scan(struct pager_handshake_scan *s, const char *data, size_t len, size_t *ret_len) {
        for (; s->pos < len && !s->done; s->pos++) {
                char c = data[s->pos];

                if (s->in_string) {
                        if (s->escaped)
                                s->escaped = false;
                        else if (c == '\\')
                                s->escaped = true;
                        else if (c == '"')
                                s->in_string = false;
                        continue;
                }
                if (c == '[' || c == '{') {
                        if (s->depth == 0 && c != '[')
                                return -EBADMSG;
                        if (++s->depth > PAGER_MAX_HANDSHAKE_DEPTH)
                                return -EBADMSG;
                } else if (s->depth == 0) {
                        if (c != ' ' && c != '\n' && c != '\r' && c != '\t')
                                return -EBADMSG;
                } else if (c == '"') {
                        s->in_string = true;
                } else if (c == ']' || c == '}') {
                        s->done = --s->depth == 0;
                }
        }
        if (!s->done)
                return 0;
        *ret_len = s->pos;
        return 1;
}

static int bad(char *why, size_t size, const char *fmt, size_t index) {
        (void) snprintf(why, size, "region %zu: %s", index, fmt);
        return -EBADMSG;
}

/** A number that is there, whole, and not negative. */
static bool get_u64(const json_t *obj, const char *key, uint64_t *ret) {
        const json_t *v = json_object_get(obj, key);

        if (!json_is_integer(v) || json_integer_value(v) < 0)
                return false;
        *ret = (uint64_t) json_integer_value(v);
        return true;
}

static int check_extension(const json_t *obj, size_t i, char *why, size_t why_size) {
        const json_t *ext = json_object_get(obj, "forkd");
        const char *mode = json_string_value(json_object_get(ext, "mode"));
        uint64_t version = 0;

        if (!ext)
                return bad(why, why_size, "has no \"forkd\" extension, and copy mode is not served here", i);
        if (!json_is_object(ext) || !mode || strcmp(mode, "memfd") != 0)
                return bad(why, why_size, "its mode is not \"memfd\"", i);
        if (!get_u64(ext, "version", &version) || version != 1)
                return bad(why, why_size, "its version is not 1", i);
        return 0;
}

static int parse_region(const json_t *obj, size_t i, uint64_t ram_bytes, struct pager_region *ret, char *why, size_t why_size) {
        uint64_t page_size;

        if (!json_is_object(obj))
                return bad(why, why_size, "is not an object", i);
        if (!get_u64(obj, "base_host_virt_addr", &ret->base) || !get_u64(obj, "size", &ret->size) ||
            !get_u64(obj, "offset", &ret->offset))
                return bad(why, why_size, "base_host_virt_addr, size or offset is not a number of bytes", i);
        /* Firecracker sends both, and bytes in both: page_size_kib is an old name that it keeps. */
        if (!get_u64(obj, "page_size", &page_size) && !get_u64(obj, "page_size_kib", &page_size))
                return bad(why, why_size, "has no page_size", i);
        if (page_size != PAGER_PAGE)
                return bad(why, why_size, "its pages are not of 4096 bytes", i);
        if (ret->base % PAGER_PAGE || ret->size % PAGER_PAGE || ret->offset % PAGER_PAGE)
                return bad(why, why_size, "is not aligned to pages", i);
        if (ret->size == 0)
                return bad(why, why_size, "is empty", i);
        if (ret->base < PAGER_PAGE || ret->base >= MAX_ADDRESS || ret->size > MAX_ADDRESS - ret->base)
                return bad(why, why_size, "is no address range of a process", i);
        if (ret->offset > ram_bytes || ret->size > ram_bytes - ret->offset)
                return bad(why, why_size, "lies outside of guest memory", i);
        return check_extension(obj, i, why, why_size);
}

static int by_base(const void *a, const void *b) {
        const struct pager_region *x = a, *y = b;

        return (x->base > y->base) - (x->base < y->base);
}

static int by_offset(const void *a, const void *b) {
        const struct pager_region *x = a, *y = b;

        return (x->offset > y->offset) - (x->offset < y->offset);
}

static int check_overlaps(struct pager_layout *l, char *why, size_t why_size) {
        qsort(l->region, l->n, sizeof(l->region[0]), by_offset);
        for (size_t i = 1; i < l->n; i++)
                if (l->region[i].offset < l->region[i - 1].offset + l->region[i - 1].size)
                        return bad(why, why_size, "holds guest memory that another region holds too", i);
        qsort(l->region, l->n, sizeof(l->region[0]), by_base);
        for (size_t i = 1; i < l->n; i++)
                if (l->region[i].base < l->region[i - 1].base + l->region[i - 1].size)
                        return bad(why, why_size, "overlaps another region", i);
        return 0;
}

static int parse_regions(const json_t *root, uint64_t ram_bytes, struct pager_layout *l, char *why, size_t why_size) {
        int r;

        l->n = json_array_size(root);
        if (l->n == 0 || l->n > PAGER_MAX_REGIONS) {
                (void) snprintf(why, why_size, "%zu regions; 1 to %u are served", l->n, PAGER_MAX_REGIONS);
                return -EBADMSG;
        }
        for (size_t i = 0; i < l->n; i++) {
                r = parse_region(json_array_get(root, i), i, ram_bytes, &l->region[i], why, why_size);
                if (r < 0)
                        return r;
        }
        return check_overlaps(l, why, why_size);
}

int pager_handshake_parse(const char *data, size_t len, uint64_t ram_bytes, struct pager_layout *ret, char *why,
                          size_t why_size) {
        struct pager_handshake_scan scan = { 0 };
        json_error_t error;
        size_t end;
        json_t *root;
        int r;

        /* Bounds the depth before the parser, which is recursive, sees a byte. */
        if (len > PAGER_MAX_HANDSHAKE || pager_handshake_scan(&scan, data, len, &end) != 1 || end != len) {
                (void) snprintf(why, why_size, "the layout is not one JSON array of at most %u bytes", PAGER_MAX_HANDSHAKE);
                return -EBADMSG;
        }
        root = json_loadb(data, len, JSON_REJECT_DUPLICATES, &error);
        if (!root) {
                (void) snprintf(why, why_size, "the layout is not valid JSON: %.100s", error.text);
                return -EBADMSG;
        }
        r = parse_regions(root, ram_bytes, ret, why, why_size);
        json_decref(root);
        return r;
}

const struct pager_region *pager_layout_find(const struct pager_layout *l, uint64_t addr) {
        size_t lo = 0, hi = l->n;

        while (lo < hi) {
                size_t mid = lo + (hi - lo) / 2;

                if (addr < l->region[mid].base)
                        hi = mid;
                else if (addr - l->region[mid].base >= l->region[mid].size)
                        lo = mid + 1;
                else
                        return &l->region[mid];
        }
        return NULL;
}
