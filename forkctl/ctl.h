/* SPDX-License-Identifier: MIT */
/* forkctl, the client: what every command works with. */
#pragma once

#include <stdbool.h>
#include <stdio.h>

#include "common/err.h"

#define CTL_SOCKET_DEFAULT "/run/forkd/forkd.sock"
#define CTL_PROTOCOL 1

/* Exit codes, part of the interface. `exec` passes its command's own code, or CTL_EXIT_NOT_RUN, or
 * CTL_EXIT_SIGNAL + the signal that ended it. */
#define CTL_EXIT_OK 0
#define CTL_EXIT_FAILED 1
#define CTL_EXIT_USAGE 2
#define CTL_EXIT_UNREACHABLE 3
#define CTL_EXIT_NOT_RUN 125
#define CTL_EXIT_SIGNAL 128

struct rpc_conn;
struct rpc_msg;
struct event;
struct event_base;

/** One run of forkctl. */
struct ctl {
        const char *socket; /* of forkd; never NULL */
        bool json;          /* stdout carries JSON only, errors too */
        bool progress;      /* stderr is a terminal that may show progress */
        struct err e;       /* what went wrong, set by whoever returns -errno */

        /* The connection; see client.h. */
        struct event_base *base;
        struct rpc_conn *conn;
        bool closed;       /* forkd has hung up */
        bool peer_refused; /* forkd sent an `error` notification: the reason is in e */

        /* Who listens to the notifications of the call under way; NULL outside of streams. */
        void (*on_notify)(struct rpc_msg *msg, void *arg);
        void (*on_drain)(void *arg);
        void *notify_arg;

        const char *partial; /* see ctl_partial */
        struct event *partial_ev[3];
};

/** Tells the user what is in c->e: on stdout with --json, else on stderr. */
void ctl_tell_error(const struct ctl *c);

/** The whole program. Returns the exit code. */
int ctl_main(int argc, char **argv);
