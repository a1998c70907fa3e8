/* SPDX-License-Identifier: MIT */
/* How the agent reaches forkd: one interface over what the VMMs offer.
 *
 *   virtio-serial[:PATH]  a port that stays open for ever (default: the one named TRANSPORT_PORT_NAME)
 *   vsock:PORT            listens on AF_VSOCK; the newest connection is the one that counts
 *   unix:PATH             listens on a unix socket, otherwise like vsock
 *   fd:N                  an inherited stream socket; the agent ends when its peer does
 *
 * virtio-serial has no connections: while nobody is connected on the host, reads give 0, writes EAGAIN and
 * poll reports a hang-up without end. So it is watched edge-triggered, and 0 bytes mean "not now". */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/cleanup.h"

#define TRANSPORT_VSOCK_PORT 9465
#define TRANSPORT_PORT_NAME "forkd.agent"

enum transport_kind { TRANSPORT_PORT, TRANSPORT_LISTEN, TRANSPORT_FD };

struct transport {
        enum transport_kind kind;
        int fd;        /* the byte stream, or -1 while there is none */
        int listen_fd; /* TRANSPORT_LISTEN */
        char name[128];
};

/** Opens what @spec says; NULL: the virtio-serial port if there is one within @wait_ms, else vsock. -EINVAL
 *  for a spec that is none; errors of open, bind … otherwise. */
int transport_open(const char *spec, int wait_ms, struct transport *ret) attr_warn_unused;
void transport_close(struct transport *t);

/** Takes the next connection of a listening transport: 1 and *ret_fd is the caller's, 0: none waits, -errno. */
int transport_accept(struct transport *t, int *ret_fd) attr_warn_unused;
