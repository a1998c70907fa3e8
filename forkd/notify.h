/* SPDX-License-Identifier: MIT */
/* What forkd tells the service manager (sd_notify(3)): that it is ready, what it is doing, that it lives, that it ends.
 *
 * The protocol is one datagram to the socket that NOTIFY_SOCKET names, and a stable interface. libsystemd's function for
 * it would bring four compression and cryptography libraries into a root process for that one datagram. */
#pragma once

#include <event2/event.h>

#include "common/cleanup.h"

struct notify;

/** Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, and takes them out of the environment, so that no child speaks in
 *  our name. From here on the loop of @base pings as long as it turns: with WATCHDOG=1 at half of WATCHDOG_USEC, and until
 *  notify_ready and after notify_stopping with an extension of the manager's timeout: taking back many VMs may last.
 *  Without NOTIFY_SOCKET everything here does nothing. -ENOMEM; -EINVAL: a variable makes no sense. */
int notify_new(struct event_base *base, struct notify **ret) attr_warn_unused;
void notify_free(struct notify *n);

/** READY=1: whoever waits for forkd may go on. All three take NULL for @n. */
void notify_ready(struct notify *n);
/** STOPPING=1. */
void notify_stopping(struct notify *n);
/** STATUS=…, one line for `systemctl status`; sent only when it is another than the last one. */
void notify_status(struct notify *n, const char *fmt, ...) attr_printf(2, 3);
