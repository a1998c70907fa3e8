/* SPDX-License-Identifier: MIT */
/* JSON out of MessagePack, and back out to people and programs. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/mp.h"

static inline void cleanup_jsonp(json_t **j) {
        json_decref(*j);
}
#define cleanup_json attr_cleanup(cleanup_jsonp)

/** A JSON value of the same content: binary data as base64, bytes that are no UTF-8 as U+FFFD, numbers that
 *  JSON has no form for (NaN) as null. NULL only when memory is short. */
json_t *json_from_mp(const msgpack_object *o);

/** A string of any bytes: those that are no UTF-8 become U+FFFD. */
json_t *json_text(const char *s, size_t len);
/** {"<key>": "text"} when the bytes are UTF-8 without NUL, else {"<key>_base64": "…"}: nothing is lost. Adds to @map. */
int json_set_bytes(json_t *map, const char *key, const void *data, size_t len) attr_warn_unused;

/** One document and a newline. */
int json_print(FILE *f, const json_t *j) attr_warn_unused;

/* Fields of a map; the default when absent or of another type. */
const char *json_str(const json_t *map, const char *key, const char *fallback);
double json_num(const json_t *map, const char *key, double fallback);
uint64_t json_u64(const json_t *map, const char *key, uint64_t fallback);
bool json_flag(const json_t *map, const char *key);
/** An array, or NULL (which jansson's array functions take for an empty one). */
json_t *json_list(const json_t *map, const char *key);
