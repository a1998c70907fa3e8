/* SPDX-License-Identifier: MIT */
/* The agent's event loop: descriptors through epoll, one-shot timers, and a function that runs before each
 * wait. Small enough to be dirtied in a handful of pages, and it sleeps without a timeout when nothing is
 * planned: an idle guest stays idle. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "common/cleanup.h"

#define LOOP_BATCH 32

/** A descriptor that is watched. Embedded in its owner; zeroed (LOOP_IO_INIT) it is not in the loop. */
struct loop_io {
        int fd;
        uint32_t events; /* what epoll was asked for; 0: not in the set */
        void (*fn)(uint32_t events, void *arg);
        void *arg;
};
#define LOOP_IO_INIT ((struct loop_io){ .fd = -1 })

struct loop_timer {
        uint64_t at_ns; /* CLOCK_MONOTONIC; 0: not armed */
        void (*fn)(void *arg);
        void *arg;
        struct loop_timer *prev, *next;
};

struct loop {
        int epfd;
        struct loop_timer *timers; /* unordered; there are few */
        struct epoll_event batch[LOOP_BATCH];
        int batch_n, batch_i; /* being delivered */
        bool stop;
        int result;
};

int loop_init(struct loop *l) attr_warn_unused;
void loop_clear(struct loop *l);

/** Watches io->fd for @events (EPOLLIN …; 0 takes it out of the set). Descriptors that are not wanted must
 *  be out of the set, or a hang-up on them would be reported over and over. */
int loop_watch(struct loop *l, struct loop_io *io, uint32_t events);
/** Takes @io out and closes its descriptor; events that are already fetched are not delivered any more. */
void loop_close(struct loop *l, struct loop_io *io);

void loop_timer_set(struct loop *l, struct loop_timer *t, uint64_t in_ms, void (*fn)(void *arg), void *arg);
void loop_timer_stop(struct loop *l, struct loop_timer *t);

/** Runs until loop_stop, whose result it returns, or until epoll fails. @prepare is called before each wait;
 *  if it returns true there is more to do and the wait only looks. */
int loop_run(struct loop *l, bool (*prepare)(void *arg), void *arg) attr_warn_unused;
void loop_stop(struct loop *l, int result);

/** CLOCK_MONOTONIC. */
uint64_t loop_now_ns(void);
