/* SPDX-License-Identifier: MIT */
/* Requests about pools. */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "forkd/api/request.h"
#include "forkd/pool/pool.h"

/* What cannot be a size is too large for one, and refused as that. */
static int get_unsigned(struct request *rq, const char *key, bool *ret_has, unsigned *ret, struct err *e) {
        uint64_t v;
        int r = rq_opt_u64(rq, key, UINT64_MAX, &v, e);

        if (r < 0)
                return r;
        *ret_has = mp_get(&rq->doc.root, key) != NULL;
        if (*ret_has)
                *ret = (unsigned) MIN_OF(v, (uint64_t) UINT_MAX);
        return 0;
}

struct params {
        struct pool_params p;
        char name[256], from[256], policy[32];
};

static int get_params(struct request *rq, struct params *ret, struct err *e) {
        struct pool_params *p = &ret->p;
        int r;

        *ret = (struct params){ .p = { .name = ret->name, .on_pager_loss = ret->policy } };
        r = rq_str(rq, "name", ret->name, sizeof(ret->name), e);
        if (r == 0)
                r = rq_opt_str(rq, "from", "", ret->from, sizeof(ret->from), e);
        if (r == 0)
                r = rq_opt_str(rq, "on_pager_loss", "kill", ret->policy, sizeof(ret->policy), e);
        if (r == 0)
                r = get_unsigned(rq, "size", &p->has_size, &p->sizes.size, e);
        if (r == 0)
                r = get_unsigned(rq, "min", &p->sizes.has_min, &p->sizes.min, e);
        if (r == 0)
                r = get_unsigned(rq, "max", &p->sizes.has_max, &p->sizes.max, e);
        if (r == 0)
                r = get_unsigned(rq, "idle_timeout_s", &p->has_idle_timeout, &p->sizes.idle_timeout_seconds, e);
        if (r == 0)
                r = rq_opt_bool(rq, "wait", false, &p->wait, e);
        if (r == 0 && ret->from[0])
                p->from = ret->from;
        return r;
}

int api_pool_create(struct request *rq, struct mp_buf *out, struct err *e) {
        struct params p;
        int r = get_params(rq, &p, e);

        if (r < 0)
                return r;
        if (!p.p.from || !p.p.has_size)
                return err_set(e, ERR_INVALID, -EINVAL, "a pool needs a snapshot (from) and a size");
        return pool_create(rq->d, &p.p, out, e);
}

int api_pool_set(struct request *rq, struct mp_buf *out, struct err *e) {
        struct params p;
        int r = get_params(rq, &p, e);

        if (r < 0)
                return r;
        if (mp_get(&rq->doc.root, "on_pager_loss"))
                return err_set(e, ERR_INVALID, -EINVAL, "what becomes of a pool's VMs without a pager is said when it is made");
        if (!p.p.from && !p.p.has_size && !p.p.sizes.has_min && !p.p.sizes.has_max && !p.p.has_idle_timeout && !p.p.wait)
                return err_set(e, ERR_INVALID, -EINVAL, "nothing is to be changed");
        return pool_set(rq->d, &p.p, out, e);
}

int api_pool_take(struct request *rq, struct mp_buf *out, struct err *e) {
        char pool[256], vm[256];
        struct pool_taken t = { 0 };
        int r = rq_str(rq, "name", pool, sizeof(pool), e);

        if (r == 0)
                r = rq_opt_str(rq, "vm", "", vm, sizeof(vm), e);
        if (r == 0)
                r = pool_take(rq->d, pool, vm, &t, e);
        if (r < 0)
                return r;
        mp_map(out, 5);
        mp_kv_str(out, "name", t.name);
        mp_kv_str(out, "id", t.id);
        mp_kv_u64(out, "pid", (uint64_t) t.pid);
        mp_kv_double(out, "take_ms", t.take_ms);
        mp_kv_bool(out, "warm", t.warm);
        return 0;
}

int api_pool_list(struct request *rq, struct mp_buf *out, struct err *e) {
        const struct pool *p;

        mp_map(out, 1);
        mp_key(out, "pools");
        mp_array(out, pools_count(rq->d));
        for (p = pools_first(rq->d); p; p = pools_next(p))
                pool_encode(p, out);
        return 0;
}

int api_pool_rm(struct request *rq, struct mp_buf *out, struct err *e) {
        unsigned members = 0;
        char name[256];
        int r = rq_str(rq, "name", name, sizeof(name), e);

        if (r == 0)
                r = pool_remove(rq->d, name, &members, e);
        if (r < 0)
                return r;
        mp_map(out, 2);
        mp_kv_str(out, "name", name);
        mp_kv_u64(out, "removed", members);
        return 0;
}
