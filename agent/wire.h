/* SPDX-License-Identifier: MIT */
/* The wire between forkd and the agent in a guest: one definition for both sides.
 *
 * The channel is a byte stream that may be cut anywhere, in both directions: a snapshot freezes the guest in
 * the middle of a write, and after the restore the host's end is a new socket; a forkd that dies leaves half
 * a frame behind. So a receiver must find the next frame whatever came before it, at once (it may not wait
 * for the missing rest), and must never take payload bytes for a frame.
 *
 * Framing. Each frame is sent as  0x00, COBS(header, payload), 0x00.  COBS (consistent overhead byte
 * stuffing) rewrites bytes so that none of them is zero, at a cost of one byte in 254. A zero byte therefore
 * always means "what came before is over, a frame may begin here": the first byte of a new frame also ends a
 * cut one. No scanning, no guessing, each byte is looked at once; and nothing inside of a payload can look
 * like a frame. (A length prefix with a magic to scan for has neither property: the receiver of a cut frame
 * swallows what follows until the promised length is there, and file contents may contain frames.)
 *
 * Epochs. A WAKE starts a conversation and gives it a random 64-bit number, the epoch; every later frame of
 * both sides carries it, and frames of another epoch are leftovers and dropped. HELLO has epoch 0.
 *
 * Sequence. Frames of one epoch and direction are counted from 0 (WAKE and HELLO stand outside and have 0).
 * A gap means bytes were lost within a conversation: it is over, and begins anew with a WAKE. So data is
 * never lost silently. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"

#define WIRE_PROTOCOL 1
#define WIRE_MAGIC 0x41444b46u /* "FKDA", little endian like all numbers of the header */

/* ---- limits; both sides enforce them on what they receive ---- */
#define WIRE_PAYLOAD_MAX (128u << 10)    /* bytes of one message */
#define WIRE_DATA_MAX (32u << 10)        /* bytes in one DATA */
#define WIRE_CREDIT_INITIAL (256u << 10) /* of each stream, each way */
#define WIRE_MAX_CALLS 64                /* exec, put and get open at a time */
#define WIRE_ARG_BYTES_MAX (96u << 10)   /* argv and env together, with their NULs */
#define WIRE_ARGV_MAX 4096               /* strings in argv, and in env */
#define WIRE_PATH_MAX 4095
#define WIRE_TIMEOUT_MS_MAX (7ull * 24 * 3600 * 1000) /* of an exec */
#define WIRE_FILE_MAX (1ull << 40)                    /* bytes in a put or get */
#define WIRE_HOSTNAME_MAX 63
#define WIRE_MACHINE_ID_LEN 32
#define WIRE_ENTROPY_LEN 64
#define WIRE_VERSION_MAX 31
#define WIRE_BOOT_ID_MAX 36
#define WIRE_MAX_WARNINGS 16
#define WIRE_WARNING_MAX 159
#define WIRE_MESSAGE_MAX 255 /* error text of a call */

enum wire_stream { WIRE_STDIN = 0, WIRE_STDOUT = 1, WIRE_STDERR = 2, WIRE_N_STREAMS = 3 };

enum wire_wake_kind { WIRE_WAKE_BOOT = 0, WIRE_WAKE_RESTORE = 1, WIRE_WAKE_RECONNECT = 2 };

/* ---- frames ---- */

enum wire_type {
        WIRE_HELLO = 1, /* agent → host, epoch 0: I am here and know no epoch */
        WIRE_WAKE,      /* host → agent: this is the epoch, and who you are */
        WIRE_ACK,       /* agent → host: done as told */
        WIRE_PING,      /* host → agent */
        WIRE_PONG,
        WIRE_EXEC, /* host → agent: begin a call */
        WIRE_PUT,
        WIRE_GET,
        WIRE_FILE,   /* agent → host: what the get found */
        WIRE_DATA,   /* both */
        WIRE_EOF,    /* both */
        WIRE_CREDIT, /* both */
        WIRE_RESIZE, /* host → agent */
        WIRE_SIGNAL, /* host → agent */
        WIRE_CANCEL, /* host → agent: the client went away */
        WIRE_DONE,   /* agent → host: the call is over */
        WIRE_N_TYPES,
};

/** Header, before stuffing: magic u32, protocol u8, type u8, zero u16, epoch u64, seq u32, and XXH32 of the
 *  payload, seeded with XXH32 (seed 0) of the header's first 20 bytes. */
#define WIRE_HEADER_LEN 24
#define WIRE_RAW_MAX (WIRE_HEADER_LEN + WIRE_PAYLOAD_MAX)
/** Bytes on the wire of a frame with @payload bytes, at most: both zeros and the stuffing. */
#define WIRE_FRAME_LEN(payload) ((payload) + WIRE_HEADER_LEN + ((payload) + WIRE_HEADER_LEN) / 254 + 1 + 2)
#define WIRE_FRAME_MAX WIRE_FRAME_LEN(WIRE_PAYLOAD_MAX)

struct wire_frame {
        enum wire_type type;
        uint64_t epoch;
        uint32_t seq;
        const uint8_t *payload; /* from the parser: valid until it is fed again */
        size_t len;             /* at most WIRE_PAYLOAD_MAX */
};

/** Writes the frame, at most WIRE_FRAME_LEN(f->len) bytes, to @out. Returns their number. */
size_t wire_encode(const struct wire_frame *f, uint8_t *out);

/** Receives a byte stream. Zero it to begin; wire_parser_clear frees it. It holds at most one frame. */
struct wire_parser {
        uint8_t *raw; /* the frame so far, without stuffing */
        size_t len, cap;
        unsigned left;     /* bytes until the next stuffing code */
        bool implied_zero; /* the next code stands for a zero as well */
        bool skip;         /* too long, or garbage: wait for the next zero */
        bool out;          /* the last call returned a frame: begin anew */
        uint64_t dropped;  /* non-empty things between zeros that were no frame */
};

/** Takes bytes from *data (advancing it, and *len) until a frame is complete. 1: *ret is one; 0: all bytes
 *  taken; -ENOMEM: as if the frame had been garbage. Call it until it returns 0. */
int wire_parser_feed(struct wire_parser *p, const uint8_t **data, size_t *len, struct wire_frame *ret) attr_warn_unused;
void wire_parser_clear(struct wire_parser *p);
