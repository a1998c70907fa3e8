/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * An entry is a file <state>/journal/<id>: one msgpack map, replaced atomically, never synced. Its only reader is a forkd
 * after the death of the last one, and what a dead process had written is in the page cache. A crash of the host is another
 * matter: then every VMM is dead too, no clone of a fork under way is worth anything, and the VMs that are found without
 * an entry are `failed` as after any crash. Ids are random and never used again, so an entry means the same in another
 * boot, and needs no boot id.
 *
 *      fork        vms: the clones, snapshots: the one made for them   removed when all are up
 *      snapshot    snapshots: the new one                              removed when it is in the catalog
 *      rm          vms                                                 removed when all are gone
 *      snapshot-rm snapshots, force                                    the same
 *
 * Each is written before the first side effect of what it names, and may be written again with more. Undoing twice does
 * no harm: what is gone already is skipped. */
#include "forkd/vm/journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "common/mp.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"
#include "forkd/pager/link.h"

static const char *const op_names[] = {
        [JOURNAL_FORK] = "fork",
        [JOURNAL_SNAPSHOT] = "snapshot",
        [JOURNAL_RM] = "rm",
        [JOURNAL_SNAPSHOT_RM] = "snapshot-rm",
};

/* What an earlier forkd left. */
struct journal_found {
        size_t n;
        struct journal_entry entries[];
};

/* ---- entries ---- */

void journal_init(struct journal_entry *j, enum journal_op op) {
        *j = (struct journal_entry){ .op = op };
}

void journal_clear(struct journal_entry *j) {
        free(j->vms.ids);
        free(j->snapshots.ids);
        *j = (struct journal_entry){ 0 };
}

static int add(struct journal_ids *l, const char *id) {
        if (l->n == JOURNAL_MAX_IDS)
                return -E2BIG;
        if (l->n == l->cap) {
                size_t cap = l->cap ? l->cap * 2 : 8;
                id_str *p = realloc(l->ids, cap * sizeof(*p));

                if (!p)
                        return -ENOMEM;
                l->ids = p;
                l->cap = cap;
        }
        memcpy(l->ids[l->n++], id, sizeof(id_str));
        return 0;
}

int journal_add_vm(struct journal_entry *j, const char *id) {
        return add(&j->vms, id);
}

int journal_add_snapshot(struct journal_entry *j, const char *id) {
        return add(&j->snapshots, id);
}

/* ---- the file ---- */

static void put_ids(struct mp_buf *b, const char *key, const struct journal_ids *l) {
        mp_key(b, key);
        mp_array(b, l->n);
        for (size_t i = 0; i < l->n; i++)
                mp_str(b, l->ids[i]);
}

int journal_encode(const struct journal_entry *j, void **ret_data, size_t *ret_len) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        void *data;

        mp_buf_init(&b);
        mp_map(&b, 5);
        mp_kv_u64(&b, "version", JOURNAL_VERSION);
        mp_kv_str(&b, "op", op_names[j->op]);
        mp_kv_bool(&b, "force", j->force);
        put_ids(&b, "vms", &j->vms);
        put_ids(&b, "snapshots", &j->snapshots);
        data = b.failed ? NULL : malloc(b.sb.size);
        if (!data)
                return -ENOMEM;
        memcpy(data, b.sb.data, b.sb.size);
        *ret_data = data;
        *ret_len = b.sb.size;
        return 0;
}

static int get_ids(const msgpack_object *m, const char *key, struct journal_ids *l) {
        const msgpack_object *a = mp_get_array(m, key);

        if (!a)
                return -EBADMSG;
        for (uint32_t i = 0; i < a->via.array.size; i++) {
                const msgpack_object *o = &a->via.array.ptr[i];
                id_str id;
                int r;

                if (o->type != MSGPACK_OBJECT_STR || o->via.str.size != ID_LEN)
                        return -EBADMSG;
                memcpy(id, o->via.str.ptr, ID_LEN);
                id[ID_LEN] = '\0';
                r = id_valid(id) ? add(l, id) : -EBADMSG;
                if (r < 0)
                        return r;
        }
        return 0;
}

static int get_op(const msgpack_object *m, enum journal_op *ret) {
        char s[16];

        if (mp_get_str(m, "op", s, sizeof(s)) < 0)
                return -EBADMSG;
        for (size_t i = 0; i < ARRAY_LEN(op_names); i++)
                if (strcmp(s, op_names[i]) == 0) {
                        *ret = (enum journal_op) i;
                        return 0;
                }
        return -EBADMSG;
}

static int decode(const msgpack_object *m, struct journal_entry *j) {
        uint64_t version;
        int r;

        if (mp_get_u64(m, "version", &version) < 0)
                return -EBADMSG;
        if (version != JOURNAL_VERSION)
                return -EPROTONOSUPPORT;
        r = get_op(m, &j->op);
        if (r == 0 && mp_get_bool(m, "force", &j->force) < 0)
                r = -EBADMSG;
        if (r == 0)
                r = get_ids(m, "vms", &j->vms);
        if (r == 0)
                r = get_ids(m, "snapshots", &j->snapshots);
        return r;
}

int journal_decode(const void *data, size_t len, struct journal_entry *ret) {
        cleanup_journal struct journal_entry j = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        int r;

        if (len > JOURNAL_MAX_BYTES)
                return -E2BIG;
        r = mp_parse(data, len, &doc);
        if (r == 0)
                r = decode(&doc.root, &j);
        if (r < 0)
                return r;
        *ret = j;
        j = (struct journal_entry){ 0 };
        return 0;
}

static int entry_path(struct daemon *d, const char *id, char *buf, size_t size) {
        int n = snprintf(buf, size, "%s/journal/%s", d->state_dir, id);

        return n < 0 || (size_t) n >= size ? -ENAMETOOLONG : 0;
}

int journal_write(struct daemon *d, struct journal_entry *j, struct err *e) {
        cleanup_free void *data = NULL;
        char path[PATH_MAX];
        size_t len;
        int r;

        if (!j->id[0])
                id_new(j->id);
        r = entry_path(d, j->id, path, sizeof(path));
        if (r == 0)
                r = journal_encode(j, &data, &len);
        if (r == 0)
                r = io_write_file_atomic(AT_FDCWD, path, data, len, 0600, false);
        if (r < 0)
                return err_errno(e, r, "writing down what is about to be done in %s/journal", d->state_dir);
        j->written = true;
        return 0;
}

int journal_end(struct daemon *d, struct journal_entry *j, struct err *e) {
        char path[PATH_MAX];
        int r;

        if (!j->written)
                return 0;
        r = entry_path(d, j->id, path, sizeof(path));
        if (r == 0 && unlink(path) < 0 && errno != ENOENT)
                r = -errno;
        if (r < 0)
                return err_errno(e, r, "removing the journal's entry %s", path);
        j->written = false;
        return 0;
}

/* ---- after a restart ---- */

static int load_one(int dir_fd, const char *name, struct journal_entry *ret) {
        cleanup_free char *data = NULL;
        size_t len;
        int r;

        r = io_read_file(dir_fd, name, JOURNAL_MAX_BYTES, &data, &len);
        if (r == 0)
                r = journal_decode(data, len, ret);
        if (r < 0)
                return r;
        memcpy(ret->id, name, sizeof(ret->id));
        ret->written = true;
        return 0;
}

static int add_found(struct journal_found **found, struct journal_entry *j) {
        size_t n = *found ? (*found)->n : 0;
        struct journal_found *p;

        if (n == JOURNAL_MAX_ENTRIES)
                return -EMFILE;
        p = realloc(*found, sizeof(*p) + (n + 1) * sizeof(p->entries[0]));
        if (!p)
                return -ENOMEM;
        p->entries[n] = *j;
        p->n = n + 1;
        *found = p;
        return 0;
}

/* Is a snapshot there, readable or not? */
static bool snapshot_exists(struct daemon *d, const char *id) {
        char path[PATH_MAX];

        return snap_store_path(d->store, id, NULL, path, sizeof(path)) == 0 && access(path, F_OK) == 0;
}

void journal_undone(struct daemon *d, struct journal_entry *j) {
        struct err e;

        for (size_t i = 0; i < j->vms.n; i++)
                if (vm_by_id(d, j->vms.ids[i]))
                        return;
        for (size_t i = 0; i < j->snapshots.n; i++)
                if (snapshot_exists(d, j->snapshots.ids[i]))
                        return;
        if (journal_end(d, j, &e) < 0)
                log_warning("%s", e.message);
}

static void mark(struct daemon *d, const struct journal_entry *j) {
        for (size_t i = 0; i < j->vms.n; i++) {
                struct vm *vm = vm_by_id(d, j->vms.ids[i]);

                if (vm)
                        vm->removing = true;
        }
        log_info("a %s of %zu VM(s) and %zu snapshot(s) was cut off: %s", op_names[j->op], j->vms.n, j->snapshots.n,
                 j->op == JOURNAL_RM || j->op == JOURNAL_SNAPSHOT_RM ? "it is finished" : "it is undone");
}

int journal_load(struct daemon *d, struct err *e) {
        char path[PATH_MAX];
        struct dirent *de;
        DIR *dir;

        (void) snprintf(path, sizeof(path), "%s/journal", d->state_dir);
        dir = opendir(path);
        if (!dir)
                return err_errno(e, -errno, "reading the journal in %s", path);
        while ((de = readdir(dir))) {
                struct journal_entry j = { 0 };
                int r;

                if (!id_valid(de->d_name))
                        continue;
                r = load_one(dirfd(dir), de->d_name, &j);
                if (r == 0)
                        mark(d, &j);
                if (r == 0)
                        r = add_found(&d->journal, &j);
                if (r < 0) {
                        journal_clear(&j);
                        log_error("the journal's entry %s/%s cannot be used and is left alone: %s", path, de->d_name,
                                  strerror(-r));
                }
        }
        (void) closedir(dir);
        return 0;
}

/* Is all that the entry names gone? */
static bool settle_one(struct daemon *d, const struct journal_entry *j) {
        bool gone = true;
        struct err e;

        for (size_t i = 0; i < j->vms.n; i++)
                if (vm_by_id(d, j->vms.ids[i]))
                        gone = false;
        for (size_t i = 0; i < j->snapshots.n; i++) {
                struct snap_entry *s = catalog_by_id(d->catalog, j->snapshots.ids[i]);
                int r = s ? catalog_remove(d->catalog, s, j->force, &e) : 0;

                if (r < 0)
                        log_warning("%s", e.message);
                /* A VM stands by in it: somebody else's by now. */
                if (r < 0 && r != -EBUSY)
                        gone = false;
        }
        return gone;
}

void journal_settle(struct daemon *d) {
        for (size_t i = 0; d->journal && i < d->journal->n; i++) {
                struct journal_entry *j = &d->journal->entries[i];
                struct err e;

                /* Whose source has ended knows of it nobody but the pager. */
                for (size_t k = 0; d->pager && j->op != JOURNAL_RM && j->op != JOURNAL_SNAPSHOT_RM && k < j->snapshots.n; k++)
                        pager_live_cancel(d->pager, j->snapshots.ids[k]);
                if (settle_one(d, j) && journal_end(d, j, &e) < 0)
                        log_warning("%s", e.message);
        }
        journal_free(d);
}

void journal_free(struct daemon *d) {
        for (size_t i = 0; d->journal && i < d->journal->n; i++)
                journal_clear(&d->journal->entries[i]);
        free(TAKE_PTR(d->journal));
}

void journal_each_bad(struct daemon *d, void (*fn)(const char *path, const char *why, void *arg), void *arg) {
        char path[PATH_MAX];
        struct dirent *de;
        DIR *dir;

        (void) snprintf(path, sizeof(path), "%s/journal", d->state_dir);
        dir = opendir(path);
        while (dir && (de = readdir(dir))) {
                cleanup_journal struct journal_entry j = { 0 };
                char file[PATH_MAX + 32];
                int r;

                if (!id_valid(de->d_name))
                        continue;
                r = load_one(dirfd(dir), de->d_name, &j);
                if (r == 0 || r == -ENOENT)
                        continue;
                (void) snprintf(file, sizeof(file), "%s/%.16s", path, de->d_name);
                fn(file, strerror(-r), arg);
        }
        if (dir)
                (void) closedir(dir);
}
