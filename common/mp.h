/* SPDX-License-Identifier: MIT */
/* MessagePack: writing maps without ceremony, reading them without trust.
 *
 * Bytes from outside are first walked by mp_scan, which bounds depth and element counts and finds where
 * the message ends; only a whole, sane message is handed to msgpack-c, so that what it allocates is
 * proportional to what was received. */
#pragma once

#include <msgpack.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"

#define MP_MAX_DEPTH 12

/** Looks for one complete MessagePack value at the start of @data.
 *  Returns 1 and its length in *ret_len; 0 if more bytes are needed (then *ret_len is a lower bound of
 *  the value's length, for an early refusal of what is too large); -EBADMSG if the bytes are no
 *  MessagePack, nest deeper than MP_MAX_DEPTH or hold ext types. */
int mp_scan(const void *data, size_t len, size_t *ret_len) attr_warn_unused;

/** The same for a message that arrives in pieces: a walk that goes on where it stood, so that each byte is
 *  looked at once however small the pieces are. @data is the message's beginning, of which @len bytes are
 *  there by now; what was there at an earlier call must not change. After 1 or an error start anew. */
struct mp_scanner {
        size_t pos;                      /* the whole elements seen so far end here */
        uint64_t open[MP_MAX_DEPTH + 1]; /* elements still to come, by level */
        unsigned depth;
};
#define MP_SCANNER_INIT ((struct mp_scanner){ .open = { 1 } })
int mp_scan_more(struct mp_scanner *s, const void *data, size_t len, size_t *ret_len) attr_warn_unused;

/** A parsed value and the memory that it points into. */
struct mp_doc {
        msgpack_zone *zone;
        msgpack_object root;
};

/** Parses exactly one value that fills @data. The document keeps pointers into @data, which must outlive
 *  it. -EBADMSG, -ENOMEM. */
int mp_parse(const void *data, size_t len, struct mp_doc *ret) attr_warn_unused;
void mp_doc_clear(struct mp_doc *doc);
#define cleanup_mp_doc attr_cleanup(mp_doc_clear)

/* ---- reading: @map may be NULL or no map at all; a key that is absent or of another type is -ENOENT
 * or -EBADMSG, and the output is left alone ---- */

/** The value of @key, or NULL. Of repeated keys the first counts. */
const msgpack_object *mp_get(const msgpack_object *map, const char *key);
int mp_get_str(const msgpack_object *map, const char *key, char *buf, size_t size); /* -ENAMETOOLONG; NUL inside is -EBADMSG */
int mp_get_strdup(const msgpack_object *map, const char *key, size_t max, char **ret);
int mp_get_u64(const msgpack_object *map, const char *key, uint64_t *ret);
int mp_get_i64(const msgpack_object *map, const char *key, int64_t *ret);
int mp_get_double(const msgpack_object *map, const char *key, double *ret); /* integers too */
int mp_get_bool(const msgpack_object *map, const char *key, bool *ret);
/** str or bin; *ret_data points into the document, and is never NULL. */
int mp_get_bin(const msgpack_object *map, const char *key, const void **ret_data, size_t *ret_len);
const msgpack_object *mp_get_array(const msgpack_object *map, const char *key); /* NULL if no array */
bool mp_is_str(const msgpack_object *o, const char *s);

/* ---- writing: thin names over msgpack_packer on an sbuffer. Memory failure is remembered in .failed ---- */

struct mp_buf {
        msgpack_sbuffer sb;
        msgpack_packer pk;
        bool failed;
};

void mp_buf_init(struct mp_buf *b);
void mp_buf_clear(struct mp_buf *b);
#define cleanup_mp_buf attr_cleanup(mp_buf_clear)

void mp_map(struct mp_buf *b, size_t n); /* then n times: a key, a value */
void mp_array(struct mp_buf *b, size_t n);
void mp_str(struct mp_buf *b, const char *s); /* NULL is nil */
void mp_strn(struct mp_buf *b, const char *s, size_t n);
void mp_bin(struct mp_buf *b, const void *data, size_t n);
void mp_u64(struct mp_buf *b, uint64_t v);
void mp_i64(struct mp_buf *b, int64_t v);
void mp_double(struct mp_buf *b, double v);
void mp_bool(struct mp_buf *b, bool v);
void mp_nil(struct mp_buf *b);
void mp_raw(struct mp_buf *b, const void *data, size_t n); /* already encoded */
void mp_obj(struct mp_buf *b, const msgpack_object *o);

/* key and value in one call */
void mp_kv_str(struct mp_buf *b, const char *key, const char *v);
void mp_kv_bin(struct mp_buf *b, const char *key, const void *data, size_t n);
void mp_kv_u64(struct mp_buf *b, const char *key, uint64_t v);
void mp_kv_i64(struct mp_buf *b, const char *key, int64_t v);
void mp_kv_double(struct mp_buf *b, const char *key, double v);
void mp_kv_bool(struct mp_buf *b, const char *key, bool v);
/** An array of the @n elements that are encoded in @elements already; if that has failed, so has @b. */
void mp_kv_list(struct mp_buf *b, const char *key, const struct mp_buf *elements, uint64_t n);
void mp_key(struct mp_buf *b, const char *key);

/** Reads the @n numbers of the array @o. -EBADMSG: it is not that. */
int mp_as_u64s(const msgpack_object *o, uint64_t *ret, unsigned n) attr_warn_unused;
