/* SPDX-License-Identifier: MIT */
#include "forkd/catalog.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "common/co.h"
#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/pool/pool.h"
#include "forkd/worker/worker.h"

#define SYNC_TIMEOUT_MS 600000

struct catalog {
        struct daemon *d;
        TAILQ_HEAD(snap_entries, snap_entry) list; /* oldest first */
        LIST_HEAD(, tag_claim) claims;
};

int catalog_new(struct daemon *d, struct catalog **ret) {
        struct catalog *c = calloc(1, sizeof(*c));

        if (!c)
                return -ENOMEM;
        c->d = d;
        TAILQ_INIT(&c->list);
        LIST_INIT(&c->claims);
        *ret = c;
        return 0;
}

static void clear(struct catalog *c) {
        for (struct snap_entry *s; (s = TAILQ_FIRST(&c->list));) {
                TAILQ_REMOVE(&c->list, s, entry);
                free(s);
        }
}

void catalog_free(struct catalog *c) {
        if (!c)
                return;
        clear(c);
        free(c);
}

struct snap_entry *catalog_first(struct catalog *c) {
        return TAILQ_FIRST(&c->list);
}

struct snap_entry *catalog_by_id(struct catalog *c, const char *id) {
        struct snap_entry *s;

        TAILQ_FOREACH (s, &c->list, entry)
                if (strcmp(s->m.id, id) == 0)
                        return s;
        return NULL;
}

struct snap_entry *catalog_by_tag(struct catalog *c, const char *tag) {
        struct snap_entry *s;

        TAILQ_FOREACH (s, &c->list, entry)
                if (s->m.tag[0] && strcmp(s->m.tag, tag) == 0)
                        return s;
        return NULL;
}

int catalog_find(struct catalog *c, const char *id_or_tag, struct snap_entry **ret, struct err *e) {
        struct snap_entry *s = catalog_by_id(c, id_or_tag);

        if (!s)
                s = catalog_by_tag(c, id_or_tag);
        if (!s) {
                (void) err_set(e, ERR_NOT_FOUND, -ENOENT, "there is no snapshot with the id or tag '%.80s'", id_or_tag);
                return err_hint(e, "'forkctl snapshot ls' lists the snapshots");
        }
        *ret = s;
        return 0;
}

int catalog_claim_tag(struct catalog *c, const char *tag, struct tag_claim *claim, struct err *e) {
        struct tag_claim *other;

        claim->tag[0] = '\0';
        if (!tag || !tag[0])
                return 0;
        if (!name_valid(tag)) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "'%.80s' cannot be a tag", tag);
                return err_hint(e, "tags are letters, digits, '.', '_' and '-', at most %d", NAME_MAX_LEN);
        }
        if (catalog_by_tag(c, tag)) {
                (void) err_set(e, ERR_EXISTS, -EEXIST, "a snapshot with the tag '%s' exists already", tag);
                return err_hint(e, "take another tag, or remove it: forkctl snapshot rm %s", tag);
        }
        LIST_FOREACH (other, &c->claims, entry)
                if (strcmp(other->tag, tag) == 0) {
                        (void) err_set(e, ERR_EXISTS, -EEXIST, "a snapshot with the tag '%s' is being made", tag);
                        return err_hint(e, "take another tag");
                }
        (void) strcpy(claim->tag, tag);
        LIST_INSERT_HEAD(&c->claims, claim, entry);
        return 0;
}

void catalog_release_tag(struct tag_claim *claim) {
        if (claim->tag[0])
                LIST_REMOVE(claim, entry);
        claim->tag[0] = '\0';
}

int catalog_add(struct catalog *c, const struct snap_manifest *m, bool durable, struct snap_entry **ret) {
        struct snap_entry *s = calloc(1, sizeof(*s)), *older;

        if (!s)
                return -ENOMEM;
        s->m = *m;
        s->durable = durable;
        TAILQ_FOREACH_REVERSE (older, &c->list, snap_entries, entry)
                if (older->m.created_ns <= m->created_ns)
                        break;
        if (older)
                TAILQ_INSERT_AFTER(&c->list, older, s, entry);
        else
                TAILQ_INSERT_HEAD(&c->list, s, entry);
        if (ret)
                *ret = s;
        return 0;
}

int catalog_load(struct catalog *c, struct err *e) {
        cleanup_snap_list struct snap_list ids = { 0 };
        cleanup_free struct snap_manifest *m = malloc(sizeof(*m));
        int r;

        clear(c);
        if (!m)
                return err_errno(e, -ENOMEM, "reading the snapshots");
        r = snap_store_list(c->d->store, &ids);
        if (r < 0)
                return err_errno(e, r, "reading the snapshots");
        for (size_t i = 0; i < ids.n; i++) {
                bool durable;

                r = snap_store_load(c->d->store, ids.ids[i], m, &durable);
                if (r == 0)
                        r = catalog_add(c, m, durable, NULL);
                if (r < 0)
                        log_error("snapshot %s cannot be used and is left alone: %s", ids.ids[i], strerror(-r));
        }
        return 0;
}

static struct vm *standing_by(struct catalog *c, const struct snap_entry *s) {
        struct vm *vm;

        TAILQ_FOREACH (vm, &c->d->vms, entry)
                if (vm->state == VM_STANDBY && strcmp(vm->snapshot, s->m.id) == 0)
                        return vm;
        return NULL;
}

int catalog_remove(struct catalog *c, struct snap_entry *s, bool force, struct err *e) {
        struct vm *vm = standing_by(c, s);
        const char *pool = pools_user_of(c->d, s->m.id);
        int r;

        if (s->users > 0) {
                (void) err_set(e, ERR_BUSY, -EBUSY, "snapshot %s is being restored or copied", s->m.id);
                return err_hint(e, "try again when that is done");
        }
        if (vm && !force) {
                (void) err_set(e, ERR_BUSY, -EBUSY, "snapshot %s is what VM '%s' on standby comes back from", s->m.id, vm->name);
                return err_hint(e, "remove the VM first (forkctl rm %s), or remove both with --force", vm->name);
        }
        if (pool && !force) {
                (void) err_set(e, ERR_BUSY, -EBUSY, "snapshot %s is what the pool '%s' makes its clones from", s->m.id, pool);
                return err_hint(e,
                                "give the pool another one (forkctl pool set %s --from …) or remove it; with --force it has only "
                                "the "
                                "clones that are there",
                                pool);
        }
        r = snap_store_remove(c->d->store, s->m.id);
        if (r < 0 && r != -ENOENT)
                return err_errno(e, r, "removing snapshot %s", s->m.id);
        /* With --force the VMs that stood by in it are lost, and say so. */
        while ((vm = standing_by(c, s)))
                vm_fail(vm, "its snapshot %s was removed", s->m.id);
        TAILQ_REMOVE(&c->list, s, entry);
        free(s);
        if (pool)
                pools_kick(c->d);
        return 0;
}

void catalog_drop(struct catalog *c, const char *id) {
        struct snap_entry *s = catalog_by_id(c, id);
        struct err e;

        if (s && catalog_remove(c, s, false, &e) < 0)
                log_warning("%s", e.message);
}

/* ---- durable later ---- */

struct sync_job {
        struct daemon *d;
        id_str id;
};

/* The records of VMs that stand by in it were not worth a sync before. */
static void became_durable(struct daemon *d, struct snap_entry *s) {
        struct err e;
        struct vm *vm;

        s->durable = true;
        TAILQ_FOREACH (vm, &d->vms, entry)
                if (vm->state == VM_STANDBY && strcmp(vm->snapshot, s->m.id) == 0 && vm_record_save(vm, &e) < 0)
                        log_error("%s", e.message);
}

static void sync_later(void *arg) {
        cleanup_free struct sync_job *j = arg;
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct snap_entry *s;
        struct err e;
        int r;

        mp_buf_init(&b);
        if (!catalog_by_id(j->d->catalog, j->id) || j->d->stopping)
                return;
        mp_map(&b, 2);
        mp_kv_str(&b, "store", j->d->store_dir);
        mp_kv_str(&b, "id", j->id);
        r = worker_do(j->d->workers, "snap.durable", &b, NULL, 0, SYNC_TIMEOUT_MS, NULL, &e);
        /* It may be removed meanwhile: that is no reason to keep anybody from it. */
        s = catalog_by_id(j->d->catalog, j->id);
        if (s && r < 0)
                log_warning("snapshot %s is not durable yet: %s", j->id, e.message);
        else if (s)
                became_durable(j->d, s);
}

void catalog_sync_later(struct catalog *c, const struct snap_entry *s) {
        struct sync_job *j = malloc(sizeof(*j));
        struct daemon *d = c->d;

        if (!j)
                return;
        j->d = d;
        memcpy(j->id, s->m.id, sizeof(j->id));
        if (co_start(d->base, sync_later, j) < 0)
                free(j);
}

void catalog_vm_stands_by(struct vm *vm, const struct snap_manifest *m) {
        catalog_vm_descends(vm, m);
        vm->pending_snapshot[0] = '\0';
        vm->has_base = vm->has_parent = vm->has_origin = vm->live = false;
}

void catalog_vm_descends(struct vm *vm, const struct snap_manifest *m) {
        memcpy(vm->snapshot, m->id, sizeof(vm->snapshot));
        memcpy(vm->parent, m->parent, sizeof(vm->parent));
        vm->generation = m->depth + 1;
}

uint64_t catalog_workingset_pages(struct catalog *c, struct snap_entry *s) {
        cleanup_snap_workingset struct snap_workingset w = { 0 };
        int r;

        if (s->workingset_known)
                return s->workingset_pages;
        r = snap_store_read_workingset(c->d->store, &s->m, &w);
        if (r < 0 && r != -ENODATA)
                log_warning("the working set of snapshot %s is of no use: %s", s->m.id, strerror(-r));
        s->workingset_known = true;
        s->workingset_pages = w.n_pages; /* 0 after a failure */
        return s->workingset_pages;
}

void catalog_encode(struct catalog *c, struct snap_entry *s, struct mp_buf *b) {
        const struct snap_manifest *m = &s->m;
        char path[PATH_MAX] = "";
        uint64_t unique = 0;

        best_effort(snap_store_path(c->d->store, m->id, NULL, path, sizeof(path)));
        best_effort(snap_store_unique_bytes(c->d->store, m->id, &unique));
        mp_map(b, 21);
        mp_kv_str(b, "id", m->id);
        mp_kv_str(b, "tag", m->tag[0] ? m->tag : NULL);
        mp_kv_str(b, "path", path);
        mp_kv_str(b, "parent", m->parent[0] ? m->parent : NULL);
        mp_kv_u64(b, "depth", m->depth);
        mp_kv_double(b, "created", (double) m->created_ns / 1e9);
        mp_kv_bool(b, "durable", s->durable);
        mp_kv_u64(b, "ram_bytes", m->mem_bytes);
        mp_kv_u64(b, "dirty_bytes", m->dirty_bytes);
        mp_kv_u64(b, "stored_bytes", m->stored_bytes);
        mp_kv_u64(b, "unique_bytes", unique);
        mp_kv_u64(b, "disks", m->n_disks);
        mp_kv_str(b, "vmm", m->vmm);
        mp_kv_str(b, "vmm_version", m->vmm_version);
        mp_kv_str(b, "accel", m->accel);
        mp_kv_u64(b, "vcpus", m->vcpus);
        mp_kv_str(b, "source", m->source);
        mp_kv_u64(b, "image_bytes", m->image_bytes);
        mp_kv_u64(b, "vmstate_bytes", m->vmstate_bytes);
        mp_kv_u64(b, "workingset_pages", catalog_workingset_pages(c, s));
        mp_key(b, "pages");
        mp_map(b, 2);
        mp_kv_u64(b, "zero", m->pages_zero);
        mp_kv_u64(b, "stored", m->pages_stored);
}
