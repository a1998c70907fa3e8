/* SPDX-License-Identifier: MIT */
#include "agent/msg.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- small checks ---- */

void wire_printable(char *s) {
        for (; *s; s++)
                if (*s < 0x20 || *s > 0x7e)
                        *s = '?';
}

bool wire_machine_id_valid(const char *s) {
        return strlen(s) == WIRE_MACHINE_ID_LEN && strspn(s, "0123456789abcdef") == WIRE_MACHINE_ID_LEN;
}

static bool alnum(char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool wire_hostname_valid(const char *s) {
        size_t n = strlen(s);

        if (n == 0 || n > WIRE_HOSTNAME_MAX || !alnum(s[0]))
                return false;
        for (size_t i = 1; i < n; i++)
                if (!alnum(s[i]) && s[i] != '-' && s[i] != '.' && s[i] != '_')
                        return false;
        return true;
}

static bool has_call(enum wire_type t) {
        return t >= WIRE_EXEC && t <= WIRE_DONE;
}

/* ---- encoding ---- */

static size_t strv_len(const char *const *v) {
        size_t n = 0;

        while (v && v[n])
                n++;
        return n;
}

/* Arguments need not be UTF-8, so they travel as bin. */
static void kv_strv(struct mp_buf *b, const char *key, const char *const *v) {
        size_t n = strv_len(v);

        mp_key(b, key);
        mp_array(b, n);
        for (size_t i = 0; i < n; i++)
                mp_bin(b, v[i], strlen(v[i]));
}

static void kv_path(struct mp_buf *b, const char *key, const char *path) {
        mp_kv_bin(b, key, path, strlen(path));
}

static void encode_wake(const struct wire_wake *w, struct mp_buf *b) {
        mp_map(b, w->kind == WIRE_WAKE_RECONNECT ? 1 : 5);
        mp_kv_u64(b, "kind", w->kind);
        if (w->kind == WIRE_WAKE_RECONNECT)
                return;
        mp_kv_u64(b, "realtime_ns", w->realtime_ns);
        mp_kv_str(b, "hostname", w->hostname);
        mp_kv_str(b, "machine_id", w->machine_id);
        mp_kv_bin(b, "entropy", w->entropy, sizeof(w->entropy));
}

static void encode_ack(const struct wire_ack *a, struct mp_buf *b) {
        mp_map(b, 4);
        mp_kv_str(b, "version", a->version);
        mp_kv_str(b, "boot_id", a->boot_id);
        mp_key(b, "us");
        mp_array(b, WIRE_N_STEPS);
        for (size_t i = 0; i < WIRE_N_STEPS; i++)
                mp_u64(b, a->us[i]);
        mp_key(b, "warnings");
        mp_array(b, a->n_warnings);
        for (size_t i = 0; i < a->n_warnings; i++)
                mp_str(b, a->warnings[i]);
}

static void encode_exec(const struct wire_msg *m, struct mp_buf *b) {
        const struct wire_exec *x = &m->exec;

        mp_map(b, 9);
        mp_kv_u64(b, "call", m->call);
        kv_strv(b, "argv", x->argv);
        kv_strv(b, "env", x->env);
        kv_path(b, "cwd", x->cwd);
        mp_kv_bool(b, "tty", x->tty);
        mp_kv_bool(b, "stdin", x->has_stdin);
        mp_kv_u64(b, "rows", x->rows);
        mp_kv_u64(b, "cols", x->cols);
        mp_kv_u64(b, "timeout_ms", x->timeout_ms);
}

static void encode_done(const struct wire_msg *m, struct mp_buf *b) {
        const struct wire_done *d = &m->done;

        mp_map(b, 8);
        mp_kv_u64(b, "call", m->call);
        mp_kv_u64(b, "errno", (uint64_t) d->error);
        mp_kv_str(b, "message", d->message);
        mp_kv_bool(b, "not_run", d->not_run);
        mp_kv_bool(b, "signaled", d->signaled);
        mp_kv_bool(b, "timed_out", d->timed_out);
        mp_kv_u64(b, "code", (uint64_t) d->code);
        mp_kv_u64(b, "bytes", d->bytes);
}

/* Messages of a call that are a few numbers. */
static void encode_small(const struct wire_msg *m, struct mp_buf *b) {
        static const uint8_t n_keys[WIRE_N_TYPES] = {
                [WIRE_PUT] = 4,    [WIRE_GET] = 2,    [WIRE_FILE] = 3,   [WIRE_DATA] = 3,   [WIRE_EOF] = 2,
                [WIRE_CREDIT] = 3, [WIRE_RESIZE] = 3, [WIRE_SIGNAL] = 2, [WIRE_CANCEL] = 1,
        };

        mp_map(b, n_keys[m->type]);
        mp_kv_u64(b, "call", m->call);
        switch (m->type) {
        case WIRE_PUT:
        case WIRE_FILE:
                mp_kv_u64(b, "mode", m->file.mode);
                mp_kv_u64(b, "size", m->file.size);
                if (m->type == WIRE_FILE)
                        break;
                /* fall through */
        case WIRE_GET:
                kv_path(b, "path", m->file.path);
                break;
        case WIRE_DATA:
                mp_kv_u64(b, "stream", m->data.stream);
                mp_kv_bin(b, "data", m->data.data, m->data.len);
                break;
        case WIRE_EOF:
                mp_kv_u64(b, "stream", m->eof_stream);
                break;
        case WIRE_CREDIT:
                mp_kv_u64(b, "stream", m->credit.stream);
                mp_kv_u64(b, "bytes", m->credit.bytes);
                break;
        case WIRE_RESIZE:
                mp_kv_u64(b, "rows", m->resize.rows);
                mp_kv_u64(b, "cols", m->resize.cols);
                break;
        case WIRE_SIGNAL:
                mp_kv_u64(b, "signal", (uint64_t) m->signal);
                break;
        default:
                break;
        }
}

void wire_msg_encode(const struct wire_msg *m, struct mp_buf *b) {
        switch (m->type) {
        case WIRE_HELLO:
                mp_map(b, 3);
                mp_kv_str(b, "version", m->hello.version);
                mp_kv_str(b, "boot_id", m->hello.boot_id);
                mp_kv_u64(b, "pid", m->hello.pid);
                break;
        case WIRE_WAKE:
                encode_wake(&m->wake, b);
                break;
        case WIRE_ACK:
                encode_ack(&m->ack, b);
                break;
        case WIRE_PING:
        case WIRE_PONG:
                mp_map(b, 1);
                mp_kv_u64(b, "n", m->ping);
                break;
        case WIRE_EXEC:
                encode_exec(m, b);
                break;
        case WIRE_DONE:
                encode_done(m, b);
                break;
        default:
                encode_small(m, b);
                break;
        }
}

/* ---- decoding ---- */

static int get_ranged(const msgpack_object *map, const char *key, uint64_t min, uint64_t max, uint64_t *ret) {
        uint64_t v;

        if (mp_get_u64(map, key, &v) < 0 || v < min || v > max)
                return -EBADMSG;
        *ret = v;
        return 0;
}

static int get_stream(const msgpack_object *map, unsigned *ret) {
        uint64_t v;

        if (get_ranged(map, "stream", 0, WIRE_N_STREAMS - 1, &v) < 0)
                return -EBADMSG;
        *ret = (unsigned) v;
        return 0;
}

static int get_u16(const msgpack_object *map, const char *key, uint16_t *ret) {
        uint64_t v;

        if (get_ranged(map, key, 0, UINT16_MAX, &v) < 0)
                return -EBADMSG;
        *ret = (uint16_t) v;
        return 0;
}

/* An absolute path without NUL. */
static int get_path(const msgpack_object *map, const char *key, char *buf) {
        const void *data;
        size_t len;

        if (mp_get_bin(map, key, &data, &len) < 0 || len == 0 || len > WIRE_PATH_MAX)
                return -EBADMSG;
        if (*(const char *) data != '/' || memchr(data, 0, len))
                return -EBADMSG;
        memcpy(buf, data, len);
        buf[len] = '\0';
        return 0;
}

static int get_text(const msgpack_object *map, const char *key, char *buf, size_t size) {
        if (mp_get_str(map, key, buf, size) < 0)
                return -EBADMSG;
        wire_printable(buf);
        return 0;
}

static int decode_hello(const msgpack_object *map, struct wire_hello *h) {
        uint64_t pid;

        if (get_text(map, "version", h->version, sizeof(h->version)) < 0 ||
            get_text(map, "boot_id", h->boot_id, sizeof(h->boot_id)) < 0 || get_ranged(map, "pid", 0, UINT32_MAX, &pid) < 0)
                return -EBADMSG;
        h->pid = (uint32_t) pid;
        return 0;
}

static int decode_wake(const msgpack_object *map, struct wire_wake *w) {
        const void *entropy;
        uint64_t kind;
        size_t len;

        if (get_ranged(map, "kind", 0, WIRE_WAKE_RECONNECT, &kind) < 0)
                return -EBADMSG;
        w->kind = (enum wire_wake_kind) kind;
        if (w->kind == WIRE_WAKE_RECONNECT)
                return 0;
        if (get_ranged(map, "realtime_ns", 0, INT64_MAX, &w->realtime_ns) < 0 ||
            mp_get_str(map, "hostname", w->hostname, sizeof(w->hostname)) < 0 ||
            mp_get_str(map, "machine_id", w->machine_id, sizeof(w->machine_id)) < 0 ||
            mp_get_bin(map, "entropy", &entropy, &len) < 0 || len != WIRE_ENTROPY_LEN)
                return -EBADMSG;
        if ((w->hostname[0] && !wire_hostname_valid(w->hostname)) || (w->machine_id[0] && !wire_machine_id_valid(w->machine_id)))
                return -EBADMSG;
        memcpy(w->entropy, entropy, WIRE_ENTROPY_LEN);
        return 0;
}

static int decode_ack(const msgpack_object *map, struct wire_ack *a) {
        const msgpack_object *us = mp_get_array(map, "us"), *warnings = mp_get_array(map, "warnings");

        if (get_text(map, "version", a->version, sizeof(a->version)) < 0 ||
            get_text(map, "boot_id", a->boot_id, sizeof(a->boot_id)) < 0)
                return -EBADMSG;
        if (!us || us->via.array.size < WIRE_N_STEPS || !warnings || warnings->via.array.size > WIRE_MAX_WARNINGS)
                return -EBADMSG;
        for (size_t i = 0; i < WIRE_N_STEPS; i++) {
                if (us->via.array.ptr[i].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                        return -EBADMSG;
                a->us[i] = us->via.array.ptr[i].via.u64;
        }
        a->n_warnings = warnings->via.array.size;
        for (size_t i = 0; i < a->n_warnings; i++) {
                const msgpack_object *o = &warnings->via.array.ptr[i];

                if (o->type != MSGPACK_OBJECT_STR || o->via.str.size > WIRE_WARNING_MAX)
                        return -EBADMSG;
                memcpy(a->warnings[i], o->via.str.ptr, o->via.str.size);
                a->warnings[i][o->via.str.size] = '\0';
                wire_printable(a->warnings[i]);
        }
        return 0;
}

/* Adds up the bytes of an array of strings, each with its NUL; refuses what execve could not take. */
static int strv_measure(const msgpack_object *a, size_t *bytes) {
        if (!a || a->via.array.size > WIRE_ARGV_MAX)
                return -EBADMSG;
        for (uint32_t i = 0; i < a->via.array.size; i++) {
                const msgpack_object_bin *o = &a->via.array.ptr[i].via.bin;

                if (a->via.array.ptr[i].type != MSGPACK_OBJECT_BIN || (o->size && memchr(o->ptr, 0, o->size)))
                        return -EBADMSG;
                *bytes += (size_t) o->size + 1;
                if (*bytes > WIRE_ARG_BYTES_MAX)
                        return -EBADMSG;
        }
        return 0;
}

/* Lays the strings of @a out at *text, pointers to them at *ptr, and moves both on. */
static const char *const *strv_place(const msgpack_object *a, const char ***ptr, char **text) {
        const char **v = *ptr;

        for (uint32_t i = 0; i < a->via.array.size; i++) {
                const msgpack_object_bin *o = &a->via.array.ptr[i].via.bin;

                if (o->size)
                        memcpy(*text, o->ptr, o->size);
                (*text)[o->size] = '\0';
                *(*ptr)++ = *text;
                *text += o->size + 1;
        }
        *(*ptr)++ = NULL;
        return v;
}

static int decode_exec(const msgpack_object *map, struct wire_msg *m) {
        const msgpack_object *argv = mp_get_array(map, "argv"), *env = mp_get_array(map, "env");
        struct wire_exec *x = &m->exec;
        size_t bytes = 0, n_ptrs;
        const char **ptr;
        char *text;

        if (strv_measure(argv, &bytes) < 0 || strv_measure(env, &bytes) < 0 || argv->via.array.size == 0)
                return -EBADMSG;
        for (uint32_t i = 0; i < env->via.array.size; i++) {
                const msgpack_object_bin *o = &env->via.array.ptr[i].via.bin;

                if (o->size == 0 || o->ptr[0] == '=' || !memchr(o->ptr, '=', o->size))
                        return -EBADMSG;
        }
        if (get_path(map, "cwd", x->cwd) < 0 || mp_get_bool(map, "tty", &x->tty) < 0 ||
            mp_get_bool(map, "stdin", &x->has_stdin) < 0 || get_u16(map, "rows", &x->rows) < 0 ||
            get_u16(map, "cols", &x->cols) < 0 || get_ranged(map, "timeout_ms", 0, WIRE_TIMEOUT_MS_MAX, &x->timeout_ms) < 0)
                return -EBADMSG;

        n_ptrs = (size_t) argv->via.array.size + env->via.array.size + 2;
        m->strings = malloc(n_ptrs * sizeof(char *) + bytes);
        if (!m->strings)
                return -ENOMEM;
        ptr = m->strings;
        text = (char *) (ptr + n_ptrs);
        x->argv = strv_place(argv, &ptr, &text);
        x->env = strv_place(env, &ptr, &text);
        return 0;
}

static int decode_file(const msgpack_object *map, enum wire_type type, struct wire_file *f) {
        uint64_t mode;

        if (type != WIRE_FILE && get_path(map, "path", f->path) < 0)
                return -EBADMSG;
        if (type == WIRE_GET)
                return 0;
        if (get_ranged(map, "mode", 0, 07777, &mode) < 0 || get_ranged(map, "size", 0, WIRE_FILE_MAX, &f->size) < 0)
                return -EBADMSG;
        f->mode = (uint32_t) mode;
        return 0;
}

static int decode_done(const msgpack_object *map, struct wire_done *d) {
        uint64_t error, code;

        if (get_ranged(map, "errno", 0, 4095, &error) < 0 || get_ranged(map, "code", 0, 255, &code) < 0 ||
            get_ranged(map, "bytes", 0, WIRE_FILE_MAX, &d->bytes) < 0 ||
            get_text(map, "message", d->message, sizeof(d->message)) < 0 || mp_get_bool(map, "not_run", &d->not_run) < 0 ||
            mp_get_bool(map, "signaled", &d->signaled) < 0 || mp_get_bool(map, "timed_out", &d->timed_out) < 0)
                return -EBADMSG;
        d->error = (int) error;
        d->code = (int) code;
        return 0;
}

/* Messages of a call that are a few numbers. */
static int decode_small(const msgpack_object *map, struct wire_msg *m) {
        uint64_t v;

        switch (m->type) {
        case WIRE_DATA:
                if (get_stream(map, &m->data.stream) < 0 || mp_get_bin(map, "data", &m->data.data, &m->data.len) < 0 ||
                    m->data.len == 0 || m->data.len > WIRE_DATA_MAX)
                        return -EBADMSG;
                return 0;
        case WIRE_EOF:
                return get_stream(map, &m->eof_stream);
        case WIRE_CREDIT:
                if (get_stream(map, &m->credit.stream) < 0 || get_ranged(map, "bytes", 1, WIRE_CREDIT_INITIAL, &v) < 0)
                        return -EBADMSG;
                m->credit.bytes = (uint32_t) v;
                return 0;
        case WIRE_RESIZE:
                if (get_u16(map, "rows", &m->resize.rows) < 0 || get_u16(map, "cols", &m->resize.cols) < 0)
                        return -EBADMSG;
                return 0;
        case WIRE_SIGNAL:
                if (get_ranged(map, "signal", 1, 64, &v) < 0)
                        return -EBADMSG;
                m->signal = (int) v;
                return 0;
        case WIRE_CANCEL:
                return 0;
        default:
                return -EBADMSG;
        }
}

static int decode_typed(const msgpack_object *map, struct wire_msg *m) {
        switch (m->type) {
        case WIRE_HELLO:
                return decode_hello(map, &m->hello);
        case WIRE_WAKE:
                return decode_wake(map, &m->wake);
        case WIRE_ACK:
                return decode_ack(map, &m->ack);
        case WIRE_PING:
        case WIRE_PONG:
                return get_ranged(map, "n", 0, UINT64_MAX, &m->ping);
        case WIRE_EXEC:
                return decode_exec(map, m);
        case WIRE_PUT:
        case WIRE_GET:
        case WIRE_FILE:
                return decode_file(map, m->type, &m->file);
        case WIRE_DONE:
                return decode_done(map, &m->done);
        default:
                return decode_small(map, m);
        }
}

int wire_msg_decode(const struct wire_frame *f, struct wire_msg *ret) {
        cleanup_mp_doc struct mp_doc doc = { 0 };
        uint64_t call;
        int r;

        if (f->len > WIRE_PAYLOAD_MAX)
                return -EBADMSG;
        r = mp_parse(f->payload, f->len, &doc);
        if (r < 0)
                return r;
        if (doc.root.type != MSGPACK_OBJECT_MAP)
                return -EBADMSG;
        *ret = (struct wire_msg){ .type = f->type };
        if (has_call(f->type)) {
                if (get_ranged(&doc.root, "call", 1, UINT32_MAX, &call) < 0)
                        return -EBADMSG;
                ret->call = (uint32_t) call;
        }
        r = decode_typed(&doc.root, ret);
        if (r < 0)
                return r;
        ret->doc = doc;
        doc = (struct mp_doc){ 0 };
        return 0;
}

void wire_msg_clear(struct wire_msg *m) {
        mp_doc_clear(&m->doc);
        free(m->strings);
        m->strings = NULL;
}
