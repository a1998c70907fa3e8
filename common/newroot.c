/* SPDX-License-Identifier: MIT */
/* Theory of operation. The new root is a tmpfs, mounted over some directory of the old one. What is to be seen in it is
 * opened first: the tmpfs may hide it. Then the roots change places, and the old one, with all that is mounted in it, is
 * detached: a file system of which a copy of a mount was kept here could never be unmounted by its owner. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/io.h"
#include "common/jail.h"

#define MAX_ENTRIES 48u

struct builder {
        const struct newroot_entry *entries;
        size_t n;
        int source[MAX_ENTRIES]; /* O_PATH; -1: none */
        char *step;
};

static void say(struct builder *b, const char *what, const char *path) {
        (void) snprintf(b->step, JAIL_STEP_LEN, "%s%s%.60s", what, path ? " " : "", path ? path : "");
}

static int open_sources(struct builder *b) {
        for (size_t i = 0; i < b->n; i++) {
                const struct newroot_entry *e = &b->entries[i];

                if (e->kind != NEWROOT_BIND && e->kind != NEWROOT_DEVICE)
                        continue;
                b->source[i] = open(e->path, O_PATH | O_CLOEXEC | O_NOFOLLOW);
                if (b->source[i] < 0 && errno != ENOENT) {
                        say(b, "opening", e->path);
                        return -errno;
                }
        }
        return 0;
}

/* The directories above the relative path @path. */
static int make_parents(const char *path) {
        char buf[PATH_MAX];

        for (const char *slash = path; (slash = strchr(slash, '/')); slash++) {
                size_t n = (size_t) (slash - path);

                if (n == 0)
                        continue;
                if (n >= sizeof(buf))
                        return -ENAMETOOLONG;
                memcpy(buf, path, n);
                buf[n] = '\0';
                if (mkdir(buf, 0755) < 0 && errno != EEXIST)
                        return -errno;
        }
        return 0;
}

static int copy_link(int source, const char *path) {
        char target[PATH_MAX];
        ssize_t n = readlinkat(source, "", target, sizeof(target) - 1);

        if (n < 0)
                return -errno;
        target[n] = '\0';
        return symlink(target, path) < 0 ? -errno : 0;
}

static int bind_entry(int source, const char *path, bool device) {
        unsigned long flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | (device ? MS_NOEXEC : MS_NODEV);
        char from[64];
        struct stat st;
        int fd;

        if (fstat(source, &st) < 0)
                return -errno;
        if (S_ISLNK(st.st_mode))
                return copy_link(source, path);
        if (device && !S_ISCHR(st.st_mode))
                return -ENODEV;
        if (S_ISDIR(st.st_mode)) {
                if (mkdir(path, 0755) < 0 && errno != EEXIST)
                        return -errno;
        } else {
                fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0444);
                if (fd < 0)
                        return -errno;
                (void) close_fd(fd);
        }
        (void) snprintf(from, sizeof(from), "/proc/self/fd/%d", source);
        return mount(from, path, NULL, MS_BIND, NULL) < 0 || mount(NULL, path, NULL, flags, NULL) < 0 ? -errno : 0;
}

static int make_node(const struct newroot_entry *e, const char *path) {
        struct stat st;

        if (stat(e->path, &st) < 0 || !S_ISCHR(st.st_mode))
                return 0;
        if (mknod(path, S_IFCHR, st.st_rdev) < 0)
                return errno == EPERM ? 0 : -errno;
        return chown(path, 0, e->group) < 0 || chmod(path, e->mode) < 0 ? -errno : 0;
}

static int mount_own_proc(const char *path) {
        unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY;

        if (mkdir(path, 0755) < 0)
                return -errno;
        if (mount("proc", path, "proc", flags, "subset=pid,hidepid=2") == 0 ||
            mount("proc", path, "proc", flags, "hidepid=2") == 0)
                return 0;
        return -errno;
}

static int make_entry(struct builder *b, size_t i) {
        const struct newroot_entry *e = &b->entries[i];
        const char *path = e->path + 1;
        int r;

        if ((e->kind == NEWROOT_BIND || e->kind == NEWROOT_DEVICE) && b->source[i] < 0)
                return 0;
        say(b, "making", e->path);
        r = make_parents(path);
        if (r < 0)
                return r;
        switch (e->kind) {
        case NEWROOT_DIR:
                return mkdir(path, 0755) < 0 && errno != EEXIST ? -errno : 0;
        case NEWROOT_BIND:
        case NEWROOT_DEVICE:
                return bind_entry(b->source[i], path, e->kind == NEWROOT_DEVICE);
        case NEWROOT_NODE:
                return make_node(e, path);
        case NEWROOT_PROC:
                return mount_own_proc(path);
        }
        return -EINVAL;
}

static int build(struct builder *b, const char *where) {
        int r = 0;

        say(b, "making the mounts private", NULL);
        if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
                return -errno;
        r = open_sources(b);
        if (r < 0)
                return r;
        say(b, "mounting a tmpfs at", where);
        if (mount("forkd", where, "tmpfs", MS_NOSUID, "size=256k,nr_inodes=256,mode=0755") < 0 || chdir(where) < 0)
                return -errno;
        for (size_t i = 0; i < b->n; i++) {
                r = make_entry(b, i);
                if (r < 0)
                        return r;
        }
        say(b, "making the new root read-only", NULL);
        if (mount(NULL, ".", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) < 0)
                return -errno;
        /* With one and the same directory for both, the old root lies on top of the new one, from where it is taken. */
        say(b, "changing the root", NULL);
        if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
                return -errno;
        return 0;
}

int newroot_enter(const char *where, const struct newroot_entry *entries, size_t n, char step[JAIL_STEP_LEN]) {
        struct builder b = { .entries = entries, .n = n, .step = step };
        mode_t mask;
        int r;

        if (n > MAX_ENTRIES)
                return -E2BIG;
        for (size_t i = 0; i < n; i++)
                b.source[i] = -1;
        mask = umask(022);
        r = build(&b, where);
        (void) umask(mask);
        for (size_t i = 0; i < n; i++)
                (void) close_fd(b.source[i]);
        return r;
}
