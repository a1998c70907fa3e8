/* SPDX-License-Identifier: MIT */
/* The handshake on a session's socket: one JSON array of regions, docs/protocol.md section 2. This is the
 * parser alone, on bytes; peer.c has the socket. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"
#include "pager/layout.h"
#include "pager/limits.h"

/** Where the JSON value ends, found as its bytes arrive: start with { 0 } and feed each byte once. */
struct pager_handshake_scan {
        size_t pos;
        unsigned depth;
        bool in_string, escaped, done;
};
/** Goes on from scan->pos. 1: the value ends at *ret_len; 0: more is needed; -EBADMSG: it does not begin with
 *  an array, or nests too deep. */
int pager_handshake_scan(struct pager_handshake_scan *scan, const char *data, size_t len, size_t *ret_len) attr_warn_unused;

/** Parses a whole handshake for guest RAM of @ram_bytes. On failure -EBADMSG (-ENOMEM) and a sentence in
 *  @why. Every region is inside guest RAM, none overlaps another, neither by address nor by offset. The caller
 *  frees *ret. */
int pager_handshake_parse(const char *data, size_t len, uint64_t ram_bytes, struct pager_layout **ret, char *why,
                          size_t why_size) attr_warn_unused;
