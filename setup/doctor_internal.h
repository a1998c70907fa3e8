/* SPDX-License-Identifier: MIT */
/* The checks by subject; each function adds its own to the report. */
#pragma once

#include "setup/doctor.h"

void doctor_add(struct doctor_report *rep, const char *name, enum doctor_status status, const char *hint, const char *detail, ...)
        attr_printf(5, 6);

/* doctor_kernel.c: what the running kernel can do */
void doctor_userfaultfd(struct doctor_report *rep);
void doctor_pagemap_scan(struct doctor_report *rep);
void doctor_memfd(struct doctor_report *rep);
void doctor_cgroup(struct doctor_report *rep);
void doctor_bpf(struct doctor_report *rep);
void doctor_probes(struct doctor_report *rep);
void doctor_net(struct doctor_report *rep);
void doctor_vsock(struct doctor_report *rep);

/* doctor_jail.c */
void doctor_jail(struct doctor_report *rep);

/* doctor_host.c: programs, disks, memory, limits */
void doctor_qemu(struct doctor_report *rep);
void doctor_accel(struct doctor_report *rep, const struct doctor_params *p);
void doctor_assets(struct doctor_report *rep, const struct doctor_params *p);
void doctor_store(struct doctor_report *rep, const struct doctor_params *p);
void doctor_loop(struct doctor_report *rep);
void doctor_space(struct doctor_report *rep, const struct doctor_params *p);
void doctor_limits(struct doctor_report *rep);
void doctor_programs(struct doctor_report *rep);
void doctor_forkd(struct doctor_report *rep, const struct doctor_params *p);
