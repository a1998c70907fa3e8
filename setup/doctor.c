/* SPDX-License-Identifier: MIT */
#include "setup/doctor.h"

#include <stdarg.h>

#include "setup/assets.h"
#include "setup/doctor_internal.h"
#include "setup/setup.h"

#define SOCKET_DEFAULT "/run/forkd/forkd.sock"

void doctor_add(struct doctor_report *rep, const char *name, enum doctor_status status, const char *hint, const char *detail,
                ...) {
        va_list ap;

        if (rep->n == DOCTOR_MAX_CHECKS)
                return;
        struct doctor_check *c = &rep->checks[rep->n++];
        c->status = status;
        (void) snprintf(c->name, sizeof(c->name), "%s", name);
        (void) snprintf(c->hint, sizeof(c->hint), "%s", status == DOCTOR_OK ? "" : hint);
        va_start(ap, detail);
        (void) vsnprintf(c->detail, sizeof(c->detail), detail, ap);
        va_end(ap);
        rep->ok = rep->ok && status != DOCTOR_FAIL;
}

void doctor_run(const struct doctor_params *params, struct doctor_report *ret) {
        struct doctor_params p = *params;

        if (!p.cache_dir)
                p.cache_dir = assets_cache_dir();
        if (!p.state_dir)
                p.state_dir = SETUP_STATE_DEFAULT;
        if (!p.socket)
                p.socket = SOCKET_DEFAULT;
        if (p.kvm_timeout_ms <= 0)
                p.kvm_timeout_ms = SETUP_KVM_TIMEOUT_MS;
        *ret = (struct doctor_report){ .ok = true };

        doctor_userfaultfd(ret);
        doctor_pagemap_scan(ret);
        doctor_memfd(ret);
        doctor_qemu(ret);
        doctor_jail(ret);
        doctor_accel(ret, &p);
        doctor_assets(ret, &p);
        doctor_store(ret, &p);
        doctor_loop(ret);
        doctor_space(ret, &p);
        doctor_limits(ret);
        doctor_cgroup(ret);
        doctor_programs(ret);
        doctor_bpf(ret);
        doctor_probes(ret);
        doctor_net(ret);
        doctor_vsock(ret);
        doctor_forkd(ret, &p);
}

const char *doctor_status_name(enum doctor_status s) {
        static const char *const names[] = { "ok", "warn", "fail" };

        return names[s];
}
