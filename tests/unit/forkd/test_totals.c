/* SPDX-License-Identifier: MIT */
/* What all pagers together have done, with pagers that we play: the sum never falls, whatever becomes of them and whatever they say. */
#include "common_test.h"

#include <math.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "common/io.h"
#include "forkd/pager/internal.h"

static struct daemon d;
static struct pager *pager;

/* One that we play. */
static struct played {
        struct rpc_conn *far;
        struct pager_process *o;
        uint64_t missing, waits;
        double oldest_ms;
        unsigned asked;
        bool mute, garbage;
} first, second;

static void put_hist(struct mp_buf *b, const char *key, uint64_t n) {
        mp_key(b, key);
        mp_map(b, 4);
        mp_kv_u64(b, "count", n);
        mp_kv_double(b, "sum_us", 2.5 * (double) n);
        mp_kv_double(b, "max_us", 3.0);
        mp_key(b, "buckets");
        mp_array(b, 1);
        mp_array(b, 2);
        mp_double(b, 2.56); /* a bucket's end */
        mp_u64(b, n);
}

static void on_call(struct rpc_msg *m, void *arg) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct played *p = arg;

        assert_string_equal(m->method, "status");
        p->asked++;
        if (p->mute)
                return;
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_key(&b, "totals");
        if (p->garbage) {
                mp_str(&b, "none of your business");
        } else {
                mp_map(&b, 6);
                mp_key(&b, "faults");
                mp_map(&b, 2);
                mp_kv_u64(&b, "missing", p->missing);
                mp_kv_u64(&b, "zero", 1);
                put_hist(&b, "wait", p->waits);
                put_hist(&b, "service", p->waits);
                mp_kv_u64(&b, "sessions", 3);
                mp_kv_u64(&b, "present_bytes", 4096);
                mp_kv_double(&b, "oldest_fault_ms", p->oldest_ms);
        }
        assert_ok(rpc_reply(m->conn, m->msgid, &b, NULL, 0));
}

static void play(struct played *p) {
        static const struct rpc_handlers theirs = { .on_message = on_call }, ours = { .on_message = pager_on_message };
        int sv[2];

        *p = (struct played){ .o = calloc(1, sizeof(*p->o)), .oldest_ms = 1.5 };
        assert_non_null(p->o);
        /* Any descriptor will do for one that lives. */
        *p->o = (struct pager_process){ .refs = 1, .p = pager, .pidfd = dup(0) };
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        assert_ok(rpc_conn_new(d.base, sv[0], &ours, p->o, &p->o->conn));
        assert_ok(rpc_conn_new(d.base, sv[1], &theirs, p, &p->far));
}

static void end_played(struct played *p) {
        if (p->far)
                rpc_conn_unref(TAKE_PTR(p->far));
        pager_process_unref(TAKE_PTR(p->o));
}

static int setup(void **state) {
        d = (struct daemon){ .base = event_base_new(), .cfg = { .heartbeat_ms = 2000, .recover_ms = 500 } };
        TAILQ_INIT(&d.vms);
        assert_ok(pager_new(&d, &pager));
        d.pager = pager;
        play(&first);
        play(&second);
        pager->serving = first.o;
        return 0;
}

static int teardown(void **state) {
        pager->serving = pager->next = NULL;
        end_played(&first);
        end_played(&second);
        pager_free(pager);
        event_base_free(d.base);
        return 0;
}

static unsigned done;

static void refresh_main(void *arg) {
        pager_totals_refresh(pager);
        done++;
}

static struct pager_totals refresh(unsigned n) {
        uint64_t start = now_ns();
        struct pager_totals t;

        done = 0;
        for (unsigned i = 0; i < n; i++)
                assert_ok(co_start(d.base, refresh_main, NULL));
        while (done < n) {
                (void) event_base_loop(d.base, EVLOOP_ONCE);
                assert_true(ms_since(start) < 20000);
        }
        pager_totals_get(pager, &t);
        return t;
}

static void test_asks_once_for_many(void **state) {
        struct pager_totals t;

        first.missing = 7;
        first.waits = 5;
        t = refresh(20);
        assert_int_equal(first.asked, 1);
        assert_true(t.known);
        assert_int_equal(t.sum.faults[PAGER_TOTAL_MISSING], 7);
        assert_int_equal(t.sum.faults[PAGER_TOTAL_ZERO], 1);
        assert_int_equal(t.sum.wait.count, 5);
        assert_int_equal(t.sum.wait.bucket[hist_bucket(2559)], 5);
        assert_int_equal(t.sum.wait.sum_ns, 12500);
        assert_int_equal(t.sum.service.max_ns, 3000);
        assert_int_equal(t.sessions, 3);
        assert_int_equal(t.present_bytes, 4096);
        assert_true(fabs(t.oldest_fault_ms - 1.5) < 1e-9);
        first.missing = 9;
        assert_int_equal(refresh(1).sum.faults[PAGER_TOTAL_MISSING], 9);
        assert_int_equal(first.asked, 2);
}

/* One takes over from another: what both did is there, while both live and after. */
static void test_adds_up_over_pagers(void **state) {
        struct pager_totals t;

        first.missing = 100;
        assert_int_equal(refresh(1).sum.faults[PAGER_TOTAL_MISSING], 100);
        pager->leaving = first.o;
        pager->serving = second.o;
        second.missing = 5;
        t = refresh(1);
        assert_int_equal(t.sum.faults[PAGER_TOTAL_MISSING], 105);
        first.missing = 130; /* asked a last time, as pager_process_end does */
        done = 0;
        assert_ok(co_start(d.base, (void (*)(void *)) pager_totals_ask, first.o));
        while (first.asked < 2 || co_alive() > 0)
                (void) event_base_loop(d.base, EVLOOP_ONCE);
        pager->leaving = NULL;
        end_played(&first); /* lets go, and folds */
        pager_totals_get(pager, &t);
        assert_int_equal(t.sum.faults[PAGER_TOTAL_MISSING], 135);
        assert_true(t.known);
        second.missing = 6;
        assert_int_equal(refresh(1).sum.faults[PAGER_TOTAL_MISSING], 136);
        /* and the second dies, and nobody follows */
        pager->serving = NULL;
        end_played(&second);
        t = refresh(1);
        assert_int_equal(t.sum.faults[PAGER_TOTAL_MISSING], 136);
        assert_int_equal(t.sum.faults[PAGER_TOTAL_ZERO], 2);
        assert_false(t.known);
}

/* What it says is anything at all, and becomes a whole number of nanoseconds. */
static void test_an_age_that_is_none(void **state) {
        static const double said[] = { NAN, INFINITY, -INFINITY, 1e300, -1 };

        for (size_t i = 0; i < ARRAY_LEN(said); i++) {
                double ms;

                first.oldest_ms = said[i];
                ms = refresh(1).oldest_fault_ms;
                assert_true(ms >= 0 && ms * 1e6 < 1.8e19);
        }
}

static void test_one_that_does_not_answer(void **state) {
        struct pager_totals before, t;
        uint64_t start;

        first.missing = 42;
        first.waits = 4;
        before = refresh(1);
        first.mute = true;
        start = now_ns();
        t = refresh(3);
        assert_true(ms_since(start) < 4 * PAGER_TOTALS_MS + 500);
        assert_int_equal(t.sum.faults[PAGER_TOTAL_MISSING], 42);
        assert_int_equal(t.at_ns, before.at_ns);
        first.mute = false;
        first.garbage = true;
        t = refresh(1);
        assert_int_equal(t.sum.faults[PAGER_TOTAL_MISSING], 42);
        assert_int_equal(t.sum.wait.count, 4);
        first.garbage = false;
        first.missing = 1; /* one that says that it was less */
        first.waits = 2;
        t = refresh(1);
        assert_int_equal(t.sum.faults[PAGER_TOTAL_MISSING], 42);
        assert_int_equal(t.sum.wait.count, 4);
        first.missing = 43;
        assert_int_equal(refresh(1).sum.faults[PAGER_TOTAL_MISSING], 43);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_asks_once_for_many, setup, teardown),
                cmocka_unit_test_setup_teardown(test_adds_up_over_pagers, setup, teardown),
                cmocka_unit_test_setup_teardown(test_an_age_that_is_none, setup, teardown),
                cmocka_unit_test_setup_teardown(test_one_that_does_not_answer, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
