/* SPDX-License-Identifier: MIT */
/* Admission and turns as forkd sets them up: limits from the configuration and the process, figures from the host. */
#pragma once

#include "common/mp.h"
#include "forkd/daemon.h"

/** Makes d->host, d->admission and d->turns. -ENOMEM. */
int room_new(struct daemon *d) attr_warn_unused;
void room_free(struct daemon *d);
/** The claim of a VM that lives, whatever there is. */
void room_hold(struct vm *vm);
/** Appends the map `admission` of docs/protocol.md. */
void room_encode(const struct daemon *d, struct mp_buf *b);
