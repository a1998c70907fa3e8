/* SPDX-License-Identifier: MIT */
/* How much of forkd one user may use: an account for each user that is, or was a moment ago, connected. It outlives the
 * user's connections until its bucket is full again, or hanging up and coming back would be a way around it.
 *
 * Root has an account like everybody, but only the number of all connections limits it, and some of those are kept free
 * for root: nobody locks out who has to clean up. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "common/err.h"

#define ACCOUNT_MAX 4096          /* users */
#define ACCOUNT_BURST_SECONDS 10u /* what was not used for so long may be used at once */

struct account_limits {
        unsigned connections;          /* of everybody */
        unsigned reserved_connections; /* of these, only for root */
        unsigned user_connections;     /* of one user */
        unsigned user_streams;         /* calls of one user that have streams */
        unsigned user_requests;        /* of one user that have not been answered */
        size_t user_bytes;             /* of their parameters */
        unsigned user_rate;            /* requests and connections a second; 0: any number */
};

struct account {
        LIST_ENTRY(account) entry;
        struct accounts *all;
        uid_t uid;
        bool root;
        unsigned refs; /* connections, requests, streams */
        unsigned connections, streams, requests;
        size_t bytes;  /* of the requests' parameters */
        double tokens; /* below zero: what was asked for in spite of refusals */
        uint64_t filled_ns;
};

struct accounts {
        struct account_limits limits;
        LIST_HEAD(, account) list;
        unsigned n, connections, user_connections; /* the last: of all users but root */
};

void accounts_init(struct accounts *a, const struct account_limits *limits);
/** Forgets all; nobody may hold one any more. */
void accounts_clear(struct accounts *a);

/** A connection of user @uid: its account, with a reference, and counted; or -EUSERS (limit) with a reason and a hint.
 *  @now_ns: the monotonic time. */
int account_connect(struct accounts *a, uid_t uid, bool root, uint64_t now_ns, struct account **ret,
                    struct err *e) attr_warn_unused;
/** It has ended; drops the reference. */
void account_disconnect(struct account *u);

/** Something is asked for. 0; -EUSERS: refused, with a reason; -EDQUOT: the user goes on asking in spite of refusals and is
 *  to be hung up on. */
int account_request(struct account *u, uint64_t now_ns, struct err *e) attr_warn_unused;

/** A request with so many bytes of parameters begins, and has a reference, until it is answered; -EUSERS with a reason. */
int account_request_begin(struct account *u, size_t bytes, struct err *e) attr_warn_unused;
void account_request_end(struct account *u, size_t bytes);

/** A call with streams begins, and has a reference; -EUSERS with a reason. */
int account_stream_begin(struct account *u, struct err *e) attr_warn_unused;
void account_stream_end(struct account *u);

struct account *account_ref(struct account *u);
void account_unref(struct account *u);
