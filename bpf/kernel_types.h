/* SPDX-License-Identifier: Dual MIT/GPL */
/* The kernel's types as far as the programs look at them. Fields are found by name when the programs are loaded (CO-RE), so
 * nothing but names and kinds matters here, and no kernel's own headers are needed to build. What changed between the kernels
 * that are supported (5.15 and later) is handled in this file alone. */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "bpf/probes_maps.h"

#define TASK_INTERRUPTIBLE 0x1u
#define TASK_UNINTERRUPTIBLE 0x2u
#define PF_EXITING 0x4u        /* it is in do_exit: the scheduler will see it once more, and then never again */
#define PF_KTHREAD 0x00200000u /* has no user's memory */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sched_entity {
        uint64_t sum_exec_runtime; /* ns on a CPU; up to date when its thread is switched out */
};

struct task_struct {
        unsigned int __state; /* 5.14: was `state` */
        unsigned int flags;
        int pid, tgid; /* in the first pid namespace, whatever the process itself sees */
        uint64_t start_time;
        struct task_struct *group_leader;
        struct sched_entity se;
        char comm[16];
        unsigned int in_iowait : 1;
};

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
        unsigned long orig_ax;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
        int syscallno;
};
#endif

#pragma clang attribute pop

/** The system call that the present thread is in, or a negative number: it is not in one, but in a fault or an interrupt. */
static __always_inline long call_of(struct task_struct *task) {
        struct pt_regs *regs = (struct pt_regs *) bpf_task_pt_regs(task);

#if defined(__TARGET_ARCH_x86)
        return (long) regs->orig_ax;
#elif defined(__TARGET_ARCH_arm64)
        return regs->syscallno;
#endif
}
