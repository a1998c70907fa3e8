/* SPDX-License-Identifier: MIT */
/* What link.c (connection, epoch, wake-up) and call.c (exec, put, get) share. */
#pragma once

#include <event2/buffer.h>

#include "agent/msg.h"
#include "common/co.h"
#include "forkd/guest/guest_link.h"

/* Bytes queued for a guest that does not read, beyond which nothing new is begun. What is open may add its
 * credit, so that WIRE_MAX_CALLS × WIRE_CREDIT_INITIAL = 16 MiB more is the most there can be. */
#define GUEST_OUT_FULL (4u << 20)

struct guest_ping {
        uint64_t n;
        struct co_wait wait;
        struct guest_ping *next;
};

struct guest_call {
        struct guest_link *l;
        uint32_t id;
        enum wire_type type; /* WIRE_EXEC, _PUT, _GET */
        struct guest_call_handlers h;
        void *arg;
        uint32_t send_credit;                  /* bytes of stream 0 that may still be sent */
        bool send_closed;                      /* eof was sent, or there is no stream 0 */
        uint32_t recv_credit[WIRE_N_STREAMS];  /* bytes that the guest may still send */
        uint32_t recv_owed[WIRE_N_STREAMS];    /* bytes handed on, not yet given back */
        uint32_t recv_pending[WIRE_N_STREAMS]; /* given back, not yet told to the guest */
        bool recv_closed[WIRE_N_STREAMS];
        bool got_file; /* get: FILE has come */
        uint32_t mode;
        uint64_t received; /* get: bytes of the file */
        bool gone;         /* on_done is running: nothing can be done with the call any more */
        struct guest_call *prev, *next;
};

enum link_state { LINK_NEW, LINK_CONNECTED, LINK_READY, LINK_LOST };

struct guest_link {
        struct event_base *base;
        char *path;
        enum link_state state;
        int fd;
        struct event *read_ev, *write_ev;
        struct event *lost_ev; /* activated to tell of a loss from the loop's own stack */
        int lost_r;
        struct evbuffer *out;
        struct wire_parser parser;
        uint64_t epoch;
        uint32_t rx_seq, tx_seq;

        bool hello_seen;
        struct wire_hello hello;
        struct co_wait *hello_wait, *ack_wait;
        struct wire_wake wake;
        struct wire_ack ack;
        struct guest_ping *pings;
        uint64_t next_ping, poke; /* `poke`: the ping that nobody waits for and that was not answered yet; 0: there is none */
        uint64_t heard_ns;

        struct guest_call *calls;
        unsigned n_calls;
        uint32_t next_call;

        void (*on_lost)(int r, void *arg);
        void *on_lost_arg;
        unsigned busy; /* callbacks under way: freeing waits for their end */
        bool freed;
};

/** Queues a message and tries to write. -ENOTCONN, -ENOMEM, -ENOBUFS; a broken connection shows later. */
int link_send(struct guest_link *l, const struct wire_msg *m) attr_warn_unused;
/** Gives the link up; calls and waiters hear of it from the loop. Only the first reason counts. */
void link_fail(struct guest_link *l, int r);

/** A message of a call. 0, or -EPROTO if it is none that the guest may send. */
int call_on_message(struct guest_link *l, const struct wire_msg *m) attr_warn_unused;
/** Ends all calls with the error of a lost link. */
void calls_fail(struct guest_link *l, int r);
/** Frees all calls silently. */
void calls_clear(struct guest_link *l);

const char *link_lost_reason(int r);
