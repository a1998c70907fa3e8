/* SPDX-License-Identifier: MIT */
#include "pager/handshake.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

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

/** Which mode the region asks for. */
static int get_mode(const json_t *obj, size_t i, enum pager_mode *ret, char *why, size_t why_size) {
        const json_t *ext = json_object_get(obj, "forkd");
        const char *mode = json_string_value(json_object_get(ext, "mode"));
        uint64_t version = 0;

        if (!ext) {
                *ret = PAGER_MODE_COPY;
                return 0;
        }
        if (!json_is_object(ext) || !mode || strcmp(mode, "memfd") != 0)
                return bad(why, why_size, "its mode is not \"memfd\"", i);
        if (!get_u64(ext, "version", &version) || version != 1)
                return bad(why, why_size, "its version is not 1", i);
        *ret = PAGER_MODE_MEMFD;
        return 0;
}

/* What Firecracker tells of the page size, in its own words in struct GuestRegionUffdMapping of src/vmm/src/persist.rs:
 * up to 1.6 nothing, and all pages are of the ordinary size; from 1.7 (its pull request 4449) page_size_kib, which
 * despite its name is in bytes; later page_size, in bytes, with the same number still under the old name. */
static int get_page_size(const json_t *obj, size_t i, enum pager_mode mode, uint64_t *ret, char *why, size_t why_size) {
        bool has_new = json_object_get(obj, "page_size"), has_old = json_object_get(obj, "page_size_kib");
        uint64_t size = PAGER_PAGE, old;

        if (has_new && !get_u64(obj, "page_size", &size))
                return bad(why, why_size, "its page_size is not a number of bytes", i);
        if (has_old && !get_u64(obj, "page_size_kib", &old))
                return bad(why, why_size, "its page_size_kib is not a number of bytes", i);
        if (has_new && has_old && old != size)
                return bad(why, why_size, "its page_size and page_size_kib, which are both bytes, differ", i);
        if (!has_new && has_old)
                size = old;
        if (!has_new && !has_old && mode == PAGER_MODE_MEMFD)
                return bad(why, why_size, "has no page_size", i);
        if (mode == PAGER_MODE_MEMFD && size != PAGER_PAGE)
                return bad(why, why_size, "its pages are not of 4096 bytes", i);
        if (size != PAGER_PAGE && size != PAGER_HUGE_PAGE)
                return bad(why, why_size, "its pages are neither of 4096 nor of 2097152 bytes", i);
        *ret = size;
        return 0;
}

/** Parses the region and, if it is the first, what all of them must agree on. */
static int parse_region(const json_t *obj, size_t i, uint64_t ram_bytes, struct pager_layout *l, char *why, size_t why_size) {
        struct pager_region *g = &l->region[i];
        uint64_t page_size;
        enum pager_mode mode;
        const char *wrong;
        int r;

        if (!json_is_object(obj))
                return bad(why, why_size, "is not an object", i);
        if (!get_u64(obj, "base_host_virt_addr", &g->base) || !get_u64(obj, "size", &g->size) ||
            !get_u64(obj, "offset", &g->offset))
                return bad(why, why_size, "base_host_virt_addr, size or offset is not a number of bytes", i);
        r = get_mode(obj, i, &mode, why, why_size);
        if (r == 0)
                r = get_page_size(obj, i, mode, &page_size, why, why_size);
        if (r < 0)
                return r;
        if (i == 0) {
                l->mode = mode;
                l->page_size = page_size;
        }
        if (mode != l->mode)
                return bad(why, why_size, "some regions have the \"forkd\" extension, others have not", i);
        if (page_size != l->page_size)
                return bad(why, why_size, "its page size is another than that of the first region", i);
        wrong = pager_region_check(g, page_size, ram_bytes);
        return wrong ? bad(why, why_size, wrong, i) : 0;
}

static int parse_regions(const json_t *root, uint64_t ram_bytes, struct pager_layout **ret, char *why, size_t why_size) {
        cleanup_free struct pager_layout *l = NULL;
        size_t n = json_array_size(root);
        int r;

        if (n == 0 || n > PAGER_MAX_REGIONS) {
                (void) snprintf(why, why_size, "%zu regions; 1 to %u are served", n, PAGER_MAX_REGIONS);
                return -EBADMSG;
        }
        l = pager_layout_new(n);
        if (!l) {
                (void) snprintf(why, why_size, "out of memory");
                return -ENOMEM;
        }
        for (; l->n < n; l->n++) {
                r = parse_region(json_array_get(root, l->n), l->n, ram_bytes, l, why, why_size);
                if (r < 0)
                        return r;
        }
        r = pager_layout_finish(l, why, why_size);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(l);
        return 0;
}

int pager_handshake_parse(const char *data, size_t len, uint64_t ram_bytes, struct pager_layout **ret, char *why,
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
