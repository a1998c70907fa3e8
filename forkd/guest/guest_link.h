/* SPDX-License-Identifier: MIT */
/* forkd's side of the conversation with the agent in one guest.
 *
 * A link is one connection to the VMM's agent channel (for QEMU the listening unix socket of the
 * virtio-serial chardev). Its life:
 *
 *     guest_link_new → guest_link_connect ─┬→ guest_link_wait_hello   (a guest that boots: wait for its agent)
 *                                          └→ (a guest that was restored or is taken back: no HELLO comes)
 *     → guest_link_queue_wake → [start the vCPUs] → guest_link_wait_ack → calls → guest_link_free
 *
 * The guest is hostile. Each frame is checked and bounded (agent/wire.h); a guest that sends more than the
 * credit it has, or anything else that the protocol does not allow after the acknowledgement, loses the link:
 * every open call ends with an error and on_lost is called. Nothing a guest sends makes forkd buffer more
 * than one frame (WIRE_FRAME_MAX): data is handed on at once, and the credit bounds what the one who gets it
 * must hold.
 *
 * All functions belong to the loop's thread. Callbacks run on the loop's own stack, never inside a function
 * of this header; from inside a callback all functions may be called, guest_link_free included. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/wire.h"
#include "common/err.h"

struct guest_link; /* one VM's agent connection */
struct guest_call; /* one exec, put or get on it */

/** Makes a link to the listening unix stream socket @socket_path; nothing is connected yet. -ENOMEM,
 *  -ENAMETOOLONG. */
int guest_link_new(struct event_base *base, const char *socket_path, struct guest_link **ret) attr_warn_unused;

/** Closes the connection and forgets every call without a callback. No coroutine may be waiting in a function
 *  below. NULL is fine. */
void guest_link_free(struct guest_link *l);
DEFINE_CLEANUP(struct guest_link, guest_link_free)

/** Called once when an acknowledged link is lost (@r: -EPIPE the VMM closed it, -EPROTO the guest broke the
 *  protocol, -ECONNRESET the agent started anew or lost its place in the stream), after every open call has
 *  had its on_done. Afterwards only guest_link_free makes sense; a new link with a wake of kind
 *  WIRE_WAKE_RECONNECT gets the agent back. */
void guest_link_set_on_lost(struct guest_link *l, void (*fn)(int r, void *arg), void *arg);

/* ---- getting in touch: coroutine calls. Errors are -errno with *e filled (ERR_AGENT, ERR_TIMEOUT);
 * -ETIMEDOUT when @timeout_ms (> 0) has passed. ---- */

/** Connects; while the socket does not exist or refuses, it is tried again until the deadline. */
int guest_link_connect(struct guest_link *l, int timeout_ms, struct err *e) attr_warn_unused;

/** Waits for the HELLO of an agent that has just started. */
int guest_link_wait_hello(struct guest_link *l, int timeout_ms, struct err *e) attr_warn_unused;

/** Who the guest is from now on. The hostname and machine-id may be empty: they are then left alone. With
 *  WIRE_WAKE_RECONNECT only `kind` counts. */
struct guest_identity {
        enum wire_wake_kind kind; /* WIRE_WAKE_BOOT, _RESTORE, _RECONNECT */
        char hostname[WIRE_HOSTNAME_MAX + 1];
        char machine_id[WIRE_MACHINE_ID_LEN + 1]; /* 32 lower case hex digits, or "" */
        uint8_t entropy[WIRE_ENTROPY_LEN];        /* fresh from random_bytes, never used twice */
};

/** Draws a new epoch and writes the WAKE into the channel, so that it is there before the vCPUs run. The
 *  clock that the guest is set to is that of this call: make it right before the resume. Does not wait.
 *  -ENOTCONN, -EINVAL (a hostname or machine-id that is none), -EPIPE. */
int guest_link_queue_wake(struct guest_link *l, const struct guest_identity *id) attr_warn_unused;

/** What the agent says after a wake-up. */
struct guest_ack {
        char agent_version[WIRE_VERSION_MAX + 1];
        char boot_id[WIRE_BOOT_ID_MAX + 1];
        unsigned n_warnings;
        char warnings[WIRE_MAX_WARNINGS][WIRE_WARNING_MAX + 1]; /* steps that failed; printable ASCII only */
        /* What each step took in the guest, µs. */
        uint64_t entropy_us, clock_us, hostname_us, machine_id_us, hooks_us;
};

/** Waits for the acknowledgement of the last queue_wake. The WAKE is sent again (same epoch, present time)
 *  while none comes: after 250 ms, then after twice as long each time, at most 2 s. @ret may be NULL. */
int guest_link_wait_ack(struct guest_link *l, int timeout_ms, struct guest_ack *ret, struct err *e) attr_warn_unused;

/** Ends the conversation and keeps the connection: the next wake-up needs no new one. What the guest still says is dropped. Only of a
 *  link without open calls; of one that is not acknowledged nothing changes. */
void guest_link_rewind(struct guest_link *l);
/** Is there a connection on which a wake-up can be queued? */
bool guest_link_is_open(const struct guest_link *l);

/** Is the link acknowledged, so that calls can be made? */
bool guest_link_ready(const struct guest_link *l);

/** Round trip to the agent. One at a time per coroutine, any number of coroutines. */
int guest_link_ping(struct guest_link *l, int timeout_ms, double *ret_ms, struct err *e) attr_warn_unused;

/** Asks the agent for a sign of life and waits for nothing: what it says, this answer or anything else, shows in guest_link_heard_ns.
 *  One is under way at a time; on a link that is not ready nothing is sent. */
void guest_link_poke(struct guest_link *l);
/** When the last valid frame of the agent came, CLOCK_MONOTONIC in ns; 0: none has. */
uint64_t guest_link_heard_ns(const struct guest_link *l);

/* ---- calls: exec, put, get ---- */

/** How a call ended. */
struct guest_result {
        int r;              /* 0: see below; -errno: it could not be done, or the link was lost */
        struct err e;       /* filled when r < 0. An exec that could not be run (no such file …): ERR_INVALID or
                           * ERR_NOT_FOUND by its errno; link lost: ERR_AGENT */
        bool could_not_run; /* exec: the command never ran (125 for the caller); r is then its errno */
        bool signaled;      /* exec: a signal ended it, `code` is its number; else `code` is the exit status */
        int code;
        bool timed_out; /* exec: its timeout ended it */
        uint64_t bytes; /* put, get: the file's size as transferred */
        uint32_t mode;  /* get: permission bits */
};

/** Streams: WIRE_STDIN (0) to the guest, also a put's data; WIRE_STDOUT (1) and WIRE_STDERR (2) from it, a
 *  get's data on 1. Every stream starts with WIRE_CREDIT_INITIAL bytes of credit. */
struct guest_call_handlers {
        /** @len (1 … WIRE_DATA_MAX) bytes of @stream; valid during the callback. The guest may send on when
         *  guest_call_credit gives these bytes back. */
        void (*on_data)(unsigned stream, const void *data, size_t len, void *arg);
        /** No more data on @stream. Not called for streams still open when the call ends with an error, nor for
         *  WIRE_STDERR with a terminal, which has only WIRE_STDOUT. */
        void (*on_eof)(unsigned stream, void *arg);
        /** The guest took @bytes of @stream (0): as many more may be sent. May be NULL. */
        void (*on_credit)(unsigned stream, uint32_t bytes, void *arg);
        /** Exactly once, last; @call is gone when it returns. Not after guest_call_cancel. */
        void (*on_done)(const struct guest_result *res, void *arg);
        /** get only, before the first data: the file's size (it may change while it is read) and mode.
         *  May be NULL. */
        void (*on_file)(uint64_t size, uint32_t mode, void *arg);
};

struct guest_exec_params {
        const char *const *argv; /* NULL-terminated, argv[0] looked up in the guest's PATH */
        const char *const *env;  /* NULL-terminated "KEY=value", added to the guest's defaults; NULL: none */
        const char *cwd;         /* absolute, NULL: "/" */
        bool tty;                /* a terminal; all output on WIRE_STDOUT */
        uint16_t rows, cols;     /* of the terminal; 0: 24 × 80 */
        bool has_stdin;          /* false: the command reads end of file */
        double timeout_s;        /* 0: none */
};

/** Begin a call; what happens is told by @h (copied) with @arg. -ENOTCONN when the link is not ready, -EBUSY
 *  when WIRE_MAX_CALLS are open, -ENOBUFS while the guest does not read what it was sent, -E2BIG or -EINVAL for
 *  parameters beyond the limits of wire.h. */
int guest_exec(struct guest_link *l, const struct guest_exec_params *p, const struct guest_call_handlers *h, void *arg,
               struct guest_call **ret, struct err *e) attr_warn_unused;
/** Writes a file of @size bytes sent with guest_call_send and guest_call_eof: beside @path first, then
 *  renamed, so that nobody sees half of it. @path is absolute; @mode permission bits. When fewer or more
 *  than @size bytes come, the file is not replaced. */
int guest_put(struct guest_link *l, const char *path, uint32_t mode, uint64_t size, const struct guest_call_handlers *h,
              void *arg, struct guest_call **ret, struct err *e) attr_warn_unused;
/** Reads a regular file as stream 1. */
int guest_get(struct guest_link *l, const char *path, const struct guest_call_handlers *h, void *arg, struct guest_call **ret,
              struct err *e) attr_warn_unused;

/** Sends @len bytes (any number up to the credit left) on stream 0. -EDQUOT beyond the credit, -EPIPE after
 *  guest_call_eof or on a call without stdin: nothing was sent then. */
int guest_call_send(struct guest_call *c, const void *data, size_t len) attr_warn_unused;
/** Ends stream 0. Doing it twice is harmless. */
int guest_call_eof(struct guest_call *c);
/** Gives @bytes of credit for @stream back to the guest. -EINVAL when more than was used. */
int guest_call_credit(struct guest_call *c, unsigned stream, uint32_t bytes);
int guest_call_resize(struct guest_call *c, uint16_t rows, uint16_t cols);
/** Sends signal @signo (1 … 64) to the command's process group; with a terminal to its foreground group. */
int guest_call_signal(struct guest_call *c, int signo);
/** The client went away: a command gets SIGHUP, and SIGKILL when it lives on for 5 s; a put leaves nothing.
 *  No more callbacks; @c is gone. NULL is fine. */
void guest_call_cancel(struct guest_call *c);
