/* SPDX-License-Identifier: MIT */
#include "forkd/api/account.h"

#include <errno.h>
#include <stdlib.h>

void accounts_init(struct accounts *a, const struct account_limits *limits) {
        *a = (struct accounts){ .limits = *limits };
        LIST_INIT(&a->list);
}

static void account_free(struct account *u) {
        LIST_REMOVE(u, entry);
        u->all->n--;
        free(u);
}

void accounts_clear(struct accounts *a) {
        for (struct account *u; (u = LIST_FIRST(&a->list));)
                account_free(u);
}

static double burst(const struct account *u) {
        return (double) u->all->limits.user_rate * ACCOUNT_BURST_SECONDS;
}

static void fill(struct account *u, uint64_t now_ns) {
        if (now_ns > u->filled_ns)
                u->tokens += (double) (now_ns - u->filled_ns) / 1e9 * u->all->limits.user_rate;
        u->filled_ns = MAX_OF(u->filled_ns, now_ns);
        u->tokens = MIN_OF(u->tokens, burst(u));
}

/* Those with nothing to remember. */
static void forget_idle(struct accounts *a, uint64_t now_ns) {
        for (struct account *u = LIST_FIRST(&a->list), *next; u; u = next) {
                next = LIST_NEXT(u, entry);
                if (u->refs > 0)
                        continue;
                fill(u, now_ns);
                if (u->tokens >= burst(u))
                        account_free(u);
        }
}

static struct account *find(struct accounts *a, uid_t uid) {
        struct account *u;

        LIST_FOREACH (u, &a->list, entry)
                if (u->uid == uid)
                        return u;
        return NULL;
}

static int find_or_make(struct accounts *a, uid_t uid, bool root, uint64_t now_ns, struct account **ret, struct err *e) {
        struct account *u = find(a, uid);

        if (!u) {
                forget_idle(a, now_ns);
                if (a->n >= ACCOUNT_MAX && !root)
                        return err_set(e, ERR_LIMIT, -EUSERS, "too many users use forkd");
                u = calloc(1, sizeof(*u));
                if (!u)
                        return err_errno(e, -ENOMEM, "serving a client");
                *u = (struct account){ .all = a, .uid = uid, .root = root, .filled_ns = now_ns };
                u->tokens = burst(u);
                LIST_INSERT_HEAD(&a->list, u, entry);
                a->n++;
        }
        *ret = u;
        return 0;
}

static int check_connection(const struct account *u, struct err *e) {
        const struct account_limits *l = &u->all->limits;
        unsigned max = u->root ? l->connections : l->connections - l->reserved_connections;
        unsigned n = u->root ? u->all->connections : u->all->user_connections;

        if (n >= max || u->all->connections >= l->connections) {
                (void) err_set(e, ERR_LIMIT, -EUSERS, "forkd has %u connections already, and takes %u", n, max);
                return err_hint(e, "close some, or try again later");
        }
        if (!u->root && u->connections >= l->user_connections) {
                (void) err_set(e, ERR_LIMIT, -EUSERS, "the user %u has %u connections to forkd already", (unsigned) u->uid,
                               u->connections);
                return err_hint(e, "a connection serves any number of requests: use one for several");
        }
        return 0;
}

int account_request(struct account *u, uint64_t now_ns, struct err *e) {
        unsigned rate = u->all->limits.user_rate;

        if (u->root || rate == 0)
                return 0;
        fill(u, now_ns);
        u->tokens = MAX_OF(u->tokens - 1, -burst(u));
        if (u->tokens >= 0)
                return 0;
        (void) err_set(e, ERR_LIMIT, u->tokens > -burst(u) ? -EUSERS : -EDQUOT,
                       "the user %u asks for more than %u things a second", (unsigned) u->uid, rate);
        return err_hint(e, "wait %.0f s; the limit is 'requests_per_second' in forkd's configuration", 1 - u->tokens / rate);
}

int account_connect(struct accounts *a, uid_t uid, bool root, uint64_t now_ns, struct account **ret, struct err *e) {
        struct account *u = NULL;
        int r;

        r = find_or_make(a, uid, root, now_ns, &u, e);
        if (r == 0)
                r = check_connection(u, e);
        if (r == 0 && account_request(u, now_ns, e) < 0)
                r = -EUSERS;
        if (r < 0)
                return r;
        u->connections++;
        a->connections++;
        a->user_connections += !u->root;
        *ret = account_ref(u);
        return 0;
}

void account_disconnect(struct account *u) {
        u->connections--;
        u->all->connections--;
        u->all->user_connections -= !u->root;
        account_unref(u);
}

int account_request_begin(struct account *u, size_t bytes, struct err *e) {
        const struct account_limits *l = &u->all->limits;

        if (!u->root && (u->requests >= l->user_requests || bytes > l->user_bytes - MIN_OF(u->bytes, l->user_bytes))) {
                (void) err_set(e, ERR_LIMIT, -EUSERS, "the user %u waits for %u answers already, to questions of %zu bytes",
                               (unsigned) u->uid, u->requests, u->bytes);
                return err_hint(e, "wait for some of them");
        }
        u->requests++;
        u->bytes += bytes;
        (void) account_ref(u);
        return 0;
}

void account_request_end(struct account *u, size_t bytes) {
        u->requests--;
        u->bytes -= bytes;
        account_unref(u);
}

int account_stream_begin(struct account *u, struct err *e) {
        if (!u->root && u->streams >= u->all->limits.user_streams) {
                (void) err_set(e, ERR_LIMIT, -EUSERS, "the user %u has %u commands and copies under way already",
                               (unsigned) u->uid, u->streams);
                return err_hint(e, "wait until some have ended");
        }
        u->streams++;
        (void) account_ref(u);
        return 0;
}

void account_stream_end(struct account *u) {
        u->streams--;
        account_unref(u);
}

struct account *account_ref(struct account *u) {
        u->refs++;
        return u;
}

void account_unref(struct account *u) {
        u->refs--;
}
