/* SPDX-License-Identifier: MIT */
/* Pools' records: one msgpack map each in <state>/pools/<name>, replaced atomically. Unlike a living VM a pool is there after a
 * crash of the host, so it is synced: that is once in its life, and once a change. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/pool/internal.h"

#define RECORD_VERSION 1

int pool_record_encode(const struct pool *p, struct mp_buf *b) {
        mp_map(b, 10);
        mp_kv_u64(b, "version", RECORD_VERSION);
        mp_kv_str(b, "name", p->name);
        mp_kv_str(b, "from", p->from);
        mp_kv_str(b, "on_pager_loss", p->on_pager_loss);
        mp_kv_u64(b, "size", p->sizes.size);
        mp_key(b, "min");
        if (p->sizes.has_min)
                mp_u64(b, p->sizes.min);
        else
                mp_nil(b);
        mp_key(b, "max");
        if (p->sizes.has_max)
                mp_u64(b, p->sizes.max);
        else
                mp_nil(b);
        mp_kv_u64(b, "idle_timeout_s", p->sizes.idle_timeout_seconds);
        mp_kv_bool(b, "removing", p->removing);
        mp_kv_i64(b, "created_ns", p->created_ns);
        return b->failed ? -ENOMEM : 0;
}

static int get_unsigned(const msgpack_object *m, const char *key, unsigned *ret) {
        uint64_t v;

        if (mp_get_u64(m, key, &v) < 0 || v > UINT_MAX)
                return -EBADMSG;
        *ret = (unsigned) v;
        return 0;
}

static int get_sizes(const msgpack_object *m, struct pool_sizes *ret) {
        struct pool_sizes s = { 0 };
        const msgpack_object *min = mp_get(m, "min"), *max = mp_get(m, "max");
        int r;

        if (!min || !max)
                return -EBADMSG;
        s.has_min = min->type != MSGPACK_OBJECT_NIL;
        s.has_max = max->type != MSGPACK_OBJECT_NIL;
        r = get_unsigned(m, "size", &s.size);
        if (r == 0)
                r = get_unsigned(m, "idle_timeout_s", &s.idle_timeout_seconds);
        if (r == 0 && s.has_min)
                r = get_unsigned(m, "min", &s.min);
        if (r == 0 && s.has_max)
                r = get_unsigned(m, "max", &s.max);
        if (r == 0 && pool_sizes_check(&s, NULL) < 0)
                r = -EBADMSG;
        if (r == 0)
                *ret = s;
        return r;
}

static int decode(const msgpack_object *m, struct pool *p) {
        uint64_t version;

        if (mp_get_u64(m, "version", &version) < 0)
                return -EBADMSG;
        if (version != RECORD_VERSION)
                return -EPROTONOSUPPORT;
        if (mp_get_str(m, "name", p->name, sizeof(p->name)) < 0 || !name_valid(p->name) ||
            mp_get_str(m, "from", p->from, sizeof(p->from)) < 0 || !id_valid(p->from) ||
            mp_get_str(m, "on_pager_loss", p->on_pager_loss, sizeof(p->on_pager_loss)) < 0 ||
            vm_check_policy(p->on_pager_loss, NULL) < 0 || mp_get_bool(m, "removing", &p->removing) < 0 ||
            mp_get_i64(m, "created_ns", &p->created_ns) < 0)
                return -EBADMSG;
        return get_sizes(m, &p->sizes);
}

int pool_record_decode(const void *data, size_t len, struct pool *p) {
        cleanup_mp_doc struct mp_doc doc = { 0 };
        int r = mp_parse(data, len, &doc);

        return r < 0 ? r : decode(&doc.root, p);
}

static int record_path(const struct pool *p, char *buf, size_t size) {
        int n = snprintf(buf, size, "%s/pools/%s", p->d->state_dir, p->name);

        return n < 0 || (size_t) n >= size ? -ENAMETOOLONG : 0;
}

int pool_record_save(struct pool *p, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        char path[PATH_MAX];
        int r;

        mp_buf_init(&b);
        r = pool_record_encode(p, &b);
        if (r == 0)
                r = record_path(p, path, sizeof(path));
        if (r == 0)
                r = io_write_file_atomic(AT_FDCWD, path, b.sb.data, b.sb.size, 0600, true);
        return r < 0 ? err_errno(e, r, "writing the record of pool '%s'", p->name) : 0;
}

int pool_record_remove(struct pool *p, struct err *e) {
        char path[PATH_MAX];
        int r = record_path(p, path, sizeof(path));

        if (r == 0 && unlink(path) < 0 && errno != ENOENT)
                r = -errno;
        return r < 0 ? err_errno(e, r, "removing the record of pool '%s'", p->name) : 0;
}
