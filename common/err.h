/* SPDX-License-Identifier: MIT */
/* An error as a person gets to see it: a stable code, a sentence, and what to do about it.
 * Libraries return -errno; where a daemon or a tool meets its user, that gains a struct err. */
#pragma once

#include "common/cleanup.h"

/** Stable codes, part of the interface (`error.code` of every reply). */
#define ERR_INVALID "invalid"          /* a parameter is malformed or out of range */
#define ERR_NOT_FOUND "not-found"      /* no VM, snapshot … of that name */
#define ERR_EXISTS "exists"            /* the name is taken */
#define ERR_FORBIDDEN "forbidden"      /* the client may not do this */
#define ERR_BUSY "busy"                /* another operation on the same object is under way */
#define ERR_STATE "wrong-state"        /* the VM's state does not allow this */
#define ERR_LIMIT "limit"              /* a limit of forkd or the host would be exceeded */
#define ERR_NO_SPACE "no-space"        /* disk or memory is short */
#define ERR_ASSETS "assets-missing"    /* forkctl setup has not run */
#define ERR_UNSUPPORTED "unsupported"  /* this host or this build cannot do it */
#define ERR_VERSION "version-mismatch" /* VMM or format version differs from the snapshot's */
#define ERR_CORRUPT "corrupt"          /* stored bytes fail their checksum or make no sense */
#define ERR_TIMEOUT "timeout"
#define ERR_VMM "vmm-failed" /* the VMM died or refused */
#define ERR_PAGER "pager-failed"
#define ERR_AGENT "agent-failed" /* the guest agent refused or does not answer */
#define ERR_CANCELED "canceled"
#define ERR_PROTOCOL "protocol"       /* a message that is no valid request */
#define ERR_UNREACHABLE "unreachable" /* forkd is not there */
#define ERR_USAGE "usage"
#define ERR_IO "io"
#define ERR_INTERNAL "internal"

struct err {
        int r;             /* -errno, or 0 while nothing went wrong */
        char code[24];     /* one of ERR_… */
        char message[400]; /* one sentence without a full stop: what failed, on what, why */
        char hint[240];    /* what to do, or empty */
};

/** Fills @e (which may be NULL) and returns @r, so that `return err_set(e, ERR_IO, r, "…")` reads well.
 *  @r is -errno; 0 becomes -EIO. An error that is already set is overwritten, its hint dropped. */
int err_set(struct err *e, const char *code, int r, const char *fmt, ...) attr_printf(4, 5);

/** As err_set, with ": strerror(-r)" appended and the code derived from @r (ENOSPC is no-space, and so on). */
int err_errno(struct err *e, int r, const char *fmt, ...) attr_printf(3, 4);

/** Puts "context: " in front of the message. Returns e->r. */
int err_prefix(struct err *e, const char *fmt, ...) attr_printf(2, 3);

/** Sets the hint. Returns e->r. */
int err_hint(struct err *e, const char *fmt, ...) attr_printf(2, 3);

/** The code that fits @r (-errno). Never NULL. */
const char *err_code_of(int r);
