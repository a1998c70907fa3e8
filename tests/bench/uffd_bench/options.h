/* SPDX-License-Identifier: MIT */
/* The command line. */
#pragma once

#include <limits.h>

#include "tests/bench/uffd_bench/lines.h"

#define BENCH_MAX_PRESETS 16u

struct bench_args {
        struct bench_config cfg;
        const char *json, *svg;
        enum bench_mode modes[BENCH_N_MODES];
        unsigned n_modes;
        const struct bench_preset *lines[BENCH_MAX_PRESETS]; /* none: run the modes */
        unsigned n_lines;
        bool of_run_alone; /* an option that lines do not have was given */
        char pager[PATH_MAX];
};

/** -1: go on, *ret is filled; it must not be moved. Else the exit code. */
int bench_args_parse(int argc, char **argv, struct bench_args *ret) attr_warn_unused;
