// SPDX-License-Identifier: Dual MIT/GPL
/* Theory of operation. Each switch of the scheduler ends one state of two threads and begins another: the one that leaves the
 * CPU, and the one that gets it; a wake-up moves a sleeper to a run queue. So a thread's time is split into states without a
 * gap, and each costs an addition.
 *
 * Whether a sleeper waits for guest memory is told in one of two ways. Where handle_userfault itself can be traced (fentry, or
 * kprobe) it is noted while the thread is in there. Elsewhere the sleeper's kernel stack is looked at: an address within
 * handle_userfault means that it waits there; the bounds are learned before the programs are loaded (learn.bpf.c). A wait
 * lasts from the sleep until the thread has a CPU again.
 *
 * Identity. Only threads of watched processes are looked at. An entry carries its watch's number and the thread's birth; a
 * process carries its leader's. A tid or tgid that the kernel gave to somebody else meanwhile does not match and is thrown
 * away, so nothing is ever added to what another has counted. A thread's entry goes with it, and its counts into its
 * process's.
 *
 * An entry is changed by the CPU that switches its thread, or by the one that wakes it, which the scheduler lets happen only
 * when the thread has left its CPU: no locks. A reader sees by two counters whether it has read in the middle of that. */
#include "bpf/kernel_types.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Set by the loader. Empty bounds: not known, nothing is taken for it. */
const volatile bool by_stack = false;                   /* no program notes waits for memory */
const volatile uint64_t fault_start = 0, fault_end = 0; /* handle_userfault */
const volatile uint32_t fault_frames = 0;               /* of a stack, in which it is found */
const volatile uint8_t calls[PROBES_CALLS] = {};        /* of each system call, an enum probes_call */

/* Told to whoever reads. */
uint64_t overflows = 0; /* threads that found no place */
uint64_t recycled = 0;  /* entries that were another's */
uint64_t missed = 0;    /* the map could not be changed just then */

struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 1024);
        __type(key, uint32_t);
        __type(value, struct probes_process);
} processes SEC(".maps");

struct {
        __uint(type, BPF_MAP_TYPE_HASH);
        __uint(max_entries, 8192);
        __type(key, uint32_t);
        __type(value, struct probes_thread_entry);
} threads SEC(".maps");

/* Larger than a program's stack may hold. */
static const struct probes_thread_entry empty = {};

static __always_inline void add(uint64_t *to, uint64_t n) {
        __sync_fetch_and_add(to, n);
}

/** @task's process, if it is watched. */
static __always_inline struct probes_process *process_of(struct task_struct *task) {
        uint32_t tgid = (uint32_t) task->tgid;
        struct probes_process *p;
        uint64_t start;

        if (task->flags & PF_KTHREAD)
                return NULL;
        p = bpf_map_lookup_elem(&processes, &tgid);
        if (!p)
                return NULL;
        start = task->group_leader->start_time;
        if (p->start == 0)
                p->start = start;
        return p->start == start ? p : NULL;
}

static __always_inline bool is_of(const struct probes_thread_entry *t, const struct probes_process *p, struct task_struct *task) {
        return t->watch == p->watch && t->tgid == (uint32_t) task->tgid && (t->start == 0 || t->start == task->start_time);
}

/** @task's entry, made if need be. NULL: it is not watched, or there is no place. */
static __always_inline struct probes_thread_entry *thread_of(struct task_struct *task) {
        struct probes_process *p = process_of(task);
        struct probes_thread_entry *t;
        uint32_t tid = (uint32_t) task->pid;
        int r; /* no long: before 6.4 the upper half of what these calls return is undefined */

        if (!p)
                return NULL;
        t = bpf_map_lookup_elem(&threads, &tid);
        if (t && !is_of(t, p, task)) {
                add(&recycled, 1);
                if ((int) bpf_map_delete_elem(&threads, &tid) < 0)
                        add(&missed, 1);
                t = NULL;
        }
        if (t && t->start)
                return t;
        if (!t) {
                if (task->flags & PF_EXITING)
                        return NULL;
                r = (int) bpf_map_update_elem(&threads, &tid, &empty, BPF_NOEXIST);
                if (r < 0) {
                        add(r == -7 /* E2BIG */ ? &overflows : &missed, 1);
                        return NULL;
                }
                t = bpf_map_lookup_elem(&threads, &tid);
                if (!t)
                        return NULL;
                t->tgid = (uint32_t) task->tgid;
                t->watch = p->watch;
        }
        t->start = task->start_time;
        t->exec = task->se.sum_exec_runtime;
        return t;
}

static __always_inline void change(struct probes_thread_entry *t) {
        t->begun++;
        barrier();
}

static __always_inline void changed(struct probes_thread_entry *t) {
        barrier();
        t->done++;
}

/** Ends the present state, which it was in until @now: a time that is taken after `change`, so that a reader that finds the old
 *  state has looked at the clock before, and what it counts of it is never too much. */
static __always_inline void move(struct probes_thread_entry *t, uint32_t state, uint64_t now) {
        uint32_t old = t->state;

        if (old < PROBES_N_STATES && t->since && now > t->since)
                t->sum.ns[old] += now - t->since;
        t->state = state;
        t->since = now;
}

static __always_inline void end_wait(struct probes_thread_entry *t, uint64_t now) {
        uint64_t ns = now > t->wait_since ? now - t->wait_since : 0, v = ns >> PROBES_FIRST_LOG2;
        uint32_t i = 0;

        /* The bits of v, in steps of halves: a loop that the verifier can see the end of would cost it more. */
        if (v >> 32)
                v = 0xffffffff;
        if (v >> 16) {
                i += 16;
                v >>= 16;
        }
        if (v >> 8) {
                i += 8;
                v >>= 8;
        }
        if (v >> 4) {
                i += 4;
                v >>= 4;
        }
        if (v >> 2) {
                i += 2;
                v >>= 2;
        }
        i += v >> 1 ? 2 : v & 1;
        if (i >= PROBES_BUCKETS)
                i = PROBES_BUCKETS - 1;
        t->sum.wait[i]++;
        t->sum.waits++;
        t->sum.wait_ns += ns;
        if (ns > t->sum.longest_ns)
                t->sum.longest_ns = ns;
        t->wait_since = 0;
        t->fault = 0;
}

/** The thread has had a CPU since @now. A wait that was held goes on until it is seen what the thread does with it. */
static __always_inline void arrive(struct probes_thread_entry *t, uint64_t now) {
        move(t, PROBES_ONCPU, now);
        if (t->wait_since && !t->held)
                end_wait(t, now);
}

/* On a busy host a few switches in a thousand are told to nobody. The scheduler's own account says when they were. */

/** What @t has had of CPUs since it was seen to leave one, of the time in its present state. */
static __always_inline uint64_t ran(const struct probes_thread_entry *t, struct task_struct *task, uint64_t now) {
        uint64_t ns = task->se.sum_exec_runtime - t->exec, most = now > t->since ? now - t->since : 0;

        return ns < most ? ns : most;
}

/** The thread leaves a CPU that it was not seen to get. */
static __always_inline void make_up_enter(struct probes_thread_entry *t, struct task_struct *task, uint64_t now) {
        if (t->state != PROBES_ONCPU && t->since)
                arrive(t, now - ran(t, task, now));
}

/** The thread gets a CPU, and was not seen to leave the one before: what it did meanwhile nobody knows. */
static __always_inline void make_up_leave(struct probes_thread_entry *t, struct task_struct *task, uint64_t now) {
        if (t->state == PROBES_ONCPU && t->since)
                move(t, PROBES_UNKNOWN, t->since + ran(t, task, now));
}

static __always_inline bool is_in_fault(void *ctx) {
        uint64_t stack[PROBES_STACK] = {};

        if (!by_stack || fault_frames == 0 || fault_frames > PROBES_STACK)
                return false;
        if (bpf_get_stack(ctx, stack, fault_frames * sizeof(stack[0]), 0) < 0)
                return false;
        for (uint32_t i = 0; i < PROBES_STACK && i < fault_frames; i++)
                if (stack[i] >= fault_start && stack[i] < fault_end)
                        return true;
        return false;
}

/** What the present thread, which gives up its CPU, sleeps for. Walking its stack is what costs here, so it is not done where the
 *  system call tells: those that are told of never touch guest memory. */
static __always_inline uint32_t classify(void *ctx, struct task_struct *task, uint32_t task_state, uint32_t fault) {
        long call;

        if (fault)
                return PROBES_MEMORY;
        if (BPF_CORE_READ_BITFIELD_PROBED(task, in_iowait))
                return PROBES_DISK;
        call = call_of(task);
        if (call >= 0 && call < PROBES_CALLS && calls[call] != PROBES_CALL_ANY && (task_state & TASK_INTERRUPTIBLE))
                return calls[call] == PROBES_CALL_LOCK ? PROBES_LOCK : PROBES_IDLE;
        if (is_in_fault(ctx))
                return PROBES_MEMORY;
        return task_state & TASK_UNINTERRUPTIBLE ? PROBES_LOCK : PROBES_IDLE;
}

/** The fault has been raised, and the CPU is taken from it before it sleeps for the answer: on a busy host that is what a wait
 *  begins with, and may be all of it. */
static __always_inline bool is_held(void *ctx, const struct probes_thread_entry *t, uint32_t task_state) {
        return task_state != 0 && (t->fault || is_in_fault(ctx));
}

static __always_inline void leave(void *ctx, struct task_struct *task, bool preempt) {
        struct probes_thread_entry *t = thread_of(task);
        uint32_t task_state, state;
        bool held = false;
        uint64_t now;

        if (!t)
                return;
        /* A thread that was about to sleep when the CPU was taken from it is still on its run queue. */
        task_state = task->__state;
        if (preempt || task_state == 0) {
                state = PROBES_RUNQUEUE;
                held = is_held(ctx, t, task_state);
        } else {
                state = classify(ctx, task, task_state, t->fault);
        }
        change(t);
        now = bpf_ktime_get_ns();
        make_up_enter(t, task, now);
        if (state == PROBES_RUNQUEUE)
                t->sum.preempted++;
        else
                t->sum.slept++;
        /* A wait that was held ended when its thread had a CPU again, unless it goes on. */
        if (t->wait_since && !(held || state == PROBES_MEMORY))
                end_wait(t, t->since);
        move(t, state, now);
        if ((held || state == PROBES_MEMORY) && t->wait_since == 0)
                t->wait_since = now;
        t->held = held;
        t->exec = task->se.sum_exec_runtime;
        changed(t);
}

static __always_inline void enter(struct task_struct *task) {
        struct probes_thread_entry *t = thread_of(task);
        uint64_t now;

        if (!t)
                return;
        change(t);
        now = bpf_ktime_get_ns();
        make_up_leave(t, task, now);
        arrive(t, now);
        bpf_probe_read_kernel_str(t->comm, sizeof(t->comm), task->comm);
        changed(t);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev, struct task_struct *next) {
        leave(ctx, prev, preempt);
        enter(next);
        return 0;
}

static __always_inline void wake(struct task_struct *task) {
        struct probes_process *p = process_of(task);
        struct probes_thread_entry *t;
        uint32_t tid = (uint32_t) task->pid;

        if (!p)
                return;
        t = bpf_map_lookup_elem(&threads, &tid);
        if (!t || !is_of(t, p, task) || t->state == PROBES_ONCPU || t->state == PROBES_RUNQUEUE)
                return;
        change(t);
        move(t, PROBES_RUNQUEUE, bpf_ktime_get_ns());
        changed(t);
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(on_wakeup, struct task_struct *task) {
        wake(task);
        return 0;
}

/* A new thread, which nobody has seen yet. */
SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_new, struct task_struct *task) {
        struct probes_thread_entry *t = thread_of(task);

        if (!t)
                return 0;
        change(t);
        move(t, PROBES_RUNQUEUE, bpf_ktime_get_ns());
        changed(t);
        return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task) {
        struct probes_process *p = process_of(task);
        struct probes_thread_entry *t;
        uint32_t tid = (uint32_t) task->pid;
        uint64_t now;

        t = bpf_map_lookup_elem(&threads, &tid);
        if (!t)
                return 0;
        if (p && is_of(t, p, task)) {
                change(t);
                now = bpf_ktime_get_ns();
                make_up_enter(t, task, now);
                if (t->wait_since)
                        end_wait(t, t->since);
                move(t, PROBES_ONCPU, now);
                changed(t);
                for (uint32_t i = 0; i < PROBES_N_STATES; i++)
                        add(&p->ended.ns[i], t->sum.ns[i]);
                add(&p->ended.preempted, t->sum.preempted);
                add(&p->ended.slept, t->sum.slept);
                add(&p->ended.exits, t->sum.exits);
                add(&p->ended.halts, t->sum.halts);
                add(&p->ended.waits, t->sum.waits);
                add(&p->ended.wait_ns, t->sum.wait_ns);
                if (t->sum.longest_ns > p->ended.longest_ns)
                        p->ended.longest_ns = t->sum.longest_ns;
                for (uint32_t i = 0; i < PROBES_BUCKETS; i++)
                        add(&p->ended.wait[i], t->sum.wait[i]);
        }
        if ((int) bpf_map_delete_elem(&threads, &tid) < 0)
                add(&missed, 1);
        return 0;
}

/* ---- faults, where handle_userfault itself can be traced ---- */

/* Only a fault that sleeps is a wait, and its sleep ends in `enter`: so a return that is not seen, for kretprobes are few, costs
 * nothing but for the fault that did not sleep. */
static __always_inline void note(uint32_t fault) {
        struct probes_thread_entry *t = thread_of(bpf_get_current_task_btf());

        if (t)
                t->fault = fault;
}

SEC("fentry/handle_userfault")
int BPF_PROG(fault_fentry) {
        note(1);
        return 0;
}

SEC("fexit/handle_userfault")
int BPF_PROG(fault_fexit) {
        note(0);
        return 0;
}

SEC("kprobe/handle_userfault")
int BPF_KPROBE(fault_kprobe) {
        note(1);
        return 0;
}

SEC("kretprobe/handle_userfault")
int BPF_KRETPROBE(fault_kretprobe) {
        note(0);
        return 0;
}

/* ---- KVM, where it is; no argument is needed, which is as well: they differ between kernels ---- */

SEC("raw_tp/kvm_exit")
int on_kvm_exit(void *ctx) {
        struct probes_thread_entry *t = thread_of(bpf_get_current_task_btf());

        if (t)
                t->sum.exits++;
        return 0;
}

SEC("raw_tp/kvm_vcpu_wakeup")
int on_kvm_halt(void *ctx) {
        struct probes_thread_entry *t = thread_of(bpf_get_current_task_btf());

        if (t)
                t->sum.halts++;
        return 0;
}
