/* SPDX-License-Identifier: MIT */
/* The reclaim clock: its rules one by one, then what they come to, in simulations of guests against the plainest
 * rival, first in, first out. No kernel, no time: the same numbers in every run. */
#include "pager/clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>

#include "tests/unit/pager/content.h"

/* ---- the rules ---- */

/** One turn of the hand; every victim is evicted. Returns how many. */
static unsigned turn(struct pager_clock *c) {
        uint64_t steps = c->n_chunks, chunk;
        unsigned n = 0;

        do {
                if (!pager_clock_turn(c, &steps, &chunk))
                        continue;
                pager_clock_evicted(c, chunk);
                n++;
        } while (c->hand != 0);
        assert_int_equal(steps, 0);
        return n;
}

/** In how many turns @chunk is gone, if nobody asks for it. */
static unsigned turns_to_live(struct pager_clock *c, uint64_t chunk) {
        for (unsigned n = 1; n < 1000; n++) {
                (void) turn(c);
                if (!pager_clock_resident(c, chunk))
                        return n;
        }
        return 0;
}

static void test_lifetimes(void **state) {
        struct pager_clock c;

        assert_int_equal(pager_clock_init(&c, 100 * PAGER_CHUNK_PAGES), 0);
        pager_clock_inserted(&c, 3, PAGER_CLOCK_AHEAD);
        assert_true(pager_clock_resident(&c, 3));
        assert_false(pager_clock_resident(&c, 4));
        assert_int_equal(turns_to_live(&c, 3), 1);

        pager_clock_inserted(&c, 4, PAGER_CLOCK_DEMAND);
        assert_int_equal(turns_to_live(&c, 4), 2);
        assert_int_equal(atomic_load(&c.refaults), 0);

        /* back at once, again and again: 2, 4, 8 … 64 turns in peace, and no more */
        for (unsigned i = 1; i < 10; i++) {
                pager_clock_inserted(&c, 4, PAGER_CLOCK_DEMAND);
                assert_int_equal(turns_to_live(&c, 4), 1 + (1u << (i < 6 ? i : 6)));
                assert_int_equal(atomic_load(&c.refaults), i);
        }
        /* absent for as many turns as it had strength: as good as new, but still a refault */
        for (unsigned i = 0; i < 6; i++)
                assert_int_equal(turn(&c), 0);
        pager_clock_inserted(&c, 4, PAGER_CLOCK_DEMAND);
        assert_int_equal(atomic_load(&c.refaults), 10);
        assert_int_equal(turns_to_live(&c, 4), 3);
        pager_clock_clear(&c);
}

/** Asked for after it had come along with another page: it has credit now, but that was no refault. */
static void test_ahead_then_demand(void **state) {
        struct pager_clock c;

        assert_int_equal(pager_clock_init(&c, 16), 0);
        assert_int_equal(c.n_chunks, 1);
        pager_clock_inserted(&c, 0, PAGER_CLOCK_AHEAD);
        pager_clock_inserted(&c, 0, PAGER_CLOCK_DEMAND);
        pager_clock_inserted(&c, 0, PAGER_CLOCK_AHEAD); /* takes nothing away */
        assert_int_equal(turns_to_live(&c, 0), 2);
        pager_clock_inserted(&c, 0, PAGER_CLOCK_AHEAD);
        assert_int_equal(turns_to_live(&c, 0), 1);
        assert_int_equal(atomic_load(&c.refaults), 0);
        pager_clock_clear(&c);
}

static void test_steps(void **state) {
        struct pager_clock c;
        uint64_t steps, chunk = 77;

        /* an odd size: the last chunk is a short one */
        assert_int_equal(pager_clock_init(&c, 10 * PAGER_CHUNK_PAGES + 1), 0);
        assert_int_equal(c.n_chunks, 11);
        pager_clock_inserted(&c, 5, PAGER_CLOCK_AHEAD);
        pager_clock_inserted(&c, 10, PAGER_CLOCK_AHEAD);
        steps = 4;
        assert_false(pager_clock_turn(&c, &steps, &chunk));
        assert_int_equal(steps, 0);
        assert_int_equal(c.hand, 4);
        assert_int_equal(chunk, 77);
        steps = 100;
        assert_true(pager_clock_turn(&c, &steps, &chunk));
        assert_int_equal(chunk, 5);
        assert_int_equal(steps, 98);
        /* it could not be had: it is there in the next turn */
        assert_true(pager_clock_turn(&c, &steps, &chunk));
        assert_int_equal(chunk, 10);
        assert_int_equal(c.hand, 0);
        pager_clock_evicted(&c, 10);
        assert_true(pager_clock_turn(&c, &steps, &chunk));
        assert_int_equal(chunk, 5);
        pager_clock_evicted(&c, 5);
        assert_false(pager_clock_turn(&c, &steps, &chunk));
        assert_int_equal(c.hand, 0);
        steps = 0;
        assert_false(pager_clock_turn(&c, &steps, &chunk));
        pager_clock_clear(&c);
}

/* ---- what they come to ---- */

/** A memory of @budget chunks with one of two policies, and what guests' accesses to it cost. */
struct sim {
        struct pager_clock clock; /* policy 1 */
        bool fifo;
        bool *in; /* policy 2: a queue */
        uint64_t *queue;
        uint64_t budget, resident, queued;
};

static void sim_init(struct sim *s, uint64_t chunks, uint64_t budget, bool fifo) {
        *s = (struct sim){ .fifo = fifo, .budget = budget };
        assert_int_equal(pager_clock_init(&s->clock, chunks * PAGER_CHUNK_PAGES), 0);
        s->in = calloc(chunks, sizeof(*s->in));
        s->queue = calloc(budget, sizeof(*s->queue));
        assert_non_null(s->in);
        assert_non_null(s->queue);
}

static void sim_clear(struct sim *s) {
        pager_clock_clear(&s->clock);
        free(s->in);
        free(s->queue);
}

/** True: it faulted. */
static bool sim_access(struct sim *s, uint64_t chunk) {
        if (s->in[chunk])
                return false;
        if (s->fifo) {
                uint64_t *slot = &s->queue[s->queued++ % s->budget];

                if (s->resident == s->budget)
                        s->in[*slot] = false;
                else
                        s->resident++;
                *slot = chunk;
        } else {
                while (s->resident == s->budget) {
                        uint64_t steps = s->clock.n_chunks, victim;

                        if (!pager_clock_turn(&s->clock, &steps, &victim))
                                continue;
                        assert_true(s->in[victim]);
                        pager_clock_evicted(&s->clock, victim);
                        s->in[victim] = false;
                        s->resident--;
                }
                pager_clock_inserted(&s->clock, chunk, PAGER_CLOCK_DEMAND);
                s->resident++;
        }
        s->in[chunk] = true;
        return true;
}

#define HOT 1000ull
#define COLD 50000ull

struct rates {
        double first, last; /* hot faults per cold one, in the first and the last tenth */
};

/** A hot set in steady use, in a budget a tenth larger, while a sweep goes through cold memory: one cold access for ten
 *  hot ones. */
static struct rates sweep(bool fifo) {
        uint64_t hot_faults[10] = { 0 }, cold_faults[10] = { 0 };
        struct sim s;

        sim_init(&s, HOT + COLD, HOT + HOT / 10, fifo);
        for (uint64_t i = 0; i < HOT; i++) /* it was there first */
                (void) sim_access(&s, i);
        for (uint64_t i = 0; i < COLD; i++) {
                for (unsigned k = 0; k < 10; k++)
                        hot_faults[i * 10 / COLD] += sim_access(&s, mix64(i * 10 + k) % HOT);
                cold_faults[i * 10 / COLD] += sim_access(&s, HOT + i);
        }
        sim_clear(&s);
        return (struct rates){ (double) hot_faults[0] / (double) cold_faults[0],
                               (double) hot_faults[9] / (double) cold_faults[9] };
}

static void test_hot_set_stays(void **state) {
        struct rates clock = sweep(false), fifo = sweep(true);

        print_message("hot faults per cold fault: clock %.2f at first, %.2f at last; first in, first out %.2f\n", clock.first,
                      clock.last, fifo.last);
        assert_true(clock.last < clock.first / 2);
        assert_true(clock.last < 0.5);
        assert_true(clock.last < fifo.last / 4);
}

/** Most accesses go to few chunks, the rest anywhere: chunk i is 1/i as likely as the first. */
static void test_skewed(void **state) {
        enum { CHUNKS = 10000, BUDGET = 2000, ACCESSES = 1000000 };
        double faults[2] = { 0 }, sum = 0, *upto = calloc(CHUNKS, sizeof(*upto));
        struct sim s;

        assert_non_null(upto);
        for (unsigned i = 0; i < CHUNKS; i++)
                upto[i] = sum += 1.0 / (i + 1);
        for (int fifo = 0; fifo < 2; fifo++) {
                sim_init(&s, CHUNKS, BUDGET, fifo);
                for (uint64_t k = 0; k < ACCESSES; k++) {
                        double x = (double) (mix64(k) >> 11) / (double) (1ull << 53) * sum;
                        unsigned lo = 0, hi = CHUNKS - 1;

                        while (lo < hi) {
                                unsigned mid = (lo + hi) / 2;

                                if (upto[mid] <= x)
                                        lo = mid + 1;
                                else
                                        hi = mid;
                        }
                        faults[fifo] += sim_access(&s, (lo * 7919ull) % CHUNKS); /* the likely ones lie apart */
                }
                sim_clear(&s);
        }
        free(upto);
        print_message("faults of skewed accesses: clock %.3f, first in, first out %.3f of them\n", faults[0] / ACCESSES,
                      faults[1] / ACCESSES);
        assert_true(faults[0] < 0.85 * faults[1]);
}

/** The hot set moves to other memory: the old one must not hold the place for long. */
static void test_hot_set_moves(void **state) {
        uint64_t faults = 0, accesses = 100000;
        struct sim s;

        sim_init(&s, 4 * HOT, HOT + HOT / 10, false);
        for (uint64_t i = 0; i < accesses; i++) { /* in step with a sweep, so that it is strong */
                (void) sim_access(&s, mix64(i) % HOT);
                if (i % 10 == 0)
                        (void) sim_access(&s, HOT + mix64(i + 1) % HOT);
        }
        for (uint64_t i = 0; i < accesses; i++)
                (void) sim_access(&s, 2 * HOT + mix64(i) % HOT);
        for (uint64_t i = 0; i < accesses; i++)
                faults += sim_access(&s, 2 * HOT + mix64(i + accesses) % HOT);
        print_message("faults of a moved hot set, after 100 accesses a chunk: %.4f\n", (double) faults / (double) accesses);
        assert_true(faults < accesses / 1000);
        sim_clear(&s);
}

/* ---- threads ---- */

#define THREADS 3
#define ROUNDS 20000

struct inserter {
        pthread_t thread;
        struct pager_clock *c;
        unsigned index;
        bool in[64]; /* what it left resident */
        uint64_t back, wrong;
};

/** Inserts and evicts chunks of its own, as a thread that has claimed their frames. */
static void *insert(void *arg) {
        struct inserter *in = arg;
        bool punched[64] = { 0 };

        for (uint64_t i = 0; i < ROUNDS; i++) {
                unsigned k = (unsigned) (mix64(i * 7 + in->index) % 64);
                uint64_t chunk = (uint64_t) k * THREADS + in->index;

                in->wrong += pager_clock_resident(in->c, chunk) != in->in[k];
                if (in->in[k]) {
                        pager_clock_evicted(in->c, chunk);
                        punched[k] = true;
                } else {
                        pager_clock_inserted(in->c, chunk, PAGER_CLOCK_DEMAND);
                        in->back += punched[k];
                }
                in->in[k] = !in->in[k];
        }
        return NULL;
}

/** The hand turns while others insert and evict: it never changes who is resident, and no refault is lost. */
static void test_threads(void **state) {
        struct inserter in[THREADS];
        struct pager_clock c;
        uint64_t back = 0;

        assert_int_equal(pager_clock_init(&c, 64 * THREADS * PAGER_CHUNK_PAGES), 0);
        for (unsigned i = 0; i < THREADS; i++) {
                in[i] = (struct inserter){ .c = &c, .index = i };
                assert_int_equal(pthread_create(&in[i].thread, NULL, insert, &in[i]), 0);
        }
        for (unsigned i = 0; i < ROUNDS; i++) {
                uint64_t steps = c.n_chunks, chunk;

                if (pager_clock_turn(&c, &steps, &chunk))
                        assert_true(chunk < c.n_chunks);
        }
        for (unsigned i = 0; i < THREADS; i++) {
                assert_int_equal(pthread_join(in[i].thread, NULL), 0);
                assert_int_equal(in[i].wrong, 0);
                back += in[i].back;
                for (unsigned k = 0; k < 64; k++)
                        assert_int_equal(pager_clock_resident(&c, k * THREADS + i), in[i].in[k]);
        }
        assert_int_equal(atomic_load(&c.refaults), back);
        assert_true(back > 0);
        pager_clock_clear(&c);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_lifetimes), cmocka_unit_test(test_ahead_then_demand),
                cmocka_unit_test(test_steps),     cmocka_unit_test(test_hot_set_stays),
                cmocka_unit_test(test_skewed),    cmocka_unit_test(test_hot_set_moves),
                cmocka_unit_test(test_threads),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
