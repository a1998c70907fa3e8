/* SPDX-License-Identifier: MIT */
/* `logs`: in pieces, to an end, or on and on. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "fake_forkd.h"
#include "common/json.h"

/* A console of @size bytes, handed out @piece at a time; it grows by @grow after each request, and the VM is
 * removed after @requests of them (0: never). */
struct console {
        const char *data;
        size_t size, piece, grow;
        unsigned requests, seen;
};

static void on_logs(struct fake *f, struct rpc_msg *m) {
        struct console *c = f->arg;
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint64_t offset = 0;
        size_t n;
        struct err e;

        mp_buf_init(&b);
        assert_string_equal(m->method, "vm.logs");
        if (c->requests && ++c->seen > c->requests) {
                (void) err_set(&e, ERR_NOT_FOUND, -ENOENT, "no VM");
                (void) rpc_reply_err(m->conn, m->msgid, &e);
                return;
        }
        assert_int_equal(mp_get_u64(m->params, "offset", &offset), 0);
        n = offset < c->size ? MIN_OF(c->piece, c->size - offset) : 0;
        mp_map(&b, 4);
        mp_kv_bin(&b, "data", c->data + MIN_OF(offset, c->size), n);
        mp_kv_u64(&b, "offset", offset);
        mp_kv_u64(&b, "next_offset", offset + n);
        mp_kv_u64(&b, "size", c->size);
        (void) rpc_reply(m->conn, m->msgid, &b, NULL, 0);
        c->size += c->grow;
}

static const char text[] = "booting\nforkd-agent: ready\n\xff\x1b[0m and more of it, in many pieces";

static void test_whole(void **state) {
        struct console c = { .data = text, .size = sizeof(text) - 1, .piece = 7 };
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->handler = on_logs;
        f->arg = &c;
        RUN(f, &r, "logs", "web");
        assert_int_equal(r.status, 0);
        assert_int_equal(r.out_len, c.size);
        assert_memory_equal(r.out, text, c.size); /* as the guest wrote it */
        run_clear(&r);
        fake_free(f);
}

/* A guest that writes faster than we read keeps nobody for ever. */
static void test_talkative(void **state) {
        cleanup_free char *data = calloc(1, 1 << 20);
        struct console c = { .data = data, .size = 100, .piece = 10, .grow = 50 };
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->handler = on_logs;
        f->arg = &c;
        RUN(f, &r, "logs", "web");
        assert_int_equal(r.status, 0);
        assert_int_equal(r.out_len, 100);
        run_clear(&r);
        fake_free(f);
}

static void test_json(void **state) {
        struct console c = { .data = text, .size = 10, .piece = 4 };
        cleanup_json json_t *plain = NULL, *binary = NULL, *empty = NULL;
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->handler = on_logs;
        f->arg = &c;
        RUN(f, &r, "--json", "logs", "web");
        plain = one_document(r.out);
        assert_string_equal(json_str(plain, "data", ""), "booting\nfo");
        assert_int_equal(json_u64(plain, "size", 0), 10);
        run_clear(&r);
        c.size = sizeof(text) - 1;
        RUN(f, &r, "--json", "logs", "web");
        binary = one_document(r.out);
        assert_non_null(json_object_get(binary, "data_base64"));
        run_clear(&r);
        c.size = 0;
        RUN(f, &r, "--json", "logs", "web");
        empty = one_document(r.out);
        assert_string_equal(json_str(empty, "data", "?"), "");
        run_clear(&r);
        fake_free(f);
}

/* -f sees what comes later, and ends when the VM is removed. */
static void test_follow(void **state) {
        struct console c = { .data = text, .size = 8, .piece = 64, .grow = 3, .requests = 6 };
        cleanup_json json_t *line = NULL;
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->handler = on_logs;
        f->arg = &c;
        RUN(f, &r, "logs", "-f", "web");
        assert_int_equal(r.status, 0);
        assert_string_equal(r.err, "");
        assert_int_equal(r.out_len, 8 + 5 * 3);
        assert_memory_equal(r.out, text, r.out_len);
        run_clear(&r);

        c = (struct console){ .data = text, .size = 8, .piece = 64, .requests = 2 };
        RUN(f, &r, "logs", "-f", "web", "--json");
        assert_int_equal(r.status, 0);
        line = json_line(r.out, 0);
        assert_string_equal(json_str(line, "data", ""), "booting\n");
        assert_null(json_line(r.out, 1));
        run_clear(&r);
        fake_free(f);
}

static void restarted(struct fake *f, struct rpc_msg *m) {
        struct console *c = f->arg;

        on_logs(f, m);
        if (c->seen == 1)
                c->size = 5; /* truncated below what was read */
}

static void test_truncated(void **state) {
        struct console c = { .data = text, .size = 8, .piece = 64, .requests = 4 };
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->handler = restarted;
        f->arg = &c;
        RUN(f, &r, "logs", "-f", "web");
        assert_int_equal(r.status, 0);
        assert_string_equal(r.out, "booting\nbooti");
        run_clear(&r);
        fake_free(f);
}

static void test_failures(void **state) {
        static const struct answer none[] = { { "vm.logs", NULL, "not-found", "no VM 'web'", NULL }, { 0 } };
        static const struct answer wrong[] = { { "vm.logs", "{\"data\":7}" }, { 0 } };
        struct fake *f = fake_new();
        struct run r = { 0 };

        f->answers = none;
        RUN(f, &r, "logs", "-f", "web"); /* never there: an error, not an end */
        assert_int_equal(r.status, 1);
        run_clear(&r);
        f->answers = wrong;
        RUN(f, &r, "logs", "web");
        assert_int_equal(r.status, 1);
        assert_non_null(strstr(r.err, "no log in it"));
        run_clear(&r);
        fake_free(f);
}

/* `logs -f | head`: the end of the reader is our end. */
static void test_reader_gone(void **state) {
        struct console c = { .data = text, .size = 8, .piece = 64, .grow = 1 };
        struct fake *f = fake_new();
        struct run r = { 0 };
        int p[2];

        f->handler = on_logs;
        f->arg = &c;
        assert_int_equal(pipe2(p, O_CLOEXEC), 0);
        (void) close(p[0]);
        r.stdout_fd = p[1];
        RUN(f, &r, "logs", "-f", "web");
        (void) close(p[1]);
        assert_int_equal(r.status, 141);
        assert_string_equal(r.err, "");
        run_clear(&r);
        fake_free(f);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_whole),       cmocka_unit_test(test_talkative), cmocka_unit_test(test_json),
                cmocka_unit_test(test_follow),      cmocka_unit_test(test_truncated), cmocka_unit_test(test_failures),
                cmocka_unit_test(test_reader_gone),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
