/* SPDX-License-Identifier: MIT */
/* What a VMM shell is told: by forkd, to the attach library in it (wait.c), on the socket FORKD_ATTACH_WAIT_FD.
 *
 * One message (SOCK_SEQPACKET): this header, with as many descriptors beside it as it has entries. Each says what its
 * descriptor is for. The answer is one byte, ATTACH_WAIT_DONE, when guest memory is in its place. A hang-up before the message
 * ends the shell. */
#pragma once

#include <stdint.h>

#define ATTACH_WAIT_MAGIC 0x6c656873u /* "shel" */
#define ATTACH_WAIT_MAX 16u
#define ATTACH_WAIT_DONE 'd'

enum attach_wait_kind {
        ATTACH_WAIT_SESSION = 1, /* the VMM's end of the pager's session */
        ATTACH_WAIT_FILE = 2,    /* stands in for every descriptor of the file (dev, ino) */
};

struct attach_wait_entry {
        uint64_t kind, dev, ino;
};

struct attach_wait_msg {
        uint32_t magic, n;
        struct attach_wait_entry entries[ATTACH_WAIT_MAX];
};
