/* SPDX-License-Identifier: MIT */
/* Where in this kernel threads sleep: learned from a thread of our own, see learn.bpf.c. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"

/** Of kernel functions, [start, end); 0, 0: not known. */
struct learn_bounds {
        uint64_t fault_start, fault_end; /* handle_userfault */
        uint64_t futex_start, futex_end; /* the outermost function of a futex wait */
};

/** Takes some milliseconds. *@ret is filled as far as it goes; -errno of what failed, with the step in @why. */
int learn_sleeps(struct learn_bounds *ret, char *why, size_t size) attr_warn_unused;

/** "name+0x1b2/0x5e0" of the instruction at @address, if the name begins with @prefix: the function's bounds. -EINVAL: it is
 *  none of that, or makes no sense. Names that compilers made of @prefix ("prefix.cold") count. */
int learn_parse(const char *text, uint64_t address, const char *prefix, uint64_t *ret_start, uint64_t *ret_end) attr_warn_unused;
