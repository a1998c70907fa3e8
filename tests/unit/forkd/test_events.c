/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <errno.h>
#include <event2/event.h>
#include <stdio.h>

#include "common/co.h"
#include "forkd/events.h"
#include "forkd/vm/vm.h"

static struct event_base *base;
static struct events *ev;

static int setup(void **state) {
        base = event_base_new();
        assert_non_null(base);
        return events_new(&ev);
}

static int teardown(void **state) {
        events_free(ev);
        event_base_free(base);
        return 0;
}

struct reader {
        uint64_t after;
        unsigned wait_ms;
        const void *user;
        int r;
        bool done;
        uint64_t next, missed, n, first;
        char text[300];
};

static void read_main(void *arg) {
        struct reader *rd = arg;
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        const msgpack_object *list;

        mp_buf_init(&b);
        rd->r = events_read(ev, rd->after, rd->wait_ms, rd->user, &b);
        rd->done = true;
        if (rd->r < 0)
                return;
        assert_ok(mp_parse(b.sb.data, b.sb.size, &doc));
        assert_ok(mp_get_u64(&doc.root, "next", &rd->next));
        assert_ok(mp_get_u64(&doc.root, "missed", &rd->missed));
        list = mp_get_array(&doc.root, "events");
        assert_non_null(list);
        rd->n = list->via.array.size;
        if (rd->n > 0) {
                assert_ok(mp_get_u64(&list->via.array.ptr[0], "number", &rd->first));
                assert_ok(mp_get_str(&list->via.array.ptr[0], "text", rd->text, sizeof(rd->text)));
        }
}

static struct reader read_now(uint64_t after) {
        struct reader rd = { .after = after };

        assert_ok(co_start(base, read_main, &rd));
        assert_true(rd.done);
        return rd;
}

static void test_order(void **state) {
        struct vm vm = { .id = "0123456789abcdef", .name = "web" };
        struct reader rd = read_now(0);

        assert_int_equal(rd.n, 0);
        assert_int_equal(rd.next, 0);
        events_add(ev, "vm.state", &vm, "%s -> %s", "creating", "running");
        events_add(ev, "pager.lost", NULL, "gone");
        rd = read_now(0);
        assert_int_equal(rd.n, 2);
        assert_int_equal(rd.first, 1);
        assert_string_equal(rd.text, "creating -> running");
        rd = read_now(1);
        assert_int_equal(rd.n, 1);
        assert_string_equal(rd.text, "gone");
        assert_int_equal(read_now(2).n, 0);
        assert_int_equal(read_now(77).n, 2); /* a number of another forkd's */
}

static void test_more_than_are_kept(void **state) {
        struct reader rd;

        for (unsigned i = 0; i < 2 * EVENTS_KEPT + 5; i++)
                events_add(ev, "vm.state", NULL, "%u", i);
        rd = read_now(1);
        assert_int_equal(rd.n, EVENTS_KEPT);
        assert_int_equal(rd.missed, EVENTS_KEPT + 4);
        assert_int_equal(rd.first, EVENTS_KEPT + 6);
        assert_int_equal(rd.next, 2 * EVENTS_KEPT + 5);
}

static void test_wait(void **state) {
        struct reader rd[EVENTS_MAX_WAITERS + 1] = { 0 };

        for (unsigned i = 0; i < EVENTS_MAX_WAITERS + 1; i++) {
                rd[i].wait_ms = 600000; /* far beyond what is allowed */
                assert_ok(co_start(base, read_main, &rd[i]));
        }
        assert_false(rd[0].done);
        assert_true(rd[EVENTS_MAX_WAITERS].done);
        assert_int_equal(rd[EVENTS_MAX_WAITERS].r, -EBUSY);
        events_add(ev, "pager.hangs", NULL, "now");
        while (co_alive() > 0)
                assert_int_equal(event_base_loop(base, EVLOOP_ONCE), 0);
        for (unsigned i = 0; i < EVENTS_MAX_WAITERS; i++) {
                assert_int_equal(rd[i].n, 1);
                assert_string_equal(rd[i].text, "now");
        }
}

static void test_shares(void **state) {
        struct reader greedy[EVENTS_MAX_USER_WAITERS + 1] = { 0 }, other = { .wait_ms = 60000, .user = &other };

        for (unsigned i = 0; i < ARRAY_LEN(greedy); i++) {
                greedy[i].wait_ms = 60000;
                greedy[i].user = greedy;
                assert_ok(co_start(base, read_main, &greedy[i]));
        }
        assert_false(greedy[EVENTS_MAX_USER_WAITERS - 1].done);
        assert_true(greedy[EVENTS_MAX_USER_WAITERS].done);
        assert_int_equal(greedy[EVENTS_MAX_USER_WAITERS].r, -EUSERS);
        assert_ok(co_start(base, read_main, &other));
        assert_false(other.done);
        events_add(ev, "vm.state", NULL, "now");
        while (co_alive() > 0)
                assert_int_equal(event_base_loop(base, EVLOOP_ONCE), 0);
        assert_int_equal(other.n, 1);
        assert_int_equal(greedy[0].n, 1);
        /* those places are free again */
        greedy[0].done = false;
        assert_ok(co_start(base, read_main, &greedy[0]));
        events_close(ev);
        while (co_alive() > 0)
                assert_int_equal(event_base_loop(base, EVLOOP_ONCE), 0);
        assert_int_equal(greedy[0].r, 0);
}

static void test_nothing_comes(void **state) {
        struct reader timed = { .wait_ms = 20 }, closed = { .wait_ms = 60000 };

        assert_ok(co_start(base, read_main, &timed));
        while (!timed.done)
                assert_int_equal(event_base_loop(base, EVLOOP_ONCE), 0);
        assert_int_equal(timed.n, 0);
        assert_ok(co_start(base, read_main, &closed));
        assert_false(closed.done);
        events_close(ev);
        while (!closed.done)
                assert_int_equal(event_base_loop(base, EVLOOP_ONCE), 0);
        closed.done = false;
        assert_ok(co_start(base, read_main, &closed));
        assert_true(closed.done); /* nobody waits any more */
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_order, setup, teardown),
                cmocka_unit_test_setup_teardown(test_more_than_are_kept, setup, teardown),
                cmocka_unit_test_setup_teardown(test_wait, setup, teardown),
                cmocka_unit_test_setup_teardown(test_shares, setup, teardown),
                cmocka_unit_test_setup_teardown(test_nothing_comes, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
