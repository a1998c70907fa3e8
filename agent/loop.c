/* SPDX-License-Identifier: MIT */
#include "agent/loop.h"

#include <errno.h>
#include <limits.h>
#include <time.h>

uint64_t loop_now_ns(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

int loop_init(struct loop *l) {
        *l = (struct loop){ .epfd = epoll_create1(EPOLL_CLOEXEC) };
        return l->epfd < 0 ? -errno : 0;
}

void loop_clear(struct loop *l) {
        l->epfd = close_fd(l->epfd);
}

int loop_watch(struct loop *l, struct loop_io *io, uint32_t events) {
        struct epoll_event ev = { .events = events, .data.ptr = io };
        int op = !events ? EPOLL_CTL_DEL : io->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

        if (events == io->events)
                return 0;
        if (epoll_ctl(l->epfd, op, io->fd, &ev) < 0)
                return -errno;
        io->events = events;
        return 0;
}

void loop_close(struct loop *l, struct loop_io *io) {
        if (io->fd < 0)
                return;
        (void) loop_watch(l, io, 0);
        for (int i = l->batch_i; i < l->batch_n; i++)
                if (l->batch[i].data.ptr == io)
                        l->batch[i].data.ptr = NULL;
        io->fd = close_fd(io->fd);
        io->events = 0;
}

void loop_timer_stop(struct loop *l, struct loop_timer *t) {
        if (!t->at_ns)
                return;
        if (t->prev)
                t->prev->next = t->next;
        else
                l->timers = t->next;
        if (t->next)
                t->next->prev = t->prev;
        t->prev = t->next = NULL;
        t->at_ns = 0;
}

void loop_timer_set(struct loop *l, struct loop_timer *t, uint64_t in_ms, void (*fn)(void *arg), void *arg) {
        loop_timer_stop(l, t);
        t->at_ns = loop_now_ns() + in_ms * 1000000u;
        t->fn = fn;
        t->arg = arg;
        t->next = l->timers;
        if (t->next)
                t->next->prev = t;
        l->timers = t;
}

static struct loop_timer *loop_first_timer(struct loop *l) {
        struct loop_timer *first = l->timers;

        for (struct loop_timer *t = first; t; t = t->next)
                if (t->at_ns < first->at_ns)
                        first = t;
        return first;
}

static int loop_timeout(struct loop *l) {
        struct loop_timer *t = loop_first_timer(l);
        uint64_t now = loop_now_ns();

        if (!t)
                return -1;
        if (t->at_ns <= now)
                return 0;
        return (int) MIN_OF((t->at_ns - now + 999999) / 1000000, (uint64_t) INT_MAX);
}

/* Runs what was due when it was called; a timer that arms itself anew waits for the next round. */
static void loop_run_timers(struct loop *l) {
        uint64_t now = loop_now_ns();

        for (;;) {
                struct loop_timer *t = loop_first_timer(l);

                if (!t || t->at_ns > now)
                        return;
                loop_timer_stop(l, t);
                t->fn(t->arg);
        }
}

static void loop_deliver(struct loop *l, int n) {
        l->batch_n = n;
        for (l->batch_i = 0; l->batch_i < l->batch_n;) {
                struct epoll_event *ev = &l->batch[l->batch_i++];
                struct loop_io *io = ev->data.ptr;

                if (io)
                        io->fn(ev->events, io->arg);
        }
        l->batch_n = l->batch_i = 0;
}

int loop_run(struct loop *l, bool (*prepare)(void *arg), void *arg) {
        while (!l->stop) {
                bool again = prepare(arg);
                int n;

                if (l->stop)
                        break;
                n = epoll_wait(l->epfd, l->batch, LOOP_BATCH, again ? 0 : loop_timeout(l));
                if (n < 0 && errno != EINTR)
                        return -errno;
                if (n > 0)
                        loop_deliver(l, n);
                loop_run_timers(l);
        }
        return l->result;
}

void loop_stop(struct loop *l, int result) {
        l->stop = true;
        l->result = result;
}
