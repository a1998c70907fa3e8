/* SPDX-License-Identifier: MIT */
/* What a worker can do. Each method blocks as long as it takes; a worker has one caller, who waits.
 *
 * A snapshot is three calls, so that forkd can pause the guest as late and as shortly as possible:
 *      snap.prepare   before the pause: temporary directory, reflink of the parent's image
 *      snap.copy      during it: dirty pages are read, disks reflinked (while the VMM writes its device state)
 *      snap.publish   after it: the pages compressed and written, device state, manifest, sync, rename
 * If the pager copies the memory of a guest that runs on, snap.copy is two:
 *      snap.still     during the pause: what the guest has discarded is noted, disks reflinked
 *      snap.pages     when all pages are in the memfd that comes with it: they are compressed and written
 * Compressing beside the VMM's device state would be done sooner, but on a small host makes the pause longer.
 * The connection's end, at any time, removes what was not published. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/vm/dirty.h"
#include "forkd/worker/worker.h"
#include "forkd/worker/worker_disk.h"
#include "forkd/worker/worker_workingset.h"
#include "setup/setup.h"
#include "setup/store_mount.h"
#include "snapstore/store.h"

#define MAX_REGIONS 64
#define MAX_REMOVED_RANGES (1u << 20)
#define MAX_PATH 1024
#define MAX_VERIFY_ERRORS 50

struct job {
        struct event_base *base;
        struct rpc_conn *conn;
        /* the snapshot under way */
        struct snap_store *store;
        struct snap_txn *txn;
        struct snap_writer *writer;
        int image_fd;
        struct dirty_buf *dirty; /* kept from snapshot to snapshot */
        bool still, pages_read;
        int reply_fd; /* goes with the next answer; -1 */
};

static void job_reset(struct job *j) {
        if (j->dirty)
                dirty_buf_clear(j->dirty);
        j->still = j->pages_read = false;
        snap_writer_free(TAKE_PTR(j->writer));
        j->image_fd = close_fd(j->image_fd);
        snap_txn_free(TAKE_PTR(j->txn));
        snap_store_close(TAKE_PTR(j->store));
}

static int get_store(const msgpack_object *p, struct snap_store **ret, struct err *e) {
        char path[MAX_PATH];
        int r = mp_get_str(p, "store", path, sizeof(path));

        if (r == 0)
                r = snap_store_open(path, ret);
        return r < 0 ? err_errno(e, r, "opening the snapshot store") : 0;
}

static int get_id_param(const msgpack_object *p, id_str ret, struct err *e) {
        int r = mp_get_str(p, "id", ret, sizeof(id_str));

        return r < 0 || !id_valid(ret) ? err_set(e, ERR_INVALID, -EINVAL, "not a snapshot id") : 0;
}

/* ---- making a snapshot ---- */

static int get_regions(const msgpack_object *p, struct vmm_region *regions, size_t *ret_n) {
        const msgpack_object *a = mp_get_array(p, "regions");

        if (!a || a->via.array.size == 0 || a->via.array.size > MAX_REGIONS)
                return -EINVAL;
        for (uint32_t i = 0; i < a->via.array.size; i++) {
                const msgpack_object *o = &a->via.array.ptr[i];

                if (mp_get_u64(o, "addr", &regions[i].host_addr) < 0 || mp_get_u64(o, "size", &regions[i].size) < 0 ||
                    mp_get_u64(o, "offset", &regions[i].offset) < 0)
                        return -EINVAL;
        }
        *ret_n = a->via.array.size;
        return 0;
}

/* For the room that it will take. A guest that cannot be looked at now is told of by snap.copy. */
static uint64_t count_dirty(const msgpack_object *p) {
        struct vmm_region regions[MAX_REGIONS];
        uint64_t pid, pages;
        size_t n;

        if (mp_get_u64(p, "pid", &pid) < 0 || get_regions(p, regions, &n) < 0 || dirty_count((pid_t) pid, regions, n, &pages) < 0)
                return 0;
        return pages;
}

static int do_prepare(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        struct snap_writer_params wp = { 0 };
        uint64_t codec = 0, level = 0;
        id_str id;
        int r;

        job_reset(j);
        r = get_id_param(m->params, id, e);
        if (r < 0)
                return r;
        r = get_store(m->params, &j->store, e);
        if (r < 0)
                return r;
        (void) mp_get_u64(m->params, "codec", &codec);
        (void) mp_get_u64(m->params, "level", &level);
        wp.codec = (enum snap_codec) codec;
        wp.level = (int) level;
        if (mp_get_u64(m->params, "ram_bytes", &wp.ram_bytes) < 0)
                return err_set(e, ERR_INVALID, -EINVAL, "snap.prepare without ram_bytes");
        r = j->dirty ? 0 : dirty_buf_new(&j->dirty);
        if (r == 0)
                r = snap_txn_begin(j->store, id, &j->txn);
        if (r == 0)
                r = snap_txn_create_image(j->txn, &j->image_fd);
        if (r == 0)
                r = snap_writer_new(j->image_fd, m->n_fds > 0 ? m->fds[0] : -1, &wp, &j->writer);
        if (r < 0)
                return err_errno(e, r, "beginning snapshot %s", id);
        mp_map(out, 1);
        mp_kv_u64(out, "dirty_pages", count_dirty(m->params));
        return 0;
}

static int get_removed(const msgpack_object *p, struct dirty_range **ret, size_t *ret_n) {
        const msgpack_object *a = mp_get_array(p, "removed");
        size_t n = a ? a->via.array.size : 0;
        cleanup_free struct dirty_range *all = NULL;

        if (n > MAX_REMOVED_RANGES)
                return -EINVAL;
        all = calloc(n + 1, sizeof(*all));
        if (!all)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                const msgpack_object *o = &a->via.array.ptr[i];

                if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 2 ||
                    o->via.array.ptr[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
                    o->via.array.ptr[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                        return -EINVAL;
                all[i] = (struct dirty_range){ o->via.array.ptr[0].via.u64, o->via.array.ptr[1].via.u64 };
        }
        *ret = TAKE_PTR(all);
        *ret_n = n;
        return 0;
}

/* What a VMM's memory and disks are like while its guest stands still. */
struct source {
        pid_t pid;
        struct vmm_region regions[MAX_REGIONS];
        size_t n_regions;
};

static int get_source(const msgpack_object *p, struct source *ret) {
        uint64_t pid;

        if (get_regions(p, ret->regions, &ret->n_regions) < 0 || mp_get_u64(p, "pid", &pid) < 0)
                return -EINVAL;
        ret->pid = (pid_t) pid;
        return 0;
}

static int put_discarded(struct job *j, const msgpack_object *p, const struct source *src) {
        cleanup_free struct dirty_range *gone = NULL;
        size_t n = 0;
        int r = get_removed(p, &gone, &n);

        return r < 0 ? r : dirty_put_discarded(src->pid, src->regions, src->n_regions, gone, n, j->writer);
}

static int add_disks(struct job *j, const msgpack_object *p, struct err *e) {
        const msgpack_object *a = mp_get_array(p, "disks");

        for (uint32_t i = 0; a && i < a->via.array.size; i++) {
                const msgpack_object *o = &a->via.array.ptr[i];
                char path[MAX_PATH];
                int r;

                if (o->type != MSGPACK_OBJECT_STR || o->via.str.size >= sizeof(path))
                        return err_set(e, ERR_INVALID, -EINVAL, "a disk's path is no path");
                memcpy(path, o->via.str.ptr, o->via.str.size);
                path[o->via.str.size] = '\0';
                r = snap_txn_add_disk(j->txn, i, path, NULL);
                if (r < 0)
                        return err_errno(e, r, "copying disk %u into the snapshot", i);
        }
        return 0;
}

static int do_copy(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        uint64_t start = now_ns();
        struct dirty_stats ds;
        struct source src;
        int r;

        if (!j->writer || j->pages_read || j->still)
                return err_set(e, ERR_INTERNAL, -EINVAL, "snap.copy before snap.prepare");
        if (get_source(m->params, &src) < 0)
                return err_set(e, ERR_INVALID, -EINVAL, "snap.copy without pid and regions");
        r = put_discarded(j, m->params, &src);
        if (r == 0)
                r = dirty_copy(src.pid, src.regions, src.n_regions, j->dirty, j->writer, &ds);
        if (r < 0)
                return err_errno(e, r, "copying the guest's memory");
        r = add_disks(j, m->params, e);
        if (r < 0)
                return r;
        j->pages_read = true;
        mp_map(out, 2);
        mp_kv_u64(out, "dirty_pages", ds.pages);
        mp_kv_double(out, "ms", ms_since(start));
        return 0;
}

static int do_still(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        struct source src;
        int r;

        if (!j->writer || j->pages_read || j->still)
                return err_set(e, ERR_INTERNAL, -EINVAL, "snap.still before snap.prepare");
        if (get_source(m->params, &src) < 0)
                return err_set(e, ERR_INVALID, -EINVAL, "snap.still without pid and regions");
        r = put_discarded(j, m->params, &src);
        if (r < 0)
                return err_errno(e, r, "noting what the guest has discarded");
        r = add_disks(j, m->params, e);
        if (r < 0)
                return r;
        j->still = true;
        mp_map(out, 0);
        return 0;
}

/* The temporary directory's disks, for clones that do not wait until it has a name. */
static int do_disk_fd(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        cleanup_fd int fd = -1;
        uint64_t i = 0;
        int r;

        if (!j->still || mp_get_u64(m->params, "disk", &i) < 0 || i >= SNAP_MAX_DISKS)
                return err_set(e, ERR_INVALID, -EINVAL, "snap.disk of none");
        r = snap_txn_open_disk(j->txn, (unsigned) i, &fd);
        if (r < 0)
                return err_errno(e, r, "opening disk %u", (unsigned) i);
        mp_map(out, 1);
        mp_kv_u64(out, "fds", 1);
        j->reply_fd = TAKE_FD(fd);
        return 0;
}

static int do_pages(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        uint64_t pages;
        int r;

        if (!j->still || j->pages_read || m->n_fds != 1)
                return err_set(e, ERR_INTERNAL, -EINVAL, "snap.pages before snap.still");
        r = dirty_copy_memfd(m->fds[0], j->dirty, j->writer, &pages);
        if (r < 0)
                return err_errno(e, r, "writing the guest's memory");
        j->pages_read = true;
        mp_map(out, 1);
        mp_kv_u64(out, "dirty_pages", pages);
        return 0;
}

static int write_pages(struct job *j, bool sync, struct err *e) {
        struct snap_writer_stats ws;
        int r = dirty_buf_write(j->dirty, j->writer);

        if (r == 0)
                r = snap_writer_finish(j->writer, &ws);
        if (r < 0)
                return err_errno(e, r, "writing the guest's memory");
        if (sync) /* the disk may begin while the rest is made */
                snap_txn_start_writeback(j->txn);
        return 0;
}

static int do_publish(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        struct snap_manifest *manifest;
        cleanup_free void *mem = NULL, *encoded = NULL;
        const void *data;
        size_t len;
        bool sync = false;
        int r;

        if (!j->pages_read || m->n_fds < 1)
                return err_set(e, ERR_INTERNAL, -EINVAL, "snap.publish before snap.copy");
        manifest = mem = calloc(1, sizeof(*manifest));
        if (!mem)
                return err_errno(e, -ENOMEM, "publishing");
        (void) mp_get_bool(m->params, "sync", &sync);
        r = mp_get_bin(m->params, "manifest", &data, &len);
        if (r == 0)
                r = snap_manifest_decode(data, len, manifest);
        if (r < 0)
                return err_errno(e, r, "reading the manifest");
        r = write_pages(j, sync, e);
        if (r < 0)
                return r;
        r = snap_txn_set_vmstate_fd(j->txn, m->fds[0]);
        if (r == 0)
                worker_inherit_workingset(j->txn, m->params);
        if (r == 0)
                r = snap_txn_publish(j->txn, manifest, sync);
        if (r == 0)
                r = snap_manifest_encode(manifest, &encoded, &len);
        if (r < 0)
                return err_errno(e, r, "publishing snapshot %s", manifest->id);
        job_reset(j);
        mp_map(out, 1);
        mp_kv_bin(out, "manifest", encoded, len);
        return 0;
}

/* ---- single calls ---- */

static int do_durable(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        cleanup_snap_store struct snap_store *s = NULL;
        id_str id;
        int r;

        r = get_id_param(m->params, id, e);
        if (r == 0)
                r = get_store(m->params, &s, e);
        if (r < 0)
                return r;
        r = snap_store_make_durable(s, id);
        mp_map(out, 0);
        return r < 0 ? err_errno(e, r, "syncing snapshot %s", id) : 0;
}

static int do_learn(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        cleanup_snap_store struct snap_store *s = NULL;
        uint64_t n_new = 0;
        id_str id;
        int r;

        r = get_id_param(m->params, id, e);
        if (r == 0)
                r = get_store(m->params, &s, e);
        if (r == 0)
                r = worker_learn_workingset(s, id, m->params, &n_new, e);
        mp_map(out, 1);
        mp_kv_u64(out, "new_pages", n_new);
        return r;
}

/* After a crash of the host: what was not synced is verified, and goes if it is torn. */
static int do_recover(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        cleanup_snap_store struct snap_store *s = NULL;
        unsigned removed = 0, left = 0;
        int r = get_store(m->params, &s, e);

        if (r < 0)
                return r;
        r = snap_store_recover(s, &removed, &left);
        mp_map(out, 2);
        mp_kv_u64(out, "removed", removed);
        mp_kv_u64(out, "left", left);
        return r < 0 ? err_errno(e, r, "checking the snapshots that were not synced") : 0;
}

struct verify_errors {
        struct mp_buf list;
        unsigned n;
};

static int on_verify_error(const char *what, void *arg) {
        struct verify_errors *v = arg;

        mp_str(&v->list, what);
        return ++v->n >= MAX_VERIFY_ERRORS;
}

static int do_verify(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        cleanup_snap_store struct snap_store *s = NULL;
        struct verify_errors v = { .n = 0 };
        uint64_t frames = 0;
        id_str id;
        int r;

        r = get_id_param(m->params, id, e);
        if (r == 0)
                r = get_store(m->params, &s, e);
        if (r < 0)
                return r;
        mp_buf_init(&v.list);
        r = snap_store_verify(s, id, on_verify_error, &v, &frames);
        if (r == 0 || r == -EBADMSG) {
                const char *note = worker_workingset_note(s, id);

                mp_map(out, 4);
                mp_kv_bool(out, "ok", r == 0);
                mp_kv_u64(out, "frames", frames);
                mp_kv_list(out, "errors", &v.list, v.n);
                mp_key(out, "notes");
                mp_array(out, note != NULL);
                if (note)
                        mp_str(out, note);
                r = 0;
        } else {
                (void) err_errno(e, r, "verifying snapshot %s", id);
        }
        mp_buf_clear(&v.list);
        return r;
}

static int get_caller(const msgpack_object *p, struct caller **ret, struct err *e) {
        int r = caller_decode(p, ret);

        return r < 0 ? err_errno(e, r, "reading who asks") : 0;
}

static int do_memory(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        cleanup_caller struct caller *who = NULL;
        cleanup_snap_store struct snap_store *s = NULL;
        cleanup_snap_image struct snap_image *img = NULL;
        id_str id;
        int r;

        if (m->n_fds != 1)
                return err_set(e, ERR_INVALID, -EINVAL, "snapshot.memory needs one descriptor to write to");
        r = get_id_param(m->params, id, e);
        if (r == 0)
                r = get_store(m->params, &s, e);
        if (r < 0)
                return r;
        r = get_caller(m->params, &who, e);
        if (r < 0)
                return r;
        r = snap_store_open_image(s, id, NULL, &img);
        /* A descriptor may be of a file that asks who writes to it. */
        if (r == 0)
                r = caller_become(who);
        if (r == 0) {
                r = snap_image_dump(img, m->fds[0]);
                caller_revert(who);
        }
        if (r < 0)
                return err_errno(e, r, "writing the memory of snapshot %s", id);
        mp_map(out, 1);
        mp_kv_u64(out, "bytes", snap_image_info(img)->ram_bytes);
        return 0;
}

static int do_disk(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        cleanup_caller struct caller *who = NULL;
        char from[MAX_PATH], to[MAX_PATH];
        bool reflinked = false;
        int r;

        if (mp_get_str(m->params, "from", from, sizeof(from)) < 0 || mp_get_str(m->params, "to", to, sizeof(to)) < 0)
                return err_set(e, ERR_INVALID, -EINVAL, "disk.copy without from and to");
        r = get_caller(m->params, &who, e);
        if (r == 0)
                r = worker_copy_disk(who, from, to, &reflinked, e);
        mp_map(out, 1);
        mp_kv_bool(out, "reflinked", reflinked);
        return r;
}

static int do_store(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        bool attach = strcmp(m->method, "store.attach") == 0;
        char dir[MAX_PATH];

        if (mp_get_str(m->params, "state_dir", dir, sizeof(dir)) < 0)
                return err_set(e, ERR_INVALID, -EINVAL, "no state_dir");
        mp_map(out, 0);
        return attach ? store_attach(dir, e) : store_detach(dir, e);
}

static int do_kvm(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e) {
        uint64_t timeout = 0;
        char dir[MAX_PATH];
        int r;

        if (mp_get_str(m->params, "cache_dir", dir, sizeof(dir)) < 0 || mp_get_u64(m->params, "timeout_ms", &timeout) < 0)
                return err_set(e, ERR_INVALID, -EINVAL, "no cache_dir or timeout_ms");
        r = setup_kvm_verdict(dir, (int) MIN_OF(timeout, (uint64_t) 120000), e);
        if (r < 0)
                return r;
        mp_map(out, 2);
        mp_kv_bool(out, "kvm", r == 1);
        mp_kv_str(out, "reason", r == 1 ? "" : e->message);
        return 0;
}

/* ---- the loop ---- */

static const struct {
        const char *name;
        int (*fn)(struct job *j, struct rpc_msg *m, struct mp_buf *out, struct err *e);
} methods[] = {
        { "snap.prepare", do_prepare }, { "snap.copy", do_copy },        { "snap.publish", do_publish },
        { "snap.durable", do_durable }, { "snap.verify", do_verify },    { "snap.memory", do_memory },
        { "disk.copy", do_disk },       { "store.attach", do_store },    { "store.detach", do_store },
        { "kvm.verdict", do_kvm },      { "store.recover", do_recover }, { "snap.learn", do_learn },
        { "snap.still", do_still },     { "snap.disk", do_disk_fd },     { "snap.pages", do_pages },
};

static void on_message(struct rpc_msg *m, void *arg) {
        cleanup_mp_buf struct mp_buf out = { 0 };
        struct job *j = arg;
        struct err e = { 0 };

        mp_buf_init(&out);
        if (!m->is_request)
                return;
        for (size_t i = 0; i < ARRAY_LEN(methods); i++) {
                if (strcmp(m->method, methods[i].name) != 0)
                        continue;
                if (methods[i].fn(j, m, &out, &e) == 0)
                        (void) rpc_reply(m->conn, m->msgid, &out, &j->reply_fd, j->reply_fd >= 0);
                else
                        (void) rpc_reply_err(m->conn, m->msgid, &e);
                j->reply_fd = close_fd(j->reply_fd);
                return;
        }
        (void) err_set(&e, ERR_PROTOCOL, -EPROTO, "a worker cannot '%s'", m->method);
        (void) rpc_reply_err(m->conn, m->msgid, &e);
}

static void on_close(struct rpc_conn *c, int r, void *arg) {
        struct job *j = arg;

        job_reset(j);
        rpc_conn_unref(TAKE_PTR(j->conn));
        (void) event_base_loopbreak(j->base);
}

int worker_main(int fd) {
        static const struct rpc_handlers handlers = { .on_message = on_message, .on_close = on_close };
        struct job j = { .image_fd = -1, .reply_fd = -1 };
        int r;

        j.base = event_base_new();
        if (!j.base)
                return 1;
        r = rpc_conn_new(j.base, fd, &handlers, &j, &j.conn);
        if (r == 0)
                (void) event_base_dispatch(j.base);
        job_reset(&j);
        dirty_buf_free(j.dirty);
        rpc_conn_unref(j.conn);
        event_base_free(j.base);
        return r < 0;
}
