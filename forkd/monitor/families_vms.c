/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "common/io.h"
#include "forkd/monitor/metrics_internal.h"
#include "forkd/vm/memory.h"
#include "forkd/vm/vm.h"

static void states(struct scrape *s) {
        uint64_t n[VM_FAILED + 1] = { 0 };
        const struct vm *vm;

        TAILQ_FOREACH (vm, &s->d->vms, entry)
                if (!vm->pool[0])
                        n[vm->state]++;
        expo_family(&s->x, "forkd_vms", "gauge", "VMs in each state, without those that wait in pools.");
        for (int i = 0; i <= VM_FAILED; i++) {
                struct expo_labels l = { 0 };

                expo_label(&l, "state", vm_state_name((enum vm_state) i));
                expo_u64(&s->x, &l, n[i]);
        }
}

/* Zeros of a VM that nobody has looked at would be wrong numbers. What was seen of one stays, whoever looks now … */
static bool was_seen(const struct scrape_vm *v) {
        uint64_t ns = 0;

        for (int i = 0; i < PROBES_N_STATES; i++)
                ns += v->mv->sum.ns[i];
        return v->mv->watched || ns > 0;
}

/* … and of this moment nothing is said of one that lives and is not looked at. */
static bool is_seen(const struct scrape_vm *v) {
        return was_seen(v) && !v->mv->refused;
}

static void waits(struct scrape *s) {
        expo_family(&s->x, "forkd_uffd_wait_seconds", "histogram",
                    "How long a thread of the VM stood still for a page of guest memory, from the fault until it ran again.");
        for (unsigned i = 0; i < s->n_vms; i++) {
                const struct probes_sample *p = &s->vms[i].mv->sum;
                struct expo_hist h = { .sum_ns = p->wait_ns };

                if (s->blind || !was_seen(&s->vms[i]))
                        continue;
                for (unsigned b = 0; b < PROBES_BUCKETS; b++)
                        if (p->wait[b])
                                expo_hist_add(&h, probes_bucket_end_ns(b), p->wait[b]);
                expo_hist(&s->x, &s->vms[i].labels, &h);
        }
        expo_family(&s->x, "forkd_uffd_waiting_seconds", "gauge",
                    "The longest wait for a page that is under way; 0: there is none.");
        for (unsigned i = 0; i < s->n_vms; i++) {
                uint64_t since = s->vms[i].mv->waiting_since_ns, now = s->now_ns;

                if (!s->blind && is_seen(&s->vms[i]))
                        expo_seconds(&s->x, &s->vms[i].labels, since && now > since ? now - since : 0);
        }
}

/* ---- vCPUs: a family each ---- */

static uint64_t oncpu(const struct monitor_vcpu *v) {
        return v->sum.ns[PROBES_ONCPU];
}

static uint64_t runqueue(const struct monitor_vcpu *v) {
        return v->sum.ns[PROBES_RUNQUEUE];
}

static uint64_t memory(const struct monitor_vcpu *v) {
        return v->sum.ns[PROBES_MEMORY];
}

static uint64_t preempted(const struct monitor_vcpu *v) {
        return v->sum.preempted;
}

static uint64_t exits(const struct monitor_vcpu *v) {
        return v->sum.exits;
}

static uint64_t halts(const struct monitor_vcpu *v) {
        return v->sum.halts;
}

static uint64_t spinning(const struct monitor_vcpu *v) {
        return v->spinning;
}

static uint64_t stuck(const struct monitor_vcpu *v) {
        return v->stuck;
}

static const struct vcpu_family {
        const char *name, *type, *help;
        uint64_t (*get)(const struct monitor_vcpu *v);
        bool seconds;
        bool of_waits; /* for memory */
} vcpu_families[] = {
        { "forkd_vcpu_oncpu_seconds_total", "counter", "Time that the vCPU's thread was on a CPU.", oncpu, true, false },
        { "forkd_vcpu_runqueue_seconds_total", "counter", "Time that it was ready to run and had no CPU.", runqueue, true,
          false },
        { "forkd_vcpu_memory_seconds_total", "counter",
          "Time that it stood still for a page of guest memory, a wait under way included.", memory, true, true },
        { "forkd_vcpu_preemptions_total", "counter", "Times that the CPU was taken from it.", preempted, false, false },
        { "forkd_vcpu_exits_total", "counter", "Exits from guest mode, of any kind; needs KVM's tracepoints.", exits, false,
          false },
        { "forkd_vcpu_halts_total", "counter", "Exits because the guest had nothing to do; needs KVM's tracepoints.", halts,
          false, false },
        { "forkd_vcpu_spinning", "gauge", "1: it burns a core while nothing moves.", spinning, false, false },
        { "forkd_vcpu_stuck", "gauge", "1: it has waited for one page for longer than a window.", stuck, false, true },
};

static void vcpus(struct scrape *s, const struct vcpu_family *f) {
        bool gauge = strcmp(f->type, "gauge") == 0;

        expo_family(&s->x, f->name, f->type, f->help);
        for (unsigned i = 0; i < s->n_vms; i++) {
                if ((f->of_waits && s->blind) || !(gauge ? is_seen(&s->vms[i]) : was_seen(&s->vms[i])))
                        continue;
                for (unsigned k = 0; k < s->vms[i].mv->n_vcpus; k++) {
                        const struct monitor_vcpu *v = &s->vms[i].mv->vcpu[k];
                        struct expo_labels l = s->vms[i].labels;

                        expo_label_u64(&l, "vcpu", v->vcpu);
                        if (f->seconds)
                                expo_seconds(&s->x, &l, f->get(v));
                        else
                                expo_u64(&s->x, &l, f->get(v));
                }
        }
}

static void memory_of(struct scrape *s) {
        expo_family(&s->x, "forkd_vm_private_bytes", "gauge",
                    "Memory of a VM's process that it shares with nobody: what its guest has written, and the VMM's own.");
        for (unsigned i = 0; i < s->n_vms; i++) {
                const struct vm *vm = s->vms[i].mv->vm;
                uint64_t bytes;

                if (vm && vm->pid > 0 && vm_memory_of(vm->pid, &bytes) == 0)
                        expo_u64(&s->x, &s->vms[i].labels, bytes);
        }
}

void families_vms(struct scrape *s) {
        states(s);
        memory_of(s);
        waits(s);
        for (size_t i = 0; i < ARRAY_LEN(vcpu_families); i++)
                vcpus(s, &vcpu_families[i]);
        expo_one(&s->x, "forkd_metrics_unlisted_vms", "gauge", "VMs beyond [metrics] max_vms, which have no series of their own.",
                 s->unlisted);
}
