/* SPDX-License-Identifier: MIT */
/* The page: `/` is one HTML file with its style and script, made at build time of the parts in page/ by page/embed.cmake; `/live` tells
 * it what goes on (live.h, stats.h). */
#pragma once

#include <stddef.h>

#include "common/cleanup.h"

struct daemon;
struct page;

extern const unsigned char page_html[];
extern const size_t page_html_size;
extern const char page_policy[]; /* its Content-Security-Policy: this style and this script, by their hashes, and nothing else */

/** Answers both paths of d->http from now on. -ENOMEM. */
int page_new(struct daemon *d, struct page **ret) attr_warn_unused;
/** At forkd's end, when nobody can connect any more: hangs up on who looks, and waits until nothing is drawn for them, at most
 *  @timeout_ms. A coroutine call. NULL is fine. */
void page_settle(struct page *p, int timeout_ms);
/** Before the HTTP server goes. NULL is fine. */
void page_free(struct page *p);
