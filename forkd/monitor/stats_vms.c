/* SPDX-License-Identifier: MIT */
/* The document's VMs: those in forkd's table, then those that have left it lately. */
#include <math.h>
#include <string.h>

#include "common/io.h"
#include "forkd/monitor/figures.h"
#include "forkd/monitor/stats_internal.h"

const char *stats_state_name(enum probes_state s) {
        static const char *const names[PROBES_N_STATES] = {
                [PROBES_UNKNOWN] = "unknown", [PROBES_ONCPU] = "oncpu", [PROBES_RUNQUEUE] = "runqueue", [PROBES_IDLE] = "idle",
                [PROBES_MEMORY] = "memory",   [PROBES_LOCK] = "lock",   [PROBES_DISK] = "disk",
        };

        return s < PROBES_N_STATES ? names[s] : "unknown";
}

void stats_kv_s(struct mp_buf *b, const char *key, uint64_t ns) {
        mp_kv_double(b, key, (double) ns / 1e9);
}

void stats_kv_share(struct mp_buf *b, const char *key, const struct monitor_shares *s, enum probes_state state) {
        mp_key(b, key);
        if (s->known)
                mp_double(b, s->part[state]);
        else
                mp_nil(b);
}

/* ---- vCPUs ---- */

static void put_vcpu(struct mp_buf *b, const struct monitor_vcpu *c, bool kvm) {
        mp_map(b, 20);
        mp_kv_u64(b, "vcpu", c->vcpu);
        mp_kv_i64(b, "tid", c->tid);
        mp_kv_str(b, "state", c->tid ? stats_state_name(c->state) : NULL);
        stats_kv_s(b, "oncpu_s", c->sum.ns[PROBES_ONCPU]);
        stats_kv_s(b, "runqueue_s", c->sum.ns[PROBES_RUNQUEUE]);
        stats_kv_s(b, "memory_s", c->sum.ns[PROBES_MEMORY]);
        stats_kv_s(b, "idle_s", c->sum.ns[PROBES_IDLE]);
        stats_kv_share(b, "oncpu", &c->window, PROBES_ONCPU);
        stats_kv_share(b, "runqueue", &c->window, PROBES_RUNQUEUE);
        stats_kv_share(b, "memory", &c->window, PROBES_MEMORY);
        stats_kv_share(b, "idle", &c->window, PROBES_IDLE);
        mp_kv_u64(b, "preempted", c->sum.preempted);
        mp_kv_u64(b, "slept", c->sum.slept);
        mp_key(b, "exits");
        if (kvm)
                mp_u64(b, c->sum.exits);
        else
                mp_nil(b);
        mp_key(b, "halts");
        if (kvm)
                mp_u64(b, c->sum.halts);
        else
                mp_nil(b);
        mp_kv_u64(b, "waits", c->sum.waits);
        mp_kv_double(b, "waiting_ms", (double) c->waiting_ns / 1e6);
        mp_kv_bool(b, "spinning", c->spinning);
        mp_kv_bool(b, "stuck", c->stuck);
        mp_kv_str(b, "why", c->why[0] ? c->why : NULL);
}

/* ---- a VM: what forkd's table has, and what the monitor has; either may be missing ---- */

static void put_record(struct mp_buf *b, const struct vm *vm) {
        mp_kv_str(b, "state", vm ? vm_state_name(vm->state) : "removed");
        mp_kv_str(b, "reason", vm && vm->reason[0] ? vm->reason : NULL);
        mp_kv_str(b, "vmm", vm ? vm->driver : NULL);
        mp_kv_str(b, "accel", vm ? vm->machine.accel == VMM_ACCEL_KVM ? "kvm" : "tcg" : NULL);
        mp_key(b, "pid");
        if (vm && vm->pid > 0)
                mp_u64(b, (uint64_t) vm->pid);
        else
                mp_nil(b);
        mp_kv_u64(b, "mem_bytes", vm ? vm->machine.mem_bytes : 0);
        mp_kv_str(b, "snapshot", vm && vm->snapshot[0] ? vm->snapshot : NULL);
        mp_kv_str(b, "parent", vm && vm->parent[0] ? vm->parent : NULL);
        mp_kv_u64(b, "generation", vm ? vm->generation : 0);
        mp_kv_str(b, "on_pager_loss", vm ? vm->on_pager_loss : NULL);
        mp_kv_str(b, "session", monitor_session_name(vm ? monitor_vm_session(vm) : MONITOR_NO_SESSION));
}

static void put_others(struct mp_buf *b, const struct monitor_vm *mv) {
        static const struct probes_sample none;
        const struct probes_sample *s = mv ? &mv->others.sum : &none;

        mp_key(b, "others");
        mp_map(b, 5);
        mp_kv_u64(b, "threads", mv ? mv->others.threads : 0);
        stats_kv_s(b, "oncpu_s", s->ns[PROBES_ONCPU]);
        stats_kv_s(b, "runqueue_s", s->ns[PROBES_RUNQUEUE]);
        stats_kv_s(b, "memory_s", s->ns[PROBES_MEMORY]);
        mp_kv_u64(b, "waits", s->waits);
}

static void put_vm(struct mp_buf *b, const struct vm *vm, const struct monitor_vm *mv, bool kvm) {
        char why[MONITOR_WHY_SIZE] = "";
        struct figures waits = { 0 };
        enum monitor_health health = mv ? monitor_vm_health(mv, why) : MONITOR_UNKNOWN;

        if (mv)
                figures_of_waits(&mv->sum, &waits);
        mp_map(b, 21);
        mp_kv_str(b, "name", vm ? vm->name : mv->name);
        mp_kv_str(b, "id", vm ? vm->id : mv->id);
        put_record(b, vm);
        mp_kv_bool(b, "watched", mv && mv->watched);
        mp_key(b, "ended_ms");
        if (!vm && mv->ended_ns)
                mp_double(b, ms_since(mv->ended_ns));
        else
                mp_nil(b);
        mp_kv_str(b, "health", monitor_health_name(health));
        mp_kv_str(b, "why", why[0] ? why : NULL);
        figures_kv(b, "wait", &waits);
        mp_kv_double(b, "waiting_ms", mv ? (double) mv->waiting_ns / 1e6 : 0);
        mp_key(b, "vcpus");
        mp_array(b, mv ? mv->n_vcpus : 0);
        for (unsigned i = 0; mv && i < mv->n_vcpus; i++)
                put_vcpu(b, &mv->vcpu[i], kvm);
        put_others(b, mv);
}

/* ---- which ---- */

static bool is_meant(const char *only, const char *name, const char *id) {
        return !only || strcmp(only, name) == 0 || strcmp(only, id) == 0;
}

bool stats_has_vm(const struct daemon *d, const char *only) {
        const struct monitor_vm *mv;
        const struct vm *vm;

        TAILQ_FOREACH (vm, &d->vms, entry)
                if (is_meant(only, vm->name, vm->id))
                        return true;
        for (mv = monitor_first_vm(d->monitor); mv; mv = monitor_next_vm(mv))
                if (is_meant(only, mv->name, mv->id))
                        return true;
        return false;
}

void stats_put_vms(const struct daemon *d, const char *only, struct mp_buf *b) {
        cleanup_stats_list struct stats_list l;
        cleanup_mp_buf struct mp_buf item = { 0 };
        struct monitor_probes probes;
        const struct monitor_vm *mv;
        const struct vm *vm;

        stats_list_init(&l, STATS_MAX_VMS_BYTES);
        mp_buf_init(&item);
        monitor_get_probes(d->monitor, &probes);
        TAILQ_FOREACH (vm, &d->vms, entry)
                if (is_meant(only, vm->name, vm->id) && (only || !vm->pool[0])) {
                        put_vm(&item, vm, monitor_of(vm), probes.status.kvm);
                        stats_list_add(&l, &item);
                }
        /* A living VM's name is not also told of one that had it before. */
        for (mv = monitor_first_vm(d->monitor); mv; mv = monitor_next_vm(mv))
                if (!mv->vm && is_meant(only, mv->name, mv->id) && !(only && l.n > 0)) {
                        put_vm(&item, NULL, mv, probes.status.kvm);
                        stats_list_add(&l, &item);
                }
        mp_kv_list(b, "vms", &l.items, l.n);
        mp_kv_u64(b, "vms_left_out", l.left_out);
}
