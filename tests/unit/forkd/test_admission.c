/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "forkd/host/admission.h"

#define MIB (1ull << 20)

/* A host that has what the test says. */
static struct { uint64_t memory, pids, disk, touched; } has;
static struct admission *a;
static struct admission_claim c[8];

static uint64_t memory(void *arg) {
        return has.memory;
}
static uint64_t pids(void *arg) {
        return has.pids;
}
static uint64_t disk(void *arg) {
        return has.disk;
}
static uint64_t touched(pid_t pid, void *arg) {
        return pid == 77 ? has.touched : 0;
}

static void make(const struct admission_limits *l) {
        const struct admission_host host = { .memory = memory, .pids = pids, .disk = disk, .touched = touched };

        has.memory = has.pids = has.disk = UINT64_MAX;
        has.touched = 0;
        memset(c, 0, sizeof(c));
        assert_int_equal(admission_new(l, &host, &a), 0);
}

static int setup(void **state) {
        make(&(struct admission_limits){ .overcommit = 1, .vcpus = 10, .disk_reserve = 64 * MIB, .descriptors = 40 });
        return 0;
}

static int teardown(void **state) {
        for (size_t i = 0; i < ARRAY_LEN(c); i++)
                admission_release(a, &c[i]);
        admission_free(a);
        return 0;
}

static int reserve(int i, const char *who, struct admission_need need, unsigned count, struct err *e) {
        *e = (struct err){ 0 };
        return admission_reserve(a, &c[i], who, &need, count, e);
}

static void says(const struct err *e, const char *what) {
        if (!strstr(e->message, what))
                fail_msg("'%s' does not say '%s'", e->message, what);
}

static void test_what_starts_is_not_in_the_hosts_figures_yet(void **state) {
        const struct admission_need need = { .memory = 100 * MIB, .promised = 300 * MIB };
        struct err e;

        has.memory = 250 * MIB;
        assert_int_equal(reserve(0, "'a'", need, 1, &e), 0);
        assert_int_equal(reserve(1, "'b'", need, 1, &e), 0);
        assert_int_equal(reserve(2, "'c'", need, 1, &e), -ENOMEM);
        assert_string_equal(e.code, ERR_NO_SPACE);
        says(&e, "not enough memory for 'c': 100 MiB needed, 50 MiB available (200 MiB are reserved for what starts)");
        says(&e, "it is held by 'a', 'b'");
        assert_true(e.hint[0]);
        /* One lives, and the host has less: nothing changed. */
        admission_hold(a, &c[0], "'a'", &need);
        has.memory = 150 * MIB;
        assert_int_equal(reserve(2, "'c'", need, 1, &e), -ENOMEM);
        says(&e, "50 MiB available (100 MiB are reserved");
        /* The other has touched half of its own, which both the host and the claim know. */
        c[1].pid = 77;
        has.touched = 50 * MIB;
        has.memory = 100 * MIB;
        assert_int_equal(reserve(2, "'c'", need, 1, &e), -ENOMEM);
        says(&e, "50 MiB available (50 MiB are reserved");
        has.touched = 500 * MIB; /* more than was thought */
        assert_int_equal(reserve(2, "'c'", need, 1, &e), 0);
        /* What ended is free. */
        admission_release(a, &c[2]);
        admission_release(a, &c[1]);
        has.memory = 200 * MIB;
        assert_int_equal(reserve(1, "two", need, 2, &e), 0);
        assert_int_equal(reserve(2, "'c'", need, 1, &e), -ENOMEM);
        says(&e, " 0 B available");
}

static void test_promises(void **state) {
        const struct admission_need need = { .memory = 10 * MIB, .promised = 300 * MIB };
        struct err e;

        teardown(NULL);
        make(&(struct admission_limits){ .memory = 500 * MIB, .overcommit = 2, .vcpus = 100, .descriptors = 100 });
        assert_int_equal(reserve(0, "'a'", need, 1, &e), 0);
        assert_int_equal(reserve(1, "2 clones of 'a'", need, 2, &e), 0);
        assert_int_equal(reserve(2, "'b'", need, 1, &e), -ENOMEM);
        says(&e, "300 MiB needed, 100 MiB of 1000 MiB are not promised; it is held by 2 clones of 'a', 'a'");
        admission_hold(a, &c[0], "'a'", &need); /* a promise to one that lives is one still */
        assert_int_equal(reserve(2, "'b'", need, 1, &e), -ENOMEM);
        admission_release(a, &c[0]);
        assert_int_equal(reserve(2, "'b'", need, 1, &e), 0);
}

static void test_numbers(void **state) {
        struct err e;

        assert_int_equal(reserve(0, "'a'", (struct admission_need){ .vcpus = 8 }, 1, &e), 0);
        assert_int_equal(reserve(1, "3 clones", (struct admission_need){ .vcpus = 1 }, 3, &e), -EMFILE);
        assert_string_equal(e.code, ERR_LIMIT);
        says(&e, "not enough vCPUs for 3 clones: 3 needed, 2 of 10 left; it is held by 'a'");
        assert_int_equal(reserve(1, "2 clones", (struct admission_need){ .vcpus = 1 }, 2, &e), 0);
        assert_int_equal(reserve(2, "'d'", (struct admission_need){ .descriptors = 41 }, 1, &e), -EMFILE);
        says(&e, "not enough descriptors for 'd': 41 needed, 40 of 40 left");
        has.pids = 12;
        assert_int_equal(reserve(2, "'p'", (struct admission_need){ .pids = 7 }, 1, &e), 0);
        assert_int_equal(reserve(3, "'q'", (struct admission_need){ .pids = 7 }, 1, &e), -EMFILE);
        says(&e, "not enough processes and threads for 'q': 7 needed, 5 left");
        admission_hold(a, &c[2], "'p'", &c[2].need); /* its threads are in the host's figures now */
        assert_int_equal(reserve(3, "'q'", (struct admission_need){ .pids = 7 }, 1, &e), 0);
}

static void test_disk(void **state) {
        struct err e;

        has.disk = 100 * MIB;
        admission_hold(a, &c[5], "'vm'", &(struct admission_need){ .promised = 999 * MIB });
        assert_int_equal(reserve(0, "a snapshot of 'a'", (struct admission_need){ .disk = 30 * MIB }, 1, &e), 0);
        assert_int_equal(reserve(1, "a snapshot of 'b'", (struct admission_need){ .disk = 10 * MIB }, 1, &e), -ENOSPC);
        assert_string_equal(e.code, ERR_NO_SPACE);
        says(&e, "10 MiB needed, 6 MiB free in the store (beside a reserve of 64 MiB, and 30 MiB for snapshots under way); it is "
                 "held by a snapshot of 'a'");
        assert_null(strstr(e.message, "'vm'"));
        /* A claim that is asked for anew is another. */
        assert_int_equal(reserve(0, "a snapshot of 'a'", (struct admission_need){ .disk = 36 * MIB }, 1, &e), 0);
        assert_int_equal(reserve(0, "a snapshot of 'a'", (struct admission_need){ .disk = 37 * MIB }, 1, &e), -ENOSPC);
        assert_int_equal(c[0].count, 0);
}

static void test_a_group_is_shared_out(void **state) {
        const struct admission_need need = { .vcpus = 2, .memory = MIB };
        struct err e;

        assert_int_equal(reserve(0, "3 clones of 'x'", need, 3, &e), 0);
        admission_share(a, &c[0], &c[1], "'x-1'");
        admission_share(a, &c[0], &c[2], "'x-2'");
        assert_int_equal(c[0].count, 1);
        assert_int_equal(reserve(4, "'y'", (struct admission_need){ .vcpus = 5 }, 1, &e), -EMFILE);
        says(&e, "5 needed, 4 of 10 left");
        admission_share(a, &c[0], &c[3], "'x-3'");
        assert_int_equal(c[0].count, 0);
        admission_share(a, &c[0], &c[5], "'x-4'"); /* there is none left */
        assert_int_equal(c[5].count, 0);
        admission_release(a, &c[0]);
        for (int i = 1; i <= 3; i++)
                admission_release(a, &c[i]);
        assert_int_equal(reserve(4, "all", (struct admission_need){ .vcpus = 10 }, 1, &e), 0);
}

/* What was taken back is held whether there is room or not, and nothing more is given until there is. */
static void test_taken_back(void **state) {
        struct err e;

        admission_hold(a, &c[0], "'old'", &(struct admission_need){ .vcpus = 64 });
        assert_int_equal(reserve(1, "'new'", (struct admission_need){ .vcpus = 1 }, 1, &e), -EMFILE);
        says(&e, "1 needed, 0 of 10 left; it is held by 'old'");
}

static void test_many_holders(void **state) {
        static struct admission_claim many[1000];
        char who[32];
        struct err e;

        for (unsigned i = 0; i < ARRAY_LEN(many); i++) {
                (void) snprintf(who, sizeof(who), "'vm-%u'", i);
                admission_hold(a, &many[i], who, &(struct admission_need){ .vcpus = 1, .promised = i == 500 ? 2 : 1 });
        }
        assert_int_equal(reserve(1, "'new'", (struct admission_need){ .vcpus = 1 }, 1, &e), -EMFILE);
        says(&e, "held by 'vm-500', 'vm-0', 'vm-1' and 997 others");
        for (unsigned i = 0; i < ARRAY_LEN(many); i++)
                admission_release(a, &many[i]);
}

static void test_sums_do_not_wrap(void **state) {
        struct err e;

        has.memory = 100 * MIB;
        assert_int_equal(reserve(0, "'a'", (struct admission_need){ .memory = UINT64_MAX / 2 }, 3, &e), -ENOMEM);
        has.memory = UINT64_MAX;
        assert_int_equal(reserve(0, "'a'", (struct admission_need){ .memory = UINT64_MAX / 2 }, 3, &e), 0);
        has.memory = 100 * MIB;
        assert_int_equal(reserve(1, "'b'", (struct admission_need){ .memory = 1 }, 1, &e), -ENOMEM);
        says(&e, "0 B available");
}

static void test_needs(void **state) {
        struct admission_need boot = admission_vm_need(256 * MIB, 2, true), clone = admission_vm_need(256 * MIB, 2, false);

        assert_true(boot.memory > 256 * MIB && boot.promised == boot.memory);
        assert_true(clone.memory < 64 * MIB && clone.promised == boot.promised);
        assert_true(boot.pids > 2 && boot.descriptors > 0 && boot.vcpus == 2 && boot.disk == 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_what_starts_is_not_in_the_hosts_figures_yet, setup, teardown),
                cmocka_unit_test_setup_teardown(test_promises, setup, teardown),
                cmocka_unit_test_setup_teardown(test_numbers, setup, teardown),
                cmocka_unit_test_setup_teardown(test_disk, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_group_is_shared_out, setup, teardown),
                cmocka_unit_test_setup_teardown(test_taken_back, setup, teardown),
                cmocka_unit_test_setup_teardown(test_many_holders, setup, teardown),
                cmocka_unit_test_setup_teardown(test_sums_do_not_wrap, setup, teardown),
                cmocka_unit_test_setup_teardown(test_needs, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
