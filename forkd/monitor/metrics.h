/* SPDX-License-Identifier: MIT */
/* What forkd tells Prometheus, /metrics, and whether it serves, /healthz. docs/monitoring.md has every family. */
#pragma once

#include "common/cleanup.h"

struct daemon;
struct metrics;

/** Answers both paths of d->http from now on. -ENOMEM. */
int metrics_new(struct daemon *d, struct metrics **ret) attr_warn_unused;
/** After the HTTP server is gone. NULL is fine. */
void metrics_free(struct metrics *m);

/** Waits for the end of scrapes that are under way. A coroutine call. */
void metrics_settle(struct metrics *m, int timeout_ms);

/** NULL: forkd serves; else why it does not, a sentence. @buf: room for it. */
const char *metrics_unhealthy(const struct daemon *d, char *buf, size_t size);
