/* SPDX-License-Identifier: MIT */
/* `/live`: what is going on, again and again, to whoever looks at the page: server-sent events, of which each is a whole picture, so that
 * one who was left out misses nothing. While nobody listens nothing is done. */
#pragma once

#include "common/cleanup.h"
#include "common/mp.h"

#define LIVE_MAX_LISTENERS 16u
#define LIVE_MAX_BEHIND 15u    /* pictures in a row that a listener was too slow for: then it is hung up on */
#define LIVE_EVENTS_FIRST 200u /* of forkd's events, the newest ones that a new listener is told */

struct daemon;
struct http;
struct live;

/** Appends the picture to @out, a map. A coroutine call; it may wait, and should not for long. 0 or -errno. */
typedef int live_picture(struct daemon *d, struct mp_buf *out);

/** Answers "/live" of @h from now on with what @picture makes each @period_ms, and with @d's events. -ENOMEM. @d and @h must stay until live_free. */
int live_new(struct daemon *d, struct http *h, live_picture *picture, unsigned period_ms, struct live **ret) attr_warn_unused;
/** Hangs up on everybody. Before the server itself ends. NULL is fine. */
void live_free(struct live *l);

/** Who listens now; how many were hung up on because they read too slowly. */
unsigned live_n_listeners(const struct live *l);
uint64_t live_n_dropped(const struct live *l);
