/* SPDX-License-Identifier: MIT */
/* The one file of a published snapshot that may be replaced: its working set.
 *
 * The new file is made in tmp/, locked, so that a crash leaves it to the next sweep and never in the snapshot's
 * directory; there it arrives by a rename, whole. The rename names the target by its path below snapshots/: a snapshot
 * that is being removed has left that place, so nothing is put into a directory that is about to go. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "common/io.h"
#include "snapstore/store_internal.h"

int snap_store_read_workingset(struct snap_store *s, const struct snap_manifest *m, struct snap_workingset *ret) {
        cleanup_fd int fd = -1;
        int r;

        r = snap_store_open_file(s, m->id, SNAP_FILE_WORKINGSET, &fd);
        if (r < 0)
                return r == -ENOENT ? -ENODATA : r;
        return snap_workingset_read(fd, m->image_uuid, m->mem_bytes / SNAP_PAGE_SIZE, ret);
}

static int write_synced(int fd, const void *data, size_t len) {
        int r = io_write_full(fd, data, len);

        /* Without it a crash could leave the new name with nothing behind it. */
        return r < 0 ? r : fsync(fd) < 0 ? -errno : 0;
}

static int replace(struct snap_store *s, const char *id, const void *data, size_t len) {
        char target[sizeof(id_str) + sizeof("/" SNAP_FILE_WORKINGSET)];
        cleanup_fd int fd = -1;
        snap_tmp_name name;
        int r;

        (void) snprintf(target, sizeof(target), "%s/" SNAP_FILE_WORKINGSET, id);
        snap_tmp_name_new("ws", id, name);
        fd = openat(s->tmp_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
                return -errno;
        /* Until the rename, so that a sweep leaves it alone. One that came before it has taken the name away. */
        r = flock(fd, LOCK_EX | LOCK_NB) < 0 ? -errno : write_synced(fd, data, len);
        if (r == 0 && renameat(s->tmp_fd, name, s->snapshots_fd, target) < 0)
                r = -errno;
        if (r < 0)
                (void) unlinkat(s->tmp_fd, name, 0);
        return r;
}

int snap_store_learn_workingset(struct snap_store *s, const char *id, const struct snap_run *run, size_t n_runs,
                                uint64_t *ret_new) {
        cleanup_snap_workingset struct snap_workingset old = {}, merged = {};
        cleanup_free struct snap_manifest *m = malloc(sizeof(*m));
        cleanup_free void *data = NULL;
        uint64_t ram_pages, n_new;
        size_t len;
        int r;

        if (!m)
                return -ENOMEM;
        r = snap_store_load(s, id, m, NULL);
        if (r < 0)
                return r;
        ram_pages = m->mem_bytes / SNAP_PAGE_SIZE;
        r = snap_store_read_workingset(s, m, &old);
        if (r == -ENOMEM)
                return r;
        /* Whatever else is wrong with the old one: without it we begin anew. */
        r = snap_workingset_merge(r == 0 ? &old : NULL, run, n_runs, ram_pages, snap_workingset_max_pages(ram_pages), &merged,
                                  &n_new);
        if (r < 0)
                return r;
        /* No two restores touch quite the same pages. Each stray page would cost a file, and the set its sharpness. */
        if (n_new == 0 || n_new < old.n_pages / SNAP_WORKINGSET_NEWS_PART)
                n_new = 0;
        else
                r = snap_workingset_encode(&merged, m->image_uuid, ram_pages, &data, &len);
        if (r == 0 && n_new > 0)
                r = replace(s, id, data, len);
        if (r == 0 && ret_new)
                *ret_new = n_new;
        return r;
}

/** Leaves the first @keep pages. */
static void cut(struct snap_workingset *w, uint64_t keep) {
        uint64_t n = 0;
        size_t i = 0;

        for (; i < w->n_runs && n < keep; i++) {
                w->run[i].n = MIN_OF(w->run[i].n, keep - n);
                n += w->run[i].n;
        }
        w->n_runs = i;
        w->n_pages = n;
}

int snap_workingset_succeed(struct snap_store *s, const char *from, const struct snap_run *run, size_t n_runs, uint64_t ram_pages,
                            struct snap_workingset *ret) {
        cleanup_snap_workingset struct snap_workingset old = {};
        cleanup_free struct snap_manifest *m = malloc(sizeof(*m));
        int r;

        if (!m)
                return -ENOMEM;
        r = snap_store_load(s, from, m, NULL);
        if (r == 0 && m->mem_bytes / SNAP_PAGE_SIZE == ram_pages)
                r = snap_store_read_workingset(s, m, &old);
        if (r == -ENOMEM)
                return r;
        /* @old is empty if there was none of use. Nobody can tell which of its pages were needed again, for they were mapped ahead; so each
         * generation forgets a part, or a chain would drag along what any of its links once needed: at depth 32 twice as
         * much as at depth 1, mapped at each restore, and looked at by each standby. */
        cut(&old, old.n_pages - old.n_pages / SNAP_WORKINGSET_FORGET_PART);
        r = snap_workingset_merge(&old, run, n_runs, ram_pages, snap_workingset_max_pages(ram_pages), ret, NULL);
        if (r == 0)
                ret->restores = 0;
        return r;
}
