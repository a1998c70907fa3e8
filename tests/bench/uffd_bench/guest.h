/* SPDX-License-Identifier: MIT */
/* A synthetic guest: a process of its own that maps memory as a VMM does, attaches to whoever serves it, and touches
 * pages with some threads. guest.c is the side that drives it, guest_main.c what runs in that process: this program,
 * started again with the one word BENCH_GUEST_ARG and a socket as descriptor BENCH_GUEST_FD. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/hist.h"
#include "tests/bench/uffd_bench/order.h"

#define BENCH_GUEST_ARG "--synthetic-guest"
#define BENCH_GUEST_FD 3
#define BENCH_MAX_THREADS 64u
#define BENCH_DEADLINE_MS 300000 /* of every wait */

enum bench_memory {
        BENCH_MEM_FILE,  /* a private mapping of the file, nothing else */
        BENCH_MEM_MEMFD, /* the same with a userfaultfd, handed over on the socket: what libuffd-attach does */
        BENCH_MEM_ANON,  /* anonymous memory with a userfaultfd, handed over as Firecracker does */
};

struct bench_setup {
        enum bench_memory memory;
        unsigned threads;
        uint64_t n_pages;
        struct bench_content content;
};

struct bench_touch {
        struct bench_order order;
        bool verify;       /* compare every byte of each page that is touched */
        bool latency;      /* time each touch */
        uint64_t lead_ns;  /* between having attached and the first touch: what starting a VMM takes */
        uint64_t pause_ns; /* between two touches: a guest that has little to do */
};

struct bench_result {
        int r;
        char why[200];        /* if r < 0 */
        uint64_t attached_ns; /* CLOCK_MONOTONIC, as are the others: when it could have touched its first page */
        uint64_t start_ns, end_ns, touched;
        uint64_t base;            /* where guest RAM is mapped in its process */
        uint64_t bad_page;        /* verify: the first page that was not as it should be; UINT64_MAX: none */
        struct hist_copy latency; /* if it was asked for */
};

struct bench_guest {
        pid_t pid; /* 0: none */
        int pidfd, ctl;
};
#define BENCH_GUEST_NONE ((struct bench_guest){ .pidfd = -1, .ctl = -1 })

/** Asked now and then while a guest is waited for; an error ends the wait. NULL: nobody. */
struct bench_watch {
        int (*check)(void *arg, struct err *e);
        void *arg;
};

int bench_guest_start(const struct bench_setup *setup, struct bench_guest *ret, struct err *e) attr_warn_unused;
/** What it is to map, and where its pager is (-1: none); both stay the caller's. Before the first go. */
int bench_guest_connect(struct bench_guest *g, int file_fd, int sock_fd, struct err *e) attr_warn_unused;
/** Makes the order and the threads; connected or not yet. @list_fd: for BENCH_RECORDED a file of uint32_t page numbers, else -1. */
int bench_guest_prepare(struct bench_guest *g, const struct bench_touch *t, int list_fd, struct err *e) attr_warn_unused;
/** Attaches if it has not yet, waits for the lead, and touches. Returns at once. */
int bench_guest_go(struct bench_guest *g, struct err *e) attr_warn_unused;
/** Waits for the end of that. -EUCLEAN when verify found a wrong page. */
int bench_guest_result(struct bench_guest *g, const struct bench_watch *watch, struct bench_result *ret,
                       struct err *e) attr_warn_unused;
/** Is it done with what it was told to do? Does not wait. */
bool bench_guest_done(const struct bench_guest *g);
/** Kills and reaps it. */
void bench_guest_end(struct bench_guest *g);

/** What runs in the guest's process; the exit code. */
int bench_guest_main(void);

/* ---- between the two ---- */
enum bench_op { BENCH_OP_SETUP, BENCH_OP_CONNECT, BENCH_OP_PREPARE, BENCH_OP_GO };
struct bench_command {
        enum bench_op op;
        struct bench_setup setup;
        struct bench_touch touch;
        bool has_file, has_sock; /* descriptors that came along, in this order */
};
