/* SPDX-License-Identifier: MIT */
/* A snapshot in the making: a locked directory in tmp/, filled file by file, that publish renames to its
 * place. Until then nobody sees it; freeing the transaction, or a crash and a sweep, leave nothing of it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "snapstore/store_internal.h"
#include "snapstore/vmstate.h"

struct snap_txn {
        struct snap_store *store; /* the caller's */
        id_str id;
        snap_tmp_name name; /* in tmp/; empty once published */
        int dir_fd;
        bool over;
        unsigned n_disks;
        uint64_t disk_bytes[SNAP_MAX_DISKS];
        struct snap_vmstate vmstate;
};

int snap_txn_begin(struct snap_store *s, const char *id, struct snap_txn **ret) {
        cleanup_snap_txn struct snap_txn *t = NULL;
        snap_tmp_name name;
        int r;

        if (!id_valid(id))
                return -EINVAL;
        if (faccessat(s->snapshots_fd, id, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
                return -EEXIST;
        t = calloc(1, sizeof(*t));
        if (!t)
                return -ENOMEM;
        t->store = s;
        t->dir_fd = -1;
        memcpy(t->id, id, sizeof(t->id));
        snap_tmp_name_new("new", id, name);
        r = snap_tmp_mkdir(s, name, &t->dir_fd);
        if (r < 0)
                return r;
        memcpy(t->name, name, sizeof(t->name));
        *ret = TAKE_PTR(t);
        return 0;
}

static int create_file(struct snap_txn *t, const char *name, int *ret_fd) {
        int fd;

        if (t->over)
                return -EINVAL;
        fd = openat(t->dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
                return -errno;
        *ret_fd = fd;
        return 0;
}

int snap_txn_create_image(struct snap_txn *t, int *ret_fd) {
        return create_file(t, SNAP_FILE_MEMORY, ret_fd);
}

int snap_txn_add_disk(struct snap_txn *t, unsigned n, const char *src_path, bool *ret_reflinked) {
        cleanup_fd int src = -1, dst = -1;
        char name[32];
        struct stat st;
        int r;

        if (n != t->n_disks || n >= SNAP_MAX_DISKS)
                return -EINVAL;
        src = open(src_path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (src < 0 || fstat(src, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode))
                return -EINVAL;
        if ((uint64_t) st.st_size > SNAP_MAX_DISK_BYTES)
                return -EFBIG;
        (void) snprintf(name, sizeof(name), "disk-%u.img", n);
        r = create_file(t, name, &dst);
        if (r == 0)
                r = io_clone_file(src, dst, ret_reflinked);
        if (r < 0)
                return r;
        if (fstat(dst, &st) < 0)
                return -errno;
        t->disk_bytes[t->n_disks++] = (uint64_t) st.st_size;
        return 0;
}

int snap_txn_open_disk(struct snap_txn *t, unsigned n, int *ret_fd) {
        char name[32];
        int fd;

        if (n >= t->n_disks)
                return -EINVAL;
        (void) snprintf(name, sizeof(name), "disk-%u.img", n);
        fd = openat(t->dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        *ret_fd = fd;
        return 0;
}

int snap_txn_set_vmstate(struct snap_txn *t, const void *raw, size_t len) {
        cleanup_fd int fd = -1;
        int r;

        if (t->vmstate.bytes)
                return -EINVAL;
        r = create_file(t, SNAP_FILE_VMSTATE, &fd);
        if (r < 0)
                return r == -EEXIST ? -EINVAL : r;
        return snap_vmstate_write(fd, raw, len, &t->vmstate);
}

int snap_txn_set_vmstate_fd(struct snap_txn *t, int fd) {
        cleanup_free void *raw = NULL;
        struct stat st;
        int r;

        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode) || st.st_size <= 0)
                return -EINVAL;
        if ((uint64_t) st.st_size > SNAP_MAX_VMSTATE)
                return -EFBIG;
        raw = malloc((size_t) st.st_size);
        if (!raw)
                return -ENOMEM;
        r = io_pread_full(fd, raw, (size_t) st.st_size, 0);
        return r < 0 ? r : snap_txn_set_vmstate(t, raw, (size_t) st.st_size);
}

static int open_image(struct snap_txn *t, struct snap_image **ret) {
        cleanup_fd int fd = openat(t->dir_fd, SNAP_FILE_MEMORY, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

        if (fd < 0)
                return errno == ENOENT ? -EBADMSG : -errno;
        return snap_image_open(fd, ret);
}

static int write_workingset(struct snap_txn *t, const void *data, size_t len) {
        cleanup_fd int fd = -1;
        int r = create_file(t, SNAP_FILE_WORKINGSET, &fd);

        if (r < 0)
                return r;
        r = io_write_full(fd, data, len);
        if (r < 0)
                (void) unlinkat(t->dir_fd, SNAP_FILE_WORKINGSET, 0);
        return r;
}

int snap_txn_inherit_workingset(struct snap_txn *t, const char *from, const struct snap_run *run, size_t n_runs) {
        cleanup_snap_workingset struct snap_workingset w = {};
        cleanup_snap_image struct snap_image *img = NULL;
        cleanup_free void *data = NULL;
        uint64_t ram_pages;
        size_t len;
        int r;

        if (t->over)
                return -EINVAL;
        r = open_image(t, &img);
        if (r < 0)
                return r;
        ram_pages = snap_image_info(img)->ram_bytes / SNAP_PAGE_SIZE;
        r = snap_workingset_succeed(t->store, from, run, n_runs, ram_pages, &w);
        if (r < 0 || w.n_runs == 0)
                return r;
        r = snap_workingset_encode(&w, snap_image_info(img)->uuid, ram_pages, &data, &len);
        return r < 0 ? r : write_workingset(t, data, len);
}

void snap_txn_start_writeback(struct snap_txn *t) {
        snap_sync_start(t->dir_fd);
}

/* What the manifest says about the files, taken from the files. */
static int fill_manifest(struct snap_txn *t, struct snap_manifest *m) {
        cleanup_snap_image struct snap_image *img = NULL;
        const struct snap_image_info *i;
        int r;

        r = open_image(t, &img);
        if (r < 0)
                return r;
        i = snap_image_info(img);
        if (i->ram_bytes != m->mem_bytes)
                return -EINVAL;
        memcpy(m->id, t->id, sizeof(m->id));
        memcpy(m->image_uuid, i->uuid, SNAP_UUID_LEN);
        m->pages_stored = i->n_stored_pages;
        m->pages_zero = i->n_zero_pages;
        m->image_bytes = i->file_bytes;
        m->n_disks = t->n_disks;
        memcpy(m->disk_bytes, t->disk_bytes, sizeof(m->disk_bytes));
        m->vmstate_raw_bytes = t->vmstate.raw_bytes;
        m->vmstate_bytes = t->vmstate.bytes;
        m->vmstate_xxh3 = t->vmstate.xxh3;
        m->vmstate_codec = t->vmstate.codec;
        m->stored_bytes = i->appended_bytes + m->vmstate_bytes;
        return 0;
}

static int write_manifest(struct snap_txn *t, const struct snap_manifest *m) {
        cleanup_free void *data = NULL;
        cleanup_fd int fd = -1;
        size_t len;
        int r;

        r = snap_manifest_encode(m, &data, &len);
        if (r == 0)
                r = create_file(t, SNAP_FILE_MANIFEST, &fd);
        if (r == 0)
                r = io_write_full(fd, data, len);
        return r;
}

static int publish(struct snap_txn *t, struct snap_manifest *m, bool sync) {
        struct snap_store *s = t->store;
        int r;

        r = fill_manifest(t, m);
        if (r == 0)
                r = write_manifest(t, m);
        if (r == 0 && sync) {
                r = snap_sync_files(t->dir_fd);
                if (r == 0)
                        r = snap_sync_mark(t->dir_fd);
        }
        if (r == 0 && renameat2(s->tmp_fd, t->name, s->snapshots_fd, t->id, RENAME_NOREPLACE) < 0)
                r = -errno;
        if (r < 0)
                return r;
        if (sync) {
                r = snap_sync_finish(s->snapshots_fd, t->dir_fd);
                if (r < 0) {
                        /* Visible but perhaps not safe: take it back, for the caller gets an error. */
                        if (renameat2(s->snapshots_fd, t->id, s->tmp_fd, t->name, RENAME_NOREPLACE) < 0)
                                t->name[0] = '\0';
                        return r;
                }
        }
        t->name[0] = '\0';
        return 0;
}

int snap_txn_publish(struct snap_txn *t, struct snap_manifest *m, bool sync) {
        int r;

        if (t->over)
                return -EINVAL;
        r = publish(t, m, sync);
        t->over = true;
        return r;
}

void snap_txn_free(struct snap_txn *t) {
        if (!t)
                return;
        /* What cannot be removed now stays in tmp/ for the next sweep. */
        if (t->name[0] && io_remove_tree(t->store->tmp_fd, t->name) < 0)
                t->name[0] = '\0';
        (void) close_fd(t->dir_fd); /* and with it the lock */
        free(t);
}
