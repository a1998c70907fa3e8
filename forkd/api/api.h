/* SPDX-License-Identifier: MIT */
/* The control socket: clients, their requests, and the table of methods (docs/protocol.md). */
#pragma once

#include <stdbool.h>

#include "common/err.h"

struct api;
struct daemon;

/** Listens on <run>/forkd.sock. */
int api_new(struct daemon *d, struct api **ret, struct err *e) attr_warn_unused;
/** Is @client (an rpc_conn, perhaps a former one) connected? */
bool api_has_client(const struct api *a, const void *client);
/** Takes no new clients from here on; those that are there get their answers. */
void api_close_door(struct api *a);
void api_free(struct api *a);
/** Waits until every request has been answered (streams aside), at most @timeout_ms. A coroutine call. */
void api_wait_idle(struct api *a, int timeout_ms);
