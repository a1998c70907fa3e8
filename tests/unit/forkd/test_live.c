/* SPDX-License-Identifier: MIT */
/* The stream of pictures, by the real HTTP server over loopback. */
#include "common_test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/co.h"
#include "forkd/daemon.h"
#include "forkd/events.h"
#include "forkd/monitor/http.h"
#include "forkd/monitor/live.h"
#include "forkd/monitor/page.h"

#define PERIOD_MS 20
#define DEADLINE_MS 20000

static struct daemon d;
static struct live *live;

/* What the next pictures are like. */
static struct {
        unsigned n, at_once, most; /* made; being made; the most at once */
        int result, delay_ms;
        size_t size;
} pic;

static int picture(struct daemon *unused, struct mp_buf *out) {
        cleanup_free char *pad = calloc(1, pic.size + 1);

        assert_non_null(pad);
        memset(pad, 'x', pic.size);
        pic.n++;
        pic.at_once++;
        pic.most = MAX_OF(pic.most, pic.at_once);
        if (pic.delay_ms > 0)
                co_sleep(pic.delay_ms);
        pic.at_once--;
        mp_map(out, 3);
        mp_kv_u64(out, "n", pic.n);
        mp_kv_str(out, "text", "line\nfeed \"quoted\"");
        mp_kv_str(out, "pad", pad);
        return pic.result;
}

static void lately(struct daemon *unused, struct mp_buf *out) {
        mp_map(out, 1);
        mp_kv_str(out, "lately", "all was well");
}

static const struct live_source source = { .picture = picture, .lately = lately, .period_ms = PERIOD_MS };

static int setup(void **state) {
        memset(&d, 0, sizeof(d));
        memset(&pic, 0, sizeof(pic));
        TAILQ_INIT(&d.vms);
        d.base = event_base_new();
        assert_non_null(d.base);
        config_defaults(&d.cfg);
        (void) snprintf(d.cfg.metrics_listen, sizeof(d.cfg.metrics_listen), "127.0.0.1:0");
        assert_ok(events_new(&d.events));
        assert_ok(http_new(&d, &d.http));
        assert_ok(live_new(&d, d.http, &source, &live)); /* the first of a path is asked: not the page's own */
        assert_ok(page_new(&d, &d.page));
        http_open(d.http);
        return 0;
}

/* ---- a client ---- */

struct client {
        struct bufferevent *bev;
        bool closed;
};

static void on_client(struct bufferevent *bev, short what, void *arg) {
        struct client *c = arg;

        if (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR))
                c->closed = true;
}

static void client_open(struct client *c, const char *path) {
        struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        unsigned port;

        assert_int_equal(sscanf(http_address(d.http), "127.0.0.1:%u", &port), 1);
        to.sin_port = htons((uint16_t) port);
        *c = (struct client){ .bev = bufferevent_socket_new(d.base, -1, BEV_OPT_CLOSE_ON_FREE) };
        assert_non_null(c->bev);
        bufferevent_setcb(c->bev, NULL, NULL, on_client, c);
        assert_ok(bufferevent_socket_connect(c->bev, (struct sockaddr *) &to, sizeof(to)));
        assert_ok(evbuffer_add_printf(bufferevent_get_output(c->bev), "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%u\r\n\r\n", path,
                                      port) > 0
                          ? 0
                          : -1);
        assert_ok(bufferevent_enable(c->bev, EV_READ | EV_WRITE));
}

static void client_close(struct client *c) {
        bufferevent_free(c->bev);
}

static bool has(struct client *c, const char *text) {
        return evbuffer_search(bufferevent_get_input(c->bev), text, strlen(text), NULL).pos >= 0;
}

static void forget(struct client *c) {
        struct evbuffer *in = bufferevent_get_input(c->bev);

        (void) evbuffer_drain(in, evbuffer_get_length(in));
}

static int64_t now_ms(void) {
        struct timespec t;

        (void) clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* One turn of the loop, which never sleeps longer than a period: that what is waited for is noticed. */
static void turn(void) {
        const struct timeval period = { .tv_usec = PERIOD_MS * 1000 };

        (void) event_base_loopexit(d.base, &period);
        assert_int_not_equal(event_base_loop(d.base, EVLOOP_ONCE), -1);
}

#define until(what)                                                             \
        do {                                                                    \
                int64_t until_ms = now_ms() + DEADLINE_MS;                      \
                while (!(what)) {                                               \
                        if (now_ms() > until_ms)                                \
                                fail_msg("it did not come to pass: %s", #what); \
                        turn();                                                 \
                }                                                               \
        } while (0)

static int teardown(void **state) {
        live_free(TAKE_PTR(live));
        until(pic.at_once == 0); /* a picture that is being made outlives it, … */
        for (unsigned i = 0; i < 4; i++)
                turn(); /* … and the steps after it */
        page_free(d.page);
        http_free(d.http);
        events_free(d.events);
        event_base_free(d.base);
        return 0;
}

/* ---- tests ---- */

static void test_pictures_and_events(void **state) {
        struct client c;

        events_add(d.events, "vm.state", NULL, "before \"anybody\" came");
        client_open(&c, "/live");
        until(has(&c, "event: picture\n"));
        assert_true(has(&c, "HTTP/1.1 200"));
        assert_true(has(&c, "text/event-stream"));
        assert_true(has(&c, "retry: 1000\n\n"));
        assert_true(has(&c, "event: events\ndata: {"));
        assert_true(has(&c, "event: lately\ndata: {\"lately\":\"all was well\"}\n\n"));
        assert_true(has(&c, "before \\\"anybody\\\" came"));
        assert_true(has(&c, "\"anew\":true"));
        assert_true(has(&c, "\"text\":\"line\\nfeed \\\"quoted\\\"\""));
        forget(&c);
        until(has(&c, "event: picture\n"));
        assert_false(has(&c, "event: events"));
        assert_false(has(&c, "event: lately"));
        events_add(d.events, "vm.state", NULL, "later");
        until(has(&c, "\"later\""));
        assert_true(has(&c, "\"anew\":false"));
        assert_false(has(&c, "anybody"));
        client_close(&c);
}

static void test_old_events_are_not_all_sent(void **state) {
        struct client c;

        for (unsigned i = 0; i < 3 * LIVE_EVENTS_FIRST; i++)
                events_add(d.events, "vm.state", NULL, "number %u.", i);
        client_open(&c, "/live");
        until(has(&c, "event: picture\n"));
        assert_false(has(&c, "\"number 399.\""));
        assert_true(has(&c, "\"number 400.\""));
        assert_true(has(&c, "\"number 599.\""));
        client_close(&c);
}

static void test_nobody_listens_nothing_is_done(void **state) {
        int64_t end = now_ms() + 5 * PERIOD_MS;
        struct client c;
        unsigned n;

        while (now_ms() < end)
                turn();
        assert_int_equal(pic.n, 0);
        client_open(&c, "/live");
        until(pic.n >= 3);
        client_close(&c);
        until(live_n_listeners(live) == 0);
        n = pic.n;
        end = now_ms() + 5 * PERIOD_MS;
        while (now_ms() < end)
                turn();
        assert_in_range(pic.n, n, n + 1);
        assert_int_equal(live_n_dropped(live), 0);
}

static void test_only_so_many(void **state) {
        struct client c[LIVE_MAX_LISTENERS + 1];

        for (unsigned i = 0; i < LIVE_MAX_LISTENERS; i++) {
                client_open(&c[i], "/live");
                until(has(&c[i], "event: picture\n"));
        }
        client_open(&c[LIVE_MAX_LISTENERS], "/live");
        until(has(&c[LIVE_MAX_LISTENERS], "HTTP/1.1 503"));
        assert_int_equal(live_n_listeners(live), LIVE_MAX_LISTENERS);
        client_close(&c[0]);
        until(live_n_listeners(live) < LIVE_MAX_LISTENERS);
        client_close(&c[LIVE_MAX_LISTENERS]);
        client_open(&c[0], "/live");
        until(has(&c[0], "event: picture\n"));
        for (unsigned i = 0; i < LIVE_MAX_LISTENERS; i++)
                client_close(&c[i]);
}

/* Pictures of some size to one that reads and one that does not: the second is hung up on, the first has missed nothing. */
static void test_slow_reader_is_dropped(void **state) {
        struct client quick, slow;
        unsigned n;

        pic.size = 128 << 10;
        client_open(&quick, "/live");
        client_open(&slow, "/live");
        until(has(&slow, "HTTP/1.1 200") && has(&quick, "HTTP/1.1 200"));
        (void) bufferevent_disable(slow.bev, EV_READ);
        until((forget(&quick), live_n_dropped(live) == 1));
        assert_int_equal(live_n_listeners(live), 1);
        n = pic.n;
        until((forget(&quick), pic.n >= n + 5));
        assert_false(quick.closed);
        (void) bufferevent_enable(slow.bev, EV_READ);
        until((forget(&slow), forget(&quick), slow.closed) || live_n_listeners(live) == 1);
        client_close(&slow);
        client_close(&quick);
}

static void test_trouble_is_told(void **state) {
        struct client c;

        pic.result = -ENOMEM;
        client_open(&c, "/live");
        until(has(&c, "event: trouble\ndata: {\"error\":\"Cannot allocate memory\"}\n\n"));
        assert_false(has(&c, "event: picture"));
        pic.result = 0;
        until(has(&c, "event: picture"));
        client_close(&c);
}

static void test_turns_do_not_overlap(void **state) {
        struct client c[2];

        pic.delay_ms = 4 * PERIOD_MS;
        client_open(&c[0], "/live");
        until(pic.at_once == 1);
        client_open(&c[1], "/live");
        until(pic.n >= 3);
        assert_int_equal(pic.most, 1);
        until(has(&c[1], "event: picture\n"));
        client_close(&c[0]);
        client_close(&c[1]);
}

static void test_end_during_a_turn(void **state) {
        struct client c;

        pic.delay_ms = 3 * PERIOD_MS;
        client_open(&c, "/live");
        until(pic.at_once == 1);
        live_free(TAKE_PTR(live));
        until(c.closed || has(&c, "\r\n0\r\n"));
        until(pic.at_once == 0);
        client_close(&c);
}

static void test_page(void **state) {
        struct client c;
        char policy[64];

        client_open(&c, "/");
        until(has(&c, "</html>\n"));
        assert_true(has(&c, "Content-Type: text/html; charset=utf-8\r\n"));
        (void) snprintf(policy, sizeof(policy), "Content-Security-Policy: %.30s", page_policy);
        assert_true(has(&c, policy));
        assert_true(has(&c, "script-src 'sha256-"));
        assert_non_null(memmem(page_html, page_html_size, "<!doctype html>", 15));
        assert_null(memmem(page_html, page_html_size, "@SCRIPT@", 8));
        client_close(&c);
}

#define test(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void) {
        const struct CMUnitTest tests[] = {
                test(test_pictures_and_events),
                test(test_old_events_are_not_all_sent),
                test(test_nobody_listens_nothing_is_done),
                test(test_only_so_many),
                test(test_slow_reader_is_dropped),
                test(test_trouble_is_told),
                test(test_turns_do_not_overlap),
                test(test_end_during_a_turn),
                test(test_page),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
