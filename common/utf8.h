/* SPDX-License-Identifier: MIT */
/* UTF-8 as RFC 3629 has it: no surrogates, nothing overlong, nothing above U+10FFFF. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/** The length of the sequence that starts at @s, of @len > 0 bytes: 1 … 4; 0 if it is none; -1 if it is one so far, but ends at
 *  @len. */
int utf8_sequence(const unsigned char *s, size_t len);
bool utf8_valid(const char *s, size_t len);
/** Length of the longest prefix of @s that does not cut a sequence in two: @len, or up to 3 less. Bytes that are no UTF-8 at
 *  all count as whole. */
size_t utf8_whole(const char *s, size_t len);
