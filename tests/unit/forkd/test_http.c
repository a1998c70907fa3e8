/* SPDX-License-Identifier: MIT */
/* forkd's HTTP server: which requests are answered, where it may listen, and what clients that mean harm get out of it. The real
 * server on a loop of ours, with clients on plain sockets. */
#include "common_test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/daemon.h"
#include "forkd/monitor/http_internal.h"

#define WAIT_MS 20000
#define BIG (8u << 20)

/* ---- pure ---- */

static void test_hosts(void **state) {
        static const char *const good[] = { "127.0.0.1",    "127.0.0.1:9464", "127.8.9.10:1", "localhost",
                                            "LocalHost:80", "localhost:",     "[::1]",        "[::1]:9464" };
        static const char *const bad[] = { "",
                                           "evil.example",
                                           "127.0.0.1.evil.example",
                                           "localhost.evil.example",
                                           "10.0.0.1",
                                           "0.0.0.0",
                                           "0x7f000001",
                                           "2130706433",
                                           "127.1",
                                           "127.0.0.1:99999999",
                                           "127.0.0.1:80x",
                                           "[::2]",
                                           "::1",
                                           "[::1]x",
                                           "[::1",
                                           "127.0.0.1 ",
                                           "user@127.0.0.1",
                                           "[::ffff:127.0.0.1]",
                                           "localhost.",
                                           "127.0.0.01" };

        for (size_t i = 0; i < ARRAY_LEN(good); i++)
                if (!http_host_is_local(good[i]))
                        fail_msg("%s", good[i]);
        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                if (http_host_is_local(bad[i]))
                        fail_msg("%s", bad[i]);
}

static void test_checks(void **state) {
        const struct http_headers fine = { .method = "GET", .target = "/metrics?a=b", .host = "localhost", .n_host = 1 };
        static char path[HTTP_MAX_TARGET + 2];
        struct http_headers h;
        const char *why;

        memset(path, '/', sizeof(path) - 1);
        assert_int_equal(http_check(&fine, true, &why), 0);
#define REFUSED(status, ...)                                          \
        do {                                                          \
                h = fine;                                             \
                __VA_ARGS__;                                          \
                assert_int_equal(http_check(&h, true, &why), status); \
        } while (0)
        REFUSED(0, h.method = "HEAD");
        REFUSED(405, h.method = "POST");
        REFUSED(405, h.method = "get");
        REFUSED(0, h.content_length = "0");
        REFUSED(413, h.content_length = "1");
        REFUSED(413, h.content_length = "00");
        REFUSED(413, h.transfer_encoding = "chunked");
        REFUSED(414, h.target = path);
        REFUSED(0, h.target = path + 1);
        REFUSED(400, h.target = "http://localhost/metrics");
        REFUSED(400, h.target = "*");
        REFUSED(400, h.target = "");
        REFUSED(400, h.target = "/\x80");
        REFUSED(400, h.target = "/a b");
        REFUSED(400, h.n_host = 2);
        REFUSED(0, h.host = NULL);
        REFUSED(403, h.host = "evil.example");
        REFUSED(403, h.site = "cross-site");
        REFUSED(403, h.site = "same-site"; h.mode = "cors");
        REFUSED(0, h.site = "cross-site"; h.mode = "navigate");
        REFUSED(0, h.site = "same-origin"; h.mode = "cors");
        REFUSED(0, h.site = "none");
#undef REFUSED
        h = fine;
        h.host = "evil.example"; /* over a unix socket any name is fine: no browser comes that way */
        assert_int_equal(http_check(&h, false, &why), 0);
}

static void test_addresses(void **state) {
        static const char *const bad[] = { "",
                                           "9464",
                                           "0.0.0.0:9464",
                                           "10.1.2.3:80",
                                           "[::]:9464",
                                           "[::2]:80",
                                           "example.org:80",
                                           ":9464",
                                           "127.0.0.1",
                                           "127.0.0.1:",
                                           "127.0.0.1:65536",
                                           "127.0.0.1:-1",
                                           "127.0.0.1:1x",
                                           "::1:80",
                                           "unix:",
                                           "unix:relative",
                                           "Off",
                                           "127.0.0.1:18446744073709551617" };
        struct http_address a;
        const char *why;
        char path[200] = "unix:/";

        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                if (http_address_parse(bad[i], &a, &why) != -EINVAL)
                        fail_msg("%s", bad[i]);
        assert_ok(http_address_parse("off", &a, &why));
        assert_int_equal(a.kind, HTTP_OFF);
        assert_ok(http_address_parse("[::1]:0", &a, &why));
        assert_int_equal(a.kind, HTTP_TCP);
        assert_ok(http_address_parse("localhost:9464", &a, &why));
        assert_ok(http_address_parse("127.3.2.1:65535", &a, &why));
        memset(path + 6, 'x', 106);
        assert_ok(http_address_parse(path, &a, &why));
        assert_int_equal(a.kind, HTTP_UNIX);
        path[6 + 106] = 'x';
        assert_fails(http_address_parse(path, &a, &why), EINVAL);
}

/* ---- the server ---- */

static struct daemon d;
static char *big;
static struct {
        struct http_request *rq;
        unsigned gone;
} late, stream;

static void on_gone(void *arg) {
        struct http_request **rq = arg;

        *rq = NULL;
        late.gone += rq == &late.rq;
        stream.gone += rq == &stream.rq;
}

static void on_hello(struct http_request *rq, void *arg) {
        http_reply(rq, 200, "text/plain", "X-Own: yes\r\n", "hello\n", 6);
}

static void on_big(struct http_request *rq, void *arg) {
        http_reply(rq, 200, "text/plain", NULL, big, BIG);
}

static void on_given(struct http_request *rq, void *arg) {
        char *body = calloc(1, BIG);

        assert_non_null(body);
        http_reply_take(rq, 200, "text/plain", NULL, body, BIG);
}

static void on_late(struct http_request *rq, void *arg) {
        late.rq = rq;
        http_on_gone(rq, on_gone, &late.rq);
}

static void on_stream(struct http_request *rq, void *arg) {
        if (http_stream_begin(rq, "text/event-stream", "Content-Security-Policy: sandbox\r\n") < 0)
                return;
        stream.rq = rq;
        http_on_gone(rq, on_gone, &stream.rq);
}

static int setup(const char *listen) {
        d = (struct daemon){ 0 };
        config_defaults(&d.cfg);
        (void) snprintf(d.cfg.metrics_listen, sizeof(d.cfg.metrics_listen), "%s", listen);
        d.cfg.metrics_chosen = true;
        d.base = event_base_new();
        assert_non_null(d.base);
        assert_ok(http_new(&d, &d.http));
        assert_ok(http_handle(d.http, "/hello", on_hello, NULL));
        assert_ok(http_handle(d.http, "/big", on_big, NULL));
        assert_ok(http_handle(d.http, "/given", on_given, NULL));
        assert_ok(http_handle(d.http, "/late", on_late, NULL));
        assert_ok(http_handle(d.http, "/stream", on_stream, NULL));
        memset(&late, 0, sizeof(late));
        memset(&stream, 0, sizeof(stream));
        http_open(d.http);
        return 0;
}

static int begin(void **state) {
        return setup("127.0.0.1:0");
}

static int end(void **state) {
        http_free(d.http);
        event_base_free(d.base);
        return 0;
}

static void turn(void) {
        const struct timeval tv = { .tv_usec = 2000 };

        (void) event_base_loopexit(d.base, &tv);
        assert_true(event_base_dispatch(d.base) >= 0);
}

#define until(what)                                                             \
        do {                                                                    \
                uint64_t _start = now_ns();                                     \
                while (!(what)) {                                               \
                        if (ms_since(_start) > WAIT_MS)                         \
                                fail_msg("it did not come to pass: %s", #what); \
                        turn();                                                 \
                }                                                               \
        } while (0)

static int dial(void) {
        const struct sockaddr_in any = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        struct sockaddr_in to = any;
        const char *colon = strrchr(http_address(d.http), ':');
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        assert_non_null(colon);
        to.sin_port = htons((uint16_t) atoi(colon + 1));
        assert_ok(fd);
        assert_int_equal(connect(fd, (struct sockaddr *) &to, sizeof(to)), 0);
        assert_ok(io_set_nonblock(fd, true));
        return fd;
}

static void say(int fd, const char *text) {
        assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t) strlen(text));
}

/* What has come, until @mark is in it, or the end. */
static char *hear(int fd, const char *mark, bool *ret_end) {
        static char buf[65536];
        size_t n = 0;
        uint64_t start = now_ns();

        *ret_end = false;
        buf[0] = '\0';
        while (!(mark && strstr(buf, mark)) && n < sizeof(buf) - 1) {
                ssize_t r = recv(fd, buf + n, sizeof(buf) - 1 - n, 0);

                if (r == 0 || (r < 0 && errno == ECONNRESET)) {
                        *ret_end = true;
                        break;
                }
                if (r > 0)
                        n += (size_t) r;
                buf[n] = '\0';
                if (ms_since(start) > WAIT_MS)
                        fail_msg("no '%s' came, but: %s", mark ? mark : "end", buf);
                turn();
        }
        return buf;
}

static const char *ask(const char *text) {
        cleanup_fd int fd = dial();
        bool over;

        say(fd, text);
        return hear(fd, NULL, &over);
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"

static void test_answers(void **state) {
        const char *said = ask(GET("/hello?x=1"));

        assert_memory_equal(said, "HTTP/1.1 200 OK\r\n", 17);
        assert_non_null(strstr(said, "\r\nX-Content-Type-Options: nosniff\r\n"));
        assert_non_null(strstr(said, "\r\nContent-Security-Policy: default-src 'none'"));
        assert_non_null(strstr(said, "\r\nCache-Control: no-store\r\n"));
        assert_non_null(strstr(said, "\r\nX-Own: yes\r\n"));
        assert_non_null(strstr(said, "\r\n\r\nhello\n"));
        said = ask("HEAD /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_non_null(strstr(said, "\r\nContent-Length: 6\r\n"));
        assert_null(strstr(said, "hello\n"));
        assert_memory_equal(ask(GET("/nothing")), "HTTP/1.1 404", 12);
        assert_memory_equal(ask(GET("/hello/")), "HTTP/1.1 404", 12);
        assert_memory_equal(ask(GET("/%68ello")), "HTTP/1.1 404", 12);
        assert_memory_equal(ask("GET /hello HTTP/1.0\r\n\r\n"), "HTTP/1", 6);
}

static void test_refuses(void **state) {
        char big_head[40000];

        assert_memory_equal(ask("GET /hello HTTP/1.1\r\nHost: evil.example\r\n\r\n"), "HTTP/1.1 403", 12);
        assert_memory_equal(ask("GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n"), "HTTP/1.1 400", 12);
        assert_memory_equal(ask("DELETE /hello HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), "HTTP/1.1 405", 12);
        assert_memory_equal(ask("GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nhello"), "HTTP/1.1 413", 12);
        assert_memory_equal(ask("GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: "
                                "chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
                            "HTTP/1.1 413", 12);
        assert_memory_equal(ask("GET http://127.0.0.1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), "HTTP/1.1 400", 12);
        memset(big_head, 'x', sizeof(big_head) - 1);
        memcpy(big_head, "GET / HTTP/1.1\r\nX: ", 19);
        big_head[sizeof(big_head) - 1] = '\0';
        {
                cleanup_fd int fd = dial();
                bool over;

                (void) send(fd, big_head, sizeof(big_head) - 1, MSG_NOSIGNAL);
                (void) hear(fd, NULL, &over);
                assert_true(over);
        }
        until(http_n_conns(d.http) == 0);
}

static void test_keeps_alive_and_pipelines(void **state) {
        cleanup_fd int fd = dial();
        char text[2000] = "";
        const char *said;
        unsigned n = 0;
        bool over;

        for (int i = 0; i < 20; i++)
                (void) strcat(text, "GET /hello HTTP/1.1\r\nHost: [::1]\r\n\r\n");
        (void) strcat(text, GET("/nothing"));
        say(fd, text);
        said = hear(fd, NULL, &over);
        for (const char *p = said; (p = strstr(p, "\r\n\r\nhello\n")); p++)
                n++;
        assert_int_equal(n, 20);
        assert_non_null(strstr(said, "HTTP/1.1 404"));
}

static void test_answers_later(void **state) {
        cleanup_fd int fd = dial();
        bool over;

        say(fd, GET("/late"));
        until(late.rq);
        for (int i = 0; i < 5; i++)
                turn();
        http_reply(late.rq, 200, "text/plain", NULL, "at last\n", 8);
        assert_non_null(strstr(hear(fd, NULL, &over), "at last\n"));
        assert_int_equal(late.gone, 0);
}

static void test_late_answer_to_nobody(void **state) {
        int fd = dial();

        say(fd, GET("/late"));
        until(late.rq);
        fd = close_fd(fd);
        for (int i = 0; i < 5; i++)
                turn();
        if (late.rq) /* a client that waits is not looked at */
                http_reply(late.rq, 200, "text/plain", NULL, "too late\n", 9);
        until(http_n_conns(d.http) == 0);
}

static void test_streams(void **state) {
        cleanup_fd int fd = dial();
        bool over;

        say(fd, "GET /stream HTTP/1.1\r\nHost: localhost:1\r\n\r\n");
        until(stream.rq);
        assert_non_null(strstr(hear(fd, "\r\n\r\n", &over), "\r\nContent-Security-Policy: sandbox\r\n"));
        for (int i = 0; i < 3; i++) {
                assert_ok(http_stream_send(stream.rq, "data: 1\n\n", 9));
                assert_non_null(strstr(hear(fd, "data: 1\n\n", &over), "data: 1"));
                assert_false(over);
        }
        assert_int_equal(http_stream_pending(stream.rq), 0);
        http_stream_end(stream.rq);
        (void) hear(fd, "0\r\n\r\n", &over); /* the last chunk */
        assert_int_equal(stream.gone, 0);
}

static void test_stream_nobody_takes(void **state) {
        cleanup_free char *block = calloc(1, 65536);
        int fd = dial();
        int r = 0;

        say(fd, GET("/stream"));
        until(stream.rq);
        for (unsigned i = 0; r == 0 && i < 10000; i++) {
                r = http_stream_send(stream.rq, block, 65536);
                turn();
        }
        assert_int_equal(r, -ENOBUFS);
        assert_true(http_stream_pending(stream.rq) <= HTTP_MAX_PENDING);
        (void) close_fd(fd); /* unread bytes: a reset */
        until(stream.gone == 1);
        until(http_n_conns(d.http) == 0);
        assert_int_equal(d.http->n_streams, 0);
}

static void test_streams_are_counted(void **state) {
        int fds[HTTP_MAX_STREAMS];
        bool over;

        for (unsigned i = 0; i < HTTP_MAX_STREAMS; i++) {
                fds[i] = dial();
                say(fds[i], GET("/stream"));
                until(d.http->n_streams == i + 1);
        }
        assert_memory_equal(ask(GET("/stream")), "HTTP/1.1 503", 12);
        assert_memory_equal(ask("HEAD /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), "HTTP/1.1 200", 12);
        http_close_door(d.http); /* forkd ends: so do they */
        for (unsigned i = 0; i < HTTP_MAX_STREAMS; i++) {
                do
                        (void) hear(fds[i], "no such words", &over);
                while (!over);
                (void) close_fd(fds[i]);
        }
        assert_string_equal(http_address(d.http), "");
}

static void test_idle_clients_make_room(void **state) {
        unsigned before = count_fds();
        int fds[3 * HTTP_MAX_CONNS];
        bool over;

        for (unsigned i = 0; i < ARRAY_LEN(fds); i++) {
                fds[i] = dial();
                if (i % 2)
                        say(fds[i], "GET /hello HT"); /* half of a request */
                turn();
        }
        assert_true(http_n_conns(d.http) <= HTTP_MAX_CONNS);
        assert_true(count_fds() - before <= ARRAY_LEN(fds) + HTTP_MAX_CONNS + 1);
        assert_non_null(strstr(ask(GET("/hello")), "hello\n"));
        /* The oldest was hung up on. */
        (void) hear(fds[0], NULL, &over);
        assert_true(over);
        for (unsigned i = 0; i < ARRAY_LEN(fds); i++)
                (void) close_fd(fds[i]);
        until(http_n_conns(d.http) == 0);
}

static void test_slow_reader_holds_nobody(void **state) {
        cleanup_fd int fd = dial();

        say(fd, GET("/big"));
        for (int i = 0; i < 5; i++)
                turn();
        assert_non_null(strstr(ask(GET("/hello")), "hello\n"));
        until(http_n_conns(d.http) == 1);
        /* It has had its time: the sweep, a minute later. */
        TAILQ_FIRST(&d.http->conns)->since_ns -= (HTTP_ANSWER_S + 1) * 1000000000ull;
        until(http_n_conns(d.http) == 0);
}

/* What nobody takes is not made without end: each holds an answer in our memory. */
static void test_slow_readers_hold_so_much(void **state) {
        int fds[HTTP_MAX_HELD / BIG + 3];

        for (unsigned i = 0; i < ARRAY_LEN(fds); i++) {
                fds[i] = dial();
                say(fds[i], GET("/given"));
                until(d.http->held == MIN_OF((i + 1) * BIG, HTTP_MAX_HELD));
        }
        assert_memory_equal(ask(GET("/given")), "HTTP/1.1 503", 12);
        assert_non_null(strstr(ask(GET("/hello")), "hello\n"));
        for (unsigned i = 0; i < ARRAY_LEN(fds); i++)
                (void) close_fd(fds[i]);
        until(http_n_conns(d.http) == 0);
        assert_int_equal(d.http->held, 0);
}

static void test_slow_writer_has_a_deadline(void **state) {
        cleanup_fd int fd = dial();
        bool over;

        say(fd, "GET /hel");
        until(http_n_conns(d.http) == 1);
        say(fd, "lo HTTP/1.1\r\nHo");
        TAILQ_FIRST(&d.http->conns)->since_ns -= (HTTP_FIRST_S + 1) * 1000000000ull;
        (void) hear(fd, NULL, &over);
        assert_true(over);
        until(http_n_conns(d.http) == 0);
}

static void test_many_in_a_row(void **state) {
        unsigned before = count_fds();

        for (int i = 0; i < 1000; i++) {
                int fd = dial();

                if (i % 3 == 0)
                        say(fd, GET("/hello"));
                else if (i % 3 == 1)
                        say(fd, "\x16\x03\x01 no HTTP at all\r\n\r\n");
                (void) close_fd(fd);
                if (i % 10 == 0)
                        turn();
        }
        until(http_n_conns(d.http) == 0);
        assert_non_null(strstr(ask(GET("/hello")), "hello\n"));
        until(count_fds() <= before);
}

static void test_ends_in_the_middle(void **state) {
        int fds[3] = { dial(), dial(), dial() };

        say(fds[0], GET("/late"));
        until(late.rq);
        say(fds[1], GET("/stream"));
        until(stream.rq);
        say(fds[2], GET("/big"));
        for (int i = 0; i < 5; i++)
                turn();
        http_free(TAKE_PTR(d.http)); /* all of them are told */
        assert_int_equal(late.gone, 1);
        assert_int_equal(stream.gone, 1);
        for (size_t i = 0; i < ARRAY_LEN(fds); i++)
                (void) close_fd(fds[i]);
}

static void test_taken_address(void **state) {
        struct daemon other = { .base = d.base, .cfg = d.cfg };

        (void) snprintf(other.cfg.metrics_listen, sizeof(other.cfg.metrics_listen), "%s", http_address(d.http));
        assert_ok(http_new(&other, &other.http));
        http_open(other.http); /* one that was chosen is waited for … */
        assert_string_equal(http_address(other.http), "");
        assert_non_null(strstr(http_problem(other.http), "in use"));
        http_close_door(d.http);
        event_active(other.http->retry, EV_TIMEOUT, 0);
        turn();
        assert_string_equal(http_address(other.http), other.cfg.metrics_listen);
        assert_string_equal(http_problem(other.http), "");
        http_free(other.http);

        assert_ok(http_new(&other, &other.http));
        http_open(other.http);
        http_free(d.http);
        assert_ok(http_new(&d, &d.http));
        (void) strcpy(d.cfg.metrics_listen, http_address(other.http));
        d.cfg.metrics_chosen = false;
        http_open(d.http); /* … a default gives way */
        assert_memory_equal(http_address(d.http), "127.0.0.1:", 10);
        assert_string_not_equal(http_address(d.http), http_address(other.http));
        assert_non_null(strstr(http_problem(d.http), "a free port is used"));
        http_free(other.http);
}

static void test_unix_socket(void **state) {
        struct daemon other = { .base = d.base, .cfg = d.cfg };
        cleanup_fd int fd = -1;
        const char *path;
        struct stat st;
        char dir[200];
        bool over;

        temp_dir(dir, sizeof(dir));
        path = in_dir(dir, "m.sock");
        (void) snprintf(other.cfg.metrics_listen, sizeof(other.cfg.metrics_listen), "unix:%s", path);
        assert_ok(http_new(&other, &other.http));
        assert_ok(http_handle(other.http, "/hello", on_hello, NULL));
        http_open(other.http);
        assert_string_equal(http_address(other.http), other.cfg.metrics_listen);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0600);
        assert_ok(io_connect_unix(path, &fd));
        assert_ok(io_set_nonblock(fd, true));
        say(fd, "GET /hello HTTP/1.1\r\nHost: whatever.example\r\nConnection: close\r\n\r\n");
        assert_non_null(strstr(hear(fd, NULL, &over), "hello\n"));
        http_free(other.http);
        assert_int_equal(stat(path, &st), -1);
        temp_dir_remove(dir);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_hosts),
                cmocka_unit_test(test_checks),
                cmocka_unit_test(test_addresses),
                cmocka_unit_test_setup_teardown(test_answers, begin, end),
                cmocka_unit_test_setup_teardown(test_refuses, begin, end),
                cmocka_unit_test_setup_teardown(test_keeps_alive_and_pipelines, begin, end),
                cmocka_unit_test_setup_teardown(test_answers_later, begin, end),
                cmocka_unit_test_setup_teardown(test_late_answer_to_nobody, begin, end),
                cmocka_unit_test_setup_teardown(test_streams, begin, end),
                cmocka_unit_test_setup_teardown(test_stream_nobody_takes, begin, end),
                cmocka_unit_test_setup_teardown(test_streams_are_counted, begin, end),
                cmocka_unit_test_setup_teardown(test_idle_clients_make_room, begin, end),
                cmocka_unit_test_setup_teardown(test_slow_reader_holds_nobody, begin, end),
                cmocka_unit_test_setup_teardown(test_slow_readers_hold_so_much, begin, end),
                cmocka_unit_test_setup_teardown(test_slow_writer_has_a_deadline, begin, end),
                cmocka_unit_test_setup_teardown(test_many_in_a_row, begin, end),
                cmocka_unit_test_setup_teardown(test_ends_in_the_middle, begin, end),
                cmocka_unit_test_setup_teardown(test_taken_address, begin, end),
                cmocka_unit_test_setup_teardown(test_unix_socket, begin, end),
        };
        int r;

        big = calloc(1, BIG);
        r = big ? cmocka_run_group_tests(tests, NULL, NULL) : 1;
        free(big);
        return r;
}
