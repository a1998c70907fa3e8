/* SPDX-License-Identifier: MIT */
/* Names, ids and sizes as users write them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"

#define ID_LEN 16       /* hex digits of an id: 64 random bits */
#define NAME_MAX_LEN 63 /* of a VM, tag or pool: fits a hostname label */

typedef char id_str[ID_LEN + 1];

/** Fills @buf from the kernel's generator; never fails once the system has booted. */
void random_bytes(void *buf, size_t len);
uint64_t random_u64(void);
void id_new(id_str ret);
bool id_valid(const char *s);

/** A name: [A-Za-z0-9] then [A-Za-z0-9._-], at most NAME_MAX_LEN; so never a path, an option, or empty. */
bool name_valid(const char *s);

/** @hex gets 2 × @len digits and a NUL. */
void hex_encode(const void *data, size_t len, char *hex);
int hex_decode(const char *hex, void *data, size_t len) attr_warn_unused; /* exactly 2 × len digits, else -EINVAL */

/** "256M", "8GiB", "4096", "1.5G" (binary units) to bytes. -EINVAL, -ERANGE. */
int size_parse(const char *s, uint64_t *ret) attr_warn_unused;
/** To "512 KiB", "1.4 GiB" in @buf; returns @buf. */
char *size_format(uint64_t bytes, char *buf, size_t size);
