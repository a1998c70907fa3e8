/* SPDX-License-Identifier: MIT */
/* Theory of operation: the kernel tells of changes to a group's `cgroup.events` through inotify. So waiting
 * for "populated 0" is: watch, look, and look again whenever something changed. Watching comes first, or a
 * change between the look and the watch would be lost. */
#include "forkd/vmm/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/co.h"
#include "common/ids.h"
#include "common/io.h"

#define EMPTY_TIMEOUT_MS 5000
#define MAX_PROCS_FILE (256u << 10) /* cgroup.procs: a number a line */
#define MAX_MOUNTINFO (4u << 20)
#define KILL_ROUNDS 64 /* without cgroup.kill: a group that forks faster than that wins */

/* "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:1 - cgroup2 cgroup2 rw": the mount point is the fifth field,
 * the type the first behind the lone dash. A mount whose root (fourth field) is not "/" shows only a part of
 * the tree, which is all a container gets, and just as good. */
static bool line_is_cgroup2(char *line, char **ret_mount) {
        char *sep = strstr(line, " - "), *save, *field = NULL;

        if (!sep || strncmp(sep + 3, "cgroup2 ", 8) != 0)
                return false;
        *sep = '\0';
        for (int i = 0; i < 5; i++) {
                field = strtok_r(i == 0 ? line : NULL, " ", &save);
                if (!field)
                        return false;
        }
        io_unescape_mount(field);
        *ret_mount = field;
        return true;
}

int cgroup_mount(char *buf, size_t size) {
        cleanup_free char *text = NULL;
        char *save = NULL, *mount;
        int r;

        r = io_read_file(AT_FDCWD, "/proc/self/mountinfo", MAX_MOUNTINFO, &text, NULL);
        if (r < 0)
                return -EOPNOTSUPP;
        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                if (!line_is_cgroup2(line, &mount))
                        continue;
                if (strlen(mount) >= size)
                        return -EOPNOTSUPP;
                memcpy(buf, mount, strlen(mount) + 1);
                return 0;
        }
        return -EOPNOTSUPP;
}

/* @base gets the instance's group, @path the VM's. Both names end up in paths, so they must be plain. */
static int group_paths(const char *instance, const char *id, char *base, char *path, struct err *e) {
        char mount[PATH_MAX - 2 * NAME_MAX];
        int r;

        if (!name_valid(instance) || !name_valid(id))
                return err_set(e, ERR_INTERNAL, -EINVAL, "'%s/%s' is no name for a cgroup", instance, id);
        r = cgroup_mount(mount, sizeof(mount));
        if (r < 0)
                return err_set(e, ERR_UNSUPPORTED, r, "cgroup v2 is not mounted");
        (void) snprintf(base, PATH_MAX, "%s/forkd-%s", mount, instance);
        (void) snprintf(path, PATH_MAX, "%s/forkd-%s/%s", mount, instance, id);
        return 0;
}

static int make_group(const char *path, struct err *e) {
        int r;

        if (mkdir(path, 0755) == 0 || errno == EEXIST)
                return 0;
        r = -errno;
        if (r == -EACCES || r == -EPERM || r == -EROFS)
                return err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "cgroups cannot be made at %s: %s", path, strerror(-r));
        return err_errno(e, r, "making the cgroup %s", path);
}

/* 1, 0, or -errno; -ENOENT also when the group goes away between opening and reading. */
static int populated(int dirfd) {
        cleanup_free char *text = NULL;
        int r = io_read_file(dirfd, "cgroup.events", 4096, &text, NULL);

        if (r == -ENODEV)
                return -ENOENT;
        if (r < 0)
                return r;
        return strstr(text, "populated 1") != NULL;
}

/* For kernels before 5.14: one signal to each process, again until none is left or they outrun us. */
static int kill_each(int dirfd) {
        for (int round = 0; round < KILL_ROUNDS; round++) {
                cleanup_free char *text = NULL;
                char *save = NULL;
                bool any = false;
                int r = io_read_file(dirfd, "cgroup.procs", MAX_PROCS_FILE, &text, NULL);

                if (r < 0)
                        return r;
                for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                        long pid = strtol(line, NULL, 10);

                        /* 0: a process of a pid namespace that we cannot see */
                        if (pid <= 1 || pid > INT_MAX)
                                continue;
                        if (kill((pid_t) pid, SIGKILL) == 0)
                                any = true;
                }
                if (!any)
                        return 0;
        }
        return 0;
}

static int kill_group(int dirfd) {
        cleanup_fd int fd = openat(dirfd, "cgroup.kill", O_WRONLY | O_CLOEXEC);

        if (fd < 0)
                return errno == ENOENT ? kill_each(dirfd) : -errno;
        if (write(fd, "1", 1) < 0)
                return errno == ENODEV ? -ENOENT : -errno;
        return 0;
}

static int wait_readable(int fd, int timeout_ms) {
        struct pollfd p = { .fd = fd, .events = POLLIN };

        if (co_self())
                return co_wait_fd(fd, EV_READ, timeout_ms);
        return poll(&p, 1, timeout_ms) > 0 ? 0 : -ETIMEDOUT;
}

static int wait_empty(int dirfd, const char *path) {
        uint64_t start = now_ns();
        cleanup_fd int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
        char events[PATH_MAX + 16], buf[4096];
        int r;

        if (watch < 0)
                return -errno;
        (void) snprintf(events, sizeof(events), "%s/cgroup.events", path);
        if (inotify_add_watch(watch, events, IN_MODIFY) < 0)
                return -errno;
        for (;;) {
                double left;

                r = populated(dirfd);
                if (r <= 0)
                        return r;
                left = EMPTY_TIMEOUT_MS - ms_since(start);
                if (left <= 0)
                        return -EBUSY;
                r = wait_readable(watch, (int) left + 1);
                if (r < 0 && r != -ETIMEDOUT)
                        return r;
                while (read(watch, buf, sizeof(buf)) > 0)
                        ;
        }
}

static int open_group(const char *path) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        return fd < 0 ? -errno : fd;
}

static int empty_group(int dirfd, const char *path) {
        int r = populated(dirfd);

        if (r <= 0)
                return r;
        r = kill_group(dirfd);
        return r < 0 ? r : wait_empty(dirfd, path);
}

/* Whatever lives in the group is killed, and the group is no more. None is no error. */
static int clear_group(const char *path) {
        cleanup_fd int dirfd = open_group(path);
        int r = dirfd < 0 ? dirfd : empty_group(dirfd, path);

        if (r == 0 && rmdir(path) < 0)
                r = -errno;
        return r == -ENOENT ? 0 : r;
}

static int open_made_group(const char *base, const char *path, int *ret_fd, struct err *e) {
        cleanup_fd int dirfd = -1;
        int r = 0;

        /* Another VM's removal may take the base away between the two steps. */
        for (int tries = 0; tries < 8; tries++) {
                r = make_group(base, e);
                if (r == 0)
                        r = make_group(path, e);
                if (r != -ENOENT)
                        break;
        }
        if (r < 0)
                return r;
        dirfd = open_group(path);
        if (dirfd < 0)
                return err_errno(e, dirfd, "opening the cgroup %s", path);
        if (faccessat(dirfd, "cgroup.procs", W_OK, AT_EACCESS) < 0)
                return err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "%s/cgroup.procs cannot be written: %s", path, strerror(errno));
        *ret_fd = TAKE_FD(dirfd);
        return 0;
}

int cgroup_create(const char *instance, const char *id, int *ret_fd, struct err *e) {
        char base[PATH_MAX], path[PATH_MAX];
        int r;

        r = group_paths(instance, id, base, path, e);
        if (r < 0)
                return r;
        /* In a group that was ever killed by cgroup.kill no process can be born: kernels up to 6.18 at least compare its count
         * of kills with that of the parent's group, and kill the child. So it is made anew. */
        r = clear_group(path);
        return r < 0 ? err_errno(e, r, "emptying the cgroup %s", path) : open_made_group(base, path, ret_fd, e);
}

int cgroup_join(const char *instance, const char *name, int *ret_fd, struct err *e) {
        char base[PATH_MAX], path[PATH_MAX];
        int r = group_paths(instance, name, base, path, e);

        return r < 0 ? r : open_made_group(base, path, ret_fd, e);
}

int cgroup_kill(const char *instance, const char *id, struct err *e) {
        char base[PATH_MAX], path[PATH_MAX];
        cleanup_fd int dirfd = -1;
        int r;

        r = group_paths(instance, id, base, path, e);
        if (r < 0)
                return r;
        dirfd = open_group(path);
        if (dirfd == -ENOENT)
                return 0;
        r = dirfd < 0 ? dirfd : kill_group(dirfd);
        return r < 0 && r != -ENOENT ? err_errno(e, r, "killing the cgroup %s", path) : 0;
}

int cgroup_remove(const char *instance, const char *id, struct err *e) {
        char base[PATH_MAX], path[PATH_MAX];
        int r;

        r = group_paths(instance, id, base, path, e);
        if (r < 0)
                return r;
        r = clear_group(path);
        if (r < 0)
                return err_errno(e, r, "removing the cgroup %s", path);
        /* Not empty is what it usually is: another VM lives in it. */
        (void) rmdir(base);
        return 0;
}
