/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <string.h>

#include "common/co.h"
#include "forkd/host/turns.h"

static struct event_base *base;
static struct turns *turns;
static const char a[] = "a", b[] = "b", c[] = "c";
static const void *left; /* the client that has left */
static char order[400];  /* who had a turn, in which order */
static unsigned canceled, holding;
static struct co_wait *hold[400]; /* those who keep their place until they are told */

static bool has_left(const void *client, void *arg) {
        return client == left;
}

static int setup(void **state) {
        const unsigned limits[HEAVY_KINDS] = { 2, 1, 1 };

        base = event_base_new();
        left = NULL;
        order[0] = '\0';
        canceled = holding = 0;
        return base ? turns_new(limits, has_left, NULL, &turns) : -1;
}

static int teardown(void **state) {
        assert_int_equal(co_alive(), 0);
        turns_free(turns);
        event_base_free(base);
        return 0;
}

struct job {
        const char *client;
        enum heavy kind;
};

/* Works for its client: takes a place, notes who it is, and holds the place until let_go(). */
static void work(void *arg) {
        const struct job *j = arg;
        struct co_wait done = CO_WAIT_INIT;
        struct err e = { 0 };
        int r;

        co_set_owner(j->client);
        r = turns_take(turns, j->kind, &e);
        if (r < 0) {
                assert_int_equal(r, -ECANCELED);
                assert_string_equal(e.code, ERR_CANCELED);
                canceled++;
                return;
        }
        (void) strcat(order, j->client);
        hold[holding++] = &done;
        (void) co_wait(&done, -1);
        turns_give(turns, j->kind);
}

static void run_loop(void) {
        for (int i = 0; i < 10; i++)
                (void) event_base_loop(base, EVLOOP_NONBLOCK);
}

static void begin(const char *client, enum heavy kind) {
        static struct job jobs[2000];
        static unsigned n;

        jobs[n] = (struct job){ client, kind };
        assert_int_equal(co_start(base, work, &jobs[n]), 0);
        n++;
}

/* The first who still has a place gives it back. */
static void let_go(unsigned *next) {
        co_wake(hold[(*next)++], 0);
        run_loop();
}

static void finish_all(unsigned *next) {
        while (*next < holding)
                let_go(next);
}

static void test_no_more_than_the_limit(void **state) {
        unsigned next = 0;

        for (int i = 0; i < 5; i++)
                begin(a, HEAVY_START);
        run_loop();
        assert_string_equal(order, "aa");
        assert_int_equal(turns_count(turns, HEAVY_START).running, 2);
        assert_int_equal(turns_count(turns, HEAVY_START).waiting, 3);
        begin(a, HEAVY_SAVE); /* another kind has places of its own */
        assert_string_equal(order, "aaa");
        let_go(&next);
        assert_string_equal(order, "aaaa");
        finish_all(&next);
        assert_string_equal(order, "aaaaaa");
        assert_int_equal(turns_count(turns, HEAVY_START).running, 0);
        assert_int_equal(turns_count(turns, HEAVY_START).waiting, 0);
}

static void test_clients_take_turns(void **state) {
        unsigned next = 0;

        for (int i = 0; i < 100; i++)
                begin(a, HEAVY_START);
        begin(b, HEAVY_START);
        begin(c, HEAVY_START);
        begin(c, HEAVY_START);
        run_loop();
        for (int i = 0; i < 6; i++)
                let_go(&next);
        /* Of a hundred that came before, b and c let one pass each time. */
        assert_string_equal(order, "aaabcaca");
        finish_all(&next);
        assert_int_equal(strlen(order), 103);
}

/* Who comes anew to a free place does not overtake the one it was handed to. */
static void test_a_newcomer_does_not_overtake(void **state) {
        unsigned next = 0;

        begin(a, HEAVY_SAVE);
        begin(b, HEAVY_SAVE);
        co_wake(hold[next++], 0);
        begin(c, HEAVY_SAVE);
        run_loop();
        assert_string_equal(order, "ab");
        finish_all(&next);
        assert_string_equal(order, "abc");
}

static void test_a_client_that_leaves(void **state) {
        unsigned next = 0;

        for (int i = 0; i < 10; i++)
                begin(a, HEAVY_START);
        begin(b, HEAVY_START);
        begin(a, HEAVY_SCAN);
        begin(a, HEAVY_SCAN);
        run_loop();
        left = a;
        turns_client_gone(turns, a);
        run_loop();
        assert_int_equal(canceled, 9); /* eight starts, one scan; who has a place keeps it */
        assert_int_equal(turns_count(turns, HEAVY_START).waiting, 1);
        begin(a, HEAVY_SAVE); /* the rest of what it wanted does not begin, free place or not */
        assert_int_equal(canceled, 10);
        finish_all(&next);
        assert_string_equal(order, "aaab");
}

static void work_spare(void *arg) {
        struct co_wait done = CO_WAIT_INIT;
        struct err e = { 0 };

        if (turns_take_spare(turns, HEAVY_SAVE, &e) < 0) {
                assert_string_equal(e.code, ERR_CANCELED);
                canceled++;
                return;
        }
        (void) strcat(order, arg);
        hold[holding++] = &done;
        (void) co_wait(&done, -1);
        turns_give(turns, HEAVY_SAVE);
}

/* What nobody waits for comes last, however early it was there. */
static void test_spare_work_lets_all_others_pass(void **state) {
        unsigned next = 0;

        assert_int_equal(co_start(base, work_spare, "1"), 0); /* there is a place, and nobody who wants it */
        assert_string_equal(order, "1");
        assert_int_equal(co_start(base, work_spare, "2"), 0);
        assert_int_equal(co_start(base, work_spare, "3"), 0);
        begin(a, HEAVY_SAVE);
        begin(b, HEAVY_SAVE);
        let_go(&next);
        assert_string_equal(order, "1a");
        begin(a, HEAVY_SAVE);
        let_go(&next);
        let_go(&next);
        let_go(&next);
        assert_string_equal(order, "1aba2");
        turns_stop(turns);
        run_loop();
        assert_int_equal(canceled, 1);
        finish_all(&next);
        assert_int_equal(turns_count(turns, HEAVY_SAVE).running, 0);
}

static void test_stop(void **state) {
        unsigned next = 0;

        for (int i = 0; i < 4; i++)
                begin(i % 2 ? a : b, HEAVY_SCAN);
        run_loop();
        turns_stop(turns);
        run_loop();
        assert_int_equal(canceled, 3);
        begin(b, HEAVY_START);
        assert_int_equal(canceled, 4);
        finish_all(&next);
}

/* A coroutine works for whom its starter does, unless it says otherwise. */
static void inherit(void *arg) {
        assert_ptr_equal(co_owner(), arg);
}

static void parent(void *arg) {
        assert_null(co_owner());
        co_set_owner(a);
        assert_int_equal(co_start(base, inherit, (void *) a), 0);
        co_set_owner(b);
        assert_int_equal(co_start(base, inherit, (void *) b), 0);
}

static void test_owners_are_inherited(void **state) {
        assert_null(co_owner());
        co_set_owner(a); /* the loop's own stack works for nobody */
        assert_null(co_owner());
        assert_int_equal(co_start(base, parent, NULL), 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_no_more_than_the_limit, setup, teardown),
                cmocka_unit_test_setup_teardown(test_clients_take_turns, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_newcomer_does_not_overtake, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_client_that_leaves, setup, teardown),
                cmocka_unit_test_setup_teardown(test_spare_work_lets_all_others_pass, setup, teardown),
                cmocka_unit_test_setup_teardown(test_stop, setup, teardown),
                cmocka_unit_test_setup_teardown(test_owners_are_inherited, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
