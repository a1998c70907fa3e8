/* SPDX-License-Identifier: MIT */
/* Output for people: aligned tables, and values as people read them. */
#pragma once

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/cleanup.h"

#define TABLE_MAX_COLUMNS 12

/** A table that is printed when it is complete, so that its columns fit what is in them. */
struct table {
        const char *head[TABLE_MAX_COLUMNS]; /* not owned; a name that starts with '>' is aligned to the right */
        size_t n_columns;
        char **cells; /* rows × columns */
        size_t n_cells, cap;
        int failed; /* -ENOMEM, remembered until table_print */
};

void table_init(struct table *t, const char *const *head, size_t n_columns);
void table_clear(struct table *t);
#define cleanup_table attr_cleanup(table_clear)
/** The next cell, left to right. Control characters are replaced: cells often hold what a guest said. */
void table_cell(struct table *t, const char *fmt, ...) attr_printf(2, 3);
/** Prints heads and rows; columns that are empty in every row are left out. Returns 0 or -errno. */
int table_print(const struct table *t, FILE *f) attr_warn_unused;

/** @s without control characters, in @buf (cut to fit, at a character's end). Returns @buf. */
char *text_safe(const char *s, char *buf, size_t size);
/** "12 ms", "1.35 s"; "-" for a negative number. Returns @buf. */
char *text_ms(double ms, char *buf, size_t size);
/** "512 KiB", "-" when @map has no such number. Returns @buf. */
char *text_size(const json_t *map, const char *key, char *buf, size_t size);
/** A point in time: ISO text as it is, or seconds, milliseconds or nanoseconds since 1970 as local time. */
char *text_time(const json_t *v, char *buf, size_t size);

/** A map, one field a line; fields that end in _bytes, _ms or _at, and nested values, in a form for people.
 *  Lists of maps become tables. Returns 0 or -errno. */
int print_fields(const json_t *map, FILE *f) attr_warn_unused;
