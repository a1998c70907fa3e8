/* SPDX-License-Identifier: MIT */
/* How long was waited for memory in each of the last seconds, by all VMs together: for who begins to look when something has happened.
 * A wait belongs to the second of the look that saw its end. */
#pragma once

#include <stdint.h>

#include "bpf/probes.h"
#include "common/mp.h"

#define LATELY_SECONDS 300u

/** Zeroed: nobody has looked yet. */
struct lately {
        uint64_t since_ns; /* CLOCK_MONOTONIC: there are probes since then; 0: there are none */
        struct {
                uint64_t second; /* of CLOCK_MONOTONIC */
                uint32_t wait[PROBES_BUCKETS];
        } of[LATELY_SECONDS]; /* a second is at its number % LATELY_SECONDS */
};

/** Waits that ended between the last look and this one. */
void lately_add(struct lately *l, uint64_t now_ns, const uint64_t wait[PROBES_BUCKETS]);

/** Appends {now_ms, known_s, seconds: [[ago_s, [[end_s | nil, n]…]]…]}: the seconds in which a wait ended, the oldest first. known_s: for
 *  how long, up to now, what is not there did not happen. now_ms: the clock of the host's users. */
void lately_put(const struct lately *l, uint64_t now_ns, struct mp_buf *out);
