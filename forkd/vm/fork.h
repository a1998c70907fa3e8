/* SPDX-License-Identifier: MIT */
/* fork: any VM or snapshot becomes one or many new VMs. */
#pragma once

#include "forkd/vm/vm.h"

#define FORK_MAX_CLONES 1000

struct fork_params {
        const char *source; /* a VM's name or id, a snapshot's id or tag */
        bool snapshot_only; /* a VM that is called so is not meant */
        const char *name;   /* "": derived from the source */
        unsigned count;
        bool paused, force;
        const char *on_pager_loss; /* "": as the source VM has it, or "kill" for a snapshot */
};

struct fork_result {
        struct {
                char name[NAME_MAX_LEN + 1];
                id_str id;
                pid_t pid;
                struct vm_clone_result times;
        } clones[FORK_MAX_CLONES];
        double wall_ms, source_pause_ms;
        bool source_paused; /* the source was running: it was paused so long, and runs on */
};

/** All clones come to life, or none stays. A coroutine call. */
int fork_run(struct daemon *d, const struct fork_params *p, struct fork_result *ret, struct err *e) attr_warn_unused;
