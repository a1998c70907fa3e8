/* SPDX-License-Identifier: MIT */
/* Calls made by coroutines: the answer's bytes and descriptors are kept until the coroutine takes them. */
#include <errno.h>
#include <string.h>

#include "common/rpc.h"

static void on_co_result(const struct rpc_result *res, void *arg) {
        struct rpc_co *call = arg;

        if (res->r < 0) {
                call->e = res->e;
                co_wake(&call->wait, res->r);
                return;
        }
        call->raw = malloc(res->raw_len + 1);
        if (!call->raw) {
                co_wake(&call->wait, err_errno(&call->e, -ENOMEM, "keeping the answer to %s", call->method));
                return;
        }
        if (res->raw_len)
                memcpy(call->raw, res->raw, res->raw_len);
        call->raw_len = res->raw_len;
        for (; call->n_fds < res->n_fds && call->n_fds < RPC_CO_MAX_FDS; call->n_fds++)
                call->fds[call->n_fds] = TAKE_FD(res->fds[call->n_fds]);
        co_wake(&call->wait, 0);
}

void rpc_answer_clear(struct rpc_answer *a) {
        mp_doc_clear(&a->doc);
        free(a->raw);
        for (size_t i = 0; i < a->n_fds; i++)
                (void) close_fd(a->fds[i]);
        *a = (struct rpc_answer){ 0 };
}

int rpc_co_begin(struct rpc_co *call, struct rpc_conn *c, const char *method, const struct mp_buf *params, const int *fds,
                 size_t n_fds, struct err *e) {
        int r;

        *call = (struct rpc_co){ .method = method };
        r = rpc_call(c, method, params, fds, n_fds, on_co_result, call, &call->msgid);
        if (r < 0)
                return err_errno(e, r, "sending %s", method);
        call->conn = rpc_conn_ref(c);
        return 0;
}

int rpc_co_end(struct rpc_co *call, int timeout_ms, struct rpc_answer *ret, struct err *e) {
        struct rpc_answer a = { 0 };
        int r;

        r = co_wait(&call->wait, timeout_ms);
        if (!call->wait.done) {
                rpc_call_cancel(call->conn, call->msgid);
                (void) err_set(&call->e, ERR_TIMEOUT, r, "no answer to %s within %d ms", call->method, timeout_ms);
        }
        rpc_conn_unref(call->conn);
        if (r < 0) {
                if (e)
                        *e = call->e;
                return r;
        }
        a.raw = call->raw;
        a.raw_len = call->raw_len;
        memcpy(a.fds, call->fds, sizeof(a.fds));
        a.n_fds = call->n_fds;
        r = mp_parse(a.raw, a.raw_len, &a.doc);
        if (r < 0) {
                rpc_answer_clear(&a);
                return err_errno(e, r, "reading the answer to %s", call->method);
        }
        if (ret)
                *ret = a;
        else
                rpc_answer_clear(&a);
        return 0;
}

int rpc_call_co(struct rpc_conn *c, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds, int timeout_ms,
                struct rpc_answer *ret, struct err *e) {
        struct rpc_co call;
        int r;

        r = rpc_co_begin(&call, c, method, params, fds, n_fds, e);
        return r < 0 ? r : rpc_co_end(&call, timeout_ms, ret, e);
}
