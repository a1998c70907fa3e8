/* SPDX-License-Identifier: MIT */
/* Requests about snapshots. */
#include <errno.h>
#include <string.h>

#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/vm/journal.h"
#include "forkd/api/request.h"
#include "forkd/host/turns.h"
#include "forkd/worker/worker.h"

#define LONG_TIMEOUT_MS 3600000

static int rq_snapshot(struct request *rq, struct snap_entry **ret, struct err *e) {
        char name[256];
        int r = rq_str(rq, "snapshot", name, sizeof(name), e);

        return r < 0 ? r : catalog_find(rq->d->catalog, name, ret, e);
}

int api_snapshot_list(struct request *rq, struct mp_buf *out, struct err *e) {
        struct catalog *c = rq->d->catalog;
        struct snap_entry *s;
        unsigned n = 0;

        for (s = catalog_first(c); s; s = TAILQ_NEXT(s, entry))
                n++;
        mp_map(out, 1);
        mp_key(out, "snapshots");
        mp_array(out, n);
        for (s = catalog_first(c); s; s = TAILQ_NEXT(s, entry))
                catalog_encode(c, s, out);
        return 0;
}

int api_snapshot_show(struct request *rq, struct mp_buf *out, struct err *e) {
        struct snap_entry *s;
        int r = rq_snapshot(rq, &s, e);

        if (r == 0)
                catalog_encode(rq->d->catalog, s, out);
        return r;
}

/* What was begun together ends together, also when forkd does not live to see it: snapshots, and with --force what is to
 * become of the VMs that stood by in them. */
static int rm_named(struct request *rq, const msgpack_object *a, bool look, struct journal_entry *j, struct mp_buf *ids,
                    unsigned *n, struct err *e) {
        int r = 0;

        for (uint32_t i = 0; r == 0 && i < a->via.array.size; i++) {
                struct snap_entry *s;
                char name[256];
                id_str id;

                if (rq_obj_str(&a->via.array.ptr[i], name, sizeof(name)) < 0)
                        return err_set(e, ERR_INVALID, -EINVAL, "a snapshot is named by its id or tag");
                r = catalog_find(rq->d->catalog, name, &s, e);
                if (r == -ENOENT && !look) {
                        r = 0; /* named twice */
                        continue;
                }
                if (r == 0 && look)
                        r = journal_add_snapshot(j, s->m.id);
                if (r < 0 || look)
                        continue;
                memcpy(id, s->m.id, sizeof(id));
                r = catalog_remove(rq->d->catalog, s, j->force, e);
                if (r == 0) {
                        mp_str(ids, id);
                        (*n)++;
                }
        }
        return r;
}

int api_snapshot_rm(struct request *rq, struct mp_buf *out, struct err *e) {
        const msgpack_object *a;
        cleanup_mp_buf struct mp_buf ids = { 0 };
        cleanup_journal struct journal_entry j = { 0 };
        struct err ignored;
        unsigned n = 0;
        int r;

        mp_buf_init(&ids);
        journal_init(&j, JOURNAL_SNAPSHOT_RM);
        r = rq_opt_bool(rq, "force", false, &j.force, e);
        if (r == 0)
                r = rq_opt_array(rq, "snapshots", &a, e);
        if (r < 0)
                return r;
        if (!a || a->via.array.size == 0)
                return err_set(e, ERR_INVALID, -EINVAL, "name at least one snapshot");
        r = rm_named(rq, a, true, &j, &ids, &n, e);
        if (r < 0)
                return r;
        if ((j.snapshots.n > 1 || j.force) && journal_write(rq->d, &j, &ignored) < 0)
                log_warning("%s", ignored.message); /* a full disk must not keep anybody from removing things */
        r = rm_named(rq, a, false, &j, &ids, &n, e);
        if (journal_end(rq->d, &j, &ignored) < 0)
                log_warning("%s", ignored.message);
        if (r < 0)
                return r;
        mp_map(out, 1);
        mp_kv_list(out, "removed", &ids, n);
        return 0;
}

/* verify and memory: read all of it, in a worker. */
static int in_worker(struct request *rq, const char *method, struct mp_buf *out, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct snap_entry *s;
        int r;

        mp_buf_init(&b);
        r = rq_snapshot(rq, &s, e);
        if (r < 0)
                return r;
        mp_map(&b, 4);
        caller_encode(rq->caller, &b);
        mp_kv_str(&b, "store", rq->d->store_dir);
        mp_kv_str(&b, "id", s->m.id);
        mp_kv_u64(&b, "fds", rq->n_fds > 0);
        s->users++;
        r = turns_take(rq->d->turns, HEAVY_SCAN, e);
        if (r == 0) {
                r = worker_do(rq->d->workers, method, &b, rq->fds, rq->n_fds > 0, LONG_TIMEOUT_MS, &a, e);
                turns_give(rq->d->turns, HEAVY_SCAN);
        }
        s->users--;
        if (r == 0)
                mp_raw(out, a.raw, a.raw_len);
        return r;
}

int api_snapshot_verify(struct request *rq, struct mp_buf *out, struct err *e) {
        return in_worker(rq, "snap.verify", out, e);
}

int api_snapshot_memory(struct request *rq, struct mp_buf *out, struct err *e) {
        if (rq->n_fds != 1)
                return err_set(e, ERR_INVALID, -EINVAL, "snapshot.memory needs one descriptor to write to");
        return in_worker(rq, "snap.memory", out, e);
}
