/* SPDX-License-Identifier: MIT */
/* exec, put and get: a client's stream notifications on one side, the agent's calls on the other, joined.
 * Credit is passed through end to end, so forkd itself never holds more than what is in flight. */
#pragma once

#include "common/rpc.h"

struct daemon;
struct vm;

/** A stream.* notification of a client. */
void streams_on_message(struct daemon *d, struct rpc_msg *m);
/** The client has gone: its commands get SIGHUP. */
void streams_client_gone(struct daemon *d, struct rpc_conn *conn);
/** The VM's agent is out of reach: every call on it ends with this error. */
void streams_fail(struct vm *vm, const char *why);
