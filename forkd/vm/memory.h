/* SPDX-License-Identifier: MIT */
/* What a living VM costs in memory that it shares with nobody. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "common/cleanup.h"

struct vm;

struct vm_memory {
        uint64_t guest; /* of the guest's RAM: what it has written */
        uint64_t vmm;   /* of the VMM beside it: translated code, devices, libraries' data */
};

/** Asks the kernel: half a millisecond for a small clone, some 10 ms for each GiB that the guest has touched; so it is for one VM
 *  that somebody asks about. -ESRCH: it has no VMM. */
int vm_memory(const struct vm *vm, struct vm_memory *ret) attr_warn_unused;

/** Both together, in no time: private memory of a process. -ESRCH. */
int vm_memory_of(pid_t pid, uint64_t *ret) attr_warn_unused;
