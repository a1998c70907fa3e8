/* SPDX-License-Identifier: MIT */
#include "common/json.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "common/utf8.h"

/* ---- text ---- */

json_t *json_text(const char *s, size_t len) {
        const unsigned char *p = (const unsigned char *) s;
        cleanup_free char *buf = NULL;
        size_t n = 0;

        if (len == 0)
                return json_string("");
        if (utf8_valid(s, len))
                return json_stringn(s, len);
        buf = malloc(len * 3);
        if (!buf)
                return NULL;
        for (size_t i = 0; i < len;) {
                int k = utf8_sequence(p + i, len - i);

                if (k > 0) {
                        memcpy(buf + n, s + i, (size_t) k);
                        n += (size_t) k;
                        i += (size_t) k;
                } else {
                        memcpy(buf + n, "\xef\xbf\xbd", 3);
                        n += 3;
                        i++;
                }
        }
        return json_stringn(buf, n);
}

/* ---- base64 (RFC 4648) ---- */

static json_t *json_base64(const void *data, size_t len) {
        static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        const unsigned char *p = data;
        cleanup_free char *buf = malloc((len + 2) / 3 * 4 + 1);
        size_t n = 0;

        if (!buf)
                return NULL;
        for (size_t i = 0; i < len; i += 3) {
                uint32_t v = (uint32_t) p[i] << 16;

                if (i + 1 < len)
                        v |= (uint32_t) p[i + 1] << 8;
                if (i + 2 < len)
                        v |= p[i + 2];
                buf[n++] = digits[v >> 18];
                buf[n++] = digits[v >> 12 & 63];
                buf[n++] = i + 1 < len ? digits[v >> 6 & 63] : '=';
                buf[n++] = i + 2 < len ? digits[v & 63] : '=';
        }
        return json_stringn_nocheck(buf, n);
}

int json_set_bytes(json_t *map, const char *key, const void *data, size_t len) {
        char name[64];

        if (len == 0)
                return json_object_set_new(map, key, json_string("")) < 0 ? -ENOMEM : 0;
        /* a NUL is valid UTF-8, but many a JSON reader stumbles over it */
        if (utf8_valid(data, len) && !memchr(data, 0, len))
                return json_object_set_new(map, key, json_stringn(data, len)) < 0 ? -ENOMEM : 0;
        (void) snprintf(name, sizeof(name), "%s_base64", key);
        return json_object_set_new(map, name, json_base64(data, len)) < 0 ? -ENOMEM : 0;
}

/* ---- MessagePack ---- */

static int set_pair(json_t *map, const msgpack_object_kv *kv) {
        cleanup_free char *key = NULL;
        json_t *value;

        switch (kv->key.type) {
        case MSGPACK_OBJECT_STR: {
                json_t *text = json_text(kv->key.via.str.ptr, kv->key.via.str.size);

                key = text ? strdup(json_string_value(text)) : NULL; /* a key ends at its first NUL */
                json_decref(text);
                break;
        }
        case MSGPACK_OBJECT_POSITIVE_INTEGER:
                if (asprintf(&key, "%llu", (unsigned long long) kv->key.via.u64) < 0)
                        key = NULL;
                break;
        case MSGPACK_OBJECT_NEGATIVE_INTEGER:
                if (asprintf(&key, "%lld", (long long) kv->key.via.i64) < 0)
                        key = NULL;
                break;
        default: /* no key that JSON could have */
                return 0;
        }
        value = key ? json_from_mp(&kv->val) : NULL;
        return value ? json_object_set_new(map, key, value) : -1;
}

static json_t *from_map(const msgpack_object_map *m) {
        json_t *map = json_object();

        for (uint32_t i = 0; map && i < m->size; i++)
                if (set_pair(map, &m->ptr[i]) < 0) {
                        json_decref(map);
                        return NULL;
                }
        return map;
}

static json_t *from_array(const msgpack_object_array *a) {
        json_t *list = json_array();

        for (uint32_t i = 0; list && i < a->size; i++) {
                json_t *v = json_from_mp(&a->ptr[i]);

                if (!v || json_array_append_new(list, v) < 0) {
                        json_decref(list);
                        return NULL;
                }
        }
        return list;
}

/* The recursion is bounded: mp_scan let nothing through that nests deeper than MP_MAX_DEPTH. */
json_t *json_from_mp(const msgpack_object *o) {
        switch (o->type) {
        case MSGPACK_OBJECT_BOOLEAN:
                return json_boolean(o->via.boolean);
        case MSGPACK_OBJECT_POSITIVE_INTEGER:
                return o->via.u64 <= INT64_MAX ? json_integer((json_int_t) o->via.u64) : json_real((double) o->via.u64);
        case MSGPACK_OBJECT_NEGATIVE_INTEGER:
                return json_integer(o->via.i64);
        case MSGPACK_OBJECT_FLOAT32:
        case MSGPACK_OBJECT_FLOAT64:
                return isfinite(o->via.f64) ? json_real(o->via.f64) : json_null();
        case MSGPACK_OBJECT_STR:
                return json_text(o->via.str.ptr, o->via.str.size);
        case MSGPACK_OBJECT_BIN:
                return json_base64(o->via.bin.ptr, o->via.bin.size);
        case MSGPACK_OBJECT_ARRAY:
                return from_array(&o->via.array);
        case MSGPACK_OBJECT_MAP:
                return from_map(&o->via.map);
        default:
                return json_null();
        }
}

/* ---- printing and reading ---- */

int json_print(FILE *f, const json_t *j) {
        if (json_dumpf(j, f, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15)) < 0 || fputc('\n', f) == EOF)
                return -EIO;
        return 0;
}

const char *json_str(const json_t *map, const char *key, const char *fallback) {
        const char *s = json_string_value(json_object_get(map, key));

        return s ? s : fallback;
}

double json_num(const json_t *map, const char *key, double fallback) {
        const json_t *v = json_object_get(map, key);

        return json_is_number(v) ? json_number_value(v) : fallback;
}

uint64_t json_u64(const json_t *map, const char *key, uint64_t fallback) {
        const json_t *v = json_object_get(map, key);

        return json_is_integer(v) && json_integer_value(v) >= 0 ? (uint64_t) json_integer_value(v) : fallback;
}

bool json_flag(const json_t *map, const char *key) {
        return json_is_true(json_object_get(map, key));
}

json_t *json_list(const json_t *map, const char *key) {
        json_t *v = json_object_get(map, key);

        return json_is_array(v) ? v : NULL;
}
