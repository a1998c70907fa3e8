/* SPDX-License-Identifier: MIT */
#include "forkd/worker/worker_workingset.h"

#include <errno.h>
#include <string.h>

#include "common/log.h"

/* None is fine; *ret is malloc'ed or NULL. */
static int get_runs(const msgpack_object *p, struct snap_run **ret, size_t *ret_n) {
        const msgpack_object *a = mp_get_array(p, "runs");
        cleanup_free struct snap_run *run = NULL;
        size_t n = a ? a->via.array.size : 0;

        if (n > SNAP_WORKINGSET_MAX_RUNS)
                return -EINVAL;
        if (n > 0 && !(run = calloc(n, sizeof(*run))))
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                const msgpack_object *o = &a->via.array.ptr[i];

                if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 2 ||
                    o->via.array.ptr[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
                    o->via.array.ptr[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                        return -EINVAL;
                run[i] = (struct snap_run){ o->via.array.ptr[0].via.u64, o->via.array.ptr[1].via.u64 };
        }
        *ret = TAKE_PTR(run);
        *ret_n = n;
        return 0;
}

void worker_inherit_workingset(struct snap_txn *t, const msgpack_object *params) {
        cleanup_free struct snap_run *run = NULL;
        size_t n = 0;
        id_str from;
        int r;

        if (mp_get_str(params, "came_from", from, sizeof(from)) < 0 || !id_valid(from))
                return;
        r = get_runs(params, &run, &n);
        if (r == 0)
                r = snap_txn_inherit_workingset(t, from, run, n);
        if (r < 0)
                log_warning("the new snapshot begins without the working set of %s: %s", from, strerror(-r));
}

int worker_learn_workingset(struct snap_store *s, const char *id, const msgpack_object *params, uint64_t *ret_new,
                            struct err *e) {
        cleanup_free struct snap_run *run = NULL;
        size_t n = 0;
        int r;

        r = get_runs(params, &run, &n);
        if (r == 0)
                r = snap_store_learn_workingset(s, id, run, n, ret_new);
        if (r == -EINVAL)
                return err_set(e, ERR_INVALID, r, "the recording names pages that the guest does not have");
        return r < 0 ? err_errno(e, r, "writing its working set") : 0;
}

const char *worker_workingset_note(struct snap_store *s, const char *id) {
        cleanup_snap_workingset struct snap_workingset w = {};
        cleanup_free struct snap_manifest *m = malloc(sizeof(*m));

        if (!m || snap_store_load(s, id, m, NULL) < 0)
                return NULL;
        switch (snap_store_read_workingset(s, m, &w)) {
        case -EBADMSG:
                return "the recorded working set is corrupt: restores do without it, and record a new one";
        case -ESTALE:
                return "the recorded working set is another image's: restores do without it, and record a new one";
        case -EPROTONOSUPPORT:
                return "the recorded working set is of another version: restores do without it, and record a new one";
        default:
                return NULL;
        }
}
