/* SPDX-License-Identifier: MIT */
/* One measurement: some guests on one image, served in one way. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "tests/bench/uffd_bench/content.h"
#include "tests/bench/uffd_bench/guest.h"
#include "tests/bench/uffd_bench/pager_ctl.h"
#include "tests/bench/uffd_bench/set.h"

#define BENCH_MAX_CLONES 64u

/** What the command line asks for. */
struct bench_config {
        const char *pager; /* the program */
        const char *dir;   /* for images and sockets */
        uint64_t n_pages;
        uint64_t seed;
        unsigned threads, clones, rounds;
        unsigned workers; /* 0: the pager's default */
        unsigned zero_percent;
        enum snap_codec codec;
        int level;
        enum bench_pattern pattern;
        uint64_t n_touches; /* 0: each page once */
        double theta;
        double lead_ms;
        bool verify, quick;
};

enum bench_mode {
        BENCH_FIRST,     /* ours, nothing decoded yet */
        BENCH_NEXT,      /* ours, the image is resident */
        BENCH_FIRST_SET, /* as first, with a working set that a clone before has left */
        BENCH_NEXT_SET,  /* as next, with that */
        BENCH_COPY,      /* ours, anonymous memory of the guest, nothing decoded yet */
        BENCH_COPY_NEXT, /* the same, the image is resident */
        BENCH_FLOOR,
        BENCH_FLOOR_LONE,
        BENCH_CLASSIC,
        BENCH_PRIVATE,
        BENCH_EAGER,
        BENCH_N_MODES
};
const char *bench_mode_name(enum bench_mode m);
const char *bench_mode_explain(enum bench_mode m);
int bench_mode_parse(const char *s, enum bench_mode *ret) attr_warn_unused;

/** Told of each guest before it touches its first page, and when all have touched their last. */
struct bench_observer {
        int (*begin)(void *arg, const struct bench_guest *g, const char *session, struct err *e);
        int (*end)(void *arg, const struct bench_guest *g, const char *session, struct err *e);
        void *arg;
};

/** An image, what the modes need of it, and the pagers. */
struct bench_lab {
        const struct bench_config *cfg;
        struct bench_image image;
        struct bench_raw raw;                  /* made when a mode first needs it */
        int list_fd;                           /* BENCH_RECORDED: what is touched; -1 */
        struct bench_set set;                  /* made when a mode first needs it */
        const struct bench_observer *observer; /* NULL: none */
        struct bench_pager cold, warm; /* cold: forgets an image with its last session; warm: keeps it, and has it decoded */
};

int bench_lab_open(const struct bench_config *cfg, uint64_t n_pages, uint64_t seed, struct bench_lab *ret,
                   struct err *e) attr_warn_unused;
void bench_lab_close(struct bench_lab *lab);
#define cleanup_bench_lab attr_cleanup(bench_lab_close)

/** A pager with the lab's settings. */
int bench_lab_pager(const struct bench_config *cfg, unsigned workers, unsigned idle_seconds, struct bench_pager *ret,
                    struct err *e) attr_warn_unused;
/** Has the image decoded and kept by @p, which must keep idle images. */
int bench_lab_fill(struct bench_pager *p, const struct bench_image *img, struct err *e) attr_warn_unused;

/** The order of touches that the configuration asks for. */
struct bench_touch bench_config_touch(const struct bench_config *cfg);

struct bench_run {
        double us_per_page; /* by pages that were touched, of all clones */
        double wall_ms;     /* from the first touch to the last; eager: with the decoding before */
        uint64_t touched;
        double server_cpu_us; /* CPU of the pager or the server, by page touched; 0 where there is none */
};

/** Measures once, with cfg->clones guests at the same time; with cfg->verify each guest compares all that it touched
 *  afterwards. -ENOSPC: memory is short, with numbers. */
int bench_lab_run(struct bench_lab *lab, enum bench_mode mode, const struct bench_touch *touch, struct bench_run *ret,
                  struct err *e) attr_warn_unused;
