/* SPDX-License-Identifier: MIT */
/* A made-up result, whose figures a test can tell by hand. */
#pragma once

#include "forkctl/chain/chain.h"

/** A run of @depth links of four forks each: fork times of link d are d × @step more than 100 … 103 ms, those of its reference are
 *  100 … 103 ms; a standby takes 20 ms. The caller clears it. */
static inline void made_up(struct chain_result *r, struct chain_plan *plan, unsigned depth, double step) {
        *plan = (struct chain_plan){ .depth = depth, .fanout = 4, .rounds = 1, .seed = 7, .dirty = 1 << 20, .mem = 256 << 20 };
        assert_int_equal(chain_result_init(r, plan), 0);
        r->host = json_pack("{s:s, s:s, s:i}", "when", "2026-01-02T03:04:05Z", "cpu", "a <fast> & \"odd\" one", "cpus", 2);
        r->mem_bytes = plan->mem;
        (void) strcpy(r->guest, "booted");
        r->disk = true;
        r->base.saved = true;
        r->base.dirty_bytes = r->base.stored_bytes = 10 << 20;
        r->base.raw_bytes = 256 << 20;
        r->n_links = depth;
        for (unsigned d = 1; d <= depth; d++) {
                struct chain_link *l = &r->links[d - 1];

                *l = (struct chain_link){ .depth = d,
                                          .saved = true,
                                          .dirty_bytes = 4 << 20,
                                          .stored_bytes = 2 << 20,
                                          .raw_bytes = 256 << 20,
                                          .verified = 4,
                                          .held = true,
                                          .held_bytes = (50 + 6 * (uint64_t) d) << 20 };
                samples_add(&l->ms[STEP_STANDBY], 20);
                samples_add(&l->reference[STEP_STANDBY], 20);
                for (unsigned i = 0; i < 4; i++) {
                        samples_add(&l->ms[STEP_FORK], 100 + i + (d - 1) * step);
                        if (d > 1)
                                samples_add(&l->reference[STEP_FORK], 100 + i);
                        samples_add(&l->private_bytes, (1 + i) << 20);
                }
                l->faults = json_pack("{s:i, s:i}", "missing", 10, "zero", 1);
        }
}
