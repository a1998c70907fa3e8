/* SPDX-License-Identifier: MIT */
/* Any bytes as MessagePack: the scanner's answers must agree with themselves, however the bytes arrive, and with
 * the parser; what was parsed can be read, written and parsed again. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/mp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_BYTES 65536u

static void must(bool ok) {
        if (!ok)
                abort();
}

/* The first value, in pieces as small as the input's own bytes say. */
static int scan_in_pieces(const uint8_t *data, size_t size, size_t *ret_len) {
        struct mp_scanner s = MP_SCANNER_INIT;
        size_t have = 0, need = 0;

        for (;;) {
                int r = mp_scan_more(&s, data, have, &need);

                if (r != 0 || have == size) {
                        *ret_len = need;
                        return r;
                }
                must(need > have);
                must(s.pos <= have);
                have += MIN_OF(1u + data[have] % 7u, size - have);
        }
}

static void read_all(const msgpack_object *o, unsigned depth) {
        char text[16] = "", *dup = NULL;
        const void *bin = NULL;
        uint64_t u;
        int64_t i;
        double d;
        size_t len;
        bool b;

        must(depth <= MP_MAX_DEPTH);
        if (o->type == MSGPACK_OBJECT_ARRAY)
                for (uint32_t k = 0; k < o->via.array.size; k++)
                        read_all(&o->via.array.ptr[k], depth + 1);
        if (o->type != MSGPACK_OBJECT_MAP)
                return;
        for (uint32_t k = 0; k < o->via.map.size; k++) {
                const msgpack_object *key = &o->via.map.ptr[k].key;
                char name[16];

                read_all(key, depth + 1);
                read_all(&o->via.map.ptr[k].val, depth + 1);
                if (key->type != MSGPACK_OBJECT_STR || key->via.str.size >= sizeof(name))
                        continue;
                if (key->via.str.size > 0) /* else ptr may be NULL */
                        memcpy(name, key->via.str.ptr, key->via.str.size);
                name[key->via.str.size] = '\0';
                if (strlen(name) == key->via.str.size)
                        must(mp_get(o, name) != NULL);
                if (mp_get_str(o, name, text, sizeof(text)) == 0)
                        must(strlen(text) < sizeof(text));
                if (mp_get_strdup(o, name, 8, &dup) == 0) {
                        must(strlen(dup) <= 8);
                        free(dup);
                }
                if (mp_get_bin(o, name, &bin, &len) == 0 && len > 0)
                        must(memcmp(bin, bin, len) == 0);
                if (mp_get_i64(o, name, &i) == 0 && i >= 0) {
                        must(mp_get_u64(o, name, &u) == 0);
                        must(u == (uint64_t) i);
                }
                (void) mp_get_double(o, name, &d);
                (void) mp_get_bool(o, name, &b);
                (void) mp_get_array(o, name);
        }
}

static void parse(const uint8_t *data, size_t size) {
        cleanup_mp_doc struct mp_doc doc = { 0 }, again = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 }, c = { 0 };

        must(mp_parse(data, size, &doc) == 0);
        read_all(&doc.root, 0);
        mp_buf_init(&b);
        mp_obj(&b, &doc.root);
        must(!b.failed);
        must(b.sb.size <= size); /* the packer uses the shortest forms */
        must(mp_parse(b.sb.data, b.sb.size, &again) == 0);
        mp_buf_init(&c);
        mp_obj(&c, &again.root);
        must(c.sb.size == b.sb.size && memcmp(c.sb.data, b.sb.data, b.sb.size) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        size_t len = 0, len2 = 0;
        struct mp_doc doc;
        int r;

        if (size > MAX_BYTES)
                return 0;
        r = mp_scan(data, size, &len);
        must(r == 1 || r == 0 || r == -EBADMSG);
        must(scan_in_pieces(data, size, &len2) == r);
        if (r == 0)
                must(len > size);
        if (r >= 0)
                must(len == len2);
        if (r == 1 && len == size)
                parse(data, size);
        else
                must(mp_parse(data, size, &doc) == -EBADMSG);
        if (r == 1 && len < size)
                parse(data, len);
        return 0;
}
