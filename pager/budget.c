/* SPDX-License-Identifier: MIT */
#include "pager/budget.h"

#include "common/cleanup.h"

#define SECOND_NS 1000000000ull

/** The most that there may be. */
static uint64_t ceiling(const struct pager_budget *b) {
        uint64_t cap = b->limit == UINT64_MAX ? UINT64_MAX : b->limit - b->limit / 4;

        return MAX_OF(MIN_OF(b->configured, cap), PAGER_MIN_BUDGET);
}

/** The least that pressure leaves: a pager that keeps nothing only moves the pressure to the CPU and the disk. */
static uint64_t floor_of(const struct pager_budget *b) {
        uint64_t c = ceiling(b);

        return MAX_OF(c / 8, MIN_OF(c / 2, PAGER_BUDGET_FLOOR));
}

static void set(struct pager_budget *b, uint64_t v) {
        atomic_store_explicit(&b->now, v, memory_order_relaxed);
}

uint64_t pager_budget_default(uint64_t ram_bytes, uint64_t limit) {
        return MAX_OF(MIN_OF(ram_bytes, limit) / 4, PAGER_MIN_BUDGET);
}

void pager_budget_init(struct pager_budget *b, uint64_t configured) {
        *b = (struct pager_budget){ .configured = configured, .limit = UINT64_MAX };
        set(b, ceiling(b));
}

void pager_budget_set_limit(struct pager_budget *b, uint64_t limit) {
        b->limit = limit;
        if (!b->next_step_ns || pager_budget_now(b) > ceiling(b))
                set(b, ceiling(b));
}

void pager_budget_pressure(struct pager_budget *b, uint64_t resident, uint64_t now_ns) {
        uint64_t v = MIN_OF(pager_budget_now(b), resident);

        (void) atomic_fetch_add_explicit(&b->events, 1, memory_order_relaxed);
        v -= MIN_OF(v, resident / 8);
        set(b, MAX_OF(v, floor_of(b)));
        b->next_step_ns = now_ns + PAGER_PRESSURE_CALM_SECONDS * SECOND_NS;
}

int pager_budget_relax(struct pager_budget *b, uint64_t now_ns) {
        while (b->next_step_ns && b->next_step_ns <= now_ns) {
                uint64_t top = ceiling(b), v = pager_budget_now(b);

                v = top - MIN_OF(v, top) <= top / 32 ? top : v + top / 32;
                set(b, v);
                b->next_step_ns = v < top ? b->next_step_ns + SECOND_NS : 0;
        }
        return b->next_step_ns ? (int) ((b->next_step_ns - now_ns + 999999) / 1000000) : -1;
}
