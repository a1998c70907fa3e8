/* SPDX-License-Identifier: MIT */
/* The VMM's end of a session: the socket on which its handshake comes, and whose hang-up tells that it is
 * gone. */
#pragma once

#include <event2/event.h>

#include "pager/handshake.h"

struct pager_peer;

struct pager_peer_handlers {
        /** The handshake is good. On success the callee owns @layout (to be freed) and @uffd, and the peer
         *  answers "ok", but in copy mode, where the VMM expects no answer; on failure it fills @why, and the peer
         *  answers "error: @why". */
        int (*on_attach)(struct pager_layout *layout, int uffd, char *why, size_t why_size, void *arg);
        /** It was refused, took too long, or something came after it. The socket is closed. */
        void (*on_failed)(const char *reason, void *arg);
        /** The VMM hung up. */
        void (*on_gone)(void *arg);
        /** The answer that pager_peer_ask waited for. */
        void (*on_answer)(void *arg);
};

/** Takes @fd. @timeout_s: for the whole handshake. One of on_failed and on_gone is called at the most, and
 *  nothing after it; the peer may be freed from within. -ENOTSOCK: @fd is no connected unix stream socket; -ENOMEM. */
int pager_peer_new(struct event_base *base, int fd, uint64_t ram_bytes, unsigned timeout_s,
                   const struct pager_peer_handlers *handlers, void *arg, struct pager_peer **ret) attr_warn_unused;
/** The same of a socket on which the handshake was long ago, with another pager: on_gone or on_failed may come. */
int pager_peer_adopt(struct event_base *base, int fd, const struct pager_peer_handlers *handlers, void *arg,
                     struct pager_peer **ret) attr_warn_unused;
/** Is @fd a process's? */
bool pager_peer_is_process(int fd);
/** The same of a VMM without a socket, whose end is that of the process of pidfd @fd. */
int pager_peer_adopt_process(struct event_base *base, int fd, const struct pager_peer_handlers *handlers, void *arg,
                             struct pager_peer **ret) attr_warn_unused;
void pager_peer_free(struct pager_peer *p); /* NULL is fine */
/** Something was sent to the attached VMM on its socket, which it answers with "ok\n". */
void pager_peer_ask(struct pager_peer *p);
/** Its socket; stays the peer's. */
int pager_peer_fd(const struct pager_peer *p);

/** Has it (the VMM that is expected, if one is) sent a userfaultfd, so that it depends on us, though no session was made
 *  of it? */
bool pager_peer_gave_uffd(const struct pager_peer *p);

/** The VMM is the process of @pidfd (taken on success), whose pid goes to *ret_pid: a handshake from another one is
 *  refused. -EALREADY: named before; else the errors of spawn_pidfd_pid. */
int pager_peer_expect(struct pager_peer *p, int pidfd, pid_t *ret_pid) attr_warn_unused;
/** Holds the handshake back until pager_peer_go_on; before anything of it was read. */
void pager_peer_hold(struct pager_peer *p);
/** A handshake that was held goes on, one that is done is compared with what is expected now: a handler may be called
 *  from within, and @p be gone afterwards. */
void pager_peer_go_on(struct pager_peer *p);
