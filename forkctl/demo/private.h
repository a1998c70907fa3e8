/* SPDX-License-Identifier: MIT */
/* A forkd of our own: its own directories, started and ended by us, so that a demonstration touches nothing of the host's. */
#pragma once

#include <jansson.h>
#include <sys/types.h>

#include "forkctl/progress.h"
#include "forkctl/watch.h"

#define PRIVATE_MAX_PATH 80 /* the socket's must fit an address */

struct private {
        struct ctl *c;
        char dir[PRIVATE_MAX_PATH]; /* empty: not made yet */
        char state[PRIVATE_MAX_PATH + 16], run[PRIVATE_MAX_PATH + 16], conf[PRIVATE_MAX_PATH + 16], log[PRIVATE_MAX_PATH + 16];
        char socket[PRIVATE_MAX_PATH + 32];
        pid_t pid; /* 0: does not run */
        int pidfd;
};

/** Makes directories, guest assets and a store where they are missing, and starts forkd; c->socket is its own from then on. Root only.
 *  Call private_end also after a failure. */
int private_begin(struct private *p, struct ctl *c) attr_warn_unused;

/** Removes all VMs, ends forkd, looks for what it has left and removes the directories. *ret_left (a list of strings, the caller's) is
 *  what was left behind; NULL when memory is short. @p may be all zeros. */
void private_end(struct private *p, json_t **ret_left);
