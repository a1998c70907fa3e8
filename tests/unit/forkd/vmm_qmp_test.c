/* SPDX-License-Identifier: MIT */
/* The QMP client against servers that behave, and servers that do not. The server is a coroutine on the same loop;
 * each test gives it a script. */
#include "vmm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"

#define GREETING "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}, \"capabilities\": []}}\r\n"

struct server {
        int fd;
        char in[65536];
        size_t len;
        int last_fd; /* came with the last line */
        void (*script)(struct server *s);
};

static unsigned n_events, n_closes;
static char last_event[64];

/* ---- the server's side ---- */

static void say(struct server *s, const char *text) {
        size_t len = strlen(text), off = 0;

        while (off < len) {
                ssize_t n = send(s->fd, text + off, len - off, MSG_NOSIGNAL | MSG_DONTWAIT);

                if (n > 0)
                        off += (size_t) n;
                else if (n < 0 && errno == EAGAIN)
                        (void) !co_wait_fd(s->fd, EV_WRITE, 1000);
                else
                        return; /* the client has gone: some tests want that */
        }
}

/* The next line, "" at the end; and the id in it. */
static const char *hear(struct server *s, long long *ret_id) {
        static char line[65536];

        for (;;) {
                char *nl = memchr(s->in, '\n', s->len), *id;
                int fds[4];
                size_t n_fds = ARRAY_LEN(fds);
                ssize_t n;

                if (nl) {
                        size_t len = (size_t) (nl - s->in);

                        memcpy(line, s->in, len);
                        line[len] = '\0';
                        s->len -= len + 1;
                        memmove(s->in, nl + 1, s->len);
                        id = strstr(line, "\"id\":");
                        if (ret_id)
                                *ret_id = id ? atoll(id + 5) : -1;
                        return line;
                }
                if (co_wait_fd(s->fd, EV_READ, 5000) < 0)
                        return "";
                n = io_recv_fds(s->fd, s->in + s->len, sizeof(s->in) - s->len, fds, &n_fds);
                if (n <= 0)
                        return "";
                if (n_fds > 0)
                        s->last_fd = fds[0];
                s->len += (size_t) n;
        }
}

static void answer(struct server *s, long long id, const char *value) {
        char text[512];

        (void) snprintf(text, sizeof(text), "{\"return\": %s, \"id\": %lld}\r\n", value, id);
        say(s, text);
}

static void negotiate(struct server *s) {
        long long id;

        say(s, GREETING);
        check_str(hear(s, &id), "qmp_capabilities");
        answer(s, id, "{}");
}

static void run_server(void *arg) {
        struct server *s = arg;

        s->script(s);
        (void) close_fd(s->last_fd);
        (void) close_fd(s->fd);
        free(s);
}

/* ---- the client's side ---- */

static void on_event(const char *name, const json_t *data, void *arg) {
        n_events++;
        (void) snprintf(last_event, sizeof(last_event), "%s", name);
}

static void on_close(void *arg) {
        n_closes++;
}

static const struct qmp_handlers handlers = { .on_event = on_event, .on_close = on_close };

static struct qmp *connect_with(struct vmm_test *t, const struct qmp_handlers *h, void (*script)(struct server *s)) {
        struct server *s = calloc(1, sizeof(*s));
        struct qmp *q = NULL;
        int sv[2];

        n_events = n_closes = 0;
        check(s && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
        s->fd = sv[1];
        s->last_fd = -1;
        s->script = script;
        check(qmp_new(t->base, sv[0], h, NULL, &q) == 0);
        check(co_start(t->base, run_server, s) == 0);
        return q;
}

static struct qmp *connect_to(struct vmm_test *t, void (*script)(struct server *s)) {
        return connect_with(t, &handlers, script);
}

#define TEST(name)                                   \
        static void name##_body(struct vmm_test *t); \
        static void name(void **state) {             \
                vmm_test_run(*state, name##_body);   \
        }                                            \
        static void name##_body(struct vmm_test *t)

/* ---- a server that behaves ---- */

static void serve_echo(struct server *s) {
        long long a, b;

        negotiate(s);
        (void) hear(s, &a);
        (void) hear(s, &b);
        say(s, "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n");
        /* both at once, in the other order than they were asked */
        answer(s, b, "{\"n\": 2}");
        answer(s, a, "{\"n\": 1}");
        (void) hear(s, &a);
}

TEST(two_calls_under_way) {
        struct qmp *q = connect_to(t, serve_echo);
        json_t *a = NULL, *b = NULL;
        struct qmp_call ca, cb;

        check_ok(qmp_handshake(q, 1000, &t->e));
        check_ok(qmp_begin(q, &ca, "one", json_pack("{s:i}", "x", 1), -1, &t->e));
        check_ok(qmp_begin(q, &cb, "two", NULL, -1, &t->e));
        check_ok(qmp_finish(q, &ca, 1000, &a, &t->e));
        check_ok(qmp_finish(q, &cb, 1000, &b, &t->e));
        check(json_integer_value(json_object_get(a, "n")) == 1);
        check(json_integer_value(json_object_get(b, "n")) == 2);
        check(n_events == 1 && strcmp(last_event, "STOP") == 0);
        json_decref(a);
        json_decref(b);
        qmp_free(q);
}

static void serve_refusal(struct server *s) {
        long long id;

        negotiate(s);
        (void) hear(s, &id);
        char text[200];
        (void) snprintf(text, sizeof(text),
                        "{\"id\": %lld, \"error\": {\"class\": \"GenericError\", \"desc\": \"not\\u0007 now\"}}\r\n", id);
        say(s, text);
        (void) hear(s, &id);
}

TEST(a_refusal_brings_the_reason) {
        struct qmp *q = connect_to(t, serve_refusal);

        check_ok(qmp_handshake(q, 1000, &t->e));
        check(qmp_call(q, "cont", NULL, 1000, NULL, &t->e) == -EREMOTEIO);
        check_str(t->e.message, "not? now"); /* no control characters on a user's terminal */
        check(qmp_is_open(q));
        qmp_free(q);
}

static void serve_fd(struct server *s) {
        long long id;

        negotiate(s);
        (void) hear(s, &id);
        check(s->last_fd >= 0);
        check(write(s->last_fd, "hello", 5) == 5);
        answer(s, id, "{}");
        (void) hear(s, &id);
}

TEST(a_descriptor_travels) {
        struct qmp *q = connect_to(t, serve_fd);
        struct qmp_call c;
        char buf[6] = "";
        int p[2];

        check(pipe2(p, O_CLOEXEC) == 0);
        check_ok(qmp_handshake(q, 1000, &t->e));
        check_ok(qmp_begin(q, &c, "getfd", NULL, p[1], &t->e));
        (void) close(p[1]);
        check_ok(qmp_finish(q, &c, 1000, NULL, &t->e));
        check(read(p[0], buf, 5) == 5 && strcmp(buf, "hello") == 0);
        (void) close(p[0]);
        qmp_free(q);
}

static bool is_completed(const json_t *data) {
        const char *s = json_string_value(json_object_get(data, "status"));

        return s && strcmp(s, "completed") == 0;
}

static void serve_events(struct server *s) {
        long long id;

        negotiate(s);
        (void) hear(s, &id);
        /* the event before the answer to the command that caused it */
        say(s, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"active\"}}\r\n"
               "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}\r\n");
        answer(s, id, "{}");
        (void) hear(s, &id);
}

TEST(an_event_before_the_answer_is_not_lost) {
        struct qmp *q = connect_to(t, serve_events);
        struct qmp_watch w cleanup_qmp_watch = { 0 };
        json_t *data = NULL;

        check_ok(qmp_handshake(q, 1000, &t->e));
        qmp_watch_begin(q, &w, "MIGRATION", is_completed);
        check_ok(qmp_call(q, "migrate", NULL, 1000, NULL, &t->e));
        check_ok(qmp_watch_wait(&w, 1000, &data, &t->e));
        check(is_completed(data));
        check(n_events == 2);
        json_decref(data);
        qmp_free(q);
}

static void serve_large(struct server *s) {
        cleanup_free char *text = malloc(QMP_MAX_LINE + 100);
        long long id;
        int n;

        negotiate(s);
        (void) hear(s, &id);
        n = snprintf(text, 100, "{\"id\": %lld, \"return\": \"", id);
        memset(text + n, 'x', QMP_MAX_LINE - 64);
        memcpy(text + n + QMP_MAX_LINE - 64, "\"}\r\n", 5);
        say(s, text);
        (void) hear(s, &id);
}

TEST(a_line_of_nearly_the_maximum) {
        struct qmp *q = connect_to(t, serve_large);
        json_t *v = NULL;

        check_ok(qmp_handshake(q, 1000, &t->e));
        check_ok(qmp_call(q, "x", NULL, 5000, &v, &t->e));
        check(json_string_length(v) == QMP_MAX_LINE - 64);
        json_decref(v);
        qmp_free(q);
}

static void serve_bytewise(struct server *s) {
        static const char text[] = GREETING;
        long long id;

        for (size_t i = 0; i < sizeof(text) - 1; i++) {
                char one[2] = { text[i], '\0' };

                say(s, one);
                co_sleep(0);
        }
        (void) hear(s, &id);
        answer(s, id, "{}");
        (void) hear(s, &id);
}

TEST(a_greeting_byte_by_byte) {
        struct qmp *q = connect_to(t, serve_bytewise);

        check_ok(qmp_handshake(q, 5000, &t->e));
        qmp_free(q);
}

/* ---- silence ---- */

static void serve_silence(struct server *s) {
        (void) hear(s, NULL);
}

TEST(no_greeting_is_a_timeout) {
        struct qmp *q = connect_to(t, serve_silence);

        check(qmp_handshake(q, 30, &t->e) == -ETIMEDOUT);
        check_str(t->e.message, "does not greet");
        qmp_free(q);
}

static void serve_late(struct server *s) {
        long long a, b;

        negotiate(s);
        (void) hear(s, &a);
        (void) hear(s, &b); /* the first one has run out of time by now */
        answer(s, a, "{\"n\": 1}");
        answer(s, b, "{\"n\": 2}");
        (void) hear(s, &a);
}

TEST(a_late_answer_is_dropped) {
        struct qmp *q = connect_to(t, serve_late);
        json_t *v = NULL;

        check_ok(qmp_handshake(q, 1000, &t->e));
        check(qmp_call(q, "slow", NULL, 20, NULL, &t->e) == -ETIMEDOUT);
        check_ok(qmp_call(q, "next", NULL, 1000, &v, &t->e));
        check(json_integer_value(json_object_get(v, "n")) == 2);
        json_decref(v);
        qmp_free(q);
}

TEST(an_event_that_does_not_come) {
        struct qmp *q = connect_to(t, serve_late);
        struct qmp_watch w cleanup_qmp_watch = { 0 };

        check_ok(qmp_handshake(q, 1000, &t->e));
        qmp_watch_begin(q, &w, "RESUME", NULL);
        check(qmp_watch_wait(&w, 20, NULL, &t->e) == -ETIMEDOUT);
        check_str(t->e.message, "RESUME");
        qmp_free(q);
}

static void serve_deaf(struct server *s) {
        negotiate(s);
        co_sleep(200); /* reads nothing more */
}

TEST(a_server_that_does_not_read) {
        struct qmp *q = connect_to(t, serve_deaf);
        cleanup_free char *big = calloc(1, 100001);
        struct qmp_call calls[16];
        int n = 0, r = 0;

        memset(big, 'x', 100000);
        check_ok(qmp_handshake(q, 1000, &t->e));
        while (n < 16 && r == 0) {
                r = qmp_begin(q, &calls[n], "x", json_pack("{s:s}", "a", big), -1, &t->e);
                n += r == 0;
        }
        check(r == -ENOBUFS); /* the queue is bounded */
        for (int i = 0; i < n; i++) {
                r = qmp_finish(q, &calls[i], i == 0 ? 20 : 0, NULL, &t->e);
                check(r == -ETIMEDOUT || r == -EPIPE);
        }
        qmp_free(q);
}

/* ---- ends ---- */

static void serve_hangup(struct server *s) {
        negotiate(s);
        (void) hear(s, NULL);
        say(s, "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\r\n{\"return\": {}, \"id\"");
}

TEST(a_hangup_fails_all_and_last_words_count) {
        struct qmp *q = connect_to(t, serve_hangup);
        struct qmp_watch w cleanup_qmp_watch = { 0 };

        check_ok(qmp_handshake(q, 1000, &t->e));
        qmp_watch_begin(q, &w, "STOP", NULL);
        check(qmp_call(q, "stop", NULL, 1000, NULL, &t->e) == -EPIPE);
        check_str(t->e.message, "closed its control channel");
        check(qmp_watch_wait(&w, 1000, NULL, &t->e) == -EPIPE);
        check(n_events == 1 && n_closes == 1);
        check(!qmp_is_open(q));
        /* and everything after it fails at once */
        check(qmp_call(q, "stop", json_pack("{s:i}", "a", 1), 1000, NULL, &t->e) == -EPIPE);
        qmp_free(q);
}

/* ---- what is not QMP ---- */

static const char *garbage;

static void serve_garbage(struct server *s) {
        negotiate(s);
        (void) hear(s, NULL);
        say(s, garbage);
        (void) hear(s, NULL);
}

TEST(garbage_ends_the_connection_with_a_reason) {
        static const struct {
                const char *text, *why;
        } cases[] = {
                { "hello\n", "no JSON" },
                { "{\"return\": {}\n", "no JSON" },
                { "[1, 2]\n", "no object" },
                { "{}\n", "no known kind" },
                { "{\"return\": {}}\n", "without an id" },
                { "{\"return\": {}, \"id\": \"1\"}\n", "an id that was never given" },
                { "{\"return\": {}, \"id\": 4711}\n", "what was never asked" },
                { "{\"return\": {}, \"id\": -1}\n", "an id that was never given" },
                { "{\"error\": 5, \"id\": 2}\n", "an error without a description" },
                { "{\"error\": {\"desc\": \"x\"}}\n", "without an id" },
                { "{\"event\": 5}\n", "an event without a name" },
                { "{\"event\": \"STOP\", \"data\": 5}\n", "whose data is no object" },
                { "{\"QMP\": {}}\n", "a second greeting" },
                { "{\"a\": 99999999999999999999999}\n", "no JSON" },
                { "\xff\xfe\n", "no JSON" },
        };

        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                struct qmp *q;

                garbage = cases[i].text;
                q = connect_to(t, serve_garbage);
                check_ok(qmp_handshake(q, 1000, &t->e));
                check(qmp_call(q, "stop", NULL, 1000, NULL, &t->e) == -EBADMSG);
                check_str(t->e.message, cases[i].why);
                check(n_closes == 1);
                qmp_free(q);
        }
}

static void serve_no_greeting(struct server *s) {
        say(s, "{\"return\": {}, \"id\": 1}\r\n");
        (void) hear(s, NULL);
}

TEST(an_answer_instead_of_a_greeting) {
        struct qmp *q = connect_to(t, serve_no_greeting);

        check(qmp_handshake(q, 1000, &t->e) == -EBADMSG);
        check_str(t->e.message, "before its greeting");
        qmp_free(q);
}

static void serve_endless(struct server *s) {
        cleanup_free char *text = malloc(65537);

        memset(text, 'x', 65536);
        text[65536] = '\0';
        negotiate(s);
        (void) hear(s, NULL);
        for (int i = 0; i < 40; i++)
                say(s, text);
}

TEST(a_line_without_end) {
        struct qmp *q = connect_to(t, serve_endless);

        check_ok(qmp_handshake(q, 1000, &t->e));
        check(qmp_call(q, "stop", NULL, 5000, NULL, &t->e) == -EBADMSG);
        check_str(t->e.message, "too long");
        qmp_free(q);
}

static void serve_deep(struct server *s) {
        cleanup_free char *text = calloc(1, 400010);

        negotiate(s);
        (void) hear(s, NULL);
        memset(text, '[', 200000);
        memset(text + 200000, ']', 200000);
        text[400000] = '\n';
        say(s, text);
        (void) hear(s, NULL);
}

TEST(nesting_without_end) {
        struct qmp *q = connect_to(t, serve_deep);

        check_ok(qmp_handshake(q, 1000, &t->e));
        check(qmp_call(q, "stop", NULL, 5000, NULL, &t->e) == -EBADMSG);
        check_str(t->e.message, "too deep");
        qmp_free(q);
}

static void serve_chatter(struct server *s) {
        negotiate(s);
        (void) hear(s, NULL);
        while (n_closes == 0 && co_wait_fd(s->fd, EV_WRITE, 1000) == 0) {
                char c;

                say(s, "{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 0}}\r\n");
                if (recv(s->fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) == 0)
                        return;
        }
}

/* A QEMU that never stops talking must not keep the loop: the call's deadline still comes. */
TEST(events_without_end) {
        struct qmp *q = connect_to(t, serve_chatter);

        check_ok(qmp_handshake(q, 1000, &t->e));
        check(qmp_call(q, "stop", NULL, 50, NULL, &t->e) == -ETIMEDOUT);
        check(n_events > 0);
        qmp_free(q);
}

/* ---- freed from inside ---- */

static struct qmp *to_free;

static void free_on_event(const char *name, const json_t *data, void *arg) {
        qmp_free(TAKE_PTR(to_free));
}

static const struct qmp_handlers freeing = { .on_event = free_on_event };

static void serve_two_events(struct server *s) {
        negotiate(s);
        say(s, "{\"event\": \"A\"}\r\n{\"event\": \"B\"}\r\n");
        (void) hear(s, NULL);
}

TEST(freed_by_its_own_handler) {
        struct qmp_call c;

        to_free = connect_with(t, &freeing, serve_two_events);
        check_ok(qmp_handshake(to_free, 1000, &t->e));
        if (to_free && qmp_begin(to_free, &c, "x", NULL, -1, &t->e) == 0)
                check(qmp_finish(to_free, &c, 1000, NULL, &t->e) == -ECANCELED);
        check(!to_free);
}

#define T(f) cmocka_unit_test_setup_teardown(f, vmm_test_setup, vmm_test_teardown)

int main(void) {
        const struct CMUnitTest tests[] = {
                T(two_calls_under_way),
                T(a_refusal_brings_the_reason),
                T(a_descriptor_travels),
                T(an_event_before_the_answer_is_not_lost),
                T(a_line_of_nearly_the_maximum),
                T(a_greeting_byte_by_byte),
                T(no_greeting_is_a_timeout),
                T(a_late_answer_is_dropped),
                T(an_event_that_does_not_come),
                T(a_server_that_does_not_read),
                T(a_hangup_fails_all_and_last_words_count),
                T(garbage_ends_the_connection_with_a_reason),
                T(an_answer_instead_of_a_greeting),
                T(a_line_without_end),
                T(nesting_without_end),
                T(events_without_end),
                T(freed_by_its_own_handler),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
