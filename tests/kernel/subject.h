/* SPDX-License-Identifier: MIT */
/* A process to be watched: it waits for memory, sleeps and works when it is told to, and notes how long each wait took by its
 * own clock. Its memory is served by the caller, who notes how long each wait took at the least. Functions end the program
 * with a sentence when something fails. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

#include "common/cleanup.h"

#define FAIL(...)                                                 \
        do {                                                      \
                (void) fprintf(stderr, "FAILED: ");               \
                (void) fprintf(stderr, __VA_ARGS__);              \
                (void) fprintf(stderr, " (line %d)\n", __LINE__); \
                exit(1);                                          \
        } while (0)
#define CHECK(cond, ...)                   \
        do {                               \
                if (!(cond))               \
                        FAIL(__VA_ARGS__); \
        } while (0)

#define SUBJECT_PAGES 4096u /* to be touched in its life, each once */
#define SUBJECT_THREADS 16u

enum subject_order {
        SUBJECT_TOUCH,  /* so many pages, by turns with a store and in a system call */
        SUBJECT_THREAD, /* so many threads, which touch four pages each and end */
        SUBJECT_STAND,  /* so many threads, which touch a page each, and sleep at a futex until the process ends */
        SUBJECT_SPIN,   /* uses so many ms of CPU */
        SUBJECT_SLEEP,  /* so many ms */
        SUBJECT_FUTEX,  /* so many ms, at a futex */
};

struct subject {
        pid_t pid;
        int pidfd, sock, uffd;
        uintptr_t memory; /* where it is there */
        struct subject_notes *notes;
        uint64_t *held; /* by page: how long the server let it wait at the least; 0: not touched */
};

/** Starts one, as the process @as if that is not 0. False: the kernel does not let us choose that number. */
bool subject_start(struct subject *s, pid_t as);
/** Kills and reaps it. */
void subject_end(struct subject *s);

/** Gives an order, and returns at once; waits until it is carried out. */
void subject_begin(struct subject *s, enum subject_order what, unsigned n);
void subject_finish(struct subject *s);
/** Serves @n faults, each of which waits for @hold_us after it has been read. */
void subject_serve(struct subject *s, unsigned n, unsigned hold_us);
/** Reads one fault and leaves it. Returns when it was read. */
uint64_t subject_leave(struct subject *s, unsigned *ret_page);
/** Answers one that was read at @read_ns. */
void subject_answer(struct subject *s, unsigned page, uint64_t read_ns);

/** Pages so far. */
unsigned subject_touched(const struct subject *s);
/** Of page @i, by the subject's clock; 0: not touched. */
uint64_t subject_took_ns(const struct subject *s, unsigned i);
/** CPU time of its first thread, by its clock. */
uint64_t subject_cpu_ns(const struct subject *s);
