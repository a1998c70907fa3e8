/* SPDX-License-Identifier: MIT */
/* Everything a QEMU can say: as one line, as a stream on a live connection with calls under way, as the layout
 * file, as its log. The stream decides by its first byte how it is cut into pieces. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "forkd/vmm/qemu.h"

#define MAX_INPUT 65536u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct session {
        struct event_base *base;
        struct qmp *q;
        int peer;
};

static void on_event(const char *name, const json_t *data, void *arg) {
        (void) json_is_true(json_object_get(data, "guest"));
}

static const struct qmp_handlers handlers = { .on_event = on_event };

static void client(void *arg) {
        struct session *s = arg;
        struct qmp_watch w cleanup_qmp_watch = { 0 };
        cleanup_json json_t *result = NULL, *data = NULL;
        struct err e;

        if (qmp_handshake(s->q, 1000, &e) < 0)
                return;
        qmp_watch_begin(s->q, &w, "MIGRATION", NULL);
        if (qmp_call(s->q, "query-status", NULL, 1000, &result, &e) == 0)
                (void) !qmp_watch_wait(&w, 1000, &data, &e);
}

static void feed(struct session *s, const uint8_t *data, size_t size) {
        size_t chunk = size > 0 ? (size_t) data[0] + 1 : 1;

        for (size_t off = 0; off < size; off += chunk) {
                size_t n = MIN_OF(chunk, size - off);

                if (send(s->peer, data + off, n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
                        break;
                (void) event_base_loop(s->base, EVLOOP_NONBLOCK);
        }
        s->peer = close_fd(s->peer);
        while (co_alive() > 0)
                (void) event_base_loop(s->base, EVLOOP_ONCE);
}

static void as_stream(const uint8_t *data, size_t size) {
        static struct event_base *base;
        struct session s;
        int sv[2];

        if (!base)
                base = event_base_new();
        if (!base || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
                abort();
        s = (struct session){ .base = base, .peer = sv[1] };
        if (qmp_new(base, sv[0], &handlers, &s, &s.q) < 0 || co_start(base, client, &s) < 0)
                abort();
        feed(&s, data, size);
        qmp_free(s.q);
}

static void as_line(const char *text, size_t size) {
        struct qmp_msg m;
        const char *why;

        if (qmp_parse(text, size, &m, &why) == 0)
                qmp_msg_clear(&m);
}

static void as_layout(const char *text, size_t size) {
        struct vmm_region r[8];
        size_t n;
        int fd = 0;

        if (qemu_layout_uffd(text, size, &fd) == 0 && fd < 0)
                abort();
        if (qemu_layout_parse(text, size, 1u << 20, r, 8, &n) < 0)
                return;
        for (size_t i = 0; i < n; i++)
                if (r[i].offset + r[i].size > 1u << 20)
                        abort();
}

static void as_log(char *text, size_t size) {
        char out[100];

        if (strlen(qemu_log_pick(text, size, out, sizeof(out))) >= sizeof(out))
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        char *copy;

        if (size > MAX_INPUT)
                return 0;
        copy = malloc(size + 1);
        if (!copy)
                return 0;
        memcpy(copy, data, size);
        copy[size] = '\0';
        as_line(copy, size);
        as_layout(copy, size);
        as_stream(data, size);
        as_log(copy, size);
        free(copy);
        return 0;
}
