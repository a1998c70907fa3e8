/* SPDX-License-Identifier: MIT */
/* A request's parameters, with the error a person can use. */
#include <errno.h>
#include <string.h>

#include "forkd/api/request.h"
#include "forkd/pool/pool.h"

static int bad_param(const char *key, int r, struct err *e) {
        if (r == -ENOENT)
                return err_set(e, ERR_INVALID, -EINVAL, "the parameter '%s' is missing", key);
        return err_set(e, ERR_INVALID, -EINVAL,
                       r == -ENAMETOOLONG ? "the parameter '%s' is too long" : "the parameter '%s' has the wrong type", key);
}

int rq_str(struct request *rq, const char *key, char *buf, size_t size, struct err *e) {
        int r = mp_get_str(&rq->doc.root, key, buf, size);

        return r < 0 ? bad_param(key, r, e) : 0;
}

int rq_opt_str(struct request *rq, const char *key, const char *def, char *buf, size_t size, struct err *e) {
        int r = mp_get_str(&rq->doc.root, key, buf, size);

        if (r == -ENOENT) {
                (void) snprintf(buf, size, "%s", def);
                return 0;
        }
        return r < 0 ? bad_param(key, r, e) : 0;
}

int rq_opt_u64(struct request *rq, const char *key, uint64_t def, uint64_t *ret, struct err *e) {
        int r;

        *ret = def;
        r = mp_get_u64(&rq->doc.root, key, ret);
        return r < 0 && r != -ENOENT ? bad_param(key, r, e) : 0;
}

int rq_opt_bool(struct request *rq, const char *key, bool def, bool *ret, struct err *e) {
        int r;

        *ret = def;
        r = mp_get_bool(&rq->doc.root, key, ret);
        return r < 0 && r != -ENOENT ? bad_param(key, r, e) : 0;
}

int rq_obj_str(const msgpack_object *o, char *buf, size_t size) {
        if (o->type != MSGPACK_OBJECT_STR || o->via.str.size >= size ||
            (o->via.str.size && memchr(o->via.str.ptr, 0, o->via.str.size)))
                return -EINVAL;
        if (o->via.str.size)
                memcpy(buf, o->via.str.ptr, o->via.str.size);
        buf[o->via.str.size] = '\0';
        return 0;
}

int rq_opt_array(struct request *rq, const char *key, const msgpack_object **ret, struct err *e) {
        const msgpack_object *o = mp_get(&rq->doc.root, key);

        if (o && o->type != MSGPACK_OBJECT_ARRAY)
                return bad_param(key, -EBADMSG, e);
        *ret = o;
        return 0;
}

int rq_any_vm(struct request *rq, struct vm **ret, struct err *e) {
        char name[256];
        int r = rq_str(rq, "name", name, sizeof(name), e);

        return r < 0 ? r : vm_find(rq->d, name, ret, e);
}

int rq_vm(struct request *rq, struct vm **ret, struct err *e) {
        struct vm *vm;
        int r = rq_any_vm(rq, &vm, e);

        if (r == 0)
                r = pool_check_free(vm, e);
        if (r == 0)
                *ret = vm;
        return r;
}
