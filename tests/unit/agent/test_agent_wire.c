/* SPDX-License-Identifier: MIT */
/* The framing (every cut, garbage, nesting) and the messages (round trips, limits). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "agent/msg.h"
#include "agent/wire.h"
#include "common/ids.h"

#define EPOCH 0x0123456789abcdefull

static size_t encode(uint8_t *out, enum wire_type type, uint32_t seq, const void *payload, size_t len) {
        struct wire_frame f = { .type = type, .epoch = EPOCH, .seq = seq, .payload = payload, .len = len };
        size_t n = wire_encode(&f, out);

        assert_true(n <= WIRE_FRAME_LEN(len));
        assert_int_equal(out[0], 0);
        assert_int_equal(out[n - 1], 0);
        assert_null(memchr(out + 1, 0, n - 2));
        return n;
}

/* Feeds @len bytes in steps of @step and returns the frames; the last one is copied to *ret_last. */
static unsigned feed(struct wire_parser *p, const uint8_t *data, size_t len, size_t step, struct wire_frame *ret_last,
                     uint8_t *ret_payload) {
        unsigned frames = 0;

        while (len > 0) {
                size_t n = MIN_OF(step, len);
                const uint8_t *q = data;

                data += n;
                len -= n;
                while (wire_parser_feed(p, &q, &n, ret_last) == 1) {
                        frames++;
                        if (ret_payload && ret_last->len)
                                memcpy(ret_payload, ret_last->payload, ret_last->len);
                }
                assert_int_equal(n, 0);
        }
        return frames;
}

static void fill(uint8_t *p, size_t len, int pattern) {
        for (size_t i = 0; i < len; i++)
                p[i] = pattern == 0 ? 0 : pattern == 1 ? 0xff : pattern == 2 ? (uint8_t) i : 1;
        if (pattern == 4)
                random_bytes(p, len);
}

static void test_round_trip(void **state) {
        static uint8_t payload[WIRE_PAYLOAD_MAX], back[WIRE_PAYLOAD_MAX], out[WIRE_FRAME_MAX];
        struct wire_parser p = { 0 };
        struct wire_frame f;

        for (int pattern = 0; pattern < 5; pattern++)
                for (size_t len = 0; len <= WIRE_PAYLOAD_MAX; len += len < 800 ? 1 : 40961) {
                        size_t n;

                        fill(payload, len, pattern);
                        n = encode(out, WIRE_DATA, 7, payload, len);
                        assert_int_equal(feed(&p, out, n, n, &f, back), 1);
                        assert_int_equal(f.type, WIRE_DATA);
                        assert_int_equal(f.epoch, EPOCH);
                        assert_int_equal(f.seq, 7);
                        assert_int_equal(f.len, len);
                        assert_memory_equal(back, payload, len);
                }
        fill(payload, sizeof(payload), 4);
        assert_int_equal(feed(&p, out, encode(out, WIRE_DATA, 7, payload, sizeof(payload)), 4096, &f, back), 1);
        assert_memory_equal(back, payload, sizeof(payload));
        assert_int_equal(p.dropped, 0);
        wire_parser_clear(&p);
}

static void test_byte_by_byte(void **state) {
        uint8_t out[WIRE_FRAME_LEN(600)], payload[600], back[600];
        struct wire_parser p = { 0 };
        struct wire_frame f;

        for (size_t len = 0; len <= sizeof(payload); len += 37) {
                fill(payload, len, 4);
                assert_int_equal(feed(&p, out, encode(out, WIRE_PONG, 0, payload, len), 1, &f, back), 1);
                assert_memory_equal(back, payload, len);
        }
        wire_parser_clear(&p);
}

/* A frame cut after any byte, or missing any number of its first ones, never harms the next one. */
static void test_every_cut(void **state) {
        uint8_t out[2 * WIRE_FRAME_LEN(700)], payload[700], back[700];
        size_t first, second;

        fill(payload, sizeof(payload), 2);
        first = encode(out, WIRE_DATA, 1, payload, sizeof(payload));
        for (size_t cut = 0; cut < first; cut++) {
                struct wire_parser p = { 0 };
                struct wire_frame f;

                second = encode(out + cut, WIRE_WAKE, 0, payload + 3, 500);
                /* the closing zero is shared: without it alone the first frame is still whole */
                assert_int_equal(feed(&p, out, cut + second, 113, &f, back), cut == first - 1 ? 2 : 1);
                assert_int_equal(f.type, WIRE_WAKE);
                assert_memory_equal(back, payload + 3, 500);
                wire_parser_clear(&p);
                first = encode(out, WIRE_DATA, 1, payload, sizeof(payload));

                second = encode(out + first, WIRE_WAKE, 0, payload + 3, 500);
                assert_int_equal(feed(&p, out + cut, first - cut + second, 64, &f, back), cut == 0 || cut == 1 ? 2 : 1);
                assert_int_equal(f.type, WIRE_WAKE);
                wire_parser_clear(&p);
        }
}

/* A payload that holds a whole frame, cut in its middle: nothing inside of it is taken for a frame. */
static void test_nested_frame(void **state) {
        uint8_t inner[WIRE_FRAME_LEN(100)], out[WIRE_FRAME_LEN(sizeof(inner)) + WIRE_FRAME_LEN(8)], body[100] = { 1, 2, 3 };
        size_t n = encode(inner, WIRE_WAKE, 0, body, sizeof(body)), total;

        total = encode(out, WIRE_DATA, 0, inner, n);
        for (size_t cut = 2; cut < total - 1; cut++) {
                struct wire_parser p = { 0 };
                uint8_t cut_stream[sizeof(out) + WIRE_FRAME_LEN(8)];
                struct wire_frame f;
                size_t len;

                memcpy(cut_stream, out, cut);
                len = cut + encode(cut_stream + cut, WIRE_PING, 5, "12345678", 8);
                assert_int_equal(feed(&p, cut_stream, len, len, &f, NULL), 1);
                assert_int_equal(f.type, WIRE_PING);
                /* and with the beginning lost instead of the end */
                memcpy(cut_stream, out + cut, total - cut);
                len = total - cut + encode(cut_stream + total - cut, WIRE_PING, 5, "12345678", 8);
                assert_int_equal(feed(&p, cut_stream, len, len, &f, NULL), 1);
                assert_int_equal(f.type, WIRE_PING);
                wire_parser_clear(&p);
        }
}

static void test_every_bit_matters(void **state) {
        uint8_t out[WIRE_FRAME_LEN(40)], payload[40];
        struct wire_frame f;
        size_t n;

        fill(payload, sizeof(payload), 2);
        n = encode(out, WIRE_DATA, 1, payload, sizeof(payload));
        for (size_t i = 1; i < n - 1; i++)
                for (int bit = 0; bit < 8; bit++) {
                        struct wire_parser p = { 0 };

                        out[i] ^= (uint8_t) (1 << bit);
                        assert_int_equal(feed(&p, out, n, n, &f, NULL), 0);
                        assert_true(p.dropped > 0);
                        out[i] ^= (uint8_t) (1 << bit);
                        wire_parser_clear(&p);
                }
}

static void test_garbage_is_bounded(void **state) {
        static uint8_t junk[64 << 10];
        uint8_t out[WIRE_FRAME_LEN(4)];
        struct wire_parser p = { 0 };
        struct wire_frame f;

        memset(junk, 0xff, sizeof(junk));
        for (int i = 0; i < 64; i++)
                assert_int_equal(feed(&p, junk, sizeof(junk), sizeof(junk), &f, NULL), 0);
        assert_true(p.cap <= WIRE_RAW_MAX);
        random_bytes(junk, sizeof(junk));
        for (int i = 0; i < 64; i++)
                assert_int_equal(feed(&p, junk, sizeof(junk), 1000, &f, NULL), 0);
        assert_true(p.cap <= WIRE_RAW_MAX);
        assert_int_equal(feed(&p, out, encode(out, WIRE_PING, 0, "ping", 4), 1, &f, NULL), 1);
        wire_parser_clear(&p);
}

/* ---- messages ---- */

static int decode(struct mp_buf *b, enum wire_type type, struct wire_msg *ret) {
        struct wire_frame f = { .type = type, .payload = (const uint8_t *) b->sb.data, .len = b->sb.size };

        assert_false(b->failed);
        return wire_msg_decode(&f, ret);
}

static int transfer(const struct wire_msg *m, struct mp_buf *b, struct wire_msg *ret) {
        mp_buf_init(b);
        wire_msg_encode(m, b);
        return decode(b, m->type, ret);
}

static void test_wake_round_trip(void **state) {
        struct wire_msg m = { .type = WIRE_WAKE, .wake = { .kind = WIRE_WAKE_RESTORE, .realtime_ns = 1790000000123456789 } };
        struct wire_msg back;
        cleanup_mp_buf struct mp_buf b = { 0 };

        strcpy(m.wake.hostname, "clone-1.example");
        strcpy(m.wake.machine_id, "0123456789abcdef0123456789abcdef");
        random_bytes(m.wake.entropy, sizeof(m.wake.entropy));
        assert_int_equal(transfer(&m, &b, &back), 0);
        assert_memory_equal(&back.wake, &m.wake, sizeof(m.wake));
        wire_msg_clear(&back);
}

static void expect_bad_wake(const char *hostname, const char *machine_id) {
        struct wire_msg m = { .type = WIRE_WAKE }, back;
        cleanup_mp_buf struct mp_buf b = { 0 };

        strcpy(m.wake.hostname, hostname);
        strcpy(m.wake.machine_id, machine_id);
        assert_int_equal(transfer(&m, &b, &back), -EBADMSG);
}

static void test_wake_limits(void **state) {
        expect_bad_wake("a/b", "");
        expect_bad_wake("-a", "");
        expect_bad_wake(".", "");
        expect_bad_wake("a\nb", "");
        expect_bad_wake("", "0123456789ABCDEF0123456789abcdef");
        expect_bad_wake("", "0123");
}

static void test_ack_round_trip(void **state) {
        struct wire_msg m = { .type = WIRE_ACK, .ack = { .us = { 1, 2, 3, 4, 5 }, .n_warnings = 2 } }, back;
        cleanup_mp_buf struct mp_buf b = { 0 };

        strcpy(m.ack.version, "1.2");
        strcpy(m.ack.warnings[0], "clock: no");
        strcpy(m.ack.warnings[1], "\033[31mred\n");
        assert_int_equal(transfer(&m, &b, &back), 0);
        assert_int_equal(back.ack.n_warnings, 2);
        assert_int_equal(back.ack.us[WIRE_STEP_HOOKS], 5);
        assert_string_equal(back.ack.warnings[0], "clock: no");
        assert_string_equal(back.ack.warnings[1], "?[31mred?");
        wire_msg_clear(&back);
}

static void test_exec_round_trip(void **state) {
        const char *argv[] = { "sh", "-c", "echo \xff", "", NULL }, *env[] = { "A=1", "B=", NULL };
        struct wire_msg m = {
                .type = WIRE_EXEC,
                .call = 9,
                .exec = { .argv = argv, .env = env, .cwd = "/tmp", .tty = true, .rows = 50, .cols = 132, .timeout_ms = 1500 }
        };
        struct wire_msg back;
        cleanup_mp_buf struct mp_buf b = { 0 };

        assert_int_equal(transfer(&m, &b, &back), 0);
        assert_int_equal(back.call, 9);
        for (int i = 0; i < 4; i++)
                assert_string_equal(back.exec.argv[i], argv[i]);
        assert_null(back.exec.argv[4]);
        assert_string_equal(back.exec.env[1], "B=");
        assert_null(back.exec.env[2]);
        assert_string_equal(back.exec.cwd, "/tmp");
        assert_true(back.exec.tty && !back.exec.has_stdin);
        assert_int_equal(back.exec.cols, 132);
        assert_int_equal(back.exec.timeout_ms, 1500);
        wire_msg_clear(&back);
}

/* The largest command that the limits allow fits a frame. */
static void test_exec_largest(void **state) {
        static const char *argv[WIRE_ARGV_MAX + 1], *env[WIRE_ARGV_MAX + 1];
        struct wire_msg m = { .type = WIRE_EXEC, .call = UINT32_MAX, .exec = { .argv = argv, .env = env } }, back;
        cleanup_mp_buf struct mp_buf b = { 0 };
        char *big = malloc(WIRE_ARG_BYTES_MAX);
        size_t rest = WIRE_ARG_BYTES_MAX - (WIRE_ARGV_MAX - 1) * 2 - WIRE_ARGV_MAX * 3;

        memset(m.exec.cwd, '/', WIRE_PATH_MAX);
        memset(big, 'x', rest - 1);
        big[rest - 1] = '\0';
        for (size_t i = 0; i < WIRE_ARGV_MAX; i++) {
                argv[i] = "a";
                env[i] = "a=";
        }
        argv[5] = big;
        assert_int_equal(transfer(&m, &b, &back), 0);
        assert_true(b.sb.size <= WIRE_PAYLOAD_MAX);
        wire_msg_clear(&back);
        mp_buf_clear(&b);
        argv[5] = "aa";
        argv[6] = big; /* one byte more */
        assert_int_equal(transfer(&m, &b, &back), -EBADMSG);
        free(big);
}

static void test_exec_limits(void **state) {
        const char *none[] = { NULL }, *argv[] = { "x", NULL }, *env[] = { "novalue", NULL };
        struct wire_msg m = { .type = WIRE_EXEC, .call = 1, .exec = { .argv = none, .env = none, .cwd = "/" } }, back;
        cleanup_mp_buf struct mp_buf b = { 0 };

        assert_int_equal(transfer(&m, &b, &back), -EBADMSG);
        mp_buf_clear(&b);
        m.exec.argv = argv;
        m.exec.env = env;
        assert_int_equal(transfer(&m, &b, &back), -EBADMSG);
        mp_buf_clear(&b);
        m.exec.env = none;
        strcpy(m.exec.cwd, "relative");
        assert_int_equal(transfer(&m, &b, &back), -EBADMSG);
        mp_buf_clear(&b);
        strcpy(m.exec.cwd, "/");
        m.call = 0;
        assert_int_equal(transfer(&m, &b, &back), -EBADMSG);
}

static void test_small_messages(void **state) {
        static uint8_t data[WIRE_DATA_MAX + 1];
        struct wire_msg cases[] = {
                { .type = WIRE_PUT, .call = 1, .file = { .path = "/etc/x", .mode = 0755, .size = 77 } },
                { .type = WIRE_GET, .call = 1, .file = { .path = "/etc/x" } },
                { .type = WIRE_FILE, .call = 1, .file = { .mode = 0600, .size = 1 } },
                { .type = WIRE_DATA, .call = 1, .data = { .stream = 2, .data = data, .len = WIRE_DATA_MAX } },
                { .type = WIRE_EOF, .call = 1, .eof_stream = 1 },
                { .type = WIRE_CREDIT, .call = 1, .credit = { .stream = 1, .bytes = WIRE_CREDIT_INITIAL } },
                { .type = WIRE_RESIZE, .call = 1, .resize = { 40, 120 } },
                { .type = WIRE_SIGNAL, .call = 1, .signal = 15 },
                { .type = WIRE_CANCEL, .call = 1 },
                { .type = WIRE_PING, .ping = UINT64_MAX },
                { .type = WIRE_HELLO, .hello = { .version = "1", .boot_id = "b", .pid = 3 } },
                { .type = WIRE_DONE, .call = 1, .done = { .error = 2, .message = "no", .not_run = true, .bytes = 4 } },
        };

        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                cleanup_mp_buf struct mp_buf b = { 0 }, again = { 0 };
                struct wire_msg back;

                assert_int_equal(transfer(&cases[i], &b, &back), 0);
                /* decoded and encoded again it is the same message */
                mp_buf_init(&again);
                wire_msg_encode(&back, &again);
                assert_int_equal(again.sb.size, b.sb.size);
                assert_memory_equal(again.sb.data, b.sb.data, b.sb.size);
                wire_msg_clear(&back);
        }
}

static void test_small_limits(void **state) {
        static uint8_t data[WIRE_DATA_MAX + 1];
        struct wire_msg cases[] = {
                { .type = WIRE_PUT, .call = 1, .file = { .path = "etc/x", .mode = 0755, .size = 77 } },
                { .type = WIRE_PUT, .call = 1, .file = { .path = "/x", .mode = 0170755, .size = 77 } },
                { .type = WIRE_PUT, .call = 1, .file = { .path = "/x", .mode = 0755, .size = WIRE_FILE_MAX + 1 } },
                { .type = WIRE_DATA, .call = 1, .data = { .stream = 1, .data = data, .len = sizeof(data) } },
                { .type = WIRE_DATA, .call = 1, .data = { .stream = 1, .data = data, .len = 0 } },
                { .type = WIRE_DATA, .call = 1, .data = { .stream = 3, .data = data, .len = 1 } },
                { .type = WIRE_CREDIT, .call = 1, .credit = { .stream = 1, .bytes = 0 } },
                { .type = WIRE_CREDIT, .call = 1, .credit = { .stream = 1, .bytes = WIRE_CREDIT_INITIAL + 1 } },
                { .type = WIRE_SIGNAL, .call = 1, .signal = 65 },
                { .type = WIRE_SIGNAL, .call = 1, .signal = 0 },
                { .type = WIRE_DONE, .call = 1, .done = { .code = 256 } },
                { .type = WIRE_DONE, .call = 1, .done = { .error = 4096 } },
        };

        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
                cleanup_mp_buf struct mp_buf b = { 0 };
                struct wire_msg back;

                assert_int_equal(transfer(&cases[i], &b, &back), -EBADMSG);
        }
}

static void test_not_a_map(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct wire_msg back;

        mp_buf_init(&b);
        for (int t = 1; t < WIRE_N_TYPES; t++)
                assert_int_equal(decode(&b, (enum wire_type) t, &back), -EBADMSG);
        mp_array(&b, 0);
        for (int t = 1; t < WIRE_N_TYPES; t++)
                assert_int_equal(decode(&b, (enum wire_type) t, &back), -EBADMSG);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_round_trip),        cmocka_unit_test(test_byte_by_byte),
                cmocka_unit_test(test_every_cut),         cmocka_unit_test(test_nested_frame),
                cmocka_unit_test(test_every_bit_matters), cmocka_unit_test(test_garbage_is_bounded),
                cmocka_unit_test(test_wake_round_trip),   cmocka_unit_test(test_wake_limits),
                cmocka_unit_test(test_ack_round_trip),    cmocka_unit_test(test_exec_round_trip),
                cmocka_unit_test(test_exec_largest),      cmocka_unit_test(test_exec_limits),
                cmocka_unit_test(test_small_messages),    cmocka_unit_test(test_small_limits),
                cmocka_unit_test(test_not_a_map),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
