/* SPDX-License-Identifier: MIT */
/* What api.c and api_clients.c share. */
#pragma once

#include "common/co.h"
#include "forkd/api/account.h"
#include "forkd/api/api.h"
#include "forkd/api/caller.h"
#include "forkd/daemon.h"

struct client {
        TAILQ_ENTRY(client) entry;
        struct api *api;
        struct rpc_conn *conn;
        struct caller *caller;
        struct account *account;
        bool spoke;        /* a whole message has come */
        uint64_t since_ns; /* the last one came, or the client */
        size_t memory;     /* at the last look */
};

struct api {
        struct daemon *d;
        struct rpc_listener *listener;
        struct event *look; /* at the clients, every second while there are any */
        TAILQ_HEAD(, client) clients;
        struct accounts accounts;
        unsigned pending;     /* requests */
        struct co_wait *idle; /* woken when nothing is pending */
        uint64_t told_ns;     /* when a refusal was logged last */
        unsigned untold;      /* refusals since */
        char path[FORKD_MAX_RUN_DIR + 16];
};

/** A request of @c: answered, refused, or begun. */
void api_request(struct client *c, struct rpc_msg *m);
