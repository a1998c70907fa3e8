/* SPDX-License-Identifier: MIT */
/* Between http.c, which listens, accepts and bounds, and http_request.c, which answers. */
#pragma once

#include <event2/buffer.h>
#include <event2/event.h>
#include <microhttpd.h>
#include <sys/queue.h>

#include "forkd/monitor/http.h"
#include "forkd/monitor/http_address.h"
#include "forkd/monitor/http_check.h"

#define HTTP_MAX_STREAMS 32u
#define HTTP_MAX_ROUTES 16u
#define HTTP_MAX_HELD (32u << 20) /* bytes of answers that clients have not taken yet, of all together */
#define HTTP_MEMORY 16384u        /* of a connection: a request's head, and what of its answer is on the way */
#define HTTP_FIRST_S 10           /* for a client's first request to be complete */
#define HTTP_NEXT_S 120           /* for each that follows */
#define HTTP_STALL_S 30           /* for a client that sends nothing, or takes nothing */
#define HTTP_ANSWER_S 60          /* for one that takes an answer slowly */
#define HTTP_RETRY_S 5            /* an address that is taken is tried again */

struct http_route {
        const char *path;
        http_handler *fn;
        void *arg;
};

struct http_request {
        struct http_conn *c;
        struct MHD_Connection *mhd;
        enum {
                HTTP_FRESH,     /* its head was read */
                HTTP_ANSWERING, /* a handler has it */
                HTTP_ANSWERED,  /* there is a response */
                HTTP_STREAMING, /* … which has no end yet */
        } state;
        bool suspended; /* the library waits for us */
        bool head;      /* HEAD: what would be told, without it */
        char path[HTTP_MAX_TARGET + 1];
        const char *query; /* in path */
        int status;
        struct MHD_Response *response; /* a reference */
        struct evbuffer *out;          /* of a stream: what the client has not taken */
        size_t held;                   /* bytes of its answer that count in h->held */
        void (*gone)(void *arg);
        void *gone_arg;
};

struct http_conn {
        TAILQ_ENTRY(http_conn) entry;
        struct http *h;
        int fd;                           /* the library's */
        char target[HTTP_MAX_TARGET + 2]; /* of the request that is being read; one that is too long has no end */
        bool asked;                       /* it has had an answer */
        bool leaving;                     /* it was shut down */
        uint64_t since_ns;                /* waits for a request, or an answer's end, since then */
        struct http_request *rq;          /* NULL: none is under way */
};

struct http {
        struct daemon *d;
        struct http_address where;
        char address[HTTP_ADDRESS_LEN], problem[240];
        struct rpc_listener *listener;
        struct MHD_Daemon *mhd;
        struct event *ready, *timer; /* what the library waits for */
        struct event *retry, *sweep;
        struct http_route route[HTTP_MAX_ROUTES];
        unsigned n_routes, n_conns, n_streams;
        size_t held;
        TAILQ_HEAD(, http_conn) conns;
        bool closing;
};

/** The library's: a request, in one or more calls. */
enum MHD_Result http_on_request(void *cls, struct MHD_Connection *mhd, const char *url, const char *method, const char *version,
                                const char *body, size_t *body_size, void **con_cls);
void http_on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls, enum MHD_RequestTerminationCode how);
/** Its handler is told that the client is gone, if it still has it. */
void http_request_abandon(struct http_request *rq);
