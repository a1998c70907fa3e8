/* SPDX-License-Identifier: MIT */
/* Working sets: recorded by a real pager, as forkd has it done, and written as forkd writes them. */
#pragma once

#include "tests/bench/uffd_bench/pager_ctl.h"

struct bench_set {
        int file_fd; /* the file `workingset` */
        int list_fd; /* its pages as the list of BENCH_RECORDED: uint32_t numbers in the order of need */
        uint64_t n_pages;
        size_t n_runs;
};
#define BENCH_SET_NONE ((struct bench_set){ .file_fd = -1, .list_fd = -1 })

/** A list of @want pages in runs of 1 to 16 from all over the image, zero pages included: as a kernel that wakes up
 *  touches its memory. A memfd of uint32_t, the caller's. */
int bench_make_list(uint64_t n_pages, uint64_t want, uint64_t seed, int *ret_fd, struct err *e) attr_warn_unused;

/** One clone of @img touches as @touch says (@list_fd as for bench_guest_prepare), in one thread, while a pager of its own
 *  records. @pager, @dir: the program, and where files and sockets are made. */
int bench_set_record(const char *pager, const char *dir, const struct bench_image *img, const struct bench_touch *touch,
                     int list_fd, struct bench_set *ret, struct err *e) attr_warn_unused;
void bench_set_clear(struct bench_set *s);
