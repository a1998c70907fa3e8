/* SPDX-License-Identifier: MIT */
/* How many bytes of decoded pages the pager may keep at this moment: what was configured, less what the memory
 * cgroup does not allow, less what pressure has taken away for a while. Pure; one thread writes, any may read
 * pager_budget_now(). Times are CLOCK_MONOTONIC in ns. */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "pager/limits.h"

struct pager_budget {
        uint64_t configured, limit;
        _Atomic uint64_t now;
        _Atomic uint64_t events;
        uint64_t next_step_ns; /* 0: nothing to recover */
};

/** A quarter of the memory there is: of the host's, or of @limit (the cgroup's, UINT64_MAX: none), if that is less. */
uint64_t pager_budget_default(uint64_t ram_bytes, uint64_t limit);

void pager_budget_init(struct pager_budget *b, uint64_t configured);

/** The memory cgroup's limit, whenever it was read. A quarter of it is left to everything else that is charged there. */
void pager_budget_set_limit(struct pager_budget *b, uint64_t limit);

/** Memory is short: at once an eighth less than what is @resident, within bounds. */
void pager_budget_pressure(struct pager_budget *b, uint64_t resident, uint64_t now_ns);

/** Gives back, step by step, what pressure took. Returns ms until it wants to be called again, -1: never. */
int pager_budget_relax(struct pager_budget *b, uint64_t now_ns);

static inline uint64_t pager_budget_now(const struct pager_budget *b) {
        return atomic_load_explicit(&b->now, memory_order_relaxed);
}
