/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/ids.h"
#include "forkd/vm/identity.h"

struct owner {
        struct identity_holder h; /* first */
        const char *name;
};

static struct identities *table;
static struct owner a, b;

static void describe(const struct identity_holder *h, char *buf, size_t size) {
        (void) snprintf(buf, size, "VM '%s'", ((const struct owner *) h)->name);
}

static int setup(void **state) {
        a.name = "first";
        b.name = "second";
        identity_holder_init(&a.h, describe);
        identity_holder_init(&b.h, describe);
        return identities_new(&table);
}

static int teardown(void **state) {
        identity_holder_end(table, &a.h);
        identity_holder_end(table, &b.h);
        for (int kind = 0; kind < IDENTITY_KINDS; kind++)
                assert_int_equal(identities_count(table, (enum identity_kind) kind), 0);
        identities_free(table);
        return 0;
}

static struct identity name(const char *s) {
        struct identity id;

        assert_int_equal(identity_name(s, &id), 0);
        return id;
}

static struct identity port(const char *proto, const char *host, unsigned n) {
        struct identity id;

        assert_int_equal(identity_port(proto, host, n, &id), 0);
        return id;
}

static struct identity address(const char *s) {
        struct identity id;

        assert_int_equal(identity_address(s, &id), 0);
        return id;
}

static int take(struct owner *o, struct identity id) {
        struct err e;

        return identities_take(table, &o->h, &id, &e);
}

static void test_the_second_hears_of_the_first(void **state) {
        struct identity id = name("web");
        struct err e;

        assert_int_equal(identities_take(table, &a.h, &id, &e), 0);
        assert_ptr_equal(identities_find(table, &id), &a.h);
        assert_int_equal(identities_take(table, &b.h, &id, &e), -EEXIST);
        assert_string_equal(e.code, ERR_EXISTS);
        assert_string_equal(e.message, "the name 'web' is taken: it belongs to VM 'first'");
        /* Asked for twice by the same it is had once. */
        assert_int_equal(identities_take(table, &a.h, &id, &e), 0);
        assert_int_equal(identities_count(table, IDENTITY_NAME), 1);
        identities_drop(table, &b.h, &id); /* is not b's to give */
        assert_int_equal(identities_take(table, &b.h, &id, &e), -EEXIST);
        identities_drop(table, &a.h, &id);
        assert_null(identities_find(table, &id));
        assert_int_equal(identities_take(table, &b.h, &id, &e), 0);
}

/* A number is not a name, and a CID is no user. */
static void test_kinds_do_not_meet(void **state) {
        struct identity uid, cid;

        assert_int_equal(identity_number(IDENTITY_UID, 77, &uid), 0);
        assert_int_equal(identity_number(IDENTITY_CID, 77, &cid), 0);
        assert_int_equal(take(&a, uid), 0);
        assert_int_equal(take(&b, cid), 0);
        assert_int_equal(take(&b, name("77")), 0);
        assert_int_equal(take(&b, uid), -EEXIST);
}

static void test_ports(void **state) {
        assert_int_equal(take(&a, port("tcp", "10.0.0.1", 80)), 0);
        assert_int_equal(take(&b, port("udp", "10.0.0.1", 80)), 0);
        assert_int_equal(take(&b, port("tcp", "10.0.0.2", 80)), 0);
        assert_int_equal(take(&b, port("tcp", "10.0.0.1", 81)), 0);
        assert_int_equal(take(&b, port("tcp", "10.0.0.1", 80)), -EEXIST);
        /* Every address is also that one, and the other way round. */
        assert_int_equal(take(&b, port("tcp", NULL, 80)), -EEXIST);
        assert_int_equal(take(&b, port("tcp", "::", 80)), -EEXIST);
        assert_int_equal(take(&b, port("tcp", "0.0.0.0", 443)), 0);
        assert_int_equal(take(&a, port("tcp", "10.0.0.9", 443)), -EEXIST);
        assert_int_equal(take(&a, port("tcp", "fe80::1", 443)), -EEXIST);
        /* One that holds both gives back one. */
        identities_drop(table, &b.h, &(struct identity){ .kind = IDENTITY_PORT, .value = "443/tcp" });
        assert_int_equal(take(&a, port("tcp", "10.0.0.9", 443)), 0);
}

static void test_one_spelling(void **state) {
        assert_int_equal(take(&a, address("::ffff:10.0.0.1")), 0);
        assert_int_equal(take(&b, address("10.0.0.1")), -EEXIST);
        assert_int_equal(take(&a, address("fd00:0:0:0::1")), 0);
        assert_int_equal(take(&b, address("FD00::1")), -EEXIST);
}

static void test_what_is_none(void **state) {
        struct identity id;

        assert_int_equal(identity_name("../x", &id), -EINVAL);
        assert_int_equal(identity_number(IDENTITY_NAME, 1, &id), -EINVAL);
        assert_int_equal(identity_port("tcp", NULL, 0, &id), -EINVAL);
        assert_int_equal(identity_port("tcp", NULL, 65536, &id), -EINVAL);
        assert_int_equal(identity_port("sctp", NULL, 80, &id), -EINVAL);
        assert_int_equal(identity_port("tcp", "10.0.0", 80, &id), -EINVAL);
        assert_int_equal(identity_address("localhost", &id), -EINVAL);
        assert_int_equal(identity_address("", &id), -EINVAL);
}

static void test_numbers(void **state) {
        uint32_t n = 0;
        struct err e;

        assert_int_equal(identities_take_number(table, &a.h, IDENTITY_UID, 100, 102, 102, &n, &e), 0);
        assert_int_equal(n, 102);
        assert_int_equal(identities_take_number(table, &b.h, IDENTITY_UID, 100, 102, 102, &n, &e), 0);
        assert_int_equal(n, 100); /* round the end */
        assert_int_equal(identities_take_number(table, &a.h, IDENTITY_UID, 100, 102, 5, &n, &e), 0);
        assert_int_equal(n, 101); /* a start outside is the range's */
        assert_int_equal(identities_take_number(table, &a.h, IDENTITY_UID, 100, 102, 100, &n, &e), -ENOSPC);
        assert_string_equal(e.code, ERR_LIMIT);
        assert_non_null(strstr(e.message, "all 3 user ids from 100 to 102"));
        identities_drop_kind(table, &b.h, IDENTITY_UID);
        assert_int_equal(identities_take_number(table, &a.h, IDENTITY_UID, 100, 102, 100, &n, &e), 0);
        assert_int_equal(n, 100);
        /* The whole range of numbers is one, too. */
        assert_int_equal(identities_take_number(table, &a.h, IDENTITY_CID, 0, UINT32_MAX, UINT32_MAX, &n, &e), 0);
        assert_int_equal(n, UINT32_MAX);
        assert_int_equal(identities_take_number(table, &a.h, IDENTITY_CID, 0, UINT32_MAX, UINT32_MAX, &n, &e), 0);
        assert_int_equal(n, 0);
        assert_int_equal(identities_take_number(table, &a.h, IDENTITY_CID, 9, 8, 9, &n, &e), -EINVAL);
}

static void test_the_end_of_a_holder(void **state) {
        char text[128];
        struct identity id;

        for (unsigned i = 0; i < 1000; i++) {
                (void) snprintf(text, sizeof(text), "vm-%u", i);
                assert_int_equal(take(i % 2 ? &a : &b, name(text)), 0);
        }
        assert_int_equal(take(&a, port("tcp", NULL, 80)), 0);
        identities_drop_kind(table, &a.h, IDENTITY_PORT);
        assert_int_equal(identities_count(table, IDENTITY_PORT), 0);
        identity_holder_end(table, &a.h);
        assert_int_equal(identities_count(table, IDENTITY_NAME), 500);
        id = name("vm-1");
        assert_null(identities_find(table, &id));
        id = name("vm-2");
        assert_ptr_equal(identities_find(table, &id), &b.h);
        id = port("udp", "10.0.0.1", 53);
        assert_string_equal(identity_format(&id, text, sizeof(text)), "the host port 53/udp of 10.0.0.1");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_the_second_hears_of_the_first, setup, teardown),
                cmocka_unit_test_setup_teardown(test_kinds_do_not_meet, setup, teardown),
                cmocka_unit_test_setup_teardown(test_ports, setup, teardown),
                cmocka_unit_test_setup_teardown(test_one_spelling, setup, teardown),
                cmocka_unit_test_setup_teardown(test_what_is_none, setup, teardown),
                cmocka_unit_test_setup_teardown(test_numbers, setup, teardown),
                cmocka_unit_test_setup_teardown(test_the_end_of_a_holder, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
