/* SPDX-License-Identifier: MIT */
/* The agent's end of the conversation: frames in and out over a transport, the epoch and the sequence.
 *
 * Memory is bounded: one frame coming in, CHANNEL_OUT_MAX bytes going out. Who produces data looks at
 * channel_congested first; answers are queued always, and reading stops while too many of them wait. */
#pragma once

#include "agent/loop.h"
#include "agent/msg.h"
#include "agent/transport.h"
#include "agent/wire.h"

#define CHANNEL_CONGESTED (256u << 10) /* queued bytes above which no data is produced … */
#define CHANNEL_RELIEVED (128u << 10)  /* … until the queue has come down to this */
#define CHANNEL_STOP_READING (1u << 20)
#define CHANNEL_OUT_MAX (4u << 20)
#define CHANNEL_READ_CHUNK (16u << 10)
#define CHANNEL_READS_PER_ROUND 16 /* so that a busy host cannot keep the loop from everything else */

struct channel_handlers {
        /** A frame of this epoch, or a WAKE (of any). */
        void (*on_frame)(const struct wire_frame *f, void *arg);
        /** Bytes of the conversation were lost; the epoch is 0 now. */
        void (*on_desync)(void *arg);
        /** Somebody may be listening (anew). */
        void (*on_host)(void *arg);
        /** The queue was congested and is not any more. */
        void (*on_relief)(void *arg);
};

struct channel {
        struct loop *loop;
        struct transport tr;
        struct loop_io io, listen_io;
        bool readable, writable, congested;
        struct wire_parser parser;
        uint64_t epoch; /* 0: none */
        bool lost;      /* on_desync is due */
        uint32_t rx_seq, tx_seq;
        uint8_t *out; /* out_len bytes from out_start wait to be written */
        size_t out_start, out_len, out_cap;
        uint8_t in[CHANNEL_READ_CHUNK];
        const struct channel_handlers *handlers;
        void *arg;
};

/** Takes the transport on success. */
int channel_init(struct channel *ch, struct loop *l, struct transport *tr, const struct channel_handlers *h,
                 void *arg) attr_warn_unused;
void channel_clear(struct channel *ch);

/** Queues a message under the present epoch (a HELLO under 0). Without memory the conversation is given up
 *  (on_desync, from channel_work), which is the only way to keep it from being wrong. */
void channel_send(struct channel *ch, const struct wire_msg *m);
/** Begins a conversation: what was queued for the old one is dropped. */
void channel_begin(struct channel *ch, uint64_t epoch);
bool channel_congested(const struct channel *ch);
/** Gives back the memory of buffers that a busy time has left behind. */
void channel_trim(struct channel *ch);

/** Reads, dispatches and writes a bounded amount. True: call again soon. */
bool channel_work(struct channel *ch);
