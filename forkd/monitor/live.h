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

struct live_source {
        /** Appends the picture to @out, a map. A coroutine call; it may wait, and should not for long. 0 or -errno. */
        int (*picture)(struct daemon *d, struct mp_buf *out);
        /** Appends what a new listener is told before its first picture, a map: what went on before it came. At once. */
        void (*lately)(struct daemon *d, struct mp_buf *out);
        unsigned period_ms;
};

/** Answers "/live" of @h from now on with what @source makes, and with @d's events. -ENOMEM. All three must stay until live_free. */
int live_new(struct daemon *d, struct http *h, const struct live_source *source, struct live **ret) attr_warn_unused;
/** Hangs up on everybody, and waits until no picture is being made, at most @timeout_ms. A coroutine call. */
void live_settle(struct live *l, int timeout_ms);
/** Hangs up on everybody. Before the server itself ends. NULL is fine. */
void live_free(struct live *l);

/** Who listens now; how many were hung up on because they read too slowly. */
unsigned live_n_listeners(const struct live *l);
uint64_t live_n_dropped(const struct live *l);
