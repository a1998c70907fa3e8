/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <errno.h>
#include <stdio.h>

#include "forkd/api/account.h"

#define S 1000000000ull
#define ALICE 1000
#define BOB 1001

static const struct account_limits limits = { .connections = 10,
                                              .reserved_connections = 3,
                                              .user_connections = 4,
                                              .user_streams = 2,
                                              .user_requests = 3,
                                              .user_bytes = 100,
                                              .user_rate = 5 };

static struct account *join(struct accounts *a, uid_t uid, uint64_t now) {
        struct account *u = NULL;
        struct err e;

        assert_ok(account_connect(a, uid, uid == 0, now, &u, &e));
        return u;
}

static void refused(struct accounts *a, uid_t uid, uint64_t now, const char *says) {
        struct account *u = NULL;
        struct err e = { 0 };

        assert_fails(account_connect(a, uid, uid == 0, now, &u, &e), EUSERS);
        assert_string_equal(e.code, ERR_LIMIT);
        assert_non_null(strstr(e.message, says));
        assert_null(u);
}

static void test_connections(void **state) {
        struct account *alice[4], *bob[3], *root[3];
        struct accounts a;

        accounts_init(&a, &limits);
        for (size_t i = 0; i < 4; i++)
                alice[i] = join(&a, ALICE, S);
        refused(&a, ALICE, S, "the user 1000 has 4 connections");
        for (size_t i = 0; i < 3; i++)
                bob[i] = join(&a, BOB, S);
        refused(&a, BOB, S, "forkd has 7 connections already, and takes 7"); /* the rest is root's */
        for (size_t i = 0; i < 3; i++)
                root[i] = join(&a, 0, S);
        refused(&a, 0, S, "forkd has 10 connections already, and takes 10");
        refused(&a, BOB, S, "takes 7");
        account_disconnect(root[2]);
        refused(&a, BOB, S, "takes 7"); /* nobody takes root's place */
        root[2] = join(&a, 0, S);
        account_disconnect(alice[0]);
        bob[2] = join(&a, BOB, S);
        account_disconnect(alice[1]);
        (void) join(&a, 0, S); /* root may have all places */
        refused(&a, BOB, S, "already");
        assert_ptr_equal(bob[2], bob[0]); /* one account a user */
        accounts_clear(&a);
}

static void test_rate(void **state) {
        struct accounts a;
        struct account *u;
        struct err e;
        unsigned n;

        accounts_init(&a, &limits);
        u = join(&a, ALICE, S); /* costs one */
        for (n = 1; n < limits.user_rate * ACCOUNT_BURST_SECONDS; n++)
                assert_ok(account_request(u, S, &e));
        assert_fails(account_request(u, S, &e), EUSERS);
        assert_string_equal(e.code, ERR_LIMIT);
        assert_non_null(strstr(e.message, "more than 5 things a second"));
        assert_non_null(strstr(e.hint, "wait 1 s"));
        assert_fails(account_request(u, S, &e), EUSERS);
        /* two were owed: a second of five pays them, and three more */
        for (n = 0; n < 3; n++)
                assert_ok(account_request(u, 2 * S, &e));
        assert_fails(account_request(u, 2 * S, &e), EUSERS);
        /* a clock that goes back is no gain and no loss */
        assert_fails(account_request(u, S, &e), EUSERS);
        /* others are not concerned */
        assert_ok(account_request(join(&a, BOB, 2 * S), 2 * S, &e));
        /* a long rest fills the bucket, not more than that */
        for (n = 0; n < limits.user_rate * ACCOUNT_BURST_SECONDS; n++)
                assert_ok(account_request(u, 1000 * S, &e));
        assert_fails(account_request(u, 1000 * S, &e), EUSERS);
        accounts_clear(&a);
}

static void test_who_does_not_stop_is_hung_up_on_and_stays_out(void **state) {
        struct accounts a;
        struct account *u;
        unsigned n = 0;
        struct err e;
        int r;

        accounts_init(&a, &limits);
        u = join(&a, ALICE, S);
        while ((r = account_request(u, S, &e)) != -EDQUOT) {
                assert_true(r == 0 || r == -EUSERS);
                assert_true(++n < 200);
        }
        assert_int_equal(n, 2 * limits.user_rate * ACCOUNT_BURST_SECONDS - 2); /* one for the connection, one that ended it */
        account_disconnect(u);
        refused(&a, ALICE, S, "more than 5 things");
        refused(&a, ALICE, 9 * S, "more than 5 things"); /* coming back is not forgetting */
        account_disconnect(join(&a, ALICE, 20 * S));
        accounts_clear(&a);
}

static void test_root_has_no_rate(void **state) {
        struct accounts a;
        struct account *u;
        struct err e;

        accounts_init(&a, &limits);
        u = join(&a, 0, S);
        for (unsigned n = 0; n < 1000; n++) {
                assert_ok(account_request(u, S, &e));
                assert_ok(account_stream_begin(u, &e));
        }
        accounts_clear(&a);
}

static void test_no_rate_at_all(void **state) {
        struct account_limits l = limits;
        struct accounts a;
        struct account *u;
        struct err e;

        l.user_rate = 0;
        accounts_init(&a, &l);
        u = join(&a, ALICE, S);
        for (unsigned n = 0; n < 1000; n++)
                assert_ok(account_request(u, S, &e));
        account_disconnect(u);
        assert_int_equal(a.n, 1);
        (void) join(&a, BOB, S);
        assert_int_equal(a.n, 1); /* Alice is forgotten */
        accounts_clear(&a);
}

static void test_streams(void **state) {
        struct accounts a;
        struct account *u;
        struct err e;

        accounts_init(&a, &limits);
        u = join(&a, ALICE, S);
        assert_ok(account_stream_begin(u, &e));
        assert_ok(account_stream_begin(u, &e));
        assert_fails(account_stream_begin(u, &e), EUSERS);
        assert_non_null(strstr(e.message, "2 commands and copies"));
        account_stream_end(u);
        assert_ok(account_stream_begin(u, &e));
        account_disconnect(u);
        account_stream_end(u);
        account_stream_end(u);
        assert_int_equal(u->refs, 0);
        accounts_clear(&a);
}

static void test_requests_under_way(void **state) {
        struct accounts a;
        struct account *u, *root;
        struct err e;

        accounts_init(&a, &limits);
        u = join(&a, ALICE, S);
        root = join(&a, 0, S);
        assert_fails(account_request_begin(u, 101, &e), EUSERS);
        assert_fails(account_request_begin(u, SIZE_MAX, &e), EUSERS);
        assert_ok(account_request_begin(u, 60, &e));
        assert_fails(account_request_begin(u, 41, &e), EUSERS);
        assert_non_null(strstr(e.message, "1 answers already, to questions of 60 bytes"));
        assert_ok(account_request_begin(u, 40, &e));
        assert_ok(account_request_begin(u, 0, &e));
        assert_fails(account_request_begin(u, 0, &e), EUSERS); /* their number */
        assert_ok(account_request_begin(root, 1000, &e));
        account_request_end(u, 60);
        assert_ok(account_request_begin(u, 60, &e));
        account_disconnect(u); /* the answers are still owed */
        assert_int_equal(u->refs, 3);
        account_request_end(u, 60);
        account_request_end(u, 40);
        account_request_end(u, 0);
        account_request_end(root, 1000);
        assert_int_equal(u->refs + (unsigned) u->bytes + u->requests, 0);
        accounts_clear(&a);
}

/* Nobody fills the memory by being many users one after the other. */
static void test_accounts_are_forgotten(void **state) {
        struct account *u = NULL;
        struct accounts a;
        struct err e;

        accounts_init(&a, &limits);
        for (unsigned i = 0; i < 2 * ACCOUNT_MAX; i++) {
                uint64_t now = (1 + i) * S;

                account_disconnect(join(&a, ALICE + i, now));
                assert_true(a.n <= 3); /* a bucket with one token less is full again after a fifth of a second */
        }
        accounts_clear(&a);
        accounts_init(&a, &limits);
        for (unsigned i = 0; i < ACCOUNT_MAX; i++)
                account_disconnect(join(&a, ALICE + i, S));
        assert_fails(account_connect(&a, 1, false, S, &u, &e), EUSERS); /* all at one moment: no more */
        account_disconnect(join(&a, 0, S));                             /* but root */
        account_disconnect(join(&a, 1, 3 * S));
        assert_true(a.n < 3);
        accounts_clear(&a);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_connections),
                cmocka_unit_test(test_rate),
                cmocka_unit_test(test_who_does_not_stop_is_hung_up_on_and_stays_out),
                cmocka_unit_test(test_root_has_no_rate),
                cmocka_unit_test(test_no_rate_at_all),
                cmocka_unit_test(test_streams),
                cmocka_unit_test(test_requests_under_way),
                cmocka_unit_test(test_accounts_are_forgotten),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
