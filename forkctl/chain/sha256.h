/* SPDX-License-Identifier: MIT */
/* SHA-256 (FIPS 180-4): what `sha256sum` in a guest says of a content that we know. Not for secrets. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SHA256_HEX 65 /* 64 digits and a NUL */

struct sha256 {
        uint32_t h[8];
        uint64_t len;
        uint8_t block[64];
};

void sha256_init(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *data, size_t len);
void sha256_end(struct sha256 *s, char ret_hex[SHA256_HEX]);
