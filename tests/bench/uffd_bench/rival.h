/* SPDX-License-Identifier: MIT */
/* What the pager is measured against: servers of faults that do the least, in a thread of this process, from memory
 * that is not compressed. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "tests/bench/uffd_bench/content.h"

enum bench_rival_kind {
        BENCH_RIVAL_FLOOR,   /* 64 KiB into a shared memfd by UFFDIO_COPY, then UFFDIO_CONTINUE in the guest */
        BENCH_RIVAL_LONE,    /* the same, but the page that is waited for first, then the rest: while the guest runs again */
        BENCH_RIVAL_CLASSIC, /* 4 KiB into the guest's anonymous memory by UFFDIO_COPY */
};

struct bench_rival {
        enum bench_rival_kind kind;
        const struct bench_raw *raw;
        int memfd;      /* floor: for the guest to map; else -1 */
        int guest_sock; /* the guest's end of the session socket */

        int sock, stop_fd, fill_uffd, guest_uffd;
        uint8_t *map;
        bool *filled; /* by chunk */
        uint64_t base;
        pthread_t thread;
        bool started;
        /* Valid after bench_rival_stop. */
        int r;
        uint64_t faults, cpu_ns;
};

int bench_rival_start(enum bench_rival_kind kind, const struct bench_raw *raw, struct bench_rival *ret,
                      struct err *e) attr_warn_unused;
/** Ends the thread, after its guest has ended. An error of the thread is told in @e. */
int bench_rival_stop(struct bench_rival *v, struct err *e);

/** What a page costs when nobody has to be asked: all of the image, in a random order of its frames, decoded and put into
 *  a shared memfd by UFFDIO_COPY. CPU time of one thread, by stored page. */
int bench_decode_and_copy(const struct bench_image *img, uint64_t seed, double *ret_us_per_page, struct err *e) attr_warn_unused;

/** Decodes all of the image into a new memfd, the way of those who load a snapshot before they run it. */
int bench_populate(const struct bench_image *img, int *ret_memfd, struct err *e) attr_warn_unused;
