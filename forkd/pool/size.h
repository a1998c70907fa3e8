/* SPDX-License-Identifier: MIT */
/* How many clones a pool should have, and what it has to do next for that. Nothing here knows VMs or clocks: numbers in,
 * numbers out.
 *
 * `size` is what a pool has while it is used. What was taken lately raises that, up to `max`: as many as were taken in the worst
 * ten seconds of the last minute, and a quarter more, so that the same burst finds them all. When nobody has taken one for
 * `idle_timeout` it falls to `min`, and the next take brings `size` back. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define POOL_MAX_SIZE 1000
#define POOL_MAX_IDLE_SECONDS (7u * 86400)
#define POOL_BURST_NS 10000000000ull /* takes are counted in intervals of so long */
#define POOL_BURSTS 7u               /* and remembered for that many: a minute, and the one under way */

struct pool_sizes {
        unsigned size;
        bool has_min, has_max;         /* … were set, and do not follow from the others */
        unsigned min, max;             /* only then */
        unsigned idle_timeout_seconds; /* 0: a pool does not become idle */
};
/** As they hold: without one of its own min is `size`, or 0 for a pool that becomes idle, and max is `size`. */
unsigned pool_min(const struct pool_sizes *s);
unsigned pool_max(const struct pool_sizes *s);

struct err;
/** -EINVAL, with what is wrong. */
int pool_sizes_check(const struct pool_sizes *s, struct err *e);

/** What was taken lately. Zeroed, but for since_ns. */
struct pool_demand {
        uint64_t since_ns; /* the last take, or the pool's beginning */
        struct {
                uint64_t interval;
                unsigned n;
        } taken[POOL_BURSTS];
};
void pool_demand_take(struct pool_demand *t, uint64_t now_ns);
/** The most that were taken in one interval. */
unsigned pool_demand_burst(const struct pool_demand *t, uint64_t now_ns);

unsigned pool_wanted(const struct pool_sizes *s, const struct pool_demand *t, uint64_t now_ns);

/** Clones of a pool: of its snapshot, and of the one that it had before. */
struct pool_counts {
        unsigned fresh, old; /* warm */
        unsigned making;     /* of its snapshot */
};
enum pool_step { POOL_REST, POOL_MAKE, POOL_DROP_OLD, POOL_DROP_FRESH };

/** The next single step towards @wanted clones of the pool's snapshot. A pool that changes to another snapshot has at most one
 *  clone more than wanted meanwhile, and gives an old one away only when a new one is warm: never fewer than before. */
enum pool_step pool_next_step(unsigned wanted, const struct pool_counts *c);
