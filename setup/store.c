/* SPDX-License-Identifier: MIT */
/* What kind of store a state directory has, and making one; mounting is in store_mount.c.
 *
 * The image is made under a temporary name and renamed when mkfs is through, so a store.img that exists is a
 * whole file system. It is sparse: it takes disk as snapshots fill it, and gives it back when they are deleted
 * (the mount discards). All the same its full size must be free when it is made: an XFS that meets a full host
 * in the middle of a write shuts down. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "common/ids.h"
#include "common/io.h"
#include "setup/run.h"
#include "setup/space.h"
#include "setup/store_internal.h"

#define MKFS_TIMEOUT_MS 120000
#define EMPTY_MAX_DEPTH 4
#define STORE_TMP STORE_IMAGE ".tmp" /* one name: whoever holds the lock may remove it */

int store_path(const char *state_dir, const char *name, char *buf, size_t size, struct err *e) {
        if ((size_t) snprintf(buf, size, "%s/%s", state_dir, name) >= size)
                return err_set(e, ERR_INVALID, -ENAMETOOLONG, "the path of the state directory is too long: %s", state_dir);
        return 0;
}

int store_lock(const char *state_dir, int *ret_fd, struct err *e) {
        char path[STORE_MAX_PATH];

        int r = store_path(state_dir, STORE_LOCK, path, sizeof(path), e);
        if (r < 0)
                return r;
        cleanup_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
                return err_errno(e, -errno, "cannot open %s", path);
        while (flock(fd, LOCK_EX) < 0)
                if (errno != EINTR)
                        return err_errno(e, -errno, "cannot lock %s", path);
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static int has_files(int fd, unsigned depth) {
        DIR *d = fdopendir(fd);
        int r = 0;

        if (!d) {
                r = -errno;
                (void) close_fd(fd);
                return r;
        }
        for (struct dirent *de; r == 0 && (de = readdir(d));) {
                if (strcmp(de->d_name, ".") == 0 || strcmp(de->d_name, "..") == 0)
                        continue;
                int sub = openat(dirfd(d), de->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
                if (sub < 0)
                        r = errno == ENOTDIR || errno == ELOOP ? 1 : -errno;
                else if (depth == EMPTY_MAX_DEPTH)
                        r = close_fd(sub) + 2; /* that deep: somebody's files, whatever they are */
                else
                        r = has_files(sub, depth + 1);
        }
        (void) closedir(d);
        return r;
}

int store_dir_has_files(const char *path) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        if (fd < 0)
                return errno == ENOENT ? 0 : -errno;
        return has_files(fd, 0);
}

static int inspect_loop(const char *state_dir, const struct stat *img, struct store_info *info) {
        uint64_t used = (uint64_t) img->st_blocks * 512;

        info->kind = STORE_LOOP;
        info->size_bytes = (uint64_t) img->st_size;
        int r = store_is_attached(state_dir);
        if (r < 0)
                return r;
        info->attached = r > 0;
        info->reflink = true;
        if (!info->attached) {
                info->free_bytes = info->size_bytes > used ? info->size_bytes - used : 0;
                return 0;
        }
        r = io_probe_reflink(info->path);
        if (r >= 0) /* else not ours to write: mkfs made it so */
                info->reflink = r > 0;
        return io_free_bytes(info->path, &info->free_bytes);
}

static int inspect_dir(const char *state_dir, struct store_info *info) {
        char where[STORE_MAX_PATH];
        struct stat st;

        int r = space_existing_parent(info->path, where, sizeof(where));
        if (r < 0)
                return r;
        r = io_probe_reflink(where);
        if (r < 0)
                return r;
        info->reflink = r > 0;
        r = io_free_bytes(where, &info->free_bytes);
        if (r < 0)
                return r;
        bool exists = stat(info->path, &st) == 0;
        if (info->reflink) {
                info->kind = exists ? STORE_NATIVE : STORE_NONE;
                info->attached = exists;
                return 0;
        }
        r = store_dir_has_files(info->path);
        if (r < 0)
                return r;
        info->kind = r > 0 ? STORE_COPYING : STORE_NONE;
        return 0;
}

int store_inspect(const char *state_dir, struct store_info *ret, struct err *e) {
        struct store_info info = { 0 };
        char image[STORE_MAX_PATH];
        struct stat st;

        int r = store_path(state_dir, STORE_DIR, info.path, sizeof(info.path), e);
        if (r == 0)
                r = store_path(state_dir, STORE_IMAGE, image, sizeof(image), e);
        if (r < 0)
                return r;
        if (lstat(image, &st) == 0)
                r = S_ISREG(st.st_mode) ? inspect_loop(state_dir, &st, &info) : -EBADMSG;
        else if (errno == ENOENT || errno == ENOTDIR)
                r = inspect_dir(state_dir, &info);
        else
                r = -errno;
        if (r < 0)
                return err_errno(e, r, "cannot look at the store in %s", state_dir);
        *ret = info;
        return 0;
}

int store_needed_bytes(const char *state_dir, uint64_t size_bytes, uint64_t *ret, struct err *e) {
        struct store_info info;

        int r = store_inspect(state_dir, &info, e);
        if (r < 0)
                return r;
        *ret = info.kind == STORE_NONE && !info.reflink ? size_bytes : 0;
        return 0;
}

static int make_image(const char *state_dir, uint64_t size, struct err *e) {
        char tmp[STORE_MAX_PATH], image[STORE_MAX_PATH];

        int r = store_path(state_dir, STORE_TMP, tmp, sizeof(tmp), e);
        if (r == 0)
                r = store_path(state_dir, STORE_IMAGE, image, sizeof(image), e);
        if (r < 0)
                return r;
        if (unlink(tmp) < 0 && errno != ENOENT)
                return err_errno(e, -errno, "cannot remove %s", tmp);
        cleanup_fd int fd = open(tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0)
                return err_errno(e, -errno, "cannot make %s", tmp);

        /* 4 KiB sectors let the loop device bypass the host's page cache. -K: there is nothing to discard. */
        const struct run_params rp = {
                .argv = (const char *[]){ "mkfs.xfs", "-q", "-K", "-m", "reflink=1", "-s", "size=4096", "-L", "forkd-store", tmp,
                                          NULL },
                .timeout_ms = MKFS_TIMEOUT_MS,
        };
        if (ftruncate(fd, (off_t) size) < 0)
                r = err_errno(e, -errno, "cannot make a file of that size: %s", tmp);
        else
                r = run_program(&rp, NULL, e);
        if (r == -ENOENT)
                err_hint(e, "apt-get install xfsprogs");
        if (r == 0 && fsync(fd) < 0)
                r = err_errno(e, -errno, "cannot sync %s", tmp);
        if (r == 0) {
                r = io_publish(AT_FDCWD, tmp, image, true);
                if (r < 0)
                        err_errno(e, r, "cannot make %s", image);
        }
        if (r < 0)
                (void) unlink(tmp);
        return r;
}

int store_prepare(const char *state_dir, uint64_t size_bytes, bool *ret_created, struct err *e) {
        cleanup_fd int lock = -1;
        struct store_info info;
        char text[32];

        size_bytes &= ~(uint64_t) 4095;
        if (size_bytes < STORE_MIN_BYTES || size_bytes > STORE_MAX_BYTES)
                return err_set(e, ERR_INVALID, -ERANGE, "a store of %s is out of range: 512 MiB to 64 TiB",
                               size_format(size_bytes, text, sizeof(text)));
        int r = io_mkdir_p(state_dir, 0755);
        if (r < 0)
                return err_errno(e, r, "cannot make the state directory %s", state_dir);
        r = store_lock(state_dir, &lock, e);
        if (r == 0)
                r = store_inspect(state_dir, &info, e);
        if (r < 0)
                return r;

        *ret_created = false;
        if (info.kind == STORE_LOOP || info.kind == STORE_NATIVE)
                return 0;
        if (info.kind == STORE_COPYING) {
                err_set(e, ERR_STATE, -ENOTEMPTY, "%s holds files already, on a file system without reflink", info.path);
                return err_hint(e, "snapshots work there, by copying; for reflinks stop forkd, move the directory away, "
                                   "run setup again and move its content back");
        }
        if (!info.reflink) {
                const struct space_need need = { state_dir, size_bytes, "the store", STORE_SPACE_ADVICE };

                r = space_check(&need, 1, e);
                if (r == 0)
                        r = make_image(state_dir, size_bytes, e);
                if (r < 0)
                        return r;
        }
        if (mkdir(info.path, 0700) < 0 && errno != EEXIST)
                return err_errno(e, -errno, "cannot make %s", info.path);
        *ret_created = true;
        return 0;
}

const char *store_kind_name(enum store_kind kind) {
        static const char *const names[] = { "none", "native", "loop", "copying" };

        return names[kind];
}
