/* SPDX-License-Identifier: MIT */
/* forkd's HTTP server: /metrics, /healthz, and the page. On a loopback address or a unix socket, for reading only. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

struct daemon;
struct http;
struct http_request; /* under way: from the handler's call until it is answered, or its client is gone */

#define HTTP_MAX_CONNS 128u
#define HTTP_MAX_PENDING (4u << 20) /* bytes of a stream that a client has not taken yet */

/** Makes the server of @d, without an address yet. -ENOMEM. */
int http_new(struct daemon *d, struct http **ret) attr_warn_unused;
/** Ends every connection. NULL is fine. */
void http_free(struct http *h);

/** Begins to listen where the configuration says. A taken address, or one that cannot be had, is no error: the default one is
 *  replaced by a free port, any other is tried again every HTTP_RETRY_S seconds. */
void http_open(struct http *h);
/** No new connection from here on; those that are open are closed when their answers have been sent. */
void http_close_door(struct http *h);

/** "127.0.0.1:9464" or "unix:/run/forkd/metrics.sock"; "": it does not listen. */
const char *http_address(const struct http *h);
/** Why it does not listen, or not where it should; "": all is well, or it is off. */
const char *http_problem(const struct http *h);
/** Connections that are open now. */
unsigned http_n_conns(const struct http *h);

/** Answers GET and HEAD of @path ("/metrics"; a query is cut off) from now on with @fn, which runs in the loop, not in a coroutine, and
 *  answers at once or later. @path must stay. -ENOMEM. */
typedef void http_handler(struct http_request *rq, void *arg);
int http_handle(struct http *h, const char *path, http_handler *fn, void *arg) attr_warn_unused;

/** What follows the '?', or "". */
const char *http_query(const struct http_request *rq);
/** @fn is called if the client goes before it was answered, or before the stream has ended; @rq means nothing any more then. */
void http_on_gone(struct http_request *rq, void (*fn)(void *arg), void *arg);

/** Answers, and ends @rq. @type: of the body; @headers: more of them, each "Name: value\r\n", or NULL. A
 *  "Content-Security-Policy" among them replaces ours, which allows nothing. The body is copied; of a HEAD it is left out. */
void http_reply(struct http_request *rq, int status, const char *type, const char *headers, const void *body, size_t len);
/** The same with memory from malloc, which is taken over: for what is large. When clients do not take as much as HTTP_MAX_HELD of
 *  such answers, the next is a 503. */
void http_reply_take(struct http_request *rq, int status, const char *type, const char *headers, char *body, size_t len);
/** A sentence for people. */
void http_fail(struct http_request *rq, int status, const char *sentence);

/** Begins an answer without an end. -EBUSY: too many are under way, -ECANCELED: it was a HEAD: @rq was answered and has ended. */
int http_stream_begin(struct http_request *rq, const char *type, const char *headers) attr_warn_unused;
/** Bytes that the client has not taken yet. One that takes none of them for HTTP_STALL_S seconds is hung up on. */
size_t http_stream_pending(const struct http_request *rq);
/** -ENOBUFS: more than HTTP_MAX_PENDING would be; nothing was sent. */
int http_stream_send(struct http_request *rq, const void *data, size_t len) attr_warn_unused;
void http_stream_end(struct http_request *rq);
