/* SPDX-License-Identifier: MIT */
/* What the monitor is asked by those who tell people. */
#include "forkd/monitor/internal.h"

#include <stdio.h>

#include "common/io.h"
#include "forkd/daemon.h"

const char *monitor_health_name(enum monitor_health h) {
        static const char *const names[] = { "unknown", "ok", "spinning", "stuck", "orphan" };

        return (size_t) h < ARRAY_LEN(names) ? names[h] : "unknown";
}

const char *monitor_session_name(enum monitor_session s) {
        static const char *const names[] = { "none", "serving", "lost" };

        return (size_t) s < ARRAY_LEN(names) ? names[s] : "none";
}

const char *monitor_role_name(enum monitor_role r) {
        static const char *const names[] = { "fault", "fill", "control", "other" };

        return (size_t) r < ARRAY_LEN(names) ? names[r] : "other";
}

void monitor_put_lately(const struct monitor *m, struct mp_buf *out) {
        static const struct lately nothing;

        lately_put(m ? &m->lately : &nothing, now_ns(), out);
}

const struct monitor_vm *monitor_first_vm(const struct monitor *m) {
        return m ? TAILQ_FIRST(&m->vms) : NULL;
}

const struct monitor_vm *monitor_next_vm(const struct monitor_vm *mv) {
        return TAILQ_NEXT(mv, entry);
}

const struct monitor_vm *monitor_of(const struct vm *vm) {
        return vm->monitored;
}

enum monitor_session monitor_vm_session(const struct vm *vm) {
        if (!vm->session)
                return MONITOR_NO_SESSION;
        return vm->hold.process ? MONITOR_SERVED : MONITOR_LOST;
}

static enum monitor_health health_of_vcpus(const struct monitor_vm *mv, char why[MONITOR_WHY_SIZE]) {
        for (unsigned i = 0; i < mv->n_vcpus; i++) {
                const struct monitor_vcpu *c = &mv->vcpu[i];

                if (!c->spinning && !c->stuck)
                        continue;
                (void) snprintf(why, MONITOR_WHY_SIZE, "vCPU %u: %.100s", c->vcpu, c->why);
                return c->stuck ? MONITOR_STUCK : MONITOR_SPINNING;
        }
        return MONITOR_OK;
}

enum monitor_health monitor_vm_health(const struct monitor_vm *mv, char why[MONITOR_WHY_SIZE]) {
        char ignored[MONITOR_WHY_SIZE];
        enum monitor_health h;

        why = why ? why : ignored;
        why[0] = '\0';
        if (mv->vm && monitor_vm_session(mv->vm) == MONITOR_LOST) {
                (void) snprintf(why, MONITOR_WHY_SIZE, "its pager session is gone");
                return MONITOR_ORPHAN;
        }
        if (!mv->watched)
                return MONITOR_UNKNOWN;
        h = health_of_vcpus(mv, why);
        if (h == MONITOR_OK && mv->waiting_ns > monitor_turn_ns(mv->m) * MONITOR_TICKS) {
                (void) snprintf(why, MONITOR_WHY_SIZE, "its VMM has waited for a page of its memory for %.1f s",
                                (double) mv->waiting_ns / 1e9);
                return MONITOR_STUCK;
        }
        return h;
}

const struct monitor_pager *monitor_get_pager(const struct monitor *m) {
        return &m->pager;
}

bool monitor_is_up(const struct monitor *m) {
        return m && m->probes;
}

bool monitor_is_blind(const struct monitor *m) {
        struct probes_status st;

        if (!monitor_is_up(m))
                return false;
        probes_get_status(m->probes, &st);
        return st.method == PROBES_NONE;
}

unsigned monitor_window_ms(const struct monitor *m) {
        return m->d->cfg.window_ms;
}

void monitor_get_probes(const struct monitor *m, struct monitor_probes *ret) {
        const struct monitor_vm *mv;

        *ret = (struct monitor_probes){ .ok = monitor_is_up(m) };
        if (!m)
                return;
        if (m->probes)
                probes_get_status(m->probes, &ret->status);
        (void) snprintf(ret->reason, sizeof(ret->reason), "%s", m->probes ? ret->status.why : m->reason);
        (void) snprintf(ret->hint, sizeof(ret->hint), "%s", m->hint);
        ret->looks = m->looks;
        ret->voided = m->voided;
        TAILQ_FOREACH (mv, &m->vms, entry) {
                if (!mv->vm || mv->vm->pid <= 0)
                        continue;
                ret->watched_vms += mv->watched;
                ret->unwatched_vms += !mv->watched;
        }
}
