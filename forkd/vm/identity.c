/* SPDX-License-Identifier: MIT */
/* Theory of operation: a tree (tsearch(3)) by kind and value; each node has the list of those that hold it in some scope.
 * That is one, but for a port that is held on several addresses. A node without a holder is removed. */
#include "forkd/vm/identity.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <search.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/ids.h"

struct node {
        enum identity_kind kind; /* kind and value: the key */
        char value[64];
        LIST_HEAD(, identity_hold) holds;
};

/* One thing that one holder has. */
struct identity_hold {
        LIST_ENTRY(identity_hold) in_node, in_holder;
        struct node *node;
        struct identity_holder *holder;
        char scope[48];
};

struct identities {
        void *tree;
        unsigned count[IDENTITY_KINDS];
};

/* ---- making one ---- */

int identity_name(const char *name, struct identity *ret) {
        if (!name_valid(name))
                return -EINVAL;
        *ret = (struct identity){ .kind = IDENTITY_NAME };
        (void) snprintf(ret->value, sizeof(ret->value), "%s", name);
        return 0;
}

int identity_number(enum identity_kind kind, uint32_t n, struct identity *ret) {
        if (kind != IDENTITY_UID && kind != IDENTITY_CID)
                return -EINVAL;
        *ret = (struct identity){ .kind = kind };
        (void) snprintf(ret->value, sizeof(ret->value), "%" PRIu32, n);
        return 0;
}

/* One spelling for each address; an IPv4 address that was mapped into IPv6 is the IPv4 address. */
static int canonical(const char *text, char *buf, size_t size) {
        struct in6_addr v6;
        struct in_addr v4;
        int family = AF_INET;

        if (inet_pton(AF_INET, text, &v4) != 1) {
                if (inet_pton(AF_INET6, text, &v6) != 1)
                        return -EINVAL;
                if (IN6_IS_ADDR_V4MAPPED(&v6))
                        memcpy(&v4, &v6.s6_addr[12], sizeof(v4));
                else
                        family = AF_INET6;
        }
        return inet_ntop(family, family == AF_INET ? (void *) &v4 : (void *) &v6, buf, (socklen_t) size) ? 0 : -EINVAL;
}

int identity_port(const char *proto, const char *host, unsigned port, struct identity *ret) {
        struct identity id = { .kind = IDENTITY_PORT };

        if ((strcmp(proto, "tcp") != 0 && strcmp(proto, "udp") != 0) || port < 1 || port > 65535)
                return -EINVAL;
        if (host && host[0] && canonical(host, id.scope, sizeof(id.scope)) < 0)
                return -EINVAL;
        if (strcmp(id.scope, "0.0.0.0") == 0 || strcmp(id.scope, "::") == 0)
                id.scope[0] = '\0';
        (void) snprintf(id.value, sizeof(id.value), "%u/%s", port, proto);
        *ret = id;
        return 0;
}

int identity_address(const char *address, struct identity *ret) {
        struct identity id = { .kind = IDENTITY_ADDRESS };

        if (canonical(address, id.value, sizeof(id.value)) < 0)
                return -EINVAL;
        *ret = id;
        return 0;
}

char *identity_format(const struct identity *id, char *buf, size_t size) {
        static const char *const before[IDENTITY_KINDS] = {
                [IDENTITY_NAME] = "name '",     [IDENTITY_UID] = "user id ",     [IDENTITY_CID] = "vsock CID ",
                [IDENTITY_PORT] = "host port ", [IDENTITY_ADDRESS] = "address ",
        };

        (void) snprintf(buf, size, "the %s%s%s%s%s", before[id->kind], id->value, id->kind == IDENTITY_NAME ? "'" : "",
                        id->scope[0] ? " of " : "", id->scope);
        return buf;
}

/* ---- the table ---- */

static int compare(const void *a, const void *b) {
        const struct node *x = a, *y = b;

        return x->kind != y->kind ? (x->kind > y->kind) - (x->kind < y->kind) : strcmp(x->value, y->value);
}

static struct node *find_node(struct identities *t, const struct identity *id) {
        struct node key = { .kind = id->kind };
        void *found;

        memcpy(key.value, id->value, sizeof(key.value));
        found = tfind(&key, &t->tree, compare);
        return found ? *(struct node **) found : NULL;
}

static bool scopes_meet(const char *a, const char *b) {
        return !a[0] || !b[0] || strcmp(a, b) == 0;
}

/* Somebody's hold on (a part of) it; that of @except does not count. */
static struct identity_hold *find_hold(struct node *n, const char *scope, const struct identity_holder *except) {
        struct identity_hold *hold;

        LIST_FOREACH (hold, &n->holds, in_node)
                if (hold->holder != except && scopes_meet(hold->scope, scope))
                        return hold;
        return NULL;
}

static struct identity_hold *find_own(struct node *n, const char *scope, const struct identity_holder *h) {
        struct identity_hold *hold;

        LIST_FOREACH (hold, &n->holds, in_node)
                if (hold->holder == h && strcmp(hold->scope, scope) == 0)
                        return hold;
        return NULL;
}

static void remove_node_if_empty(struct identities *t, struct node *n) {
        if (!LIST_EMPTY(&n->holds))
                return;
        (void) tdelete(n, &t->tree, compare);
        free(n);
}

static void remove_hold(struct identities *t, struct identity_hold *hold) {
        struct node *n = hold->node;

        LIST_REMOVE(hold, in_node);
        LIST_REMOVE(hold, in_holder);
        t->count[n->kind]--;
        free(hold);
        remove_node_if_empty(t, n);
}

static struct node *make_node(struct identities *t, const struct identity *id) {
        struct node *n = calloc(1, sizeof(*n));

        if (!n)
                return NULL;
        n->kind = id->kind;
        memcpy(n->value, id->value, sizeof(n->value));
        LIST_INIT(&n->holds);
        if (!tsearch(n, &t->tree, compare)) {
                free(n);
                return NULL;
        }
        return n;
}

static int add_hold(struct identities *t, struct identity_holder *h, const struct identity *id) {
        cleanup_free struct identity_hold *hold = calloc(1, sizeof(*hold));
        struct node *n = find_node(t, id);

        if (hold && !n)
                n = make_node(t, id);
        if (!hold || !n)
                return -ENOMEM;
        hold->node = n;
        hold->holder = h;
        memcpy(hold->scope, id->scope, sizeof(hold->scope));
        LIST_INSERT_HEAD(&n->holds, hold, in_node);
        LIST_INSERT_HEAD(&h->held, hold, in_holder);
        t->count[id->kind]++;
        (void) TAKE_PTR(hold);
        return 0;
}

void identity_holder_init(struct identity_holder *h, void (*describe)(const struct identity_holder *h, char *buf, size_t size)) {
        h->describe = describe;
        LIST_INIT(&h->held);
}

int identities_new(struct identities **ret) {
        struct identities *t = calloc(1, sizeof(*t));

        if (!t)
                return -ENOMEM;
        *ret = t;
        return 0;
}

void identities_free(struct identities *t) {
        free(t);
}

int identities_take(struct identities *t, struct identity_holder *h, const struct identity *id, struct err *e) {
        struct node *n = find_node(t, id);
        const struct identity_hold *other = n ? find_hold(n, id->scope, h) : NULL;
        char what[128], who[200];

        if (other) {
                other->holder->describe(other->holder, who, sizeof(who));
                return err_set(e, ERR_EXISTS, -EEXIST, "%s is taken: it belongs to %s", identity_format(id, what, sizeof(what)),
                               who);
        }
        if (n && find_own(n, id->scope, h))
                return 0;
        if (add_hold(t, h, id) < 0)
                return err_errno(e, -ENOMEM, "taking %s", identity_format(id, what, sizeof(what)));
        return 0;
}

int identities_take_number(struct identities *t, struct identity_holder *h, enum identity_kind kind, uint32_t first,
                           uint32_t last, uint32_t start, uint32_t *ret, struct err *e) {
        uint64_t n = (uint64_t) last - first + 1;
        struct identity id;

        if (first > last)
                return err_set(e, ERR_INTERNAL, -EINVAL, "a range of numbers ends before it begins");
        if (start < first || start > last)
                start = first;
        for (uint64_t i = 0; i < n; i++) {
                uint32_t number = (uint32_t) (first + (start - first + i) % n);
                int r = identity_number(kind, number, &id);

                if (r < 0)
                        return err_errno(e, r, "taking a number");
                if (find_node(t, &id))
                        continue;
                r = identities_take(t, h, &id, e);
                if (r == 0)
                        *ret = number;
                return r;
        }
        return err_set(e, ERR_LIMIT, -ENOSPC, "all %" PRIu64 " %s from %" PRIu32 " to %" PRIu32 " are taken", n,
                       kind == IDENTITY_UID ? "user ids" : "vsock CIDs", first, last);
}

struct identity_holder *identities_find(struct identities *t, const struct identity *id) {
        struct node *n = find_node(t, id);
        struct identity_hold *hold = n ? find_hold(n, id->scope, NULL) : NULL;

        return hold ? hold->holder : NULL;
}

void identities_drop(struct identities *t, struct identity_holder *h, const struct identity *id) {
        struct node *n = find_node(t, id);
        struct identity_hold *hold = n ? find_own(n, id->scope, h) : NULL;

        if (hold)
                remove_hold(t, hold);
}

void identities_drop_kind(struct identities *t, struct identity_holder *h, enum identity_kind kind) {
        struct identity_hold *next;

        for (struct identity_hold *hold = LIST_FIRST(&h->held); hold; hold = next) {
                next = LIST_NEXT(hold, in_holder);
                if (hold->node->kind == kind)
                        remove_hold(t, hold);
        }
}

void identity_holder_end(struct identities *t, struct identity_holder *h) {
        for (struct identity_hold *hold; (hold = LIST_FIRST(&h->held));)
                remove_hold(t, hold);
}

unsigned identities_count(const struct identities *t, enum identity_kind kind) {
        return t->count[kind];
}
