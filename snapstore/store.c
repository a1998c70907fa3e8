/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * A snapshot appears by one rename out of tmp/ and disappears by one rename back into it; between the two it
 * does not change. So readers need no lock: they hold descriptors, and a snapshot that is removed under them
 * stays readable through these. What is in tmp/ belongs to whoever holds the flock on it; what nobody holds
 * is garbage, which sweep removes.
 *
 * Names that come from outside are ids (16 hex digits) or one of a fixed set of file names: no caller's
 * string becomes a path. Directories are opened O_NOFOLLOW relative to the store's own descriptors. */
#include "snapstore/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "common/io.h"
#include "snapstore/store_internal.h"
#include "snapstore/vmstate.h"

static int open_subdir(int dir_fd, const char *name, int *ret_fd) {
        int fd;

        if (mkdirat(dir_fd, name, 0700) < 0 && errno != EEXIST)
                return -errno;
        fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        *ret_fd = fd;
        return 0;
}

int snap_store_open(const char *path, struct snap_store **ret) {
        cleanup_snap_store struct snap_store *s = NULL;
        int r;

        if (strlen(path) >= SNAP_STORE_MAX_PATH)
                return -ENAMETOOLONG;
        s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;
        s->dir_fd = s->snapshots_fd = s->tmp_fd = -1;
        (void) strcpy(s->path, path);
        r = io_mkdir_p(path, 0700);
        if (r < 0)
                return r;
        s->dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (s->dir_fd < 0)
                return -errno;
        r = open_subdir(s->dir_fd, "snapshots", &s->snapshots_fd);
        if (r == 0)
                r = open_subdir(s->dir_fd, "tmp", &s->tmp_fd);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(s);
        return 0;
}

void snap_store_close(struct snap_store *s) {
        if (!s)
                return;
        (void) close_fd(s->tmp_fd);
        (void) close_fd(s->snapshots_fd);
        (void) close_fd(s->dir_fd);
        free(s);
}

/* ---- tmp/ ---- */

void snap_tmp_name_new(const char *kind, const char *id, snap_tmp_name ret) {
        id_str random;

        id_new(random);
        (void) snprintf(ret, sizeof(snap_tmp_name), "%s-%s-%s", kind, id, random);
}

int snap_tmp_mkdir(struct snap_store *s, const char *name, int *ret_fd) {
        cleanup_fd int fd = -1;

        if (mkdirat(s->tmp_fd, name, 0700) < 0)
                return -errno;
        fd = openat(s->tmp_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
                return -errno; /* a sweep was between the two calls: as if we had never come */
        /* A sweep that holds the lock at this moment is about to remove the directory. */
        if (flock(fd, LOCK_EX | LOCK_NB) < 0)
                return -errno;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static int sweep_one(struct snap_store *s, const char *name) {
        cleanup_fd int fd = openat(s->tmp_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0)
                return errno == EWOULDBLOCK ? 0 : -errno;
        /* A symbolic link (ELOOP) cannot be locked, and is nothing of ours. */
        int r = io_remove_tree(s->tmp_fd, name);
        return r < 0 ? r : 1;
}

int snap_store_sweep(struct snap_store *s, unsigned *ret_removed, unsigned *ret_left) {
        unsigned removed = 0, left = 0;
        DIR *dir;
        int r;

        r = io_opendir(s->tmp_fd, &dir);
        if (r < 0)
                return r;
        for (struct dirent *de; r >= 0 && (errno = 0, de = readdir(dir));) {
                if (strcmp(de->d_name, ".") == 0 || strcmp(de->d_name, "..") == 0)
                        continue;
                r = sweep_one(s, de->d_name);
                removed += r > 0;
                left += r == 0;
        }
        if (r >= 0 && errno != 0)
                r = -errno;
        (void) closedir(dir);
        if (r < 0)
                return r;
        if (ret_removed)
                *ret_removed = removed;
        if (ret_left)
                *ret_left = left;
        return 0;
}

/* ---- reading ---- */

void snap_list_clear(struct snap_list *l) {
        free(l->ids);
        *l = (struct snap_list){};
}

static int compare_ids(const void *a, const void *b) {
        return strcmp(a, b);
}

static int list_add(struct snap_list *l, size_t *cap, const char *id) {
        if (l->n >= SNAP_STORE_MAX_SNAPSHOTS)
                return -EMFILE;
        if (l->n == *cap) {
                size_t n = *cap ? *cap * 2 : 64;
                id_str *p = realloc(l->ids, n * sizeof(*p));

                if (!p)
                        return -ENOMEM;
                l->ids = p;
                *cap = n;
        }
        memcpy(l->ids[l->n++], id, sizeof(id_str));
        return 0;
}

int snap_store_list(struct snap_store *s, struct snap_list *ret) {
        cleanup_snap_list struct snap_list l = {};
        size_t cap = 0;
        DIR *dir;
        int r;

        r = io_opendir(s->snapshots_fd, &dir);
        if (r < 0)
                return r;
        for (struct dirent *de; r == 0 && (errno = 0, de = readdir(dir));)
                if (id_valid(de->d_name))
                        r = list_add(&l, &cap, de->d_name);
        if (r == 0 && errno != 0)
                r = -errno;
        (void) closedir(dir);
        if (r < 0)
                return r;
        if (l.n)
                qsort(l.ids, l.n, sizeof(id_str), compare_ids);
        *ret = l;
        l = (struct snap_list){};
        return 0;
}

int snap_store_open_dir(struct snap_store *s, const char *id, int *ret_fd) {
        int fd;

        if (!id_valid(id))
                return -EINVAL;
        fd = openat(s->snapshots_fd, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        *ret_fd = fd;
        return 0;
}

static bool file_name_ok(const char *file) {
        if (strncmp(file, "disk-", 5) == 0)
                return file[5] >= '0' && file[5] < '0' + (int) SNAP_MAX_DISKS && strcmp(file + 6, ".img") == 0;
        return strcmp(file, SNAP_FILE_MANIFEST) == 0 || strcmp(file, SNAP_FILE_MEMORY) == 0 ||
               strcmp(file, SNAP_FILE_VMSTATE) == 0 || strcmp(file, SNAP_FILE_DURABLE) == 0 ||
               strcmp(file, SNAP_FILE_WORKINGSET) == 0;
}

static int open_file_at(int dir_fd, const char *file, int *ret_fd) {
        cleanup_fd int fd = -1;
        struct stat st;

        /* O_NONBLOCK: a FIFO in the place of a file must not hold us up. */
        fd = openat(dir_fd, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0)
                return errno == ELOOP ? -EBADMSG : -errno; /* a symbolic link is none of our files */
        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode))
                return -EBADMSG;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int snap_store_open_file(struct snap_store *s, const char *id, const char *file, int *ret_fd) {
        cleanup_fd int dir_fd = -1;
        int r;

        if (!file_name_ok(file))
                return -EINVAL;
        r = snap_store_open_dir(s, id, &dir_fd);
        return r < 0 ? r : open_file_at(dir_fd, file, ret_fd);
}

int snap_store_path(struct snap_store *s, const char *id, const char *file, char *buf, size_t size) {
        int n;

        if (!id_valid(id) || (file && !file_name_ok(file)))
                return -EINVAL;
        n = snprintf(buf, size, "%s/snapshots/%s%s%s", s->path, id, file ? "/" : "", file ? file : "");
        return n < 0 || (size_t) n >= size ? -ENAMETOOLONG : 0;
}

static int load_at(int dir_fd, const char *id, struct snap_manifest *ret) {
        cleanup_free struct snap_manifest *m = malloc(sizeof(*m));
        cleanup_free void *data = NULL;
        cleanup_fd int fd = -1;
        struct stat st;
        int r;

        if (!m)
                return -ENOMEM;
        r = open_file_at(dir_fd, SNAP_FILE_MANIFEST, &fd);
        if (r == -ENOENT)
                return -EBADMSG; /* the directory is there, so it is the snapshot that is broken */
        if (r < 0)
                return r;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (st.st_size <= 0 || st.st_size > (off_t) SNAP_MANIFEST_MAX_BYTES)
                return -EBADMSG;
        data = malloc((size_t) st.st_size);
        if (!data)
                return -ENOMEM;
        r = io_pread_full(fd, data, (size_t) st.st_size, 0);
        if (r == 0)
                r = snap_manifest_decode(data, (size_t) st.st_size, m);
        if (r == 0 && strcmp(m->id, id) != 0)
                r = -EBADMSG;
        if (r == 0)
                *ret = *m;
        return r;
}

int snap_store_load(struct snap_store *s, const char *id, struct snap_manifest *ret, bool *ret_durable) {
        cleanup_fd int dir_fd = -1;
        int r;

        r = snap_store_open_dir(s, id, &dir_fd);
        if (r == 0)
                r = load_at(dir_fd, id, ret);
        if (r == 0 && ret_durable)
                *ret_durable = faccessat(dir_fd, SNAP_FILE_DURABLE, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
        return r;
}

static int open_image_at(int dir_fd, const struct snap_manifest *m, struct snap_image **ret) {
        cleanup_snap_image struct snap_image *img = NULL;
        const struct snap_image_info *i;
        cleanup_fd int fd = -1;
        int r;

        r = open_file_at(dir_fd, SNAP_FILE_MEMORY, &fd);
        if (r == -ENOENT)
                return -EBADMSG;
        if (r == 0)
                r = snap_image_open(fd, &img);
        if (r < 0)
                return r;
        i = snap_image_info(img);
        if (memcmp(i->uuid, m->image_uuid, SNAP_UUID_LEN) != 0 || i->ram_bytes != m->mem_bytes ||
            i->file_bytes != m->image_bytes || i->n_stored_pages != m->pages_stored)
                return -EBADMSG;
        *ret = TAKE_PTR(img);
        return 0;
}

int snap_store_open_image(struct snap_store *s, const char *id, const struct snap_manifest *m, struct snap_image **ret) {
        cleanup_free struct snap_manifest *own = NULL;
        cleanup_fd int dir_fd = -1;
        int r;

        r = snap_store_open_dir(s, id, &dir_fd);
        if (r < 0)
                return r;
        if (!m) {
                own = malloc(sizeof(*own));
                if (!own)
                        return -ENOMEM;
                r = load_at(dir_fd, id, own);
                if (r < 0)
                        return r;
                m = own;
        }
        return open_image_at(dir_fd, m, ret);
}

static int read_vmstate_at(int dir_fd, const struct snap_manifest *m, void **ret) {
        cleanup_fd int fd = -1;
        int r;

        if (m->vmstate_bytes == 0)
                return -ENODATA;
        r = open_file_at(dir_fd, SNAP_FILE_VMSTATE, &fd);
        if (r == -ENOENT)
                return -EBADMSG;
        return r < 0 ? r : snap_vmstate_read(fd, m, ret);
}

int snap_store_read_vmstate(struct snap_store *s, const char *id, int out_fd) {
        cleanup_free struct snap_manifest *m = malloc(sizeof(*m));
        cleanup_free void *raw = NULL;
        cleanup_fd int dir_fd = -1;
        int r;

        if (!m)
                return -ENOMEM;
        r = snap_store_open_dir(s, id, &dir_fd);
        if (r == 0)
                r = load_at(dir_fd, id, m);
        if (r == 0)
                r = read_vmstate_at(dir_fd, m, &raw);
        if (r == 0)
                r = io_write_full(out_fd, raw, m->vmstate_raw_bytes);
        return r;
}

/* ---- space ---- */

#define FIEMAP_BATCH 128u

static int file_unique_bytes(int fd, uint64_t *ret) {
        _Alignas(struct fiemap) uint8_t buf[sizeof(struct fiemap) + FIEMAP_BATCH * sizeof(struct fiemap_extent)];
        struct fiemap *map = (struct fiemap *) buf;
        uint64_t bytes = 0, pos = 0;
        struct stat st;

        if (fstat(fd, &st) < 0)
                return -errno;
        for (;;) {
                *map = (struct fiemap){ .fm_start = pos, .fm_length = FIEMAP_MAX_OFFSET - pos, .fm_extent_count = FIEMAP_BATCH };
                if (ioctl(fd, FS_IOC_FIEMAP, map) < 0) {
                        if (errno != EOPNOTSUPP && errno != ENOTTY && errno != EBADR && errno != EINVAL)
                                return -errno;
                        *ret = (uint64_t) st.st_blocks * 512;
                        return 0;
                }
                if (map->fm_mapped_extents == 0)
                        break;
                for (unsigned i = 0; i < map->fm_mapped_extents; i++) {
                        const struct fiemap_extent *e = &map->fm_extents[i];

                        if (!(e->fe_flags & FIEMAP_EXTENT_SHARED) && e->fe_logical < (uint64_t) st.st_size)
                                bytes += MIN_OF(e->fe_length, ((uint64_t) st.st_size - e->fe_logical + 511) / 512 * 512);
                        pos = e->fe_logical + e->fe_length;
                        if (e->fe_flags & FIEMAP_EXTENT_LAST) {
                                *ret = bytes;
                                return 0;
                        }
                }
        }
        *ret = bytes;
        return 0;
}

int snap_store_unique_bytes(struct snap_store *s, const char *id, uint64_t *ret) {
        cleanup_fd int dir_fd = -1;
        uint64_t total = 0;
        DIR *dir;
        int r;

        r = snap_store_open_dir(s, id, &dir_fd);
        if (r < 0)
                return r;
        r = io_opendir(dir_fd, &dir);
        if (r < 0)
                return r;
        for (struct dirent *de; r == 0 && (errno = 0, de = readdir(dir));) {
                cleanup_fd int file = -1;
                uint64_t n;

                if (de->d_name[0] == '.' || open_file_at(dir_fd, de->d_name, &file) < 0)
                        continue;
                r = file_unique_bytes(file, &n);
                if (r == 0)
                        total += n;
        }
        if (r == 0 && errno != 0)
                r = -errno;
        (void) closedir(dir);
        if (r == 0)
                *ret = total;
        return r;
}

/* ---- verify, remove, recover ---- */

/* A disk has no checksum; its presence and size are what can be checked. */
static int check_disks(int dir_fd, const struct snap_manifest *m, snap_verify_fn *fn, void *arg) {
        int result = 0;

        for (unsigned i = 0; i < m->n_disks; i++) {
                cleanup_fd int fd = -1;
                char name[32], what[96];
                struct stat st;

                (void) snprintf(name, sizeof(name), "disk-%u.img", i);
                if (open_file_at(dir_fd, name, &fd) == 0 && fstat(fd, &st) == 0 && (uint64_t) st.st_size == m->disk_bytes[i])
                        continue;
                (void) snprintf(what, sizeof(what), "%s is missing or has another size than the manifest says", name);
                result = -EBADMSG;
                if (fn && fn(what, arg) != 0)
                        break;
        }
        return result;
}

int snap_store_verify(struct snap_store *s, const char *id, snap_verify_fn *on_error, void *arg, uint64_t *ret_frames) {
        cleanup_free struct snap_manifest *m = malloc(sizeof(*m));
        cleanup_snap_image struct snap_image *img = NULL;
        cleanup_free void *raw = NULL;
        cleanup_fd int dir_fd = -1;
        uint64_t frames = 0;
        bool bad = false;
        int r;

        if (!m)
                return -ENOMEM;
        r = snap_store_open_dir(s, id, &dir_fd);
        if (r < 0)
                return r;
        r = load_at(dir_fd, id, m);
        if (r == -EBADMSG && on_error)
                (void) on_error("the manifest is missing, corrupt, or another snapshot's", arg);
        if (r < 0)
                return r;
        r = read_vmstate_at(dir_fd, m, &raw);
        if (r == -EBADMSG) {
                bad = true;
                if (on_error && on_error("the device state is missing or corrupt", arg) != 0)
                        return r;
        } else if (r < 0 && r != -ENODATA)
                return r;
        r = check_disks(dir_fd, m, on_error, arg);
        bad |= r < 0;
        r = open_image_at(dir_fd, m, &img);
        if (r == -EBADMSG && on_error)
                (void) on_error("memory.img is missing, torn, or not the image that the manifest names", arg);
        if (r == 0)
                r = snap_image_verify(img, on_error, arg, &frames);
        if (r < 0 && r != -EBADMSG)
                return r;
        if (ret_frames)
                *ret_frames = frames;
        return bad ? -EBADMSG : r;
}

int snap_store_remove(struct snap_store *s, const char *id) {
        snap_tmp_name name;
        cleanup_fd int dir_fd = -1;
        int r;

        r = snap_store_open_dir(s, id, &dir_fd);
        if (r == -ENOTDIR || r == -ELOOP)
                return -EBADMSG;
        if (r < 0)
                return r;
        /* Locked before it is in tmp/, so that a sweep does not race with us for the files. If a sweep or
         * another remover is there already, the rename tells. */
        (void) flock(dir_fd, LOCK_EX | LOCK_NB);
        snap_tmp_name_new("rm", id, name);
        if (renameat2(s->snapshots_fd, id, s->tmp_fd, name, RENAME_NOREPLACE) < 0)
                return -errno;
        r = io_remove_tree(s->tmp_fd, name);
        /* A working set may have come in the last moment; after the rename above only one that was on its way. */
        return r == -ENOTEMPTY ? io_remove_tree(s->tmp_fd, name) : r;
}

int snap_store_make_durable(struct snap_store *s, const char *id) {
        cleanup_fd int dir_fd = -1;
        int r;

        r = snap_store_open_dir(s, id, &dir_fd);
        if (r < 0)
                return r;
        if (faccessat(dir_fd, SNAP_FILE_DURABLE, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
                return 0;
        r = snap_sync_files(dir_fd);
        if (r == 0)
                r = snap_sync_mark(dir_fd);
        return r < 0 ? r : snap_sync_finish(dir_fd, s->snapshots_fd);
}

/* 1: it is torn and gone; 0: it is sound and durable, or gone meanwhile. */
static int recover_one(struct snap_store *s, const char *id) {
        cleanup_fd int dir_fd = -1;
        int r = snap_store_open_dir(s, id, &dir_fd);

        if (r == -ENOENT)
                return 0;
        if (r < 0 || faccessat(dir_fd, SNAP_FILE_DURABLE, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
                return r;
        r = snap_store_verify(s, id, NULL, NULL, NULL);
        if (r == 0)
                return snap_store_make_durable(s, id);
        if (r != -EBADMSG)
                return r;
        r = snap_store_remove(s, id);
        return r < 0 ? r : 1;
}

int snap_store_recover(struct snap_store *s, unsigned *ret_removed, unsigned *ret_left) {
        cleanup_snap_list struct snap_list l = {};
        unsigned removed = 0, left = 0;
        int r = snap_store_list(s, &l);

        if (r < 0)
                return r;
        for (size_t i = 0; i < l.n; i++) {
                r = recover_one(s, l.ids[i]);
                removed += r > 0;
                left += r < 0;
        }
        if (ret_removed)
                *ret_removed = removed;
        if (ret_left)
                *ret_left = left;
        return 0;
}
