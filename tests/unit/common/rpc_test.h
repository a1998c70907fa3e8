/* SPDX-License-Identifier: MIT */
/* One end is a struct rpc_conn on a loop, the other a bare socket (or a second connection): a test says byte
 * by byte what the peer does. */
#pragma once

#include "common_test.h"

#include "common/rpc.h"

#define TEST_DEADLINE_MS 20000

/** Runs the loop until *@what is at least @n; fails the test after TEST_DEADLINE_MS. */
void loop_until(struct event_base *base, const unsigned *what, unsigned n);
/** Handles whatever is there to be handled now, timers that are due included, and returns. */
void loop_once(struct event_base *base);

struct peer {
        struct event_base *base;
        struct rpc_conn *c;
        int fd; /* the other end */
        /* what was seen */
        unsigned n_messages, n_closed, n_drained;
        int close_r;
        char method[RPC_MAX_METHOD + 1]; /* of the last message */
        unsigned n_fds;                  /* of the last message */
        /* what on_message does, if not NULL, after counting; by default requests are answered with {} */
        void (*on_message)(struct rpc_msg *m, struct peer *p);
        void (*on_close)(struct rpc_conn *c, struct peer *p);
        void (*on_drain)(struct rpc_conn *c, struct peer *p);
        void *arg;
};

/** Starts a connection on one end of a socket pair. */
void peer_start(struct peer *p);
/** As peer_start, on @fd (taken) and @base. */
void peer_start_on(struct peer *p, struct event_base *base, int fd);
/** Drops the connection (if it is still held) and the loop. */
void peer_end(struct peer *p);

/** Writes bytes to the connection, with descriptors. */
void peer_write(struct peer *p, const void *data, size_t len, const int *fds, size_t n_fds);
/** Encodes [0, id, method, params] with params already encoded (NULL: {}). */
void put_request(struct mp_buf *b, uint32_t id, const char *method, const struct mp_buf *params);
void peer_request(struct peer *p, uint32_t id, const char *method);

/** Reads the next whole message from the connection, running the loop meanwhile. Free with reply_clear. */
struct reply {
        struct mp_doc doc;
        char *bytes;
        size_t len;
        int fd; /* the first descriptor that came with it, or -1 */
};
void peer_read(struct peer *p, struct reply *ret);
void reply_clear(struct reply *r);
#define cleanup_reply attr_cleanup(reply_clear)
/** Reads a response and checks its id; its error's code, or "" if it has none, must be @code. */
void peer_expect(struct peer *p, uint32_t id, const char *code);
/** Reads until the end of the stream; what comes before it must be the notification `error`, if anything. */
void peer_expect_hangup(struct peer *p, bool with_reason);

/** Two connections that talk to each other on one loop. */
struct pair {
        struct peer a, b;
};
void pair_start(struct pair *p);
void pair_end(struct pair *p);
