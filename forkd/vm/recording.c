/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 *      restore, fork     recording_begin   the snapshot's file is opened for the pager; this session records, unless
 *                                          another one of the snapshot does: clones of one fork need the same pages,
 *                                          and the first of them finds more missing than the others
 *      window over       recording_done    the pager has said `session.recorded`
 *      standby           recording_fetch   before the pause, so that it costs the guest nothing; the new snapshot
 *                                          inherits, and the old one learns
 *      stop, rm          recording_keep    before the guest is told to end: what it needs for that is no restore's
 *                                          business. However short its life was: the next one begins alike.
 *
 * Merging reads, sorts and syncs a file, which takes 1 to 20 ms and more on a slow disk: a worker does it, while forkd
 * goes on.
 * Two recordings of one snapshot may be merged at the same time; then one is lost, and recorded again some day.
 *
 * A forkd that is restarted asks each session that it takes back (recording_adopt): what ended while no forkd was there
 * is learned then, and what goes on is waited for. */
#include "forkd/vm/recording.h"

#include <errno.h>
#include <string.h>

#include "common/co.h"
#include "common/log.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"
#include "forkd/pager/link.h"
#include "forkd/worker/worker.h"

#define LEARN_TIMEOUT_MS 60000

void recorded_init(struct recorded *rec) {
        mp_buf_init(&rec->runs);
        rec->n = 0;
        rec->complete = false;
}

void recorded_clear(struct recorded *rec) {
        mp_buf_clear(&rec->runs);
        rec->n = 0;
        rec->complete = false;
}

int recording_begin(struct vm *vm, struct snap_entry *s) {
        const struct config *cfg = &vm->d->cfg;
        int fd, r;

        if (!cfg->workingset)
                return -1;
        if (cfg->record_seconds > 0 && !s->recording)
                vm->recording = s->recording = true;
        r = snap_store_open_file(vm->d->store, s->m.id, SNAP_FILE_WORKINGSET, &fd);
        if (r < 0 && r != -ENOENT)
                log_warning("the working set of snapshot %s cannot be read: %s", s->m.id, strerror(-r));
        return r < 0 ? -1 : fd;
}

void recording_end(struct vm *vm) {
        struct snap_entry *s;

        if (!vm->recording)
                return;
        vm->recording = false;
        s = catalog_by_id(vm->d->catalog, vm->snapshot);
        if (s)
                s->recording = false;
}

static void fetch(struct vm *vm, struct recorded *ret) {
        struct recorded rec;
        struct err e;

        if (!vm->session || vm->vmm_exited)
                return;
        recorded_init(&rec);
        if (pager_session_workingset(vm->d->pager, vm, &rec.runs, &rec.n, &rec.complete, &e) < 0) {
                log_debug("what was recorded of %s is lost: %s", vm->id, e.message);
                recorded_clear(&rec);
                return;
        }
        recorded_clear(ret);
        *ret = rec;
}

void recording_fetch(struct vm *vm, struct recorded *ret) {
        if (vm->recording)
                fetch(vm, ret);
}

/* ---- in the background ---- */

struct learning {
        struct daemon *d;
        id_str vm; /* whose session it is to be fetched from, or "": @rec has it */
        id_str snapshot;
        struct recorded rec;
};

static void learning_free(struct learning *l) {
        if (l)
                recorded_clear(&l->rec);
        free(l);
}
DEFINE_CLEANUP(struct learning, learning_free)

static int learn_in_worker(struct learning *l, uint64_t *ret_new, struct err *e) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r;

        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_str(&b, "store", l->d->store_dir);
        mp_kv_str(&b, "id", l->snapshot);
        mp_kv_list(&b, "runs", &l->rec.runs, l->rec.n);
        r = worker_do(l->d->workers, "snap.learn", &b, NULL, 0, LEARN_TIMEOUT_MS, &a, e);
        return r < 0 ? r : mp_get_u64(&a.doc.root, "new_pages", ret_new);
}

static void learn(void *arg) {
        attr_cleanup(learning_free_p) struct learning *l = arg;
        struct snap_entry *s;
        uint64_t n_new = 0;
        struct err e;
        int r;

        if (l->rec.n == 0 || l->d->stopping || !catalog_by_id(l->d->catalog, l->snapshot))
                return;
        r = learn_in_worker(l, &n_new, &e);
        /* It may be removed meanwhile: that is no reason to keep anybody from it. */
        s = catalog_by_id(l->d->catalog, l->snapshot);
        if (!s)
                return;
        s->workingset_known = false;
        if (r < 0)
                log_warning("snapshot %s learns nothing of its last restore: %s", s->m.id, e.message);
        else
                log_debug("snapshot %s: %llu more pages in its working set", s->m.id, (unsigned long long) n_new);
}

static struct learning *learning_new(struct vm *vm, const char *id) {
        struct learning *l = calloc(1, sizeof(*l));

        if (!l) {
                log_warning("out of memory: what %s recorded is lost", vm->name);
                return NULL;
        }
        l->d = vm->d;
        memcpy(l->snapshot, id, sizeof(l->snapshot));
        recorded_init(&l->rec);
        return l;
}

void recording_learn(struct vm *vm, const char *id, struct recorded *rec) {
        struct learning *l;

        /* At the end of forkd there is nobody to do it. */
        if (rec->n == 0 || vm->d->stopping || !(l = learning_new(vm, id)))
                return;
        recorded_clear(&l->rec);
        l->rec = *rec;
        recorded_init(rec);
        if (co_start(vm->d->base, learn, l) < 0)
                learning_free(l);
}

static void fetch_and_learn(void *arg) {
        struct learning *l = arg;
        struct vm *vm = vm_by_id(l->d, l->vm);
        struct err e;

        if (!vm || !vm->session)
                learning_free(l);
        else if (pager_session_workingset(l->d->pager, vm, &l->rec.runs, &l->rec.n, &l->rec.complete, &e) < 0) {
                log_debug("what %s recorded is lost: %s", l->vm, e.message);
                learning_free(l);
        } else
                learn(l);
}

void recording_done(struct vm *vm) {
        struct learning *l;

        recording_end(vm);
        if (vm->has_parent) /* its session was opened for an older snapshot, which has learned already */
                return;
        if (vm->d->stopping || !vm->d->cfg.workingset || !(l = learning_new(vm, vm->snapshot)))
                return;
        memcpy(l->vm, vm->id, sizeof(l->vm));
        if (co_start(vm->d->base, fetch_and_learn, l) < 0)
                learning_free(l);
}

void recording_keep(struct vm *vm) {
        cleanup_recorded struct recorded rec = { 0 };

        recorded_init(&rec);
        if (!vm->d->stopping)
                recording_fetch(vm, &rec);
        recording_learn(vm, vm->snapshot, &rec);
        recording_end(vm);
}

void recording_adopt(struct vm *vm) {
        cleanup_recorded struct recorded rec = { 0 };
        struct snap_entry *s;

        if (!vm->d->cfg.workingset || !vm->snapshot[0] || vm->has_parent)
                return;
        recorded_init(&rec);
        fetch(vm, &rec);
        s = catalog_by_id(vm->d->catalog, vm->snapshot);
        if (rec.complete) /* if the last forkd has learned that already, nothing is new */
                recording_learn(vm, vm->snapshot, &rec);
        else if (rec.n > 0 && s && !s->recording)
                vm->recording = s->recording = true;
}
