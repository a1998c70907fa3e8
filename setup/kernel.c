/* SPDX-License-Identifier: MIT */
/* See kernel.h. A directory <cache>/kernel/<key> is complete from the moment it has its name (it is built
 * elsewhere and renamed), so a reader only has to check that nobody has deleted files out of it. */
#include "setup/kernel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "common/ids.h"
#include "common/io.h"
#include "setup/paths.h"
#include "setup/kernel_source.h"
#include "setup/modules.h"
#include "setup/unpack.h"

/* What a guest needs, in the order of need: the bus, the agent's channel, disks, network, entropy. ext4 is
 * built in; so is everything else that busybox wants. */
static const char *const wanted_modules[] = { "virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "?virtio_rng", NULL };

#define INFO_MAX_BYTES (64u << 10)
#define KERNEL_FORMAT 1 /* of the directory; another one is not used, and removed by the next import */

static int write_file(const char *dir, const char *name, const void *data, size_t len) {
        char path[PATH_MAX];

        int r = path_join(path, sizeof(path), dir, name);
        if (r < 0)
                return r;
        cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0)
                return -errno;
        r = io_write_full(fd, data, len);
        if (r == 0 && fsync(fd) < 0)
                r = -errno;
        return r;
}

static int write_info(const char *dir, const struct kernel *k, size_t vmlinux_len) {
        json_t *modules = json_array();
        for (size_t i = 0; i < k->n_modules; i++)
                json_array_append_new(modules, json_string(k->modules[i]));
        json_t *info = json_pack("{s:i, s:s, s:s, s:s, s:I, s:o}", "format", KERNEL_FORMAT, "release", k->release, "source",
                                 k->source, "hash", k->hash, "vmlinux_bytes", (json_int_t) vmlinux_len, "modules", modules);
        cleanup_free char *text = info ? json_dumps(info, JSON_INDENT(2)) : NULL;

        json_decref(info);
        return text ? write_file(dir, "info.json", text, strlen(text)) : -ENOMEM;
}

/* Reads a directory back and checks that it is whole. */
static int read_dir(const char *dir, struct kernel *ret) {
        struct kernel k = { 0 };
        char path[PATH_MAX];
        struct stat st;
        cleanup_free char *text = NULL;
        size_t len;
        const char *release, *source, *hash;
        json_int_t bytes;
        json_t *modules, *name;
        size_t i;
        int format;

        (void) snprintf(path, sizeof(path), "%s/info.json", dir);
        int r = io_read_file(AT_FDCWD, path, INFO_MAX_BYTES, &text, &len);
        if (r < 0)
                return r;
        json_t *info = json_loadb(text, len, 0, NULL);
        if (json_unpack(info, "{s:i, s:s, s:s, s:s, s:I, s:o}", "format", &format, "release", &release, "source", &source, "hash",
                        &hash, "vmlinux_bytes", &bytes, "modules", &modules) < 0 ||
            format != KERNEL_FORMAT || strlen(release) >= sizeof(k.release) || strlen(hash) != sizeof(k.hash) - 1 ||
            json_array_size(modules) > KERNEL_MAX_MODULES)
                r = -EBADMSG;
        if (r == 0) {
                (void) snprintf(k.release, sizeof(k.release), "%s", release);
                (void) snprintf(k.source, sizeof(k.source), "%s", source);
                (void) snprintf(k.hash, sizeof(k.hash), "%s", hash);
                (void) snprintf(k.dir, sizeof(k.dir), "%s", dir);
                (void) snprintf(path, sizeof(path), "%s/vmlinux", dir);
                if (stat(path, &st) < 0 || st.st_size != bytes)
                        r = -EBADMSG;
                json_array_foreach (modules, i, name) {
                        if (r < 0 || !json_is_string(name) || json_string_length(name) >= sizeof(k.modules[0])) {
                                r = -EBADMSG;
                                break;
                        }
                        (void) snprintf(k.modules[k.n_modules++], sizeof(k.modules[0]), "%s", json_string_value(name));
                        (void) snprintf(path, sizeof(path), "%s/modules/%s.ko", dir, json_string_value(name));
                        if (access(path, R_OK) < 0)
                                r = -EBADMSG;
                }
        }
        json_decref(info);
        if (r == 0)
                *ret = k;
        return r;
}

int kernel_cached(const char *cache_dir, struct kernel *ret) {
        struct kernel_source host;
        char path[PATH_MAX];

        if (kernel_source_installed("", &host) == 0) {
                (void) snprintf(path, sizeof(path), "%s/kernel/%s", cache_dir, host.key);
                return read_dir(path, ret) < 0 ? -ENOENT : 0;
        }

        (void) snprintf(path, sizeof(path), "%s/kernel", cache_dir);
        DIR *d = opendir(path);
        if (!d)
                return -errno;
        struct timespec newest = { 0 };
        bool found = false;
        for (struct dirent *de; (de = readdir(d));) {
                struct kernel k;
                struct stat st;

                if (strncmp(de->d_name, "deb-", 4) != 0 || fstatat(dirfd(d), de->d_name, &st, 0) < 0)
                        continue;
                (void) snprintf(path, sizeof(path), "%s/kernel/%s", cache_dir, de->d_name);
                bool newer = st.st_mtim.tv_sec > newest.tv_sec ||
                             (st.st_mtim.tv_sec == newest.tv_sec && st.st_mtim.tv_nsec > newest.tv_nsec);
                if ((!found || newer) && read_dir(path, &k) == 0) {
                        *ret = k;
                        newest = st.st_mtim;
                        found = true;
                }
        }
        (void) closedir(d);
        return found ? 0 : -ENOENT;
}

static int save_modules(const char *dir, const struct module_set *set, XXH3_state_t *hash, struct kernel *k, struct err *e) {
        char sub[PATH_MAX];

        (void) snprintf(sub, sizeof(sub), "%s/modules", dir);
        if (mkdir(sub, 0755) < 0)
                return err_errno(e, -errno, "cannot make %s", sub);
        for (size_t i = 0; i < set->n; i++) {
                const struct module *m = &set->m[i];
                char file[72];

                (void) snprintf(file, sizeof(file), "%s.ko", m->name);
                int r = write_file(sub, file, m->data, m->len);
                if (r < 0)
                        return err_errno(e, r, "cannot write %s/%s", sub, file);
                XXH3_128bits_update(hash, m->name, strlen(m->name) + 1);
                XXH3_128bits_update(hash, m->data, m->len);
                (void) snprintf(k->modules[k->n_modules++], sizeof(k->modules[0]), "%s", m->name);
        }
        return 0;
}

/* Takes what a guest needs out of @s into the new directory @dir. */
static int extract(const struct kernel_source *s, const char *dir, struct err *e) {
        cleanup_module_set struct module_set set = { 0 };
        cleanup_free char *image = NULL, *elf = NULL;
        size_t image_len, elf_len;
        struct kernel k = { 0 };
        XXH128_canonical_t canon;

        _Static_assert(MODULES_MAX <= KERNEL_MAX_MODULES, "a module set fits a kernel");
        int r = io_read_file(AT_FDCWD, s->image, UNPACK_MAX_KERNEL, &image, &image_len);
        if (r < 0)
                return err_errno(e, r, "cannot read %s", s->image);
        r = unpack_vmlinux(image, image_len, &elf, &elf_len, e);
        if (r < 0)
                return err_prefix(e, "%s", s->image);
        r = modules_collect(s->modules_dir, wanted_modules, &set, e);
        if (r < 0)
                return r;

        XXH3_state_t *hash = XXH3_createState();
        if (!hash || mkdir(dir, 0755) < 0) {
                XXH3_freeState(hash);
                return err_errno(e, hash ? -errno : -ENOMEM, "cannot make %s", dir);
        }
        XXH3_128bits_reset(hash);
        XXH3_128bits_update(hash, elf, elf_len);
        r = save_modules(dir, &set, hash, &k, e);
        if (r == 0) {
                XXH128_canonicalFromHash(&canon, XXH3_128bits_digest(hash));
                hex_encode(canon.digest, sizeof(canon.digest), k.hash);
                (void) snprintf(k.release, sizeof(k.release), "%s", s->release);
                (void) snprintf(k.source, sizeof(k.source), "%s", s->name);
                r = write_file(dir, "vmlinux", elf, elf_len);
                if (r == 0)
                        r = write_info(dir, &k, elf_len);
                if (r < 0)
                        err_errno(e, r, "cannot write the kernel into %s", dir);
        }
        XXH3_freeState(hash);
        return r;
}

/* The others are of no more use: what boots a guest has its own links to the files. */
static void remove_others(const char *kernels, const char *key) {
        DIR *d = opendir(kernels);

        if (!d)
                return;
        for (struct dirent *de; (de = readdir(d));)
                if (de->d_name[0] != '.' && strcmp(de->d_name, key) != 0)
                        remove_quietly(dirfd(d), de->d_name);
        (void) closedir(d);
}

int kernel_get(const char *cache_dir, const char *tmp_dir, kernel_progress_fn *progress, void *arg, struct kernel *ret,
               struct err *e) {
        char kernels[KERNEL_MAX_PATH], tmp[KERNEL_MAX_PATH], final[PATH_MAX];
        struct kernel_source s;
        int r = 0;

        if (kernel_source_installed("", &s) < 0)
                r = kernel_source_package(tmp_dir, progress, arg, &s, e);
        if (r < 0)
                return r;
        if (progress)
                progress("taking kernel and modules out of it", -1, arg);
        (void) snprintf(kernels, sizeof(kernels), "%s/kernel", cache_dir);
        (void) snprintf(tmp, sizeof(tmp), "%s/kernel", tmp_dir);
        (void) snprintf(final, sizeof(final), "%s/%s", kernels, s.key);
        r = extract(&s, tmp, e);
        if (r < 0)
                return r;

        r = io_mkdir_p(kernels, 0755);
        if (r == 0)
                r = io_remove_tree(AT_FDCWD, final); /* a damaged one of the same name */
        if (r == 0)
                r = io_publish(AT_FDCWD, tmp, final, true);
        if (r == 0)
                r = read_dir(final, ret);
        if (r < 0)
                return err_errno(e, r, "cannot put the kernel into %s", final);
        remove_others(kernels, s.key);
        return 0;
}
