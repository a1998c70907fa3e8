/* SPDX-License-Identifier: MIT */
/* Who holds what of the things that only one can have: VM names, the users that VMMs run as, vsock CIDs, host ports, guest
 * addresses. Whatever is to be used is taken here first; whoever comes second is told who has it.
 *
 * A holder keeps what it took until it gives it back, or ends. That of a VM ends when its VMM has been *reaped*: a process
 * that was killed may live on for a while (a debugger, a disk that does not answer), with its user, its ports and its CID.
 *
 * Nothing here is written down: a forkd that starts takes everything anew from the records, before it does anything else. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "common/err.h"

enum identity_kind {
        IDENTITY_NAME,    /* of a VM; its id is one, too */
        IDENTITY_UID,     /* the user (and group) of a VMM */
        IDENTITY_CID,     /* of a vsock */
        IDENTITY_PORT,    /* on the host: protocol, port and, as the scope, the address it is bound to */
        IDENTITY_ADDRESS, /* of a guest, or on the host */
};
#define IDENTITY_KINDS 5

/** One such thing. Two are the same if kind and value are, and their scopes meet: "" is every scope. */
struct identity {
        enum identity_kind kind;
        char value[64];
        char scope[48];
};

/* How each is made. -EINVAL: it is none. */
int identity_name(const char *name, struct identity *ret) attr_warn_unused;
/** IDENTITY_UID, IDENTITY_CID. */
int identity_number(enum identity_kind kind, uint32_t n, struct identity *ret) attr_warn_unused;
/** @proto: "tcp" or "udp"; @host: an IPv4 or IPv6 address; NULL, "", "0.0.0.0" and "::" are every address. */
int identity_port(const char *proto, const char *host, unsigned port, struct identity *ret) attr_warn_unused;
/** An IPv4 or IPv6 address, in whatever spelling. */
int identity_address(const char *address, struct identity *ret) attr_warn_unused;
/** "the name 'x'", "the port 8080/tcp of 10.0.0.1"; returns @buf. */
char *identity_format(const struct identity *id, char *buf, size_t size);

/** Who holds them: part of the VM. Set up by identity_holder_init; it must be ended before it is freed. */
struct identity_holder {
        /** "VM 'x'", "the VMM (pid 123) of the removed VM 'x', which has not ended yet"; into @buf. */
        void (*describe)(const struct identity_holder *h, char *buf, size_t size);
        LIST_HEAD(, identity_hold) held;
};
void identity_holder_init(struct identity_holder *h, void (*describe)(const struct identity_holder *h, char *buf, size_t size));

struct identities;
int identities_new(struct identities **ret) attr_warn_unused;
/** Every holder must have ended. */
void identities_free(struct identities *t);

/** Takes @id for @h; what @h has already it keeps. -EEXIST: somebody else has it, and @e tells who. -ENOMEM. */
int identities_take(struct identities *t, struct identity_holder *h, const struct identity *id, struct err *e) attr_warn_unused;
/** Takes a free number of @first … @last; the search begins at @start (of that range, or @first is meant) and goes round.
 *  -ENOSPC: none is free. */
int identities_take_number(struct identities *t, struct identity_holder *h, enum identity_kind kind, uint32_t first,
                           uint32_t last, uint32_t start, uint32_t *ret, struct err *e) attr_warn_unused;
/** Who has @id, or a part of it. NULL: nobody. */
struct identity_holder *identities_find(struct identities *t, const struct identity *id);
/** Gives back one that @h has; nothing happens if it has not. */
void identities_drop(struct identities *t, struct identity_holder *h, const struct identity *id);
/** Gives back all of a kind. */
void identities_drop_kind(struct identities *t, struct identity_holder *h, enum identity_kind kind);
/** Gives back all. */
void identity_holder_end(struct identities *t, struct identity_holder *h);
/** How many things of @kind are held. */
unsigned identities_count(const struct identities *t, enum identity_kind kind);
