/* SPDX-License-Identifier: MIT */
/* Any peer: the bytes arrive in pieces, some with descriptors, at a connection with calls of its own under way,
 * whose handlers answer, refuse, close, drop it or start coroutines, as the input says.
 *
 *      input: seed (1 byte), actions (8 bytes), then the stream
 *
 * Checked: no descriptor is left or taken twice, every call ends at most once, nothing comes after the last
 * reference was dropped, on_close comes once at most, coroutines end. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/io.h"
#include "common/rpc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_BYTES 65536u
#define N_ACTIONS 8u
#define N_CALLS 3u

struct run {
        struct event_base *base;
        struct rpc_conn *c; /* our reference, NULL once dropped */
        int peer;
        uint64_t seed;
        const uint8_t *actions;
        unsigned n_actions, n_closed, ended[N_CALLS], cos;
        int taken[16];
        unsigned n_taken;
};

static void must(bool ok) {
        if (!ok)
                abort();
}

static unsigned below(struct run *x, unsigned n) {
        x->seed = x->seed * 6364136223846793005u + 1442695040888963407u;
        return (unsigned) (x->seed >> 33) % n;
}

static unsigned count_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        unsigned n = 0;

        must(d != NULL);
        while (readdir(d))
                n++;
        (void) closedir(d);
        return n;
}

static void on_result(const struct rpc_result *res, void *arg) {
        unsigned *ended = arg;

        must(++*ended == 1);
        must(res->r == 0 || res->r == -EREMOTEIO || res->r == -ECANCELED || res->r == -EBADMSG || res->r == -EMSGSIZE);
        if (res->r == 0) {
                cleanup_mp_doc struct mp_doc doc = { 0 };

                must(mp_parse(res->raw, res->raw_len, &doc) == 0);
        } else {
                must(res->e.code[0] && res->e.message[0]);
        }
}

static void coroutine(void *arg) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        struct run *x = arg;
        struct err e = { 0 };
        int r = rpc_call_co(x->c, "co", NULL, NULL, 0, 1, &a, &e);

        if (r == 0)
                must(a.n_fds <= RPC_CO_MAX_FDS);
        else
                must(e.code[0]);
        x->cos--;
}

static void drop(struct run *x) {
        rpc_conn_unref(TAKE_PTR(x->c));
}

static void on_message(struct rpc_msg *m, void *arg) {
        struct run *x = arg;
        cleanup_mp_doc struct mp_doc doc = { 0 };
        struct err e;

        must(x->c && m->conn == x->c && rpc_conn_is_open(x->c));
        must(m->method[0] && strlen(m->method) <= RPC_MAX_METHOD);
        must(!m->params || m->params->type == MSGPACK_OBJECT_MAP);
        must(mp_parse(m->raw_params, m->raw_params_len, &doc) == 0 && doc.root.type == MSGPACK_OBJECT_MAP);
        for (size_t i = 0; i < m->n_fds; i++)
                must(fcntl(m->fds[i], F_GETFD) == FD_CLOEXEC);
        switch (x->actions[x->n_actions++ % N_ACTIONS] % 8) {
        case 0:
        case 1:
                (void) rpc_reply(m->conn, m->msgid, NULL, NULL, 0);
                break;
        case 2:
                (void) err_set(&e, ERR_BUSY, -EBUSY, "no %s", m->method);
                (void) rpc_reply_err(m->conn, m->msgid, &e);
                break;
        case 3:
                if (m->n_fds > 0 && x->n_taken < ARRAY_LEN(x->taken))
                        x->taken[x->n_taken++] = TAKE_FD(m->fds[0]);
                break;
        case 4:
                x->cos++;
                if (co_start(x->base, coroutine, x) < 0)
                        x->cos--;
                break;
        case 5:
                rpc_conn_close(m->conn);
                must(!rpc_conn_is_open(m->conn));
                break;
        case 6:
                if (x->cos == 0)
                        drop(x);
                break;
        default:
                (void) rpc_reply(m->conn, m->msgid, NULL, m->fds, m->n_fds);
        }
}

static void on_close(struct rpc_conn *c, int r, void *arg) {
        struct run *x = arg;

        must(x->c == c && ++x->n_closed == 1 && r <= 0);
}

static void drain(struct run *x) {
        char buf[4096];
        int fds[IO_MAX_FDS];
        size_t n;

        do {
                n = IO_MAX_FDS;
                if (io_recv_fds(x->peer, buf, sizeof(buf), fds, &n) <= 0)
                        break;
                while (n > 0)
                        (void) close_fd(fds[--n]);
        } while (true);
}

static void turn(struct run *x) {
        (void) event_base_loop(x->base, EVLOOP_NONBLOCK);
        drain(x);
}

static void feed(struct run *x, const uint8_t *data, size_t size) {
        for (size_t done = 0; done < size;) {
                size_t want = 1 + below(x, below(x, 4) ? 12 : 4000), len = MIN_OF(want, size - done);
                int fds[3] = { STDERR_FILENO, STDERR_FILENO, STDERR_FILENO };
                ssize_t n = io_send_fds(x->peer, data + done, len, fds, below(x, 6) ? 0 : below(x, 4));

                if (n < 0 && n != -EAGAIN)
                        break;
                done += n > 0 ? (size_t) n : 0;
                if (n < 0 || below(x, 3))
                        turn(x);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static const struct rpc_handlers handlers = { .on_message = on_message, .on_close = on_close };
        struct run x = { 0 };
        unsigned before;
        int sv[2];

        if (size < 1 + N_ACTIONS || size > MAX_BYTES)
                return 0;
        before = count_fds();
        x.seed = data[0];
        x.actions = data + 1;
        x.base = event_base_new();
        must(x.base && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
        x.peer = sv[1];
        must(rpc_conn_new(x.base, sv[0], &handlers, &x, &x.c) == 0);
        for (unsigned i = 0; i < N_CALLS; i++) /* 1 … N_CALLS */
                must(rpc_call(x.c, "call", NULL, NULL, 0, on_result, &x.ended[i], NULL) == 0);
        feed(&x, data + 1 + N_ACTIONS, size - 1 - N_ACTIONS);
        turn(&x);
        x.peer = close_fd(x.peer);
        while (x.cos > 0) /* at most their timeout */
                (void) event_base_loop(x.base, EVLOOP_ONCE);
        /* One turn reads as far as the next descriptors. */
        for (size_t i = 0; x.c && !x.n_closed && i < size; i++)
                (void) event_base_loop(x.base, EVLOOP_NONBLOCK);
        if (x.c) {
                must(x.n_closed == 1);
                for (unsigned i = 0; i < N_CALLS; i++)
                        must(x.ended[i] == 1);
                drop(&x);
        }
        must(event_base_get_num_events(x.base, EVENT_BASE_COUNT_ADDED | EVENT_BASE_COUNT_ACTIVE) == 0);
        event_base_free(x.base);
        while (x.n_taken > 0)
                (void) close_fd(x.taken[--x.n_taken]);
        must(count_fds() == before);
        return 0;
}
