/* SPDX-License-Identifier: MIT */
#include "common/mp.h"

#include <errno.h>
#include <string.h>

/* ---- scanning ---- */

/* Big-endian number of @n bytes. */
static uint64_t read_be(const uint8_t *p, size_t n) {
        uint64_t v = 0;

        for (size_t i = 0; i < n; i++)
                v = v << 8 | p[i];
        return v;
}

/* What the type byte says: bytes of a length field, fixed payload, elements that follow. */
struct shape {
        uint8_t len_bytes; /* 0, 1, 2, 4 */
        uint8_t fixed;     /* payload without a length field */
        uint8_t per_len;   /* 0: the length counts bytes; 1, 2: it counts elements or pairs */
        uint32_t count;    /* of fix-array, fix-map (in elements) and fix-str (in bytes) */
        bool is_container;
};

static int scan_shape(uint8_t t, struct shape *ret) {
        struct shape s = { 0 };

        if (t <= 0x7f || t >= 0xe0 || t == 0xc0 || t == 0xc2 || t == 0xc3) {
                /* fixint, nil, booleans */
        } else if (t <= 0x8f) {
                s.is_container = true;
                s.count = (t & 0x0fu) * 2;
        } else if (t <= 0x9f) {
                s.is_container = true;
                s.count = t & 0x0fu;
        } else if (t <= 0xbf) {
                s.count = t & 0x1fu;
        } else if (t >= 0xc4 && t <= 0xc6) { /* bin 8, 16, 32 */
                s.len_bytes = (uint8_t) (1u << (t - 0xc4));
        } else if (t >= 0xd9 && t <= 0xdb) { /* str 8, 16, 32 */
                s.len_bytes = (uint8_t) (1u << (t - 0xd9));
        } else if (t == 0xdc || t == 0xdd) {
                s.is_container = true;
                s.per_len = 1;
                s.len_bytes = t == 0xdc ? 2 : 4;
        } else if (t == 0xde || t == 0xdf) {
                s.is_container = true;
                s.per_len = 2;
                s.len_bytes = t == 0xde ? 2 : 4;
        } else if (t == 0xca) {
                s.fixed = 4;
        } else if (t == 0xcb) {
                s.fixed = 8;
        } else if (t >= 0xcc && t <= 0xcf) { /* uint 8 … 64 */
                s.fixed = (uint8_t) (1u << (t - 0xcc));
        } else if (t >= 0xd0 && t <= 0xd3) { /* int 8 … 64 */
                s.fixed = (uint8_t) (1u << (t - 0xd0));
        } else {
                return -EBADMSG; /* ext types and the never-used 0xc1 */
        }
        *ret = s;
        return 0;
}

/* The element at @p (@len > 0): its own bytes, as far as its header tells, and how many elements it holds. */
struct element {
        uint64_t bytes, children;
};

static int scan_element(const uint8_t *p, size_t len, struct element *ret) {
        struct shape sh;
        uint64_t n;
        int r = scan_shape(p[0], &sh);

        if (r < 0)
                return r;
        *ret = (struct element){ .bytes = 1u + sh.len_bytes };
        if (ret->bytes > len)
                return 0;
        n = sh.len_bytes ? read_be(p + 1, sh.len_bytes) : sh.count;
        if (sh.is_container)
                ret->children = sh.per_len == 2 ? n * 2 : n;
        else
                ret->bytes += n + sh.fixed;
        return 0;
}

/* Each open container is the number of elements still to come; every element needs at least one byte, so a
 * count that the message cannot hold shows as "more bytes needed" with that many as the lower bound. An element
 * that is cut stays uncounted, with the cursor before it, until more of it is there. */
int mp_scan_more(struct mp_scanner *s, const void *data, size_t len, size_t *ret_len) {
        uint64_t need = 0;

        for (;;) {
                struct element el;
                int r;

                while (s->open[s->depth] == 0) {
                        if (s->depth == 0) {
                                *ret_len = s->pos;
                                return 1;
                        }
                        s->depth--;
                }
                if (s->pos >= len)
                        break;
                r = scan_element((const uint8_t *) data + s->pos, len - s->pos, &el);
                if (r < 0)
                        return r;
                if (el.bytes > len - s->pos) {
                        need = el.bytes - 1; /* its first byte counts among those of the open containers */
                        break;
                }
                if (el.children > 0 && s->depth == MP_MAX_DEPTH)
                        return -EBADMSG;
                s->pos += el.bytes;
                s->open[s->depth]--;
                if (el.children > 0)
                        s->open[++s->depth] = el.children;
        }
        need += s->pos;
        for (unsigned i = 0; i <= s->depth; i++)
                need += s->open[i];
        *ret_len = need;
        return 0;
}

int mp_scan(const void *data, size_t len, size_t *ret_len) {
        struct mp_scanner s = MP_SCANNER_INIT;

        return mp_scan_more(&s, data, len, ret_len);
}

int mp_parse(const void *data, size_t len, struct mp_doc *ret) {
        msgpack_zone *zone;
        msgpack_object root;
        size_t n, off = 0;
        int r;

        r = mp_scan(data, len, &n);
        if (r < 0)
                return r;
        if (r == 0 || n != len)
                return -EBADMSG;
        zone = msgpack_zone_new(MIN_OF(MAX_OF(len, (size_t) 256), (size_t) 8192));
        if (!zone)
                return -ENOMEM;
        /* SUCCESS, or EXTRA_BYTES/CONTINUE which the scan has ruled out */
        if (msgpack_unpack(data, len, &off, zone, &root) != MSGPACK_UNPACK_SUCCESS) {
                msgpack_zone_free(zone);
                return -EBADMSG;
        }
        ret->zone = zone;
        ret->root = root;
        return 0;
}

void mp_doc_clear(struct mp_doc *doc) {
        if (doc->zone)
                msgpack_zone_free(doc->zone);
        doc->zone = NULL;
        doc->root = (msgpack_object){ .type = MSGPACK_OBJECT_NIL };
}

/* ---- reading ---- */

bool mp_is_str(const msgpack_object *o, const char *s) {
        size_t n = strlen(s);

        /* the pointer of an empty string may be NULL */
        return o && o->type == MSGPACK_OBJECT_STR && o->via.str.size == n && (n == 0 || memcmp(o->via.str.ptr, s, n) == 0);
}

const msgpack_object *mp_get(const msgpack_object *map, const char *key) {
        if (!map || map->type != MSGPACK_OBJECT_MAP)
                return NULL;
        for (uint32_t i = 0; i < map->via.map.size; i++)
                if (mp_is_str(&map->via.map.ptr[i].key, key))
                        return &map->via.map.ptr[i].val;
        return NULL;
}

static const msgpack_object *get_non_nil(const msgpack_object *map, const char *key) {
        const msgpack_object *o = mp_get(map, key);

        return o && o->type != MSGPACK_OBJECT_NIL ? o : NULL;
}

int mp_get_str(const msgpack_object *map, const char *key, char *buf, size_t size) {
        const msgpack_object *o = get_non_nil(map, key);

        if (!o)
                return -ENOENT;
        if (o->type != MSGPACK_OBJECT_STR || (o->via.str.size && memchr(o->via.str.ptr, 0, o->via.str.size)))
                return -EBADMSG;
        if (o->via.str.size >= size)
                return -ENAMETOOLONG;
        if (o->via.str.size)
                memcpy(buf, o->via.str.ptr, o->via.str.size);
        buf[o->via.str.size] = '\0';
        return 0;
}

int mp_get_strdup(const msgpack_object *map, const char *key, size_t max, char **ret) {
        const msgpack_object *o = get_non_nil(map, key);
        char *s;

        if (!o)
                return -ENOENT;
        if (o->type != MSGPACK_OBJECT_STR || (o->via.str.size && memchr(o->via.str.ptr, 0, o->via.str.size)))
                return -EBADMSG;
        if (o->via.str.size > max)
                return -ENAMETOOLONG;
        s = strndup(o->via.str.size ? o->via.str.ptr : "", o->via.str.size);
        if (!s)
                return -ENOMEM;
        *ret = s;
        return 0;
}

int mp_get_u64(const msgpack_object *map, const char *key, uint64_t *ret) {
        const msgpack_object *o = get_non_nil(map, key);

        if (!o)
                return -ENOENT;
        if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                return -EBADMSG;
        *ret = o->via.u64;
        return 0;
}

int mp_get_i64(const msgpack_object *map, const char *key, int64_t *ret) {
        const msgpack_object *o = get_non_nil(map, key);

        if (!o)
                return -ENOENT;
        if (o->type == MSGPACK_OBJECT_POSITIVE_INTEGER && o->via.u64 <= INT64_MAX)
                *ret = (int64_t) o->via.u64;
        else if (o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER)
                *ret = o->via.i64;
        else
                return -EBADMSG;
        return 0;
}

int mp_get_double(const msgpack_object *map, const char *key, double *ret) {
        const msgpack_object *o = get_non_nil(map, key);

        if (!o)
                return -ENOENT;
        switch (o->type) {
        case MSGPACK_OBJECT_FLOAT32:
        case MSGPACK_OBJECT_FLOAT64:
                *ret = o->via.f64;
                return 0;
        case MSGPACK_OBJECT_POSITIVE_INTEGER:
                *ret = (double) o->via.u64;
                return 0;
        case MSGPACK_OBJECT_NEGATIVE_INTEGER:
                *ret = (double) o->via.i64;
                return 0;
        default:
                return -EBADMSG;
        }
}

int mp_get_bool(const msgpack_object *map, const char *key, bool *ret) {
        const msgpack_object *o = get_non_nil(map, key);

        if (!o)
                return -ENOENT;
        if (o->type != MSGPACK_OBJECT_BOOLEAN)
                return -EBADMSG;
        *ret = o->via.boolean;
        return 0;
}

int mp_get_bin(const msgpack_object *map, const char *key, const void **ret_data, size_t *ret_len) {
        const msgpack_object *o = get_non_nil(map, key);

        if (!o)
                return -ENOENT;
        if (o->type == MSGPACK_OBJECT_BIN) {
                *ret_data = o->via.bin.size ? o->via.bin.ptr : "";
                *ret_len = o->via.bin.size;
        } else if (o->type == MSGPACK_OBJECT_STR) {
                *ret_data = o->via.str.size ? o->via.str.ptr : "";
                *ret_len = o->via.str.size;
        } else {
                return -EBADMSG;
        }
        return 0;
}

const msgpack_object *mp_get_array(const msgpack_object *map, const char *key) {
        const msgpack_object *o = mp_get(map, key);

        return o && o->type == MSGPACK_OBJECT_ARRAY ? o : NULL;
}

/* ---- writing ---- */

static int buf_write(void *data, const char *buf, size_t len) {
        struct mp_buf *b = data;

        if (msgpack_sbuffer_write(&b->sb, buf, len) != 0)
                b->failed = true;
        return b->failed ? -1 : 0;
}

void mp_buf_init(struct mp_buf *b) {
        msgpack_sbuffer_init(&b->sb);
        msgpack_packer_init(&b->pk, b, buf_write);
        b->failed = false;
}

void mp_buf_clear(struct mp_buf *b) {
        msgpack_sbuffer_destroy(&b->sb);
        msgpack_sbuffer_init(&b->sb);
        b->failed = false;
}

/* The packer keeps a pointer to its buffer; a struct mp_buf that was moved must not lead it astray. */
static msgpack_packer *pk(struct mp_buf *b) {
        b->pk.data = b;
        return &b->pk;
}

void mp_map(struct mp_buf *b, size_t n) {
        (void) msgpack_pack_map(pk(b), n);
}

void mp_array(struct mp_buf *b, size_t n) {
        (void) msgpack_pack_array(pk(b), n);
}

void mp_strn(struct mp_buf *b, const char *s, size_t n) {
        (void) msgpack_pack_str(pk(b), n);
        if (n)
                (void) msgpack_pack_str_body(pk(b), s, n);
}

void mp_str(struct mp_buf *b, const char *s) {
        if (!s)
                mp_nil(b);
        else
                mp_strn(b, s, strlen(s));
}

void mp_bin(struct mp_buf *b, const void *data, size_t n) {
        (void) msgpack_pack_bin(pk(b), n);
        if (n)
                (void) msgpack_pack_bin_body(pk(b), data, n);
}

void mp_u64(struct mp_buf *b, uint64_t v) {
        (void) msgpack_pack_uint64(pk(b), v);
}

void mp_i64(struct mp_buf *b, int64_t v) {
        (void) msgpack_pack_int64(pk(b), v);
}

void mp_double(struct mp_buf *b, double v) {
        (void) msgpack_pack_double(pk(b), v);
}

void mp_bool(struct mp_buf *b, bool v) {
        (void) (v ? msgpack_pack_true(pk(b)) : msgpack_pack_false(pk(b)));
}

void mp_nil(struct mp_buf *b) {
        (void) msgpack_pack_nil(pk(b));
}

void mp_raw(struct mp_buf *b, const void *data, size_t n) {
        if (n)
                (void) buf_write(b, data, n);
}

void mp_obj(struct mp_buf *b, const msgpack_object *o) {
        (void) msgpack_pack_object(pk(b), *o);
}

void mp_key(struct mp_buf *b, const char *key) {
        mp_str(b, key);
}

void mp_kv_str(struct mp_buf *b, const char *key, const char *v) {
        mp_str(b, key);
        mp_str(b, v);
}

void mp_kv_bin(struct mp_buf *b, const char *key, const void *data, size_t n) {
        mp_str(b, key);
        mp_bin(b, data, n);
}

void mp_kv_list(struct mp_buf *b, const char *key, const struct mp_buf *elements, uint64_t n) {
        mp_str(b, key);
        mp_array(b, n);
        mp_raw(b, elements->sb.data, elements->sb.size);
        b->failed |= elements->failed;
}

void mp_kv_u64(struct mp_buf *b, const char *key, uint64_t v) {
        mp_str(b, key);
        mp_u64(b, v);
}

void mp_kv_i64(struct mp_buf *b, const char *key, int64_t v) {
        mp_str(b, key);
        mp_i64(b, v);
}

void mp_kv_double(struct mp_buf *b, const char *key, double v) {
        mp_str(b, key);
        mp_double(b, v);
}

void mp_kv_bool(struct mp_buf *b, const char *key, bool v) {
        mp_str(b, key);
        mp_bool(b, v);
}

int mp_as_u64s(const msgpack_object *o, uint64_t *ret, unsigned n) {
        if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != n)
                return -EBADMSG;
        for (unsigned i = 0; i < n; i++) {
                if (o->via.array.ptr[i].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                        return -EBADMSG;
                ret[i] = o->via.array.ptr[i].via.u64;
        }
        return 0;
}
