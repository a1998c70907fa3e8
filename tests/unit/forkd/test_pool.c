/* SPDX-License-Identifier: MIT */
/* Pools without VMs: how many clones there shall be, the steps that lead there, and the record. */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "forkd/pool/internal.h"

#define SECOND 1000000000ull
#define BEGIN (1000 * POOL_BURST_NS)

static struct pool_sizes sizes(unsigned min, unsigned size, unsigned max, unsigned idle_s) {
        return (struct pool_sizes){
                .size = size, .has_min = true, .min = min, .has_max = true, .max = max, .idle_timeout_seconds = idle_s
        };
}

/* ---- how many ---- */

static void test_what_follows_from_what(void **state) {
        struct pool_sizes s = { .size = 4 };
        struct err e;

        assert_int_equal(pool_min(&s), 4);
        assert_int_equal(pool_max(&s), 4);
        s.idle_timeout_seconds = 60;
        assert_int_equal(pool_min(&s), 0);
        assert_ok(pool_sizes_check(&s, &e));
        s.has_min = s.has_max = true;
        s.min = 2;
        s.max = 9;
        assert_int_equal(pool_min(&s), 2);
        assert_int_equal(pool_max(&s), 9);
        assert_ok(pool_sizes_check(&s, &e));
}

static void test_what_cannot_be(void **state) {
        const struct pool_sizes bad[] = {
                { .size = 0 },
                { .size = POOL_MAX_SIZE + 1 },
                sizes(0, 4, POOL_MAX_SIZE + 1, 0),
                sizes(5, 4, 9, 0),
                sizes(0, 4, 3, 0),
                sizes(4, 4, 9, 60), /* idle, it would be as large as ever */
                sizes(1, 4, 9, POOL_MAX_IDLE_SECONDS + 1),
        };
        struct err e;

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                e = (struct err){ 0 };
                assert_int_equal(pool_sizes_check(&bad[i], &e), -EINVAL);
                assert_string_equal(e.code, ERR_INVALID);
        }
}

static void test_a_fixed_pool_is_always_as_large(void **state) {
        struct pool_sizes s = { .size = 4 };
        struct pool_demand t = { .since_ns = BEGIN };

        for (int i = 0; i < 100; i++)
                pool_demand_take(&t, BEGIN);
        assert_int_equal(pool_wanted(&s, &t, BEGIN), 4);
        assert_int_equal(pool_wanted(&s, &t, BEGIN + 100000 * SECOND), 4);
}

static void test_it_grows_with_demand_and_forgets_it(void **state) {
        struct pool_sizes s = sizes(4, 4, 50, 0);
        struct pool_demand t = { .since_ns = BEGIN };

        assert_int_equal(pool_wanted(&s, &t, BEGIN), 4);
        for (int i = 0; i < 20; i++)
                pool_demand_take(&t, BEGIN + i * SECOND / 10);
        assert_int_equal(pool_demand_burst(&t, BEGIN + 2 * SECOND), 20);
        assert_int_equal(pool_wanted(&s, &t, BEGIN + 2 * SECOND), 25);
        /* Slower, but no less than the worst of the last minute. */
        pool_demand_take(&t, BEGIN + 30 * SECOND);
        assert_int_equal(pool_wanted(&s, &t, BEGIN + 59 * SECOND), 25);
        assert_int_equal(pool_wanted(&s, &t, BEGIN + 71 * SECOND), 4);
        for (int i = 0; i < 1000; i++)
                pool_demand_take(&t, BEGIN + 100 * SECOND);
        assert_int_equal(pool_wanted(&s, &t, BEGIN + 100 * SECOND), 50);
        /* Places of the count are used again. */
        assert_int_equal(pool_demand_burst(&t, BEGIN + 170 * SECOND), 0);
        pool_demand_take(&t, BEGIN + 170 * SECOND);
        assert_int_equal(pool_demand_burst(&t, BEGIN + 170 * SECOND), 1);
}

static void test_an_idle_pool_shrinks_until_the_next_take(void **state) {
        struct pool_sizes s = sizes(1, 4, 8, 30);
        struct pool_demand t = { .since_ns = BEGIN };

        assert_int_equal(pool_wanted(&s, &t, BEGIN + 30 * SECOND - 1), 4);
        assert_int_equal(pool_wanted(&s, &t, BEGIN + 30 * SECOND), 1);
        pool_demand_take(&t, BEGIN + 90 * SECOND);
        assert_int_equal(pool_wanted(&s, &t, BEGIN + 90 * SECOND), 4);
        assert_int_equal(pool_wanted(&s, &t, BEGIN + 120 * SECOND), 1);
}

/* ---- steps ---- */

static enum pool_step next(unsigned wanted, unsigned fresh, unsigned old, unsigned making) {
        return pool_next_step(wanted, &(struct pool_counts){ .fresh = fresh, .old = old, .making = making });
}

static void test_single_steps(void **state) {
        assert_int_equal(next(0, 0, 0, 0), POOL_REST);
        assert_int_equal(next(2, 0, 0, 0), POOL_MAKE);
        assert_int_equal(next(2, 0, 0, 2), POOL_REST);
        assert_int_equal(next(2, 2, 0, 0), POOL_REST);
        assert_int_equal(next(2, 3, 0, 0), POOL_DROP_FRESH);
        assert_int_equal(next(2, 3, 1, 0), POOL_DROP_OLD);
        assert_int_equal(next(2, 0, 2, 0), POOL_MAKE); /* one more than wanted */
        assert_int_equal(next(2, 0, 2, 1), POOL_REST);
        assert_int_equal(next(2, 1, 2, 0), POOL_DROP_OLD);
}

/* From any beginning, with any numbers, the steps end, and with what is wanted; while they do there are never fewer than wanted, or
 * than there were, and never more than one beyond either. */
static void test_every_way_leads_there(void **state) {
        for (unsigned wanted = 0; wanted <= 5; wanted++)
                for (unsigned fresh = 0; fresh <= 7; fresh++)
                        for (unsigned old = 0; old <= 7; old++) {
                                struct pool_counts c = { .fresh = fresh, .old = old };
                                unsigned least = MIN_OF(fresh + old, wanted), steps = 0, most = MAX_OF(fresh + old, wanted + 1);

                                for (enum pool_step s; (s = pool_next_step(wanted, &c)) != POOL_REST || c.making > 0;) {
                                        assert_true(steps++ < 100);
                                        if (s == POOL_MAKE)
                                                c.making++;
                                        else if (s == POOL_DROP_OLD)
                                                c.old--;
                                        else if (s == POOL_DROP_FRESH)
                                                c.fresh--;
                                        else {
                                                c.making--;
                                                c.fresh++;
                                        }
                                        assert_true(c.fresh + c.old >= least);
                                        assert_true(c.fresh + c.old + c.making <= most);
                                }
                                assert_int_equal(c.fresh, wanted);
                                assert_int_equal(c.old, 0);
                        }
}

/* ---- the record ---- */

static void test_record_roundtrip(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pool p = { .sizes = sizes(1, 4, 8, 30), .removing = true, .created_ns = 1234567890123456789 }, got = { 0 };

        (void) strcpy(p.name, "web.1");
        (void) strcpy(p.on_pager_loss, "recover");
        id_new(p.from);
        mp_buf_init(&b);
        assert_ok(pool_record_encode(&p, &b));
        assert_ok(pool_record_decode(b.sb.data, b.sb.size, &got));
        assert_string_equal(got.name, "web.1");
        assert_string_equal(got.from, p.from);
        assert_string_equal(got.on_pager_loss, "recover");
        assert_memory_equal(&got.sizes, &p.sizes, sizeof(p.sizes));
        assert_true(got.removing && got.created_ns == p.created_ns);
        mp_buf_clear(&b);
        mp_buf_init(&b);
        p.sizes = (struct pool_sizes){ .size = 3 };
        p.removing = false;
        assert_ok(pool_record_encode(&p, &b));
        assert_ok(pool_record_decode(b.sb.data, b.sb.size, &got));
        assert_false(got.removing || got.sizes.has_min || got.sizes.has_max);
        assert_int_equal(pool_max(&got.sizes), 3);
        assert_true(b.sb.size < 4096);
}

/* Every cut and every flipped bit is refused, or gives a pool that can be. */
static void test_damaged_records(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct pool p = { .sizes = sizes(1, 4, 8, 30) };
        unsigned refused = 0;

        (void) strcpy(p.name, "web");
        (void) strcpy(p.on_pager_loss, "kill");
        id_new(p.from);
        mp_buf_init(&b);
        assert_ok(pool_record_encode(&p, &b));
        for (size_t n = 0; n < b.sb.size; n++) {
                struct pool got = { 0 };

                assert_true(pool_record_decode(b.sb.data, n, &got) < 0);
                for (int bit = 0; bit < 8; bit++) {
                        int r;

                        b.sb.data[n] ^= (char) (1 << bit);
                        got = (struct pool){ 0 };
                        r = pool_record_decode(b.sb.data, b.sb.size, &got);
                        b.sb.data[n] ^= (char) (1 << bit);
                        refused += r < 0;
                        if (r < 0)
                                continue;
                        assert_true(name_valid(got.name) && id_valid(got.from));
                        assert_ok(pool_sizes_check(&got.sizes, NULL));
                        assert_ok(vm_check_policy(got.on_pager_loss, NULL));
                }
        }
        assert_true(refused > 100);
}

/* ---- on disk ---- */

static void test_load(void **state) {
        struct daemon d = { .cfg = { .max_vms = 10 } };
        char path[1000];
        struct pool *p;
        struct err e;

        d.base = event_base_new();
        temp_dir(d.state_dir, sizeof(d.state_dir));
        (void) snprintf(path, sizeof(path), "%s/pools", d.state_dir);
        assert_ok(mkdir(path, 0700));
        assert_ok(pools_new(&d, &d.pools));
        for (const char *const *name = (const char *const[]){ "b", "c", "a", NULL }; *name; name++) {
                p = pool_new(&d, *name);
                assert_non_null(p);
                (void) strcpy(p->on_pager_loss, "kill");
                id_new(p->from);
                p->sizes.size = 2;
                assert_ok(pool_record_save(p, &e));
                pool_enter(p);
        }
        p = pool_by_name(&d, "b");
        assert_ok(pool_record_remove(p, &e));
        assert_ok(pool_record_remove(p, &e));
        (void) snprintf(path, sizeof(path), "%s/pools/other", d.state_dir);
        assert_ok(io_write_file_atomic(AT_FDCWD, path, "no record", 9, 0600, false));
        /* One under another's name is nobody's. */
        (void) snprintf(path, sizeof(path), "cp %s/pools/a %s/pools/z", d.state_dir, d.state_dir);
        assert_ok(system(path));
        pools_free(d.pools);
        assert_ok(pools_new(&d, &d.pools));
        assert_ok(pools_load(&d, &e));
        assert_int_equal(pools_count(&d), 2);
        assert_string_equal(pools_first(&d)->name, "a");
        assert_non_null(pool_by_name(&d, "c"));
        assert_null(pool_by_name(&d, "other"));
        pools_free(d.pools);
        event_base_free(d.base);
        temp_dir_remove(d.state_dir);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_what_follows_from_what),
                cmocka_unit_test(test_what_cannot_be),
                cmocka_unit_test(test_a_fixed_pool_is_always_as_large),
                cmocka_unit_test(test_it_grows_with_demand_and_forgets_it),
                cmocka_unit_test(test_an_idle_pool_shrinks_until_the_next_take),
                cmocka_unit_test(test_single_steps),
                cmocka_unit_test(test_every_way_leads_there),
                cmocka_unit_test(test_record_roundtrip),
                cmocka_unit_test(test_damaged_records),
                cmocka_unit_test(test_load),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
