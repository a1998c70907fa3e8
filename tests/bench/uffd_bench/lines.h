/* SPDX-License-Identifier: MIT */
/* The promises: each measures what it needs and adds lines to the report. */
#pragma once

#include "tests/bench/uffd_bench/lab.h"
#include "tests/bench/uffd_bench/report.h"

struct bench_preset {
        const char *name, *explain;
        int (*run)(const struct bench_config *cfg, struct bench_report *report, struct err *e);
};
extern const struct bench_preset bench_presets[];
extern const unsigned bench_n_presets;

/** Measures @modes in turn, round by round, and compares them with the first. */
int bench_compare(const struct bench_config *cfg, const enum bench_mode *modes, unsigned n_modes, struct bench_report *report,
                  struct err *e) attr_warn_unused;

/* lines_load.c */
int bench_line_scaling(const struct bench_config *cfg, struct bench_report *report, struct err *e) attr_warn_unused;
int bench_line_fairness(const struct bench_config *cfg, struct bench_report *report, struct err *e) attr_warn_unused;
/* lines_workingset.c */
int bench_line_workingset(const struct bench_config *cfg, struct bench_report *report, struct err *e) attr_warn_unused;
/* lines_probes.c */
int bench_line_probes(const struct bench_config *cfg, struct bench_report *report, struct err *e) attr_warn_unused;
/* lines_memory.c */
int bench_line_memory(const struct bench_config *cfg, struct bench_report *report, struct err *e) attr_warn_unused;
