/* SPDX-License-Identifier: MIT */
/* The payloads of frames: one struct per message, written by wire_msg_encode and read by wire_msg_decode,
 * so that both sides agree by construction. A payload is a MessagePack map; unknown keys are ignored, which
 * is how later versions add to a message. Decoding checks every limit of wire.h; what it returns can be used
 * without looking again. */
#pragma once

#include <sys/types.h>

#include "agent/wire.h"
#include "common/mp.h"

struct wire_hello { /* WIRE_HELLO */
        char version[WIRE_VERSION_MAX + 1];
        char boot_id[WIRE_BOOT_ID_MAX + 1];
        uint32_t pid;
};

struct wire_wake { /* WIRE_WAKE; for _RECONNECT only `kind` is set */
        enum wire_wake_kind kind;
        uint64_t realtime_ns;                     /* since 1970 */
        char hostname[WIRE_HOSTNAME_MAX + 1];     /* "" leaves the guest's */
        char machine_id[WIRE_MACHINE_ID_LEN + 1]; /* "" leaves the guest's */
        uint8_t entropy[WIRE_ENTROPY_LEN];
};

enum wire_step { WIRE_STEP_ENTROPY, WIRE_STEP_CLOCK, WIRE_STEP_HOSTNAME, WIRE_STEP_MACHINE_ID, WIRE_STEP_HOOKS, WIRE_N_STEPS };

struct wire_ack { /* WIRE_ACK */
        char version[WIRE_VERSION_MAX + 1];
        char boot_id[WIRE_BOOT_ID_MAX + 1];
        uint64_t us[WIRE_N_STEPS]; /* what each step took */
        unsigned n_warnings;
        char warnings[WIRE_MAX_WARNINGS][WIRE_WARNING_MAX + 1]; /* printable ASCII */
};

struct wire_exec {                            /* WIRE_EXEC */
        const char *const *argv, *const *env; /* NULL-terminated; decoded ones belong to the message */
        char cwd[WIRE_PATH_MAX + 1];          /* absolute */
        bool tty, has_stdin;
        uint16_t rows, cols;
        uint64_t timeout_ms; /* 0: none */
};

struct wire_file {                    /* WIRE_PUT: all; WIRE_GET: path; WIRE_FILE: mode, size */
        char path[WIRE_PATH_MAX + 1]; /* absolute, no NUL */
        uint32_t mode;                /* permission bits, & 07777 */
        uint64_t size;
};

struct wire_data { /* WIRE_DATA */
        unsigned stream;
        const void *data; /* decoded: points into the payload */
        size_t len;       /* 1 … WIRE_DATA_MAX */
};

struct wire_credit { /* WIRE_CREDIT */
        unsigned stream;
        uint32_t bytes; /* 1 … WIRE_CREDIT_INITIAL */
};

struct wire_done {                          /* WIRE_DONE */
        int error;                          /* errno (positive), or 0 */
        char message[WIRE_MESSAGE_MAX + 1]; /* printable ASCII */
        bool not_run, signaled, timed_out;
        int code;       /* exit status or signal */
        uint64_t bytes; /* put, get */
};

struct wire_msg {
        enum wire_type type;
        uint32_t call; /* of EXEC … DONE; never 0 */
        union {
                struct wire_hello hello;
                struct wire_wake wake;
                struct wire_ack ack;
                uint64_t ping; /* WIRE_PING, WIRE_PONG: a number that comes back */
                struct wire_exec exec;
                struct wire_file file;
                struct wire_data data;
                unsigned eof_stream;
                struct wire_credit credit;
                struct {
                        uint16_t rows, cols;
                } resize;
                int signal; /* 1 … 64 */
                struct wire_done done;
        };
        /* of a decoded message */
        struct mp_doc doc;
        void *strings;
};

/** Appends the payload of @m to @b; a lack of memory shows in b->failed, a payload beyond WIRE_PAYLOAD_MAX
 *  is the caller's to check (only EXEC, PUT and GET can get there, and their limits exclude it). */
void wire_msg_encode(const struct wire_msg *m, struct mp_buf *b);

/** Reads the payload of a frame, which must outlive the message. -EBADMSG: no such message, or beyond a
 *  limit; -ENOMEM. On failure nothing is to be cleared. */
int wire_msg_decode(const struct wire_frame *f, struct wire_msg *ret) attr_warn_unused;
void wire_msg_clear(struct wire_msg *m);
#define cleanup_wire_msg attr_cleanup(wire_msg_clear)

/** Replaces everything but printable ASCII, so that a guest's words cannot steer a terminal or a log. */
void wire_printable(char *s);

/** 32 lower case hex digits. */
bool wire_machine_id_valid(const char *s);
/** [A-Za-z0-9] then [A-Za-z0-9._-], at most WIRE_HOSTNAME_MAX: every name of a VM is one. */
bool wire_hostname_valid(const char *s);
