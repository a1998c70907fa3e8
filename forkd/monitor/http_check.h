/* SPDX-License-Identifier: MIT */
/* Which requests are answered: those that read, and that no foreign page has sent. Pure functions over what anybody on this host
 * may have sent. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/cleanup.h"

#define HTTP_MAX_TARGET 383u /* a path and its query */

/** Of a request; NULL: it has no such header field. */
struct http_headers {
        const char *method, *target; /* the target as it was sent: "/metrics?a=b" */
        const char *host;
        unsigned n_host; /* how many of them */
        const char *content_length, *transfer_encoding;
        const char *site, *mode; /* Sec-Fetch-Site, Sec-Fetch-Mode: browsers tell on whose behalf they ask */
};

/** 0: answer it; else the status to refuse it with, and a sentence in *ret_why (static). @by_name: it came over a network address, so
 *  the name that it was sent to matters. */
int http_check(const struct http_headers *h, bool by_name, const char **ret_why) attr_warn_unused;

/** Is @host (with or without a port) this host by itself: a loopback address, or localhost? Any other name may be one that a
 *  hostile name server has made to mean us, for a browser that then reads what we say (DNS rebinding). */
bool http_host_is_local(const char *host);
