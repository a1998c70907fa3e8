/* SPDX-License-Identifier: MIT */
/* System calls that no VMM of ours makes. */
#pragma once

#include "common/cleanup.h"

struct sock_fprog;

/** A program for PR_SET_SECCOMP that refuses them; to be freed by vmm_filter_free. */
int vmm_filter_new(struct sock_fprog **ret) attr_warn_unused;
void vmm_filter_free(struct sock_fprog *f);
