/* SPDX-License-Identifier: MIT */
/* The agent's wire: any byte stream, in pieces of any size, through the frame parser and the decoders of both
 * sides. What is decoded must survive being encoded and decoded again, and the stream must recover. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent/msg.h"
#include "agent/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_message(const struct wire_frame *f) {
        cleanup_mp_buf struct mp_buf once = { 0 }, twice = { 0 };
        struct wire_msg m, again;
        struct wire_frame g = *f;

        if (wire_msg_decode(f, &m) < 0)
                return;
        mp_buf_init(&once);
        mp_buf_init(&twice);
        wire_msg_encode(&m, &once);
        g.payload = (const uint8_t *) once.sb.data;
        g.len = once.sb.size;
        if (wire_msg_decode(&g, &again) < 0)
                abort();
        wire_msg_encode(&again, &twice);
        if (once.sb.size != twice.sb.size || memcmp(once.sb.data, twice.sb.data, once.sb.size) != 0)
                abort();
        wire_msg_clear(&again);
        wire_msg_clear(&m);
}

static unsigned feed(struct wire_parser *p, const uint8_t *data, size_t size, size_t step) {
        unsigned frames = 0;

        while (size > 0) {
                size_t n = MIN_OF(step, size);
                const uint8_t *q = data;
                struct wire_frame f;

                data += n;
                size -= n;
                while (wire_parser_feed(p, &q, &n, &f) != 0)
                        if (p->out) {
                                frames++;
                                if (f.len > WIRE_PAYLOAD_MAX || p->cap > WIRE_RAW_MAX)
                                        abort();
                                check_message(&f);
                        }
        }
        return frames;
}

/* The fuzzer cannot guess checksums: the same bytes as the payload of a good frame, of each type. */
static void feed_payload(struct wire_parser *p, const uint8_t *data, size_t size) {
        static uint8_t out[WIRE_FRAME_MAX];
        struct wire_frame f = { .epoch = 1, .payload = data + 1, .len = size - 1 };

        unsigned n;

        if (f.len > WIRE_PAYLOAD_MAX)
                return;
        f.type = (enum wire_type)(1 + data[0] % (WIRE_N_TYPES - 1));
        n = feed(p, out, wire_encode(&f, out), 1 + data[0]);
        if (n != 1 && n != 2)
                abort(); /* whatever came before, this frame is understood; its first byte may end another one */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct wire_parser whole = { 0 }, pieces = { 0 };

        if (size < 1)
                return 0;
        if (feed(&whole, data, size, size) != feed(&pieces, data, size, 1 + data[0] % 64))
                abort();
        feed_payload(&whole, data, size);
        wire_parser_clear(&whole);
        wire_parser_clear(&pieces);
        return 0;
}
