/* SPDX-License-Identifier: MIT */
#include "forkd/dirs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "setup/assets.h"

#define STATE_DIR_DEFAULT "/var/lib/forkd"
#define RUN_DIR_DEFAULT "/run/forkd"
#define LOCK_MS 1000
#define LOCK_AGAIN_MS 10

static int absolute(const char *path, char *buf, size_t size, struct err *e) {
        char cwd[PATH_MAX];
        int n;

        if (path[0] == '/')
                n = snprintf(buf, size, "%s", path);
        else if (getcwd(cwd, sizeof(cwd)))
                n = snprintf(buf, size, "%s/%s", cwd, path);
        else
                return err_errno(e, -errno, "finding the current directory");
        if (n < 0 || (size_t) n >= size)
                return err_set(e, ERR_INVALID, -ENAMETOOLONG, "the path %s has more than %zu characters", path, size - 1);
        while (n > 1 && buf[n - 1] == '/')
                buf[--n] = '\0';
        return 0;
}

/* The one spelling of a directory that there is: locks, the instance's name and the sockets' paths must be the same however
 * forkd is told where it is. */
static int canonical(char *path, size_t size, struct err *e) {
        char real[PATH_MAX];

        if (!realpath(path, real))
                return err_errno(e, -errno, "following %s", path);
        if (strlen(real) >= size)
                return err_set(e, ERR_INVALID, -ENAMETOOLONG, "the path %s has more than %zu characters", real, size - 1);
        (void) strcpy(path, real);
        return 0;
}

/* Private directories: what is in them gives power over every guest. One that is there already must be ours too. */
static int make_dir(const char *path, struct err *e) {
        int r = io_mkdir_p(path, 0700);
        struct stat st;

        if (r == 0 && stat(path, &st) < 0)
                r = -errno;
        if (r < 0)
                return err_errno(e, r, "making the directory %s", path);
        if (st.st_uid != geteuid() || (st.st_mode & 022)) {
                (void) err_set(e, ERR_INVALID, -EPERM, "the directory %s belongs to another user, or others may write to it",
                               path);
                return err_hint(e, "use one of forkd's own: chmod go-w %s", path);
        }
        return 0;
}

int dirs_make_sub(const char *dir, const char *sub, struct err *e) {
        char path[PATH_MAX];

        if ((size_t) snprintf(path, sizeof(path), "%s/%s", dir, sub) >= sizeof(path))
                return err_errno(e, -ENAMETOOLONG, "making a directory in %s", dir);
        return make_dir(path, e);
}

/* FNV-1a, 64 bits: names the cgroup of this state directory, and marks the environment of our children. */
static int instance_name(struct daemon *d, struct err *e) {
        uint64_t h = 14695981039346656037u;

        for (const char *p = d->state_dir; *p; p++)
                h = (h ^ (unsigned char) *p) * 1099511628211u;
        (void) snprintf(d->instance, sizeof(d->instance), "%016llx", (unsigned long long) h);
        return setenv("FORKD_INSTANCE", d->instance, 1) < 0 ? err_errno(e, -errno, "marking the environment") : 0;
}

/* A forkd that was killed while it started a process has left a child that holds the lock until its exec, milliseconds
 * later; whoever starts forkd again at once must not fail for that. */
static int lock_soon(int fd) {
        uint64_t deadline = now_ns() + LOCK_MS * 1000000ull;

        while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
                if (errno != EWOULDBLOCK || now_ns() > deadline)
                        return -errno;
                (void) poll(NULL, 0, LOCK_AGAIN_MS);
        }
        return 0;
}

/* Held until the process ends, however it ends. */
static int lock_dir(const char *dir, const char *file, const char *what, int *ret_fd, struct err *e) {
        cleanup_fd int fd = -1;
        char path[PATH_MAX];
        int r;

        (void) snprintf(path, sizeof(path), "%s/%s", dir, file);
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
                return err_errno(e, -errno, "opening %s", path);
        r = lock_soon(fd);
        if (r < 0 && r != -EWOULDBLOCK)
                return err_errno(e, r, "locking %s", path);
        if (r < 0) {
                (void) err_set(e, ERR_EXISTS, -EADDRINUSE, "another forkd uses the %s directory %s", what, dir);
                return err_hint(e, "stop it first, or use another --state-dir and --run-dir");
        }
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static int read_boot_id(struct daemon *d, struct err *e) {
        static const char path[] = "/proc/sys/kernel/random/boot_id";
        cleanup_free char *text = NULL;
        int r = io_read_file(AT_FDCWD, path, 4096, &text, NULL);

        if (r < 0)
                return err_errno(e, r, "reading %s", path);
        text[strcspn(text, "\n")] = '\0';
        (void) snprintf(d->boot_id, sizeof(d->boot_id), "%.39s", text);
        return 0;
}

/* What the options say, not looked at yet. */
static int name_dirs(struct daemon *d, const struct daemon_options *opt, struct err *e) {
        int r;

        r = absolute(opt->state_dir ? opt->state_dir : STATE_DIR_DEFAULT, d->state_dir, sizeof(d->state_dir) - 64, e);
        if (r == 0)
                r = absolute(opt->run_dir ? opt->run_dir : RUN_DIR_DEFAULT, d->run_dir, sizeof(d->run_dir), e);
        return r == 0 ? absolute(assets_cache_dir(), d->cache_dir, sizeof(d->cache_dir), e) : r;
}

static int lock_dirs(struct daemon *d, struct err *e) {
        int r;

        (void) snprintf(d->store_dir, sizeof(d->store_dir), "%s/store", d->state_dir);
        r = lock_dir(d->state_dir, "lock", "state", &d->lock_fd, e);
        if (r == 0 && d->run_dir[0])
                r = lock_dir(d->run_dir, "forkd.lock", "run", &d->run_lock_fd, e);
        if (r == 0)
                r = instance_name(d, e);
        return r < 0 ? r : read_boot_id(d, e);
}

int dirs_open(struct daemon *d, const struct daemon_options *opt, struct err *e) {
        static const char *const subs[] = { "vms", "journal", "pools" };
        int r;

        r = name_dirs(d, opt, e);
        if (r == 0)
                r = make_dir(d->state_dir, e);
        if (r == 0)
                r = canonical(d->state_dir, sizeof(d->state_dir) - 64, e);
        for (size_t i = 0; r == 0 && i < ARRAY_LEN(subs); i++)
                r = dirs_make_sub(d->state_dir, subs[i], e);
        if (r == 0)
                r = make_dir(d->run_dir, e);
        if (r == 0)
                r = canonical(d->run_dir, sizeof(d->run_dir), e);
        if (r == 0)
                r = dirs_make_sub(d->run_dir, "vms", e);
        return r < 0 ? r : lock_dirs(d, e);
}

int dirs_open_existing(struct daemon *d, const struct daemon_options *opt, struct err *e) {
        int r = name_dirs(d, opt, e);

        if (r < 0)
                return r;
        if (access(d->state_dir, F_OK) < 0 && errno == ENOENT)
                return -ENOENT;
        r = canonical(d->state_dir, sizeof(d->state_dir) - 64, e);
        if (r < 0)
                return r;
        if (access(d->run_dir, F_OK) < 0 && errno == ENOENT)
                d->run_dir[0] = '\0'; /* it went with the last boot */
        else
                r = canonical(d->run_dir, sizeof(d->run_dir), e);
        return r < 0 ? r : lock_dirs(d, e);
}
