/* SPDX-License-Identifier: MIT */
/* A call with byte streams beside it (vm.exec, vm.put, vm.get): flow control by credits in both directions,
 * so that memory stays bounded whoever is slow. See docs/protocol.md, section 1. */
#pragma once

#include <event2/buffer.h>
#include <event2/event.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/rpc.h"
#include "forkctl/client.h"

#define STREAM_WINDOW (256u << 10)   /* what each side may send before it hears of a credit */
#define STREAM_MAX_CHUNK (64u << 10) /* bytes in one stream.data */
#define STREAM_GRANT (64u << 10)     /* credits are returned in pieces of at least this */
#define STREAM_N_OUT 3               /* streams 0 … 2; 0 only goes to forkd */

struct streams;

/** A descriptor that output goes to. Several streams may share one. */
struct sink {
        struct streams *s;
        int fd; /* not owned; blocking or not */
        struct evbuffer *buf;
        struct event *ev;
        bool broken;    /* nobody reads it any more */
        bool may_break; /* then its data is dropped and the call goes on (stderr) */
};

struct stream_in {
        struct sink *sink; /* NULL: forkd may not send on this stream */
        uint32_t allowed;  /* bytes that forkd may still send */
        uint32_t owed;     /* bytes that came and were not allowed anew yet */
        bool eof;
        uint64_t total;
};

struct streams {
        struct ctl *c;
        const char *method;
        uint32_t call;

        /* What we send, as stream 0. */
        int in_fd; /* not owned; -1: nothing to send */
        struct event *in_ev;
        uint64_t credit;
        uint64_t left; /* bytes that may still be read; UINT64_MAX: until the end of file */
        bool exact;    /* an end of file before `left` is an error: the size was promised */
        bool in_done;
        uint64_t sent;

        struct sink sinks[2];
        size_t n_sinks;
        struct stream_in out[STREAM_N_OUT];

        uint64_t file_size; /* of a vm.get, once it is known */

        /** Turns received bytes into what is written; NULL: they are written as they are. */
        int (*encode)(struct streams *s, unsigned stream, const void *data, size_t len, struct evbuffer *to);
        void *arg; /* for encode */

        bool answered;
        json_t *result;
        int r;            /* the first failure, c->e tells; ends the run */
        bool pipe_closed; /* the failure is that our stdout is closed: nothing to tell anybody */
};

void streams_init(struct streams *s, struct ctl *c);
void streams_clear(struct streams *s);
#define cleanup_streams attr_cleanup(streams_clear)

/** A sink that writes to @fd. At most two. */
int streams_sink(struct streams *s, int fd, struct sink **ret) attr_warn_unused;

/** Starts the call and the stream to forkd (s->in_fd, s->left). */
int streams_start(struct streams *s, const char *method, const struct req *q) attr_warn_unused;

/** Runs until forkd has answered and all output is written, or something failed. */
int streams_run(struct streams *s) attr_warn_unused;

/** Ends the run from a callback. @r < 0, c->e is set. */
void streams_fail(struct streams *s, int r);

/** Sends a notification that carries the call: keys and values of @q. A failure ends the run; on a connection
 *  that is gone nothing happens: the call itself will fail. */
void streams_notify(struct streams *s, const char *method, const struct req *q);
