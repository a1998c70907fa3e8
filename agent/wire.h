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
#define WIRE_PAYLOAD_MAX (128u << 10)   /* bytes of one message */
#define WIRE_DATA_MAX (32u << 10)       /* bytes in one DATA */
#define WIRE_CREDIT_INITIAL (256u << 10) /* of each stream, each way */
#define WIRE_MAX_CALLS 64               /* exec, put and get open at a time */
#define WIRE_ARG_BYTES_MAX (96u << 10)  /* argv and env together, with their NULs */
#define WIRE_ARGV_MAX 4096              /* strings in argv, and in env */
#define WIRE_PATH_MAX 4095
#define WIRE_TIMEOUT_MS_MAX (7ull * 24 * 3600 * 1000) /* of an exec */
#define WIRE_FILE_MAX (1ull << 40)      /* bytes in a put or get */
#define WIRE_HOSTNAME_MAX 63
#define WIRE_MACHINE_ID_LEN 32
#define WIRE_ENTROPY_LEN 64
#define WIRE_VERSION_MAX 31
#define WIRE_BOOT_ID_MAX 36
#define WIRE_MAX_WARNINGS 16
#define WIRE_WARNING_MAX 159
#define WIRE_MESSAGE_MAX 255            /* error text of a call */

enum wire_stream { WIRE_STDIN = 0, WIRE_STDOUT = 1, WIRE_STDERR = 2, WIRE_N_STREAMS = 3 };

enum wire_wake_kind { WIRE_WAKE_BOOT = 0, WIRE_WAKE_RESTORE = 1, WIRE_WAKE_RECONNECT = 2 };
