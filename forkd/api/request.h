/* SPDX-License-Identifier: MIT */
/* One request of a client on its way through forkd: parsed parameters, kept for as long as its coroutine runs. */
#pragma once

#include "common/err.h"
#include "common/mp.h"
#include "common/rpc.h"
#include "forkd/api/account.h"
#include "forkd/api/caller.h"
#include "forkd/daemon.h"

struct request {
        struct daemon *d;
        struct rpc_conn *conn;   /* a reference, as are the next two */
        struct caller *caller;   /* who asks */
        struct account *account; /* who pays */
        uint32_t msgid;
        const struct api_method *method;
        void *raw; /* what doc points into */
        size_t raw_len;
        struct mp_doc doc;
        int fds[2];
        size_t n_fds;
};

/** Fills @out with the result. 0: done; -errno with @e: refused; REQUEST_TAKEN: the handler answers by itself
 *  later (streams). Runs in a coroutine of its own. */
typedef int api_handler(struct request *rq, struct mp_buf *out, struct err *e);
#define REQUEST_TAKEN 1

/* The least that one must be to use a method. Who leaves it out gets the narrower one. */
enum api_right {
        API_ROOT,
        API_MEMBER, /* of the group in forkd's configuration */
};

struct api_method {
        const char *name;
        api_handler *fn;
        enum api_right right;
};

/* Parameters, with the error a person can use. */
int rq_str(struct request *rq, const char *key, char *buf, size_t size, struct err *e) attr_warn_unused; /* required */
int rq_opt_str(struct request *rq, const char *key, const char *def, char *buf, size_t size, struct err *e) attr_warn_unused;
int rq_opt_u64(struct request *rq, const char *key, uint64_t def, uint64_t *ret, struct err *e) attr_warn_unused;
int rq_opt_bool(struct request *rq, const char *key, bool def, bool *ret, struct err *e) attr_warn_unused;
/** NULL when it is absent. */
int rq_opt_array(struct request *rq, const char *key, const msgpack_object **ret, struct err *e) attr_warn_unused;
/** An element of such an array as a string without NULs: -EINVAL. */
int rq_obj_str(const msgpack_object *o, char *buf, size_t size) attr_warn_unused;
/** The VM that "name" names, to be used: one that waits in a pool is refused. */
int rq_vm(struct request *rq, struct vm **ret, struct err *e) attr_warn_unused;
/** The same to be looked at: any. */
int rq_any_vm(struct request *rq, struct vm **ret, struct err *e) attr_warn_unused;

/* Handlers by subject; api.c has the table. */
api_handler api_vm_run, api_vm_list, api_vm_inspect, api_vm_standby, api_vm_restore, api_vm_fork, api_vm_pause, api_vm_resume,
        api_vm_stop, api_vm_rm, api_vm_logs, api_vm_ping;
api_handler api_orphans;
api_handler api_pool_create, api_pool_set, api_pool_take, api_pool_list, api_pool_rm;
api_handler api_vm_exec, api_vm_put, api_vm_get;
api_handler api_snapshot_list, api_snapshot_show, api_snapshot_create, api_snapshot_rm, api_snapshot_verify, api_snapshot_memory;
