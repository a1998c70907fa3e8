/* SPDX-License-Identifier: MIT */
/* Talking to forkd: one connection, one call at a time, answers as JSON values. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/mp.h"
#include "common/rpc.h"
#include "forkctl/ctl.h"

/** The params of a call, built key by key. A NULL string is left out. */
struct req {
        struct mp_buf body; /* keys and values, without the map's header */
        size_t n;
};

void req_init(struct req *q);
void req_clear(struct req *q);
#define cleanup_req attr_cleanup(req_clear)
void req_str(struct req *q, const char *key, const char *v);
void req_u64(struct req *q, const char *key, uint64_t v);
void req_bool(struct req *q, const char *key, bool v);
void req_double(struct req *q, const char *key, double v);
void req_strs(struct req *q, const char *key, char *const *v, size_t n);
/** Counts @key; the caller then writes exactly one value into q->body. */
void req_key(struct req *q, const char *key);

/** Makes the event loop without connecting; for waiting on things that are not forkd's. -ENOMEM. */
int ctl_loop(struct ctl *c) attr_warn_unused;
/** Connects to forkd. Connected already: 0. A failure is ERR_UNREACHABLE, with what to do. */
int ctl_connect(struct ctl *c) attr_warn_unused;
void ctl_disconnect(struct ctl *c);
/** Drops the connection but keeps the loop: the next call connects anew. No call may be under way whose outcome is wanted; not
 *  from a callback of the connection. */
void ctl_hang_up(struct ctl *c);

/** A call whose answer goes to @fn while the caller runs the loop itself. Connects first. @q may be NULL. */
int ctl_start(struct ctl *c, const char *method, const struct req *q, rpc_result_fn fn, void *arg,
              uint32_t *ret_msgid) attr_warn_unused;
/** Makes the outcome of a failed call (res->r < 0) the client's error. Returns it. */
int ctl_call_error(struct ctl *c, const char *method, const struct rpc_result *res);

/** Calls and waits. *ret_result (may be NULL) is the caller's. On failure c->e tells why, in forkd's words. */
int ctl_call(struct ctl *c, const char *method, const struct req *q, json_t **ret_result) attr_warn_unused;
/** As above, with a descriptor that forkd gets a duplicate of. */
int ctl_call_fd(struct ctl *c, const char *method, struct req *q, int fd, json_t **ret_result) attr_warn_unused;

/** ctl_call with the name of one object as the only parameter. */
int ctl_call_name(struct ctl *c, const char *method, const char *key, const char *name, json_t **ret_result) attr_warn_unused;

/** Waits until forkd has closed the connection, which is the last thing it does. -ETIMEDOUT. */
int ctl_wait_close(struct ctl *c, unsigned seconds) attr_warn_unused;

/** The command's result as the one JSON document on stdout. */
int ctl_print(struct ctl *c, const json_t *j) attr_warn_unused;
/** As above; NULL prints an empty list. */
int ctl_print_list(struct ctl *c, const json_t *list) attr_warn_unused;

/** From now on SIGINT, SIGTERM and SIGHUP remove @path, a file that is not complete yet and stays the
 *  caller's string, before they end us. NULL: no longer. */
int ctl_partial(struct ctl *c, const char *path) attr_warn_unused;
