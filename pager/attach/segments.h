/* SPDX-License-Identifier: MIT */
/* What uffd-pager tells libuffd-attach of a guest's memory: docs/protocol.md, section 2. One message on the session socket,
 * before the handshake; both ends are on one host, so numbers are as they are in memory. With its first byte come the
 * descriptors of the images' memories, read-only, in their order.
 *
 * This file is all that is shared by the two programs. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SEGMENTS_MAGIC "FKDSEGM1"
#define SEGMENTS_MAX 1024u
#define SEGMENTS_MAX_IMAGES 64u /* below SCM_MAX_FD */

struct segments_head {
        char magic[8];
        uint64_t ram_bytes;
        uint32_t n, n_images;
};

struct segments_one {
        uint64_t offset, size; /* bytes, of guest RAM; at the same offset in the image's memory */
        uint32_t image;
        uint32_t zero;
};

struct segments_msg {
        struct segments_head head;
        struct segments_one one[SEGMENTS_MAX];
};

/** The length of the message that begins with @head, or 0: it does not begin as one. */
size_t segments_length(const struct segments_head *head);

/** Of a VMM that runs: parts of its memory are to be mapped anew, from the one image that comes with it. It answers "ok\n". */
#define SEGMENTS_ANEW_MAGIC "FKDANEW1"
size_t segments_anew_length(const struct segments_head *head);
/** As below; its segments are then ascending, of whole pages, and in guest RAM. */
const char *segments_anew_check(const struct segments_msg *m, uint64_t ram_bytes, size_t n_fds);

/** What is wrong with the message, whose length is right, for guest RAM of @ram_bytes and with @n_fds descriptors: a
 *  sentence's end; NULL: nothing. Its segments are then ascending, of whole pages, and cover all of guest RAM. */
const char *segments_check(const struct segments_msg *m, uint64_t ram_bytes, size_t n_fds);
