/* SPDX-License-Identifier: MIT */
/* `stats`, `top` without a screen, and `events`, as users get them. (test_top.c has the screen; tests/e2e/test_top.py a terminal.) */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "common/json.h"
#include "fake_forkd.h"

static const char *const utf8[] = { "LC_ALL=C.UTF-8", NULL }, *const ascii[] = { "LC_ALL=C", NULL };

static char *document(void) {
        char *text;
        size_t len;

        assert_int_equal(io_read_file(AT_FDCWD, STATS_JSON, 1 << 20, &text, &len), 0);
        return text;
}

/* Nothing that a terminal would obey, whatever names and reasons hold. */
static void is_harmless(const char *text) {
        for (const char *s = text; *s; s++) {
                assert_true(*s == '\n' || ((unsigned char) *s >= 0x20 && *s != 0x7f));
                assert_true(strncmp(s, "\u202e", 3) != 0);
        }
}

static void has(const char *text, const char *want) {
        if (!strstr(text, want))
                fail_msg("'%s' is not in:\n%s", want, text);
}

static void test_all(void **state) {
        cleanup_free char *doc = document();
        const struct answer answers[] = { { .method = "stats", .result = doc }, { 0 } };
        struct fake *f = fake_new();
        struct run r = { .env = utf8 };

        f->answers = answers;
        RUN(f, &r, "stats");
        assert_int_equal(r.status, 0);
        assert_string_equal(f->log, "stats {}\n");
        has(r.out, "forkd     1.2.3, up 1d02h; metrics at http://127.0.0.1:9464\n");
        has(r.out, "fentry: not here?[31m\n");
        has(r.out, "not seen: 1 VMs, 2 threads, 5 events\n");
        has(r.out, "it does not answer: no answer for 900 ms\n");
        has(r.out, "shells    2 ready, 1 starting; used by 7 VMs, missed by 3, 0 failed\n");
        has(r.out, "ever: 1 died, 2 hung, 5 upgrades; guests: 3 recovered, 4 killed\n");
        has(r.out, "fault-0         fault  50%       10%  5.0%   20%\n");
        has(r.out, "boot          2       1  1.2 s  1.4 s  1.4 s    1.4 s\n");
        has(r.out, "fork          0       0      -      -      -        -\n");
        has(r.out, "\nburner  SPINNING  running  100%      1.0%      0"); /* the worst first */
        assert_true(strstr(r.out, "\nburner ") < strstr(r.out, "\ncalm "));
        assert_true(strstr(r.out, "\ncalm ") < strstr(r.out, "\ngone "));
        has(r.out, "4 more VMs did not fit");
        is_harmless(r.out);
        run_clear(&r);
        fake_free(f);
}

static void test_one(void **state) {
        cleanup_free char *doc = document();
        const struct answer answers[] = { { .method = "stats", .result = doc }, { 0 } };
        struct fake *f = fake_new();
        struct run r = { .env = utf8 };

        f->answers = answers;
        RUN(f, &r, "stats", "calm");
        assert_int_equal(r.status, 0);
        assert_string_equal(f->log, "stats {\"name\": \"calm\"}\n");
        has(r.out, "calm is running, health: ok\n");
        has(r.out, "from snapshot 89abcdef01234567; pager session: serving\n");
        has(r.out, "waits for memory: 7, 12 ms in all; p50 200 µs, p90 2.0 ms, p99 5.0 ms, longest 5.0 ms\n");
        /* each power of two between the first and the last, empty ones too */
        has(r.out, "      131 µs           2     29%  ██████████████████████████████\n"
                   "      262 µs           4     57%  ████████████████████████████████████████████████████████████\n"
                   "      524 µs           0      0%\n"
                   "      1.0 ms           0      0%\n"
                   "      2.1 ms           0      0%\n"
                   "      4.2 ms           0      0%\n"
                   "      8.4 ms           1     14%  ███████████████\n");
        has(r.out, "0     idle   25%      1.0%      0%         12   3.4k      -      -          -  ok\n");
        has(r.out, "as its pager counts: 7 faults, 112 pages; faults waited: 7");
        is_harmless(r.out);
        run_clear(&r);

        r = (struct run){ .env = ascii };
        RUN(f, &r, "stats", "calm");
        has(r.out, "      131 us           2     29%  ##############################\n");
        for (size_t i = 0; i < r.out_len; i++)
                assert_true((unsigned char) r.out[i] < 0x80);
        run_clear(&r);
        fake_free(f);
}

static void test_json(void **state) {
        cleanup_free char *doc = document();
        const struct answer answers[] = { { .method = "stats", .result = doc }, { 0 } };
        cleanup_json json_t *got = NULL, *want = json_loads(doc, 0, NULL);
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->answers = answers;
        RUN(f, &r, "--json", "stats");
        assert_int_equal(r.status, 0);
        got = one_document(r.out);
        assert_true(json_equal(got, want));
        run_clear(&r);
        RUN(f, &r, "top", "--json", "--count", "3", "--interval", "0.1");
        assert_int_equal(r.status, 0);
        for (size_t i = 0; i < 3; i++) {
                cleanup_json json_t *line = json_line(r.out, i);

                assert_true(json_equal(line, want));
        }
        assert_null(json_line(r.out, 3));
        run_clear(&r);
        fake_free(f);
}

/* What is no such document, and a forkd that refuses. */
static void test_bad_answers(void **state) {
        static const char *const results[] = { "{}", "[]", "null", "3", "{\"vms\": 3, \"uptime_ms\": 1}" };
        struct fake *f = fake_new();

        for (size_t i = 0; i < ARRAY_LEN(results); i++) {
                const struct answer answers[] = { { .method = "stats", .result = results[i] }, { 0 } };
                struct run one = { 0 }, all = { 0 }, top = { 0 };

                f->answers = answers;
                RUN(f, &one, "stats", "x");
                RUN(f, &all, "stats");
                RUN(f, &top, "top", "--once");
                assert_int_equal(one.status, 1);
                assert_int_equal(all.status, 1);
                assert_int_equal(top.status, 1);
                has(top.err, "forkctl: forkd's answer is no such document");
                run_clear(&one);
                run_clear(&all);
                run_clear(&top);
        }
        f->answers =
                (const struct answer[]){ { .method = "stats", .code = "not-found", .message = "no\x1bVM", .hint = "" }, { 0 } };
        for (int i = 0; i < 2; i++) {
                struct run r = { 0 };

                RUN(f, &r, i ? "top" : "stats");
                assert_int_equal(r.status, 1);
                assert_string_equal(r.err, "forkctl: no?VM\n");
                run_clear(&r);
        }
        fake_free(f);
}

/* ---- top without a screen ---- */

static void test_list(void **state) {
        static const char *const wide[] = { "LC_ALL=C.UTF-8", "TERM=xterm", NULL };
        cleanup_free char *doc = document();
        const struct answer answers[] = { { .method = "stats", .result = doc }, { 0 } };
        struct fake *f = fake_new();
        struct run r = { .env = wide };

        f->answers = answers;
        RUN(f, &r, "top", "--once");
        assert_int_equal(r.status, 0);
        assert_int_equal(strncmp(r.out, "1 SPINNING; 2 VMs: 2 running, 4 more not listed; forkd 1.2.3, up 1d02h\n", 60), 0);
        has(r.out, "  burner   SPINNING  100% ");
        is_harmless(r.out);
        run_clear(&r);
        r = (struct run){ .env = ascii };
        RUN(f, &r, "top", "--count", "2", "--interval", "0.1", "--sort", "name");
        assert_int_equal(r.status, 0);
        assert_int_equal(strncmp(r.out, "-- ", 3), 0);
        has(r.out, "\n\n-- ");
        assert_true(strstr(r.out, "  burner ") < strstr(r.out, "  calm "));
        is_harmless(r.out);
        run_clear(&r);
        fake_free(f);
}

struct absence {
        char *doc;
        unsigned requests;
        bool refuses;
};

/* The second request ends the connection, or is refused; to those after it forkd is another one. */
static void goes_away(struct fake *f, struct rpc_msg *m) {
        struct absence *a = f->arg;
        struct err e;

        if (++a->requests == 2 && a->refuses) {
                (void) err_set(&e, ERR_CANCELED, -ECANCELED,
                               "about to\x1b"
                               "exit");
                (void) rpc_reply_err(m->conn, m->msgid, &e);
        } else if (a->requests == 2)
                rpc_conn_close(m->conn);
        else
                fake_reply(m, a->doc);
}

static void test_away_and_back(void **state) {
        cleanup_free char *doc = document();
        struct absence a = { .doc = doc };
        struct fake *f = fake_new();
        struct run r = { .env = ascii };

        f->handler = goes_away;
        f->arg = &a;
        RUN(f, &r, "top", "--count", "3", "--interval", "0.1");
        assert_int_equal(r.status, 0);
        assert_int_equal(a.requests, 4);
        has(r.err, "forkctl: forkd went away before it answered stats; waiting for it\n");
        has(r.err, "forkctl: forkd is back\n");
        run_clear(&r);

        a = (struct absence){ .doc = doc, .refuses = true };
        r = (struct run){ .env = ascii };
        RUN(f, &r, "top", "--count", "2", "--interval", "0.1");
        assert_int_equal(r.status, 0);
        assert_int_equal(a.requests, 3);
        has(r.err, "forkctl: about to?exit; waiting for it\n");
        run_clear(&r);
        a.refuses = false;

        a.requests = 1; /* not even one answer: that is an error */
        RUN(f, &r, "top", "--count", "3", "--interval", "0.1");
        assert_int_equal(r.status, 3);
        run_clear(&r);
        fake_free(f);
}

static void test_unreachable(void **state) {
        struct fake *f = fake_new();
        struct run r = { 0 };

        RUN(f, &r, "--socket", "/nowhere/forkd.sock", "top");
        assert_int_equal(r.status, 3);
        assert_string_equal(r.out, "");
        run_clear(&r);
        fake_free(f);
}

/* ---- events ---- */

static void test_events(void **state) {
        static const struct answer answers[] = {
                { .method = "events",
                  .result = "{\"next\": 6, \"missed\": 0, \"events\": ["
                            "{\"number\": 1, \"time_ns\": 1700000000123000000, \"kind\": \"vm.state\", \"name\": \"web\", "
                            "\"id\": \"01\", "
                            "\"text\": \"booting -> running\"},"
                            "{\"number\": 2, \"time_ns\": 1, \"kind\": \"vcpu.spinning\", \"name\": \"web\", \"id\": \"01\", "
                            "\"text\": \"vCPU 0\"},"
                            "{\"number\": 3, \"time_ns\": 1, \"kind\": \"vcpu.stuck\", \"name\": \"db\", \"id\": \"02\", "
                            "\"text\": \"vCPU \\u001b[1m\"},"
                            "{\"number\": 4, \"time_ns\": 1, \"kind\": \"vcpux\", \"name\": \"db\", \"id\": \"02\", \"text\": "
                            "\"no\"},"
                            "{\"number\": 5, \"time_ns\": 1, \"kind\": \"pager.lost\", \"name\": \"\", \"id\": \"\", \"text\": "
                            "\"gone\"},"
                            "{\"number\": 6, \"time_ns\": 1, \"kind\": \"vcpu.ok\", \"name\": \"web\", \"id\": \"01\", \"text\": "
                            "\"well\"}]}" },
                { 0 },
        };
        static const struct {
                const char *argv[8];
                const char *kinds;
        } runs[] = {
                { { "--json", "events", "--no-follow", "--all" }, "vm.state vcpu.spinning vcpu.stuck vcpux pager.lost vcpu.ok" },
                { { "--json", "events", "--no-follow", "web" }, "vm.state vcpu.spinning vcpu.ok" },
                { { "--json", "events", "--no-follow", "02" }, "vcpu.stuck vcpux" },
                { { "--json", "events", "--no-follow", "--kind", "vcpu" }, "vcpu.spinning vcpu.stuck vcpu.ok" },
                { { "--json", "events", "--no-follow", "-k", "vcpu.*", "web" }, "vcpu.spinning vcpu.ok" },
                { { "--json", "events", "--no-follow", "-k", "vcpu.stuck", "-k", "pager" }, "vcpu.stuck pager.lost" },
                { { "--json", "events", "--no-follow", "-k", "vcpu.spin" }, "" },
        };
        static const char *const utc[] = { "TZ=UTC", "LC_ALL=C.UTF-8", NULL };
        struct fake *f = fake_new();
        struct run text = { .env = utc };

        f->answers = answers;
        for (size_t i = 0; i < ARRAY_LEN(runs); i++) {
                char got[256] = "";
                struct run r = { 0 };

                run_ctl(f, &r, runs[i].argv);
                assert_int_equal(r.status, 0);
                for (size_t k = 0;; k++) {
                        cleanup_json json_t *line = json_line(r.out, k);

                        if (!line)
                                break;
                        (void) snprintf(got + strlen(got), sizeof(got) - strlen(got), "%s%s", k ? " " : "",
                                        json_str(line, "kind", "?"));
                }
                assert_string_equal(got, runs[i].kinds);
                run_clear(&r);
        }
        RUN(f, &text, "events", "--no-follow");
        has(text.out, "2023-11-14 22:13:20.123 vm.state       web: booting -> running\n");
        has(text.out, "vcpu.stuck     db: vCPU ?[1m\n");
        run_clear(&text);
        fake_free(f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_all),         cmocka_unit_test(test_one),    cmocka_unit_test(test_json),
                cmocka_unit_test(test_bad_answers), cmocka_unit_test(test_list),   cmocka_unit_test(test_away_and_back),
                cmocka_unit_test(test_unreachable), cmocka_unit_test(test_events),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
