/* SPDX-License-Identifier: MIT */
/* MessagePack-RPC on a unix stream socket, as its specification has it:
 *     [0, msgid, method, params]   request
 *     [1, msgid, error, result]    response (error is nil, or a map {code, message, hint})
 *     [2, method, params]          notification
 * params are a map. For clients whose libraries can only send argument lists, an array that holds one map,
 * or nothing, is taken as that map. Descriptors travel as SCM_RIGHTS beside the bytes; a message that
 * brings n of them says so with the key "fds": n in its params or result.
 *
 * A connection is bound to a libevent loop and non-blocking. Both sides may call. What a peer sends is
 * bounded: RPC_MAX_MESSAGE bytes a message, RPC_MAX_PENDING_FDS descriptors not yet claimed; a peer that
 * breaks the protocol gets an error reply where one is possible, then the connection is closed. A peer that
 * does not read its answers is not read from; one that has too many requests open has more of them refused; one
 * that sends many messages takes turns with the others, RPC_TURN_MESSAGES at a time. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "common/co.h"
#include "common/err.h"
#include "common/mp.h"

#define RPC_MAX_MESSAGE (4u << 20)
#define RPC_MAX_METHOD 64
#define RPC_MAX_PENDING_FDS 32
#define RPC_TURN_MESSAGES 32 /* of one connection; then others have their turn */
#define RPC_CO_MAX_FDS 4     /* descriptors in an answer that a coroutine takes */

struct rpc_conn;

/** A request or notification that arrived. Valid during the callback only; to answer later keep the
 *  connection (rpc_conn_ref) and @msgid. */
struct rpc_msg {
        struct rpc_conn *conn;
        bool is_request; /* false: a notification, which gets no answer */
        uint32_t msgid;
        char method[RPC_MAX_METHOD + 1];
        const msgpack_object *params; /* a map, or NULL when there were none */
        int *fds;                     /* owned by the message; take one with TAKE_FD(msg->fds[i]) */
        size_t n_fds;
        const void *raw_params; /* the encoded params map, for a handler that goes on in a coroutine */
        size_t raw_params_len;
};

struct rpc_handlers {
        /** A request or notification. A request must be answered sooner or later with rpc_reply or
         *  rpc_reply_err. */
        void (*on_message)(struct rpc_msg *msg, void *arg);
        /** The connection is gone (@r: 0 for an orderly end, else -errno). Calls without an answer have
         *  failed by then. Called once; the owner drops its reference here. May be NULL. */
        void (*on_close)(struct rpc_conn *conn, int r, void *arg);
        /** The bytes queued for the peer fell below half of RPC_SEND_LOW: producers may go on. May be NULL. */
        void (*on_drain)(struct rpc_conn *conn, void *arg);
};
#define RPC_SEND_LOW (256u << 10)
/* With more queued than this, what the peer sends waits in its socket until half of it has been read. */
#define RPC_MAX_QUEUED (8u << 20)

/** Takes @fd, also on failure (made non-blocking). One reference belongs to the caller. */
int rpc_conn_new(struct event_base *base, int fd, const struct rpc_handlers *handlers, void *arg,
                 struct rpc_conn **ret) attr_warn_unused;
struct rpc_conn *rpc_conn_ref(struct rpc_conn *c);
/** Drops a reference; the last one closes without calling on_close, and no callback comes after it. An owner
 *  who goes away while others may hold references closes first. NULL is fine. */
void rpc_conn_unref(struct rpc_conn *c);
/** Closes now: pending calls fail with -ECANCELED; on_close is called with 0 from the loop's next turn. */
void rpc_conn_close(struct rpc_conn *c);
bool rpc_conn_is_open(const struct rpc_conn *c);
/** Bytes that wait to be sent: the measure for back-pressure. */
size_t rpc_conn_queued(const struct rpc_conn *c);
/** What a connection holds at the moment. */
struct rpc_conn_use {
        size_t unread;          /* bytes that came and are no whole message yet, or wait for their turn */
        size_t memory;          /* of both directions' buffers */
        unsigned open_requests; /* of the peer, not answered yet */
};
void rpc_conn_use(const struct rpc_conn *c, struct rpc_conn_use *ret);
/** SO_PEERCRED, read when the connection was made. */
const struct ucred *rpc_conn_peer(const struct rpc_conn *c);
void *rpc_conn_arg(const struct rpc_conn *c);

/* ---- the calling side. @params: an encoded map in @b, or NULL for an empty one. Descriptors stay the
 * caller's (they are duplicated into the queue). ---- */

/** The answer: on success @r is 0 and @result the value (its descriptors in @fds, to be taken as above);
 *  else @r is -errno and @e tells why. */
struct rpc_result {
        int r;
        struct err e;
        const msgpack_object *result;
        int *fds;
        size_t n_fds;
        const void *raw; /* the encoded result */
        size_t raw_len;
};
typedef void (*rpc_result_fn)(const struct rpc_result *res, void *arg);

int rpc_call(struct rpc_conn *c, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds, rpc_result_fn fn,
             void *arg, uint32_t *ret_msgid) attr_warn_unused;
/** Forgets a call: its @fn will not be called any more. */
void rpc_call_cancel(struct rpc_conn *c, uint32_t msgid);
/** A lost notification is not an error the sender can mend; the result tells of -EMSGSIZE and -ENOTCONN. */
int rpc_notify(struct rpc_conn *c, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds);

/** A call by a coroutine, begun and waited for separately so that it can do something else meanwhile. Lives on
 *  the caller's stack; what was begun must be ended. */
struct rpc_co {
        struct rpc_conn *conn;
        const char *method;
        uint32_t msgid;
        struct co_wait wait;
        struct err e;
        void *raw; /* the encoded result */
        size_t raw_len;
        int fds[RPC_CO_MAX_FDS];
        size_t n_fds;
};
/** The result of a call: free with rpc_answer_clear. Descriptors: take one with TAKE_FD. */
struct rpc_answer {
        struct mp_doc doc;
        void *raw;
        size_t raw_len;
        int fds[RPC_CO_MAX_FDS];
        size_t n_fds;
};
void rpc_answer_clear(struct rpc_answer *a);
#define cleanup_rpc_answer attr_cleanup(rpc_answer_clear)

/** Sends the call. On failure there is nothing to end. */
int rpc_co_begin(struct rpc_co *call, struct rpc_conn *c, const char *method, const struct mp_buf *params, const int *fds,
                 size_t n_fds, struct err *e) attr_warn_unused;
/** Waits for the answer at most @timeout_ms (-1: for ever); *ret may be NULL. */
int rpc_co_end(struct rpc_co *call, int timeout_ms, struct rpc_answer *ret, struct err *e) attr_warn_unused;
/** Both. */
int rpc_call_co(struct rpc_conn *c, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds, int timeout_ms,
                struct rpc_answer *ret, struct err *e) attr_warn_unused;

/* ---- the answering side; a connection that is gone swallows the answer ---- */

/** @result: encoded value, NULL for an empty map. */
int rpc_reply(struct rpc_conn *c, uint32_t msgid, const struct mp_buf *result, const int *fds, size_t n_fds);
int rpc_reply_err(struct rpc_conn *c, uint32_t msgid, const struct err *e);

/* ---- a listening socket ---- */
struct rpc_listener;
/** Accepts on @listen_fd (taken) and hands each new descriptor to @fn. When descriptors run out, accepting
 *  pauses for a second instead of spinning. */
int rpc_listener_new(struct event_base *base, int listen_fd, void (*fn)(int fd, void *arg), void *arg,
                     struct rpc_listener **ret) attr_warn_unused;
void rpc_listener_free(struct rpc_listener *l);
