/* SPDX-License-Identifier: MIT */
/* Where in this kernel threads wait for memory: learned from a thread of our own, see learn.bpf.c. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/cleanup.h"

/** handle_userfault, [start, end), and how many frames of a stack it takes to find it, a few to spare; 0: not known. */
struct learn_bounds {
        uint64_t start, end;
        uint32_t frames;
};

/** Takes some milliseconds. -errno of what failed, with the step in @why; *@ret is zero then. */
int learn_fault(struct learn_bounds *ret, char *why, size_t size) attr_warn_unused;

/** "name+0x1b2/0x5e0" of the instruction at @address, if the name begins with @prefix: the function's bounds. -EINVAL: it is
 *  none of that, or makes no sense. Names that compilers made of @prefix ("prefix.cold") count. */
int learn_parse(const char *text, uint64_t address, const char *prefix, uint64_t *ret_start, uint64_t *ret_end) attr_warn_unused;
