/* SPDX-License-Identifier: MIT */
/* The meta package linux-image-cloud-amd64 names the current kernel in its Depends. The package itself is
 * only downloaded and unpacked, never installed: the host's own boot stays as it is. apt checks its
 * signature. A host whose package lists are missing or old is helped with one `apt-get update`. */
#include "setup/kernel_source.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "common/io.h"
#include "setup/run.h"

#define META_PACKAGE "linux-image-cloud-amd64"
#define IMAGE_PREFIX "vmlinuz-"
#define IMAGE_SUFFIX "-cloud-amd64"
#define QUERY_TIMEOUT_MS 60000
#define UPDATE_TIMEOUT_MS 300000
#define DOWNLOAD_TIMEOUT_MS 1800000
#define UNPACK_TIMEOUT_MS 300000

static int fill_source(const char *root, const char *release, struct kernel_source *s) {
        static const char *const lib[] = { "/lib/modules", "/usr/lib/modules" };
        struct stat st;

        (void) snprintf(s->release, sizeof(s->release), "%s", release);
        (void) snprintf(s->image, sizeof(s->image), "%s/boot/" IMAGE_PREFIX "%s", root, release);
        if (stat(s->image, &st) < 0 || !S_ISREG(st.st_mode))
                return -ENOENT;
        for (size_t i = 0; i < ARRAY_LEN(lib); i++) {
                char sub[KERNEL_MAX_PATH + 16];

                (void) snprintf(s->modules_dir, sizeof(s->modules_dir), "%s%s/%s", root, lib[i], release);
                (void) snprintf(sub, sizeof(sub), "%s/kernel", s->modules_dir);
                if (stat(sub, &st) == 0 && S_ISDIR(st.st_mode))
                        return 0;
        }
        return -ENOENT;
}

static void make_key(struct kernel_source *s, const char *kind, const char *identity) {
        char text[512];

        (void) snprintf(text, sizeof(text), "%s %s", s->release, identity);
        (void) snprintf(s->key, sizeof(s->key), "%s-%s-%016llx", kind, s->release,
                        (unsigned long long) XXH3_64bits(text, strlen(text)));
}

int kernel_source_installed(const char *root, struct kernel_source *ret) {
        struct kernel_source best = { 0 };
        char path[PATH_MAX];
        struct stat st;

        (void) snprintf(path, sizeof(path), "%s/boot", root);
        DIR *d = opendir(path);
        if (!d)
                return -errno;
        for (struct dirent *de; (de = readdir(d));) {
                size_t len = strlen(de->d_name), suffix = strlen(IMAGE_SUFFIX), prefix = strlen(IMAGE_PREFIX);
                struct kernel_source s = { 0 };

                if (len <= prefix + suffix || len >= sizeof(s.release) + prefix ||
                    strncmp(de->d_name, IMAGE_PREFIX, prefix) != 0 || strcmp(de->d_name + len - suffix, IMAGE_SUFFIX) != 0)
                        continue;
                if (fill_source(root, de->d_name + prefix, &s) == 0 &&
                    (!best.release[0] || strverscmp(s.release, best.release) > 0))
                        best = s;
        }
        (void) closedir(d);
        if (!best.release[0] || stat(best.image, &st) < 0)
                return -ENOENT;

        char identity[64];
        (void) snprintf(identity, sizeof(identity), "%lld %lld", (long long) st.st_size, (long long) st.st_mtime);
        make_key(&best, "host", identity);
        (void) snprintf(best.name, sizeof(best.name), "host kernel %s", best.release);
        *ret = best;
        return 0;
}

/* The value of a "Field: value" line of apt-cache show, cut to the buffer. */
static int control_field(const char *text, const char *field, char *buf, size_t size) {
        size_t n = strlen(field);

        for (const char *line = text; line && *line; line = strchr(line, '\n'), line += line != NULL)
                if (strncmp(line, field, n) == 0 && line[n] == ':') {
                        const char *v = line + n + 1 + strspn(line + n + 1, " ");
                        (void) snprintf(buf, size, "%.*s", (int) strcspn(v, "\n"), v);
                        return 0;
                }
        return -ENOENT;
}

struct package {
        char name[96], version[64];
        uint64_t size;
};

static int apt_show(const char *name, char **ret, struct err *e) {
        const struct run_params rp = {
                .argv = (const char *[]){ "apt-cache", "show", "--no-all-versions", name, NULL },
                .timeout_ms = QUERY_TIMEOUT_MS,
        };
        return run_program(&rp, ret, e);
}

static int find_package(struct package *ret, struct err *e) {
        cleanup_free char *meta = NULL, *show = NULL;
        char depends[512], size[32];
        struct package p = { 0 };

        int r = apt_show(META_PACKAGE, &meta, e);
        if (r < 0)
                return r;
        if (control_field(meta, "Depends", depends, sizeof(depends)) < 0)
                return err_set(e, ERR_NOT_FOUND, -ENOENT, "the package lists do not know " META_PACKAGE);
        const char *name = strstr(depends, "linux-image-");
        if (!name)
                return err_set(e, ERR_NOT_FOUND, -ENOENT, META_PACKAGE " names no kernel in its Depends");
        (void) snprintf(p.name, sizeof(p.name), "%.*s", (int) strcspn(name, " ,(|"), name);

        r = apt_show(p.name, &show, e);
        if (r < 0)
                return r;
        if (control_field(show, "Version", p.version, sizeof(p.version)) < 0)
                return err_set(e, ERR_NOT_FOUND, -ENOENT, "the package lists do not know %s", p.name);
        if (control_field(show, "Size", size, sizeof(size)) == 0)
                p.size = strtoull(size, NULL, 10);
        *ret = p;
        return 0;
}

struct download {
        const char *dir;
        const struct package *package;
        kernel_progress_fn *progress;
        void *arg;
};

/* apt writes name_version_arch.deb, under that name from the first byte on. */
static int find_deb(const char *dir, char *path, size_t size, uint64_t *ret_size) {
        DIR *d = opendir(dir);
        int r = -ENOENT;

        if (!d)
                return -errno;
        for (struct dirent *de; (de = readdir(d));) {
                const char *dot = strrchr(de->d_name, '.');
                struct stat st;

                if (!dot || strcmp(dot, ".deb") != 0 || fstatat(dirfd(d), de->d_name, &st, 0) < 0)
                        continue;
                (void) snprintf(path, size, "%s/%s", dir, de->d_name);
                *ret_size = (uint64_t) st.st_size;
                r = 0;
        }
        (void) closedir(d);
        return r;
}

static void download_tick(void *arg) {
        const struct download *d = arg;
        char path[PATH_MAX], text[192];
        uint64_t have = 0;

        (void) snprintf(text, sizeof(text), "downloading %s", d->package->name);
        if (find_deb(d->dir, path, sizeof(path), &have) < 0 || d->package->size == 0)
                have = 0;
        d->progress(text, d->package->size ? (int) MIN_OF(have * 100 / d->package->size, (uint64_t) 100) : -1, d->arg);
}

static int download(struct download *d, struct err *e) {
        /* env -C: apt-get download writes into its working directory. */
        const struct run_params rp = {
                .argv = (const char *[]){ "env", "-C", d->dir, "LC_ALL=C", "apt-get", "-q", "-o", "APT::Sandbox::User=root",
                                          "download", d->package->name, NULL },
                .timeout_ms = DOWNLOAD_TIMEOUT_MS,
                .tick = d->progress ? download_tick : NULL,
                .tick_arg = d,
        };
        int r = run_program(&rp, NULL, e);
        return r < 0 ? err_prefix(e, "cannot download %s", d->package->name) : 0;
}

static int update_lists(kernel_progress_fn *progress, void *arg, struct err *e) {
        const struct run_params rp = {
                .argv = (const char *[]){ "env", "LC_ALL=C", "apt-get", "-q", "update", NULL },
                .timeout_ms = UPDATE_TIMEOUT_MS,
        };

        if (progress)
                progress("fetching the package lists (apt-get update)", -1, arg);
        return run_program(&rp, NULL, e);
}

/* Once with the lists as they are, once more with fresh ones. */
static int find_and_download(const char *dir, kernel_progress_fn *progress, void *arg, struct package *ret, struct err *e) {
        struct package p;

        for (int attempt = 0;; attempt++) {
                int r = find_package(&p, e);
                if (r == 0)
                        r = download(&(struct download){ dir, &p, progress, arg }, e);
                if (r == 0) {
                        *ret = p;
                        return 0;
                }
                struct err update_err = { 0 };
                if (attempt > 0 || update_lists(progress, arg, &update_err) < 0) {
                        if (update_err.r < 0 && e)
                                *e = update_err;
                        err_prefix(e, "no guest kernel");
                        return err_hint(e, "make `apt-get update` and `apt-get download " META_PACKAGE "` work on this "
                                           "host, or install that package: setup uses an installed one");
                }
        }
}

int kernel_source_package(const char *tmp_dir, kernel_progress_fn *progress, void *arg, struct kernel_source *ret,
                          struct err *e) {
        char deb[PATH_MAX], root[KERNEL_MAX_PATH];
        struct kernel_source s = { 0 };
        struct package p;
        uint64_t size;

        int r = find_and_download(tmp_dir, progress, arg, &p, e);
        if (r < 0)
                return r;
        r = find_deb(tmp_dir, deb, sizeof(deb), &size);
        if (r < 0)
                return err_errno(e, r, "apt-get download left no package in %s", tmp_dir);

        if (progress)
                progress("unpacking the kernel package", -1, arg);
        (void) snprintf(root, sizeof(root), "%s/root", tmp_dir);
        const struct run_params rp = {
                .argv = (const char *[]){ "dpkg-deb", "-x", deb, root, NULL },
                .timeout_ms = UNPACK_TIMEOUT_MS,
        };
        r = run_program(&rp, NULL, e);
        if (r < 0)
                return r;
        r = kernel_source_installed(root, &s);
        if (r < 0)
                return err_errno(e, r, "package %s holds no kernel that setup knows how to use", p.name);
        make_key(&s, "deb", p.version);
        (void) snprintf(s.name, sizeof(s.name), "package %s %s", p.name, p.version);
        *ret = s;
        return 0;
}
