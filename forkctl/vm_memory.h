/* SPDX-License-Identifier: MIT */
#pragma once

#include "forkctl/ctl.h"

/** Memory of a running VM: of its guest alone (shared with no other), and of its VMM beside it. Negative where that cannot be told. */
void vm_memory(struct ctl *c, const char *name, double *ret_private, double *ret_vmm);
