// SPDX-License-Identifier: Dual MIT/GPL
/* Where a thread of our own sleeps, in the kernel's words: its stack at the moment it gives up its CPU, with the name, the
 * offset and the size of the function of each address. So the bounds of a function are known without a right to read
 * kallsyms, and of that function that is really in the way of this kernel's sleepers. */
#include "bpf/kernel_types.h"

#define NAME 96

char LICENSE[] SEC("license") = "Dual MIT/GPL";

const volatile uint32_t target = 0; /* tid */

uint64_t address[PROBES_STACK];
char name[PROBES_STACK][NAME]; /* "handle_userfault+0x1b2/0x5e0" */
uint32_t frames = 0;

SEC("tp_btf/sched_switch")
int BPF_PROG(learn, bool preempt, struct task_struct *prev, struct task_struct *next) {
        long n;

        if ((uint32_t) prev->pid != target || preempt || prev->__state == 0)
                return 0;
        frames = 0; /* nobody reads what is half written */
        n = bpf_get_stack(ctx, address, sizeof(address), 0);
        for (uint32_t i = 0; i < PROBES_STACK; i++) {
                if ((long) (i * sizeof(uint64_t)) >= n)
                        break;
                BPF_SNPRINTF(name[i], NAME, "%pS", (void *) address[i]);
        }
        frames = n > 0 ? (uint32_t) n / sizeof(uint64_t) : 0;
        return 0;
}
