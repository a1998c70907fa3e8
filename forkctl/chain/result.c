/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>

#include "forkctl/chain/chain.h"

const struct chain_step_info chain_steps[N_STEPS] = {
        [STEP_STANDBY] = { "standby", "standby",
                           "From the request to the answer: the snapshot is complete, and on disk unless --no-sync" },
        [STEP_PAUSE] = { "pause", "pause", "How long the guest stood still for its standby, before its VMM ended" },
        [STEP_SOURCE_PAUSE] = { "source_pause", "source pause", "How long a running guest stood still for being forked" },
        [STEP_FORK] = { "fork", "fork", "One fork, from the request to the answer: the clone has acknowledged who it is" },
        [STEP_LOAD] = { "load", "load", "Of a fork: from the start to the device state being loaded" },
        [STEP_ACK] = { "ack", "acknowledgement", "Of a fork: from there to the guest's acknowledgement" },
        [STEP_FIRST_EXEC] = { "first_exec", "first exec", "The first command in a clone, from the request to its exit code" },
};

int chain_result_init(struct chain_result *r, const struct chain_plan *plan) {
        *r = (struct chain_result){ .plan = plan, .boot_ms = -1 };
        r->links = calloc(plan->depth, sizeof(*r->links));
        return r->links ? 0 : -ENOMEM;
}

static void link_clear(struct chain_link *l) {
        for (unsigned i = 0; i < N_STEPS; i++) {
                samples_clear(&l->ms[i]);
                samples_clear(&l->reference[i]);
        }
        samples_clear(&l->private_bytes);
        samples_clear(&l->vmm_bytes);
        json_decref(l->faults);
}

void chain_result_clear(struct chain_result *r) {
        for (unsigned i = 0; i < r->n_links; i++)
                link_clear(&r->links[i]);
        link_clear(&r->base);
        free(r->links);
        json_decref(r->host);
        *r = (struct chain_result){ 0 };
}

void chain_fail(struct chain_result *r, unsigned depth, const char *step, const struct err *e) {
        struct chain_failure *f;

        if (r->n_failures++ >= CHAIN_MAX_FAILURES)
                return;
        f = &r->failures[r->n_failures - 1];
        f->depth = depth;
        f->step = step;
        (void) snprintf(f->reason, sizeof(f->reason), "%s", e->message);
}
