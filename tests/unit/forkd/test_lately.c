/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <stdio.h>
#include <stdlib.h>

#include "forkd/monitor/lately.h"

#define S 1000000000ull

struct told {
        uint64_t known;
        unsigned n;
        struct {
                uint64_t ago, waits, buckets;
                double first_end;
        } of[LATELY_SECONDS + 1];
};

static struct told tell(const struct lately *l, uint64_t now_ns) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        const msgpack_object *list;
        struct told t = { 0 };

        mp_buf_init(&b);
        lately_put(l, now_ns, &b);
        assert_ok(mp_parse(b.sb.data, b.sb.size, &doc));
        assert_ok(mp_get_u64(&doc.root, "known_s", &t.known));
        list = mp_get_array(&doc.root, "seconds");
        assert_non_null(list);
        t.n = list->via.array.size;
        assert_in_range(t.n, 0, LATELY_SECONDS);
        for (unsigned i = 0; i < t.n; i++) {
                const msgpack_object *s = list->via.array.ptr[i].via.array.ptr, *buckets = &s[1];

                t.of[i].ago = s[0].via.u64;
                t.of[i].buckets = buckets->via.array.size;
                for (unsigned k = 0; k < buckets->via.array.size; k++) {
                        const msgpack_object *pair = buckets->via.array.ptr[k].via.array.ptr;

                        if (k == 0)
                                t.of[i].first_end = pair[0].type == MSGPACK_OBJECT_NIL ? -1 : pair[0].via.f64;
                        t.of[i].waits += pair[1].via.u64;
                }
        }
        return t;
}

static void add(struct lately *l, uint64_t now_ns, unsigned bucket, uint64_t n) {
        uint64_t wait[PROBES_BUCKETS] = { 0 };

        wait[bucket] = n;
        lately_add(l, now_ns, wait);
}

static void test_seconds(void **state) {
        cleanup_free struct lately *l = calloc(1, sizeof(*l));
        struct told t;

        assert_non_null(l);
        assert_int_equal(tell(l, 5 * S).known, 0);
        l->since_ns = 100 * S;
        add(l, 110 * S, 3, 7);
        add(l, 110 * S + S / 2, 3, 1);
        add(l, 110 * S + S / 2, 4, 2);
        add(l, 112 * S, PROBES_BUCKETS - 1, 1);
        add(l, 113 * S, 0, 0); /* nothing happened: not worth a word */
        t = tell(l, 115 * S);
        assert_int_equal(t.known, 15);
        assert_int_equal(t.n, 2);
        assert_int_equal(t.of[0].ago, 5);
        assert_int_equal(t.of[0].waits, 10);
        assert_int_equal(t.of[0].buckets, 2);
        assert_true(t.of[0].first_end == 8192e-9);
        assert_int_equal(t.of[1].ago, 3);
        assert_true(t.of[1].first_end == -1);
}

/* A second that comes round takes the place of the one LATELY_SECONDS before it, and one that did not come round is none. */
static void test_round(void **state) {
        cleanup_free struct lately *l = calloc(1, sizeof(*l));
        struct told t;

        assert_non_null(l);
        l->since_ns = S;
        for (uint64_t s = 10; s < 10 + 3 * LATELY_SECONDS; s++)
                add(l, s * S, 5, s);
        t = tell(l, (9 + 3 * LATELY_SECONDS) * S);
        assert_int_equal(t.known, LATELY_SECONDS);
        assert_int_equal(t.n, LATELY_SECONDS);
        for (unsigned i = 0; i < t.n; i++) {
                assert_int_equal(t.of[i].ago, LATELY_SECONDS - 1 - i);
                assert_int_equal(t.of[i].waits, 10 + 2 * LATELY_SECONDS + i);
        }
        t = tell(l, (9 + 3 * LATELY_SECONDS + 100) * S);
        assert_int_equal(t.n, LATELY_SECONDS - 100);
        assert_int_equal(tell(l, (9 + 5 * LATELY_SECONDS) * S).n, 0);
}

static void test_bounds(void **state) {
        cleanup_free struct lately *l = calloc(1, sizeof(*l));

        assert_non_null(l);
        l->since_ns = S;
        add(l, 20 * S, 1, UINT64_MAX);
        add(l, 20 * S, 1, UINT64_MAX);
        assert_int_equal(tell(l, 20 * S).of[0].waits, UINT32_MAX);
        assert_int_equal(tell(l, S / 2).known, 0); /* before it began: a clock that cannot be */
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_seconds),
                cmocka_unit_test(test_round),
                cmocka_unit_test(test_bounds),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
