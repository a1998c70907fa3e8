/* SPDX-License-Identifier: MIT */
/* What a peer may do wrong: each test says what it gets for it, and that nothing else is harmed: no descriptor
 * is left, none goes to a message that it was not sent with, and no message is waited for that cannot come. */
#include "rpc_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"

#define WRITE_LIT(p, lit) peer_write(p, lit, sizeof(lit) - 1, NULL, 0)

/* ---- odd but valid ---- */

static void test_byte_by_byte(void **state) {
        /* a request that ends in an empty blob: its last header must not be taken for more than it is */
        static const char msg[] = "\x94\x00\x01\xa1x\x81\xa1k\xc4\x00";
        struct peer p = { 0 };

        peer_start(&p);
        for (size_t i = 0; i < sizeof(msg) - 1; i++) {
                peer_write(&p, msg + i, 1, NULL, 0);
                assert_int_equal(p.n_messages, 0);
                loop_once(p.base);
        }
        assert_int_equal(p.n_messages, 1);
        peer_expect(&p, 1, "");
        peer_end(&p);
}

static void check_params(struct rpc_msg *m, struct peer *p) {
        cleanup_mp_doc struct mp_doc doc = { 0 };
        uint64_t v = 0, raw = 0;

        assert_ok(mp_parse(m->raw_params, m->raw_params_len, &doc));
        assert_int_equal(doc.root.type, MSGPACK_OBJECT_MAP);
        if (strcmp(m->method, "some") == 0) {
                assert_ok(mp_get_u64(m->params, "k", &v));
                assert_ok(mp_get_u64(&doc.root, "k", &raw));
                assert_int_equal(v, 7);
                assert_int_equal(raw, 7);
        } else {
                assert_null(m->params);
        }
        assert_ok(rpc_reply(m->conn, m->msgid, NULL, NULL, 0));
}

static void test_forms_of_params(void **state) {
        struct peer p = { .on_message = check_params };

        peer_start(&p);
        WRITE_LIT(&p, "\x94\x00\x01\xa4some\x81\xa1k\x07");
        peer_expect(&p, 1, "");
        WRITE_LIT(&p, "\x94\x00\x02\xa4some\x91\x81\xa1k\x07");
        peer_expect(&p, 2, "");
        WRITE_LIT(&p, "\x94\x00\x03\xa4none\x90");
        peer_expect(&p, 3, "");
        WRITE_LIT(&p, "\x94\x00\x04\xa4none\xc0");
        peer_expect(&p, 4, "");
        /* Encoders may use longer headers than they need. */
        WRITE_LIT(&p, "\xdc\x00\x04\x00\x05\xa4some\x81\xa1k\x07");
        peer_expect(&p, 5, "");
        WRITE_LIT(&p, "\xdd\x00\x00\x00\x04\x00\x06\xa4some\xdc\x00\x01\xde\x00\x01\xa1k\x07");
        peer_expect(&p, 6, "");
        WRITE_LIT(&p, "\x94\xcc\x00\xce\x00\x00\x00\x07\xd9\x04some\xdd\x00\x00\x00\x01\x81\xa1k\xcd\x00\x07");
        peer_expect(&p, 7, "");
        assert_int_equal(p.n_messages, 7);
        peer_end(&p);
}

/* ---- wrong, but understood: an error, and the connection goes on ---- */

static void test_wrong_params(void **state) {
        struct peer p = { 0 };

        peer_start(&p);
        WRITE_LIT(&p, "\x94\x00\x01\xa1x\x91\x05"); /* [5] */
        peer_expect(&p, 1, ERR_PROTOCOL);
        WRITE_LIT(&p, "\x94\x00\x02\xa1x\x92\x80\x80"); /* [{}, {}] */
        peer_expect(&p, 2, ERR_PROTOCOL);
        WRITE_LIT(&p, "\x94\x00\x03\xa1x\xa1y");
        peer_expect(&p, 3, ERR_PROTOCOL);
        WRITE_LIT(&p, "\x94\x00\x04\x05\x80"); /* the method is a number */
        peer_expect(&p, 4, ERR_PROTOCOL);
        WRITE_LIT(&p, "\x94\x00\x05\xa0\x80");
        peer_expect(&p, 5, ERR_PROTOCOL);
        WRITE_LIT(&p, "\x94\x00\x06\xa3"
                      "a\0b\x80");
        peer_expect(&p, 6, ERR_PROTOCOL);
        WRITE_LIT(&p, "\x93\x02\xa1x\x05"); /* notifications get no answer */
        WRITE_LIT(&p, "\x93\x02\x05\x80");
        assert_int_equal(p.n_messages, 0);
        peer_request(&p, 0xffffffffu, "fine");
        peer_expect(&p, 0xffffffffu, "");
        assert_int_equal(p.n_messages, 1);
        peer_end(&p);
}

static void test_method_length(void **state) {
        char name[RPC_MAX_METHOD + 2];
        struct peer p = { 0 };

        peer_start(&p);
        memset(name, 'm', sizeof(name));
        name[RPC_MAX_METHOD + 1] = '\0';
        peer_request(&p, 1, name);
        peer_expect(&p, 1, ERR_PROTOCOL);
        name[RPC_MAX_METHOD] = '\0';
        peer_request(&p, 2, name);
        peer_expect(&p, 2, "");
        assert_string_equal(p.method, name);
        peer_end(&p);
}

static void never(const struct rpc_result *res, void *arg) {
        ++*(unsigned *) arg;
}

static void test_answers_nobody_asked_for(void **state) {
        struct peer p = { 0 };
        unsigned n = 0, before;

        peer_start(&p);
        assert_ok(rpc_call(p.c, "x", NULL, NULL, 0, never, &n, NULL)); /* 1 */
        before = count_fds();
        WRITE_LIT(&p, "\x94\x01\x05\xc0\xc0");
        peer_write(&p,
                   "\x94\x01\x06\xc0\x81\xa3"
                   "fds\x01",
                   10, (int[]){ p.fd }, 1);
        WRITE_LIT(&p, "\x94\x01\x01\xc0\xc0"); /* the real one */
        WRITE_LIT(&p, "\x94\x01\x01\xc0\xc0"); /* and again */
        loop_until(p.base, &n, 1);
        peer_request(&p, 9, "x");
        loop_until(p.base, &p.n_messages, 1);
        assert_int_equal(n, 1);
        assert_int_equal(count_fds(), before);
        peer_end(&p);
}

struct answer {
        unsigned n;
        int r;
        struct err e;
};

static void keep_answer(const struct rpc_result *res, void *arg) {
        struct answer *a = arg;

        a->n++;
        a->r = res->r;
        a->e = res->e;
}

/* Errors in forms that other servers use. */
static void test_odd_errors(void **state) {
        static const struct {
                const char *bytes;
                size_t len;
                const char *code, *message;
        } odd[] = {
                { "\x94\x01\x01\xa4gone\xc0", 9, ERR_INTERNAL, "gone" },
                { "\x94\x01\x02\x05\xc0", 5, ERR_INTERNAL, "refused without a reason" },
                { "\x94\x01\x03\x81\xa4"
                  "code\xa4"
                  "busy\xc0",
                  15, "busy", "refused without a reason" },
                { "\x94\x01\x04\x82\xa4"
                  "code\xa0\xa7message\xa0\xc0",
                  20, ERR_INTERNAL, "refused without a reason" },
                { "\x94\x01\x05\xa0\xc0", 5, ERR_INTERNAL, "refused without a reason" },
                { "\x94\x01\x06\x81\xa4"
                  "code\xd9\x1e"
                  "123456789012345678901234567890\xc0",
                  42, ERR_INTERNAL, "refused without a reason" },
        };
        struct peer p = { 0 };

        peer_start(&p);
        for (size_t i = 0; i < ARRAY_LEN(odd); i++) {
                struct answer a = { 0 };

                assert_ok(rpc_call(p.c, "x", NULL, NULL, 0, keep_answer, &a, NULL));
                peer_write(&p, odd[i].bytes, odd[i].len, NULL, 0);
                loop_until(p.base, &a.n, 1);
                assert_int_equal(a.r, -EREMOTEIO);
                assert_string_equal(a.e.code, odd[i].code);
                assert_string_equal(a.e.message, odd[i].message);
        }
        peer_end(&p);
}

/* ---- no protocol at all: told so, then hung up ---- */

static void test_garbage(void **state) {
        static const struct {
                const char *bytes;
                size_t len;
        } bad[] = {
                { "GET / HTTP/1.1\r\n", 16 },
                { "\xc1", 1 },         /* no MessagePack */
                { "\xd4\x01\x00", 3 }, /* ext */
                { "\x80", 1 },         /* no array */
                { "\x90", 1 },
                { "\x92\x00\x01", 3 },
                { "\x94\x03\x01\xa1x\x80", 6 }, /* no such type */
                { "\x94\xa1x\x01\xa1x\x80", 7 },
                { "\x93\x00\x01\xa1x", 5 },                                      /* a request of three */
                { "\x94\x02\x01\xa1x\x80", 6 },                                  /* a notification of four */
                { "\x94\x00\xff\xa1x\x80", 6 },                                  /* a negative id */
                { "\x94\x00\xcf\x00\x00\x00\x01\x00\x00\x00\x00\xa1x\x80", 14 }, /* beyond 32 bits */
                { "\x94\x00\xa1x\xa1x\x80", 7 },
                { "\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\xc0", 14 }, /* too deep */
        };

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                struct peer p = { 0 };

                peer_start(&p);
                peer_write(&p, bad[i].bytes, bad[i].len, NULL, 0);
                peer_expect_hangup(&p, true);
                assert_int_equal(p.close_r, -EBADMSG);
                assert_int_equal(p.n_messages, 0);
                peer_end(&p);
        }
}

/* Good messages before the bad one are served. */
static void test_garbage_after_good(void **state) {
        struct peer p = { 0 };

        peer_start(&p);
        WRITE_LIT(&p, "\x94\x00\x01\xa1x\x80\x94\x00\x02\xa1x\x80\xc1\x94\x00\x03\xa1x\x80");
        peer_expect(&p, 1, "");
        peer_expect(&p, 2, "");
        peer_expect_hangup(&p, true);
        assert_int_equal(p.n_messages, 2);
        peer_end(&p);
}

/* Refused when the header is there: nothing of that size is read or allocated. */
static void test_too_large(void **state) {
        static const struct {
                const char *bytes;
                size_t len;
        } bad[] = {
                { "\x94\x00\x01\xa1x\xdb\x00\x40\x00\x01", 10 },
                { "\x94\x00\x01\xa1x\xc6\xff\xff\xff\xff", 10 },
                { "\xdd\xff\xff\xff\xff", 5 },
                { "\xdf\xff\xff\xff\xff", 5 },
        };

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                struct peer p = { 0 };

                peer_start(&p);
                peer_write(&p, bad[i].bytes, bad[i].len, NULL, 0);
                peer_expect_hangup(&p, true);
                assert_int_equal(p.close_r, -EMSGSIZE);
                peer_end(&p);
        }
}

static void test_cut_message(void **state) {
        struct peer p = { 0 };

        peer_start(&p);
        WRITE_LIT(&p, "\x94\x00\x01\xa1x\xdb\x00\x10\x00\x00 not all of it");
        loop_once(p.base);
        p.fd = close_fd(p.fd);
        loop_until(p.base, &p.n_closed, 1);
        assert_int_equal(p.n_messages, 0);
        assert_int_equal(p.close_r, 0);
        peer_end(&p);
}

/* ---- descriptors ---- */

static ino_t inode(int fd) {
        struct stat st;

        assert_int_equal(fstat(fd, &st), 0);
        return st.st_ino;
}

static void want_own_fd(struct rpc_msg *m, struct peer *p) {
        uint64_t ino = 0;

        if (mp_get_u64(m->params, "ino", &ino) == 0) {
                assert_int_equal(m->n_fds, 1);
                assert_int_equal(inode(m->fds[0]), ino);
        }
        if (m->is_request)
                assert_ok(rpc_reply(m->conn, m->msgid, NULL, NULL, 0));
}

static void put_fd_request(struct mp_buf *b, uint32_t id, int fd) {
        cleanup_mp_buf struct mp_buf params = { 0 };

        mp_buf_init(&params);
        mp_map(&params, 2);
        mp_kv_u64(&params, "fds", 1);
        mp_kv_u64(&params, "ino", inode(fd));
        put_request(b, id, "own", &params);
}

/* A message brings a descriptor but cannot be used (or does not say that it brings one); then a good one comes
 * with its own. Whatever happens to the connection, the second never gets the first one's. */
static void test_descriptors_never_go_astray(void **state) {
        static const struct {
                const char *bytes;
                size_t len;
        } first[] = {
                { "\x94\x00\x01\xa0\x81\xa3"
                  "fds\x01",
                  10 }, /* no method, says 1 */
                { "\x94\x00\x01\xa1x\x92\x80\x81\xa3"
                  "fds\x01",
                  13 },                         /* params are no map */
                { "\x94\x00\x01\xa1x\x80", 6 }, /* says nothing */
                { "\x94\x00\x01\xa1x\x81\xa3"
                  "fds\xa1x",
                  12 }, /* says nonsense */
                { "\x94\x00\x01\xa1x\x81\xa3"
                  "fds\x00",
                  11 },                     /* says none */
                { "\x93\x02\xa1x\x05", 5 }, /* a notification */
                { "\x93\x02\xa1x\x80", 5 },
                { "\x94\x01\x05\xa1x\x81\xa3"
                  "fds\x01",
                  11 }, /* an answer nobody waits for */
                { "\x94\x01\x05\xa1x\xc0", 6 },
        };

        for (unsigned at_once = 0; at_once < 2; at_once++)
                for (size_t i = 0; i < ARRAY_LEN(first); i++) {
                        struct peer p = { .on_message = want_own_fd };
                        cleanup_mp_buf struct mp_buf b = { 0 };
                        int wrong = memfd_create("wrong", MFD_CLOEXEC), own = memfd_create("own", MFD_CLOEXEC);
                        unsigned before;

                        mp_buf_init(&b);
                        put_fd_request(&b, 2, own);
                        peer_start(&p);
                        before = count_fds();
                        peer_write(&p, first[i].bytes, first[i].len, &wrong, 1);
                        if (!at_once)
                                loop_once(p.base);
                        if (rpc_conn_is_open(p.c))
                                peer_write(&p, b.sb.data, b.sb.size, &own, 1);
                        loop_once(p.base);
                        loop_once(p.base);
                        /* Nothing is kept, be it that the connection was closed. */
                        assert_int_equal(count_fds(), before - !rpc_conn_is_open(p.c));
                        peer_end(&p);
                        (void) close(wrong);
                        (void) close(own);
                }
}

static void test_descriptors_promised(void **state) {
        struct peer p = { 0 };

        peer_start(&p);
        WRITE_LIT(&p, "\x94\x00\x01\xa1x\x81\xa3"
                      "fds\x01");
        peer_expect_hangup(&p, true);
        assert_int_equal(p.n_messages, 0);
        peer_end(&p);
}

static void test_too_many_descriptors(void **state) {
        int fds[IO_MAX_FDS];
        struct peer p = { 0 };
        unsigned before;

        for (size_t i = 0; i < IO_MAX_FDS; i++)
                fds[i] = STDERR_FILENO;
        peer_start(&p);
        before = count_fds();
        /* The first byte of a message, then more descriptors than may wait for its end. */
        peer_write(&p, "\x94", 1, fds, IO_MAX_FDS);
        loop_once(p.base);
        assert_int_equal(count_fds(), before + IO_MAX_FDS);
        peer_write(&p, "\x00", 1, fds, IO_MAX_FDS);
        peer_write(&p, "\x01", 1, fds, 1);
        peer_expect_hangup(&p, true);
        assert_int_equal(p.close_r, -EMSGSIZE);
        assert_int_equal(count_fds(), before - 1);
        peer_end(&p);
}

/* Half a message with a descriptor, then the end. */
static void test_descriptor_of_a_cut_message(void **state) {
        struct peer p = { 0 };
        unsigned before;

        peer_start(&p);
        before = count_fds();
        peer_write(&p, "\x94\x00", 2, (int[]){ STDERR_FILENO }, 1);
        loop_once(p.base);
        assert_int_equal(count_fds(), before + 1);
        p.fd = close_fd(p.fd);
        loop_until(p.base, &p.n_closed, 1);
        assert_int_equal(count_fds(), before - 2);
        peer_end(&p);
}

/* The peer stops reading for good and then sends what is no message: we hang up all the same. */
static void test_hangup_with_a_full_queue(void **state) {
        cleanup_free char *data = calloc(1, 1 << 20);
        struct peer p = { 0 };

        peer_start(&p);
        for (unsigned i = 0; i < 3; i++) {
                cleanup_mp_buf struct mp_buf b = { 0 };

                mp_buf_init(&b);
                mp_bin(&b, data, 1 << 20);
                assert_ok(rpc_notify(p.c, "n", &b, NULL, 0));
        }
        WRITE_LIT(&p, "\xc1");
        loop_until(p.base, &p.n_closed, 1);
        assert_int_equal(p.close_r, -EBADMSG);
        peer_end(&p);
}

static void keep_id(struct rpc_msg *m, struct peer *p) {
        if (p->n_messages == 1)
                *(uint32_t *) p->arg = m->msgid;
}

/* Requests without an answer yet are bounded; an answer makes room for one more. */
static void test_too_many_open_requests(void **state) {
        enum { MOST = 1024 };
        uint32_t first = 0;
        struct peer p = { .on_message = keep_id, .arg = &first };
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        for (uint32_t i = 1; i <= MOST + 1; i++)
                put_request(&b, i, "x", NULL);
        peer_start(&p);
        peer_write(&p, b.sb.data, b.sb.size, NULL, 0);
        peer_expect(&p, MOST + 1, ERR_LIMIT);
        assert_int_equal(p.n_messages, MOST);
        WRITE_LIT(&p, "\x93\x02\xa1n\x80"); /* notifications need no answer */
        loop_until(p.base, &p.n_messages, MOST + 1);
        peer_request(&p, 5000, "x");
        peer_expect(&p, 5000, ERR_LIMIT);
        assert_ok(rpc_reply(p.c, first, NULL, NULL, 0));
        peer_expect(&p, first, "");
        peer_request(&p, 5001, "x");
        loop_until(p.base, &p.n_messages, MOST + 2);
        peer_end(&p);
}

/* Random bytes, and good messages with random bytes in them, in random pieces. */
static void test_random_bytes(void **state) {
        struct rng r = { 42 };

        for (unsigned round = 0; round < 400; round++) {
                struct peer p = { 0 };
                cleanup_mp_buf struct mp_buf b = { 0 };
                size_t done = 0;

                mp_buf_init(&b);
                for (unsigned i = 0; i < 20; i++)
                        put_request(&b, i, "method", NULL);
                for (unsigned i = 0; i <= round % 4; i++)
                        b.sb.data[rng_below(&r, b.sb.size)] = (char) rng_next(&r);
                peer_start(&p);
                while (done < b.sb.size && rpc_conn_is_open(p.c)) {
                        size_t n = 1 + rng_below(&r, b.sb.size - done);

                        peer_write(&p, b.sb.data + done, n, NULL, 0);
                        done += n;
                        loop_once(p.base);
                }
                peer_end(&p);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_byte_by_byte),
                cmocka_unit_test(test_forms_of_params),
                cmocka_unit_test(test_wrong_params),
                cmocka_unit_test(test_method_length),
                cmocka_unit_test(test_answers_nobody_asked_for),
                cmocka_unit_test(test_odd_errors),
                cmocka_unit_test(test_garbage),
                cmocka_unit_test(test_garbage_after_good),
                cmocka_unit_test(test_too_large),
                cmocka_unit_test(test_cut_message),
                cmocka_unit_test(test_descriptors_never_go_astray),
                cmocka_unit_test(test_descriptors_promised),
                cmocka_unit_test(test_too_many_descriptors),
                cmocka_unit_test(test_descriptor_of_a_cut_message),
                cmocka_unit_test(test_hangup_with_a_full_queue),
                cmocka_unit_test(test_too_many_open_requests),
                cmocka_unit_test(test_random_bytes),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
