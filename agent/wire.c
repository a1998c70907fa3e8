/* SPDX-License-Identifier: MIT */
/* Frames on the byte stream; see wire.h for the format and why it is this one. */
#include "agent/wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define SUM_OFFSET 20
#define COBS_RUN 254 /* bytes that one code can announce; a full run implies no zero */

static void put_le(uint8_t *p, uint64_t v, size_t n) {
        for (size_t i = 0; i < n; i++)
                p[i] = (uint8_t) (v >> (8 * i));
}

static uint64_t get_le(const uint8_t *p, size_t n) {
        uint64_t v = 0;

        for (size_t i = 0; i < n; i++)
                v |= (uint64_t) p[i] << (8 * i);
        return v;
}

static uint32_t frame_sum(const uint8_t *header, const uint8_t *payload, size_t len) {
        /* never a NULL pointer into the hash, not even for no bytes */
        return XXH32(len ? payload : header, len, XXH32(header, SUM_OFFSET, 0));
}

/* ---- sending ---- */

/* The stuffing in progress: *code is where the current run's length goes. */
struct stuffer {
        uint8_t *out, *code;
        unsigned run;
};

static void stuffer_next(struct stuffer *s) {
        *s->code = (uint8_t) (s->run + 1);
        s->code = s->out++;
        s->run = 0;
}

static void stuffer_add(struct stuffer *s, const uint8_t *p, size_t len) {
        while (len > 0) {
                size_t n = MIN_OF(len, (size_t) (COBS_RUN - s->run));
                const uint8_t *zero = memchr(p, 0, n);

                if (zero)
                        n = (size_t) (zero - p);
                memcpy(s->out, p, n);
                s->out += n;
                s->run += (unsigned) n;
                p += n;
                len -= n;
                if (zero) {
                        stuffer_next(s);
                        p++;
                        len--;
                } else if (s->run == COBS_RUN) {
                        stuffer_next(s);
                }
        }
}

size_t wire_encode(const struct wire_frame *f, uint8_t *out) {
        uint8_t header[WIRE_HEADER_LEN] = { 0 };
        struct stuffer s = { .out = out };

        put_le(header, WIRE_MAGIC, 4);
        header[4] = WIRE_PROTOCOL;
        header[5] = (uint8_t) f->type;
        put_le(header + 8, f->epoch, 8);
        put_le(header + 16, f->seq, 4);
        put_le(header + SUM_OFFSET, frame_sum(header, f->payload, f->len), 4);

        *s.out++ = 0;
        s.code = s.out++;
        stuffer_add(&s, header, sizeof(header));
        stuffer_add(&s, f->payload, f->len);
        *s.code = (uint8_t) (s.run + 1);
        *s.out++ = 0;
        return (size_t) (s.out - out);
}

/* ---- receiving ---- */

static void parser_reset(struct wire_parser *p) {
        p->len = 0;
        p->left = 0;
        p->implied_zero = p->skip = p->out = false;
}

void wire_parser_clear(struct wire_parser *p) {
        free(p->raw);
        *p = (struct wire_parser){ 0 };
}

/* Room for n more bytes of the frame. The buffer grows with what has really arrived, never with a promise. */
static int parser_reserve(struct wire_parser *p, size_t n) {
        size_t cap = MAX_OF(p->cap, (size_t) 1024);
        uint8_t *raw;

        if (n > WIRE_RAW_MAX - p->len)
                return -EMSGSIZE;
        if (p->len + n <= p->cap)
                return 0;
        while (cap < p->len + n)
                cap *= 2;
        cap = MIN_OF(cap, (size_t) WIRE_RAW_MAX);
        raw = realloc(p->raw, cap);
        if (!raw)
                return -ENOMEM;
        p->raw = raw;
        p->cap = cap;
        return 0;
}

static int parser_append(struct wire_parser *p, const uint8_t *data, size_t n) {
        int r = parser_reserve(p, n);

        if (r < 0)
                return r;
        memcpy(p->raw + p->len, data, n);
        p->len += n;
        return 0;
}

/* Undoes the stuffing of bytes that hold no zero. */
static int parser_unstuff(struct wire_parser *p, const uint8_t *data, size_t len) {
        while (len > 0) {
                size_t n;
                int r;

                if (p->left == 0) {
                        if (p->implied_zero) {
                                r = parser_append(p, (const uint8_t[]){ 0 }, 1);
                                if (r < 0)
                                        return r;
                        }
                        p->left = *data - 1u;
                        p->implied_zero = *data <= COBS_RUN;
                        data++;
                        len--;
                        continue;
                }
                n = MIN_OF(len, (size_t) p->left);
                r = parser_append(p, data, n);
                if (r < 0)
                        return r;
                p->left -= (unsigned) n;
                data += n;
                len -= n;
        }
        return 0;
}

/* A zero was seen: is what came before it a frame? */
static bool parser_frame(const struct wire_parser *p, struct wire_frame *ret) {
        const uint8_t *h = p->raw;
        size_t len;

        if (p->skip || p->left != 0 || p->len < WIRE_HEADER_LEN)
                return false;
        len = p->len - WIRE_HEADER_LEN;
        if (get_le(h, 4) != WIRE_MAGIC || h[4] != WIRE_PROTOCOL || get_le(h + 6, 2) != 0)
                return false;
        if (h[5] == 0 || h[5] >= WIRE_N_TYPES)
                return false;
        if (get_le(h + SUM_OFFSET, 4) != frame_sum(h, h + WIRE_HEADER_LEN, len))
                return false;
        *ret = (struct wire_frame){
                .type = (enum wire_type) h[5],
                .epoch = get_le(h + 8, 8),
                .seq = (uint32_t) get_le(h + 16, 4),
                .payload = h + WIRE_HEADER_LEN,
                .len = len,
        };
        return true;
}

int wire_parser_feed(struct wire_parser *p, const uint8_t **data, size_t *len, struct wire_frame *ret) {
        int result = 0;

        if (p->out)
                parser_reset(p);
        while (*len > 0) {
                const uint8_t *zero = memchr(*data, 0, *len);
                size_t n = zero ? (size_t) (zero - *data) : *len;
                bool something = p->len > 0 || p->left > 0 || p->implied_zero || p->skip || n > 0;

                if (!p->skip && n > 0) {
                        int r = parser_unstuff(p, *data, n);

                        if (r < 0)
                                p->skip = true;
                        if (r == -ENOMEM)
                                result = r;
                }
                *data += n;
                *len -= n;
                if (!zero)
                        break;
                (*data)++;
                (*len)--;
                if (something && parser_frame(p, ret)) {
                        p->out = true; /* the payload must stay until the next call */
                        return 1;
                }
                if (something)
                        p->dropped++;
                parser_reset(p);
                if (result < 0)
                        return result;
        }
        return result;
}
