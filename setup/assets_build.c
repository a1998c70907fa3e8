/* SPDX-License-Identifier: MIT */
/* A set is written into a temporary directory, synced, and renamed to its id; `current` is then replaced by
 * renaming a new link over it. A reader sees the old set or the new one, and a crash leaves at most a
 * directory tmp.<random>, which the next holder of the lock removes. */
#include "setup/assets_build.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/ids.h"
#include "common/io.h"
#include "setup/paths.h"

static int write_synced(const char *dir, const char *name, const void *data, size_t len) {
        char path[PATH_MAX];

        int r = path_join(path, sizeof(path), dir, name);
        if (r < 0)
                return r;
        cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0)
                return -errno;
        r = io_write_full(fd, data, len);
        return r == 0 && fsync(fd) < 0 ? -errno : r;
}

/* The kernel is the same file for many sets: a hard link costs nothing. */
static int link_kernel(const struct kernel *k, const char *dir, uint64_t *ret_size) {
        char from[PATH_MAX], to[PATH_MAX];
        struct stat st;

        int r = path_join(from, sizeof(from), k->dir, "vmlinux");
        if (r == 0)
                r = path_join(to, sizeof(to), dir, ASSETS_KERNEL);
        if (r < 0)
                return r;
        if (stat(from, &st) < 0)
                return -errno;
        *ret_size = (uint64_t) st.st_size;
        if (link(from, to) == 0)
                return 0;

        cleanup_fd int src = open(from, O_RDONLY | O_CLOEXEC);
        cleanup_fd int dst = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (src < 0 || dst < 0)
                return -errno;
        r = io_clone_file(src, dst, NULL);
        return r == 0 && fsync(dst) < 0 ? -errno : r;
}

static int write_info(const char *dir, const char *id, const struct initramfs_inputs *in, const struct kernel *k,
                      uint64_t kernel_bytes, size_t initrd_bytes) {
        json_t *info = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I}", "id", id, "release", k->release,
                                 "kernel_source", k->source, "kernel_hash", k->hash, "busybox", in->busybox_path, "agent",
                                 in->agent_path, "kernel_bytes", (json_int_t) kernel_bytes, "initrd_bytes",
                                 (json_int_t) initrd_bytes, "created", (json_int_t) time(NULL));
        cleanup_free char *text = info ? json_dumps(info, JSON_INDENT(2)) : NULL;

        json_decref(info);
        return text ? write_synced(dir, ASSETS_INFO, text, strlen(text)) : -ENOMEM;
}

int assets_set_current(const char *cache_dir, const char *id, bool *ret_changed, struct err *e) {
        char target[ASSETS_ID_LEN + 16], link[PATH_MAX], old[sizeof(target) + 1], tmp[PATH_MAX];
        id_str random;

        (void) snprintf(target, sizeof(target), "assets/%s", id);
        (void) snprintf(link, sizeof(link), "%s/" ASSETS_CURRENT, cache_dir);
        ssize_t n = readlink(link, old, sizeof(old) - 1);
        if (n >= 0) {
                old[n] = '\0';
                if (strcmp(old, target) == 0) {
                        *ret_changed = false;
                        return 0;
                }
                /* Its age counts from now on; see assets_clean. */
                char replaced[PATH_MAX];
                (void) snprintf(replaced, sizeof(replaced), "%s/%s", cache_dir, old);
                (void) utimensat(AT_FDCWD, replaced, NULL, 0);
        }
        id_new(random);
        (void) snprintf(tmp, sizeof(tmp), "%s/tmp.%s", cache_dir, random);
        if (symlink(target, tmp) < 0)
                return err_errno(e, -errno, "cannot make %s", tmp);
        if (rename(tmp, link) < 0) {
                int r = -errno;
                (void) unlink(tmp);
                return err_errno(e, r, "cannot replace %s", link);
        }
        *ret_changed = true;
        int r = io_fsync_dir(AT_FDCWD, cache_dir);
        return r < 0 ? err_errno(e, r, "cannot sync %s", cache_dir) : 0;
}

/* initrd, kernel and description into the new directory @dir. */
static int fill(const char *dir, const char *id, const struct initramfs_inputs *in, const struct kernel *k, struct err *e) {
        cleanup_free char *initrd = NULL;
        uint64_t kernel_bytes = 0;
        size_t len;

        int r = initramfs_build(in, k, &initrd, &len, e);
        if (r < 0)
                return r;
        r = mkdir(dir, 0755) < 0 ? -errno : 0;
        if (r == 0)
                r = link_kernel(k, dir, &kernel_bytes);
        if (r == 0)
                r = write_synced(dir, ASSETS_INITRD, initrd, len);
        if (r == 0)
                r = write_info(dir, id, in, k, kernel_bytes, len);
        return r < 0 ? err_errno(e, r, "cannot write the guest assets into %s", dir) : 0;
}

int assets_publish(const char *cache_dir, const char *tmp_dir, const char *id, const struct initramfs_inputs *in,
                   const struct kernel *k, struct assets *ret, struct err *e) {
        char tmp[PATH_MAX], dir[PATH_MAX], final[PATH_MAX];
        bool changed;

        int r = assets_read(cache_dir, id, ret);
        if (r < 0) {
                (void) snprintf(tmp, sizeof(tmp), "%s/assets", tmp_dir);
                r = fill(tmp, id, in, k, e);
                if (r < 0)
                        return r;
                (void) snprintf(dir, sizeof(dir), "%s/assets", cache_dir);
                (void) snprintf(final, sizeof(final), "%s/assets/%s", cache_dir, id);
                r = io_mkdir_p(dir, 0755);
                if (r == 0)
                        r = io_remove_tree(AT_FDCWD, final); /* there, but damaged */
                if (r == 0)
                        r = io_publish(AT_FDCWD, tmp, final, true);
                if (r == 0)
                        r = assets_read(cache_dir, id, ret);
                if (r < 0)
                        return err_errno(e, r, "cannot put the guest assets into %s", final);
        }
        return assets_set_current(cache_dir, id, &changed, e);
}

static void clean_sets(int cache_fd, const char *keep) {
        int fd = openat(cache_fd, "assets", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

        if (!d) {
                (void) close_fd(fd);
                return;
        }
        for (struct dirent *de; (de = readdir(d));) {
                struct stat st;

                if (de->d_name[0] == '.' || strcmp(de->d_name, keep) == 0 ||
                    fstatat(dirfd(d), de->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                        continue;
                if (time(NULL) - st.st_mtime > ASSETS_KEEP_SECONDS)
                        remove_quietly(dirfd(d), de->d_name);
        }
        (void) closedir(d);
}

void assets_clean(const char *cache_dir) {
        struct assets current = { 0 };
        DIR *d = opendir(cache_dir);

        if (!d)
                return;
        if (assets_locate(cache_dir, &current, NULL) == 0)
                clean_sets(dirfd(d), current.id);
        for (struct dirent *de; (de = readdir(d));)
                if (strncmp(de->d_name, "tmp.", 4) == 0)
                        remove_quietly(dirfd(d), de->d_name);
        (void) closedir(d);
}
