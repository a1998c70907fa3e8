/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/co.h"
#include "common/io.h"

static struct event_base *base;

static int setup(void **state) {
        base = event_base_new();
        return base ? 0 : -1;
}

/* Every test ends with an empty loop: nothing waits, no event is left. */
static int teardown(void **state) {
        unsigned left = co_alive() + (unsigned) event_base_get_num_events(base, EVENT_BASE_COUNT_ADDED | EVENT_BASE_COUNT_ACTIVE);

        event_base_free(base);
        return left == 0 ? 0 : -1;
}

static void run(void) {
        (void) event_base_dispatch(base); /* until no event is left */
}

struct waiter {
        struct co_wait w;
        int timeout_ms, r;
        unsigned done;
        double ms;
        struct co *self;
};

static void wait_once(void *arg) {
        struct waiter *x = arg;
        uint64_t start = now_ns();

        x->self = co_self();
        x->r = co_wait(&x->w, x->timeout_ms);
        assert_ptr_equal(co_self(), x->self);
        x->ms = ms_since(start);
        x->done++;
}

static void test_runs_at_once(void **state) {
        struct waiter x = { .timeout_ms = -1 };

        assert_null(co_self());
        x.w.done = true;
        x.w.result = 5;
        assert_ok(co_start(base, wait_once, &x)); /* woken before it waits: it does not */
        assert_int_equal(x.done, 1);
        assert_int_equal(x.r, 5);
        assert_null(co_self());
        assert_int_equal(co_alive(), 0);
}

static void test_wake(void **state) {
        struct waiter x = { .timeout_ms = -1 };

        assert_ok(co_start(base, wait_once, &x));
        assert_int_equal(co_alive(), 1);
        co_wake(&x.w, 7);
        co_wake(&x.w, 8);            /* the first result counts */
        assert_int_equal(x.done, 0); /* never inside co_wake */
        run();
        assert_int_equal(x.done, 1);
        assert_int_equal(x.r, 7);
}

static void test_wake_before_wait(void **state) {
        struct waiter x = { .timeout_ms = -1 };

        co_wake(&x.w, 3);
        assert_ok(co_start(base, wait_once, &x));
        assert_int_equal(x.done, 1);
        assert_int_equal(x.r, 3);
}

static void test_timeout(void **state) {
        struct waiter x = { .timeout_ms = 30 }, zero = { .timeout_ms = 0 };

        assert_ok(co_start(base, wait_once, &x));
        assert_ok(co_start(base, wait_once, &zero));
        assert_int_equal(zero.done, 0);
        run();
        assert_int_equal(x.r, -ETIMEDOUT);
        assert_true(x.ms >= 29 && x.ms < 5000);
        assert_int_equal(zero.r, -ETIMEDOUT);
}

/* Occupies the loop's thread, as a long callback would. */
static void burn(int ms) {
        for (uint64_t start = now_ns(); ms_since(start) < ms;)
                ;
}

static void wait_after_work(void *arg) {
        co_sleep(1); /* so that the next wait begins within a turn of the loop */
        burn(60);
        wait_once(arg);
}

/* A timeout counts from the wait, not from the beginning of the loop's turn. */
static void test_timeout_counts_from_the_wait(void **state) {
        struct waiter x = { .timeout_ms = 40 };

        assert_ok(co_start(base, wait_after_work, &x));
        run();
        assert_int_equal(x.r, -ETIMEDOUT);
        assert_true(x.ms >= 39);
}

static void wake_late(evutil_socket_t fd, short what, void *arg) {
        struct waiter *x = arg;

        burn(20);
        co_wake(&x->w, 11);
}

/* Timer and wake-up become due in the same turn, in both orders: resumed once, and the wake-up counts. */
static void test_timeout_meets_wake(void **state) {
        for (int first = 0; first < 2; first++) {
                struct timeval tv = { .tv_usec = first ? 5000 : 10000 };
                struct waiter x = { .timeout_ms = first ? 10 : 5 };
                struct event *ev = evtimer_new(base, wake_late, &x);

                assert_ok(co_start(base, wait_once, &x));
                assert_int_equal(event_add(ev, &tv), 0);
                burn(15);
                run();
                event_free(ev);
                assert_int_equal(x.done, 1);
                if (first)
                        assert_int_equal(x.r, 11);
                else /* its timer comes first: a wake-up that comes later must find nobody */
                        assert_true(x.r == -ETIMEDOUT || x.r == 11);
                assert_null(x.w.waiter);
        }
}

/* ---- descriptors ---- */

struct fd_waiter {
        int fd, timeout_ms, r;
        short events;
        unsigned done;
};

static void wait_fd(void *arg) {
        struct fd_waiter *x = arg;

        x->r = co_wait_fd(x->fd, x->events, x->timeout_ms);
        x->done = 1;
}

static void test_wait_fd(void **state) {
        int p[2];

        assert_int_equal(pipe2(p, O_CLOEXEC | O_NONBLOCK), 0);
        struct fd_waiter rd = { .fd = p[0], .events = EV_READ, .timeout_ms = 20 };
        struct fd_waiter wr = { .fd = p[1], .events = EV_WRITE, .timeout_ms = -1 };

        assert_ok(co_start(base, wait_fd, &rd));
        assert_ok(co_start(base, wait_fd, &wr));
        run();
        assert_int_equal(rd.r, -ETIMEDOUT);
        assert_int_equal(wr.r, 0);
        assert_int_equal(write(p[1], "x", 1), 1);
        rd.timeout_ms = -1;
        assert_ok(co_start(base, wait_fd, &rd));
        run();
        assert_int_equal(rd.r, 0);
        (void) close(p[1]); /* an end of file is something to read, too */
        assert_ok(co_start(base, wait_fd, &rd));
        run();
        assert_int_equal(rd.r, 0);
        (void) close(p[0]);
}

/* What is ready is ready, also when the loop was busy until after the deadline. */
static void test_ready_beats_timeout(void **state) {
        int p[2];

        assert_int_equal(pipe2(p, O_CLOEXEC | O_NONBLOCK), 0);
        struct fd_waiter x = { .fd = p[0], .events = EV_READ, .timeout_ms = 5 };

        assert_ok(co_start(base, wait_fd, &x));
        assert_int_equal(write(p[1], "x", 1), 1);
        burn(20);
        run();
        assert_int_equal(x.r, 0);
        (void) close(p[0]);
        (void) close(p[1]);
}

/* ---- many, and nested ---- */

struct nest {
        unsigned depth, *order;
        struct co_wait w;
};

static void nested(void *arg) {
        struct nest *n = arg;
        struct nest inner = { .depth = n->depth - 1, .order = n->order };
        char local[512];

        memset(local, (int) n->depth, sizeof(local));
        if (n->depth > 0) {
                assert_ok(co_start(base, nested, &inner));
                co_sleep((int) n->depth % 3); /* the inner one may end before or after */
                co_wake(&inner.w, 0);
                while (inner.depth != 1000)
                        co_sleep(1);
        }
        (void) co_wait(&n->w, n->depth == 20 ? 0 : -1);
        for (size_t i = 0; i < sizeof(local); i++)
                assert_int_equal(local[i], n->depth);
        n->depth = 1000;
        ++*n->order;
}

static void test_nested_starts(void **state) {
        unsigned ended = 0;
        struct nest n = { .depth = 20, .order = &ended };

        assert_ok(co_start(base, nested, &n));
        assert_int_equal(co_alive(), 21);
        run();
        assert_int_equal(ended, 21);
        assert_int_equal(co_alive(), 0);
}

struct many {
        uint64_t seed;
        unsigned *ended;
};

static void one_of_many(void *arg) {
        struct many *m = arg;
        struct rng r = { m->seed };

        for (unsigned i = 0; i < 10; i++) {
                uint64_t before = r.state;
                char stack[2048];

                memset(stack, (int) m->seed, sizeof(stack));
                co_sleep((int) rng_below(&(struct rng){ r.state }, 4));
                assert_true(r.state == before);
                assert_int_equal(stack[i], (char) m->seed);
                (void) rng_next(&r);
        }
        ++*m->ended;
}

/* More than stacks are kept, in several rounds, so that stacks are new, used again, and freed. */
static void test_many(void **state) {
        enum { N = 1000 };
        struct many *m = calloc(N, sizeof(*m));
        unsigned ended = 0;

        for (unsigned round = 0; round < 3; round++) {
                for (unsigned i = 0; i < N; i++) {
                        m[i] = (struct many){ .seed = i, .ended = &ended };
                        assert_ok(co_start(base, one_of_many, &m[i]));
                }
                assert_int_equal(co_alive(), N);
                run();
        }
        assert_int_equal(ended, 3 * N);
        free(m);
}

static unsigned recurse(unsigned n, char *ret_last) {
        volatile char page[1024];

        page[0] = (char) n;
        *ret_last = page[0];
        return n == 0 ? 0 : recurse(n - 1, ret_last) + (unsigned) (page[0] == (char) n);
}

static void deep(void *arg) {
        char last;

        co_sleep(0);
        *(unsigned *) arg = recurse(100, &last);
        co_sleep(0);
}

/* A deep stack leaves nothing that troubles the next user of the same stack (a sanitizer's marks, for one). */
static void test_stacks_are_reused(void **state) {
        for (unsigned i = 0; i < 20; i++) {
                unsigned got = 0;

                assert_ok(co_start(base, deep, &got));
                run();
                assert_int_equal(got, 100);
        }
}

static void end_at_once(void *arg) {
        ++*(unsigned *) arg;
}

static void starts_many(void *arg) {
        for (unsigned i = 0; i < 50; i++) {
                assert_ok(co_start(base, end_at_once, arg));
                co_sleep(0);
                assert_ok(co_start(base, end_at_once, arg));
        }
}

static void test_starts_that_end_at_once(void **state) {
        unsigned n = 0;

        assert_ok(co_start(base, starts_many, &n));
        run();
        assert_int_equal(n, 100);
}

/* ---- semaphores ---- */

struct worker {
        struct co_sem *s;
        int timeout_ms, hold_ms, r;
        unsigned *now, *most, *order, place;
};

static void work(void *arg) {
        struct worker *x = arg;

        x->r = co_sem_acquire(x->s, x->timeout_ms);
        if (x->r < 0)
                return;
        x->place = ++*x->order;
        if (++*x->now > *x->most)
                *x->most = *x->now;
        co_sleep(x->hold_ms);
        --*x->now;
        co_sem_release(x->s);
}

static void test_semaphore_bounds_and_orders(void **state) {
        enum { N = 60, SLOTS = 4 };
        unsigned now = 0, most = 0, order = 0;
        struct worker x[N];
        struct co_sem s;

        co_sem_init(&s, SLOTS);
        for (unsigned i = 0; i < N; i++) {
                x[i] = (struct worker){ .s = &s, .timeout_ms = -1, .hold_ms = 1, .now = &now, .most = &most, .order = &order };
                assert_ok(co_start(base, work, &x[i]));
        }
        run();
        assert_int_equal(most, SLOTS);
        for (unsigned i = 0; i < N; i++)
                assert_int_equal(x[i].place, i + 1); /* first come, first served */
        assert_int_equal(s.free, SLOTS);
        assert_null(s.first);
        assert_null(s.last);
}

/* Waiters give up at the beginning, in the middle and at the end of the queue, and no slot is lost. */
static void test_semaphore_timeouts(void **state) {
        enum { N = 30 };

        for (uint64_t seed = 1; seed <= 5; seed++) {
                unsigned now = 0, most = 0, order = 0, got = 0;
                struct rng r = { seed };
                struct worker x[N];
                struct co_sem s;

                co_sem_init(&s, 2);
                for (unsigned i = 0; i < N; i++) {
                        x[i] = (struct worker){ .s = &s,
                                                .timeout_ms = (int) rng_below(&r, 12),
                                                .hold_ms = (int) rng_below(&r, 4),
                                                .now = &now,
                                                .most = &most,
                                                .order = &order };
                        assert_ok(co_start(base, work, &x[i]));
                }
                run();
                for (unsigned i = 0; i < N; i++) {
                        assert_true(x[i].r == 0 || x[i].r == -ETIMEDOUT);
                        got += x[i].r == 0;
                }
                assert_true(got >= 2 && got == order && most <= 2);
                assert_int_equal(s.free, 2);
                assert_null(s.first);
                assert_null(s.last);
        }
}

static void acquire_only(void *arg) {
        struct worker *x = arg;

        x->r = co_sem_acquire(x->s, x->timeout_ms);
        x->place = ++*x->order;
}

/* A slot that is handed over in the turn in which the waiter's time runs out is taken, not lost. */
static void test_semaphore_release_meets_timeout(void **state) {
        unsigned order = 0;
        struct worker x = { .timeout_ms = 5, .order = &order };
        struct co_sem s;

        co_sem_init(&s, 0);
        x.s = &s;
        assert_ok(co_start(base, acquire_only, &x));
        burn(10);
        co_sem_release(&s);
        run();
        assert_int_equal(x.r, 0);
        assert_int_equal(s.free, 0);
        co_sem_release(&s);
        assert_int_equal(s.free, 1);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                T(test_runs_at_once),
                T(test_wake),
                T(test_wake_before_wait),
                T(test_timeout),
                T(test_timeout_counts_from_the_wait),
                T(test_timeout_meets_wake),
                T(test_wait_fd),
                T(test_ready_beats_timeout),
                T(test_nested_starts),
                T(test_many),
                T(test_stacks_are_reused),
                T(test_starts_that_end_at_once),
                T(test_semaphore_bounds_and_orders),
                T(test_semaphore_timeouts),
                T(test_semaphore_release_meets_timeout),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
