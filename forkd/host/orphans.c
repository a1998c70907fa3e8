/* SPDX-License-Identifier: MIT */
/* Theory of operation: a walk in the order in which things can be removed. Guests end before the pager that serves them,
 * both before the directories, sockets and mounts that they hold open; a mount goes before its loop device.
 *
 * With a forkd running only what is certain counts: forkd writes its files within one turn of its loop, so a temporary file
 * that can be seen at all is nobody's; workers do not, so store/tmp is looked at while none is at work. */
#include "forkd/host/orphans.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/loop.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/host/shells.h"
#include "forkd/vm/journal.h"
#include "forkd/worker/worker.h"
#include "setup/store_mount.h"

#define MAX_MOUNTINFO (4u << 20)
#define TMP_MARK ".tmp-" /* as io_write_file_atomic names them, an id behind it */

void orphans_tell(struct orphans *o, const char *kind, const char *what, bool fixed, const char *fmt, ...) {
        char detail[200];
        va_list ap;

        va_start(ap, fmt);
        (void) vsnprintf(detail, sizeof(detail), fmt, ap);
        va_end(ap);
        o->found++;
        o->fixed += fixed;
        if (o->fn)
                o->fn(&(struct orphan){ .kind = kind, .what = what, .detail = detail, .fixed = fixed }, o->arg);
}

static bool remove_it(struct orphans *o, const char *path) {
        int r;

        if (!o->fix)
                return false;
        r = io_remove_tree(AT_FDCWD, path);
        if (r < 0)
                log_warning("cannot remove %s: %s", path, strerror(-r));
        else
                log_info("removed %s: it belonged to nobody", path);
        return r == 0;
}

/* Calls @fn with each name in @dir (not . and ..), which it may remove. */
static void each_name(const char *dir, void (*fn)(struct orphans *o, const char *dir, const char *name), struct orphans *o) {
        DIR *d = opendir(dir);
        struct dirent *de;

        while (d && (de = readdir(d)))
                if (strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0)
                        fn(o, dir, de->d_name);
        if (d)
                (void) closedir(d);
}

static bool join(char *buf, size_t size, const char *dir, const char *name) {
        int n = snprintf(buf, size, "%s/%s", dir, name);

        return n > 0 && (size_t) n < size;
}

/* ---- mounts ---- */

/* "36 35 7:0 / /mnt rw,noatime …": the third and the fifth field are the device's number and the mount point. */
static void each_mount(void (*fn)(const char *dev, const char *point, void *arg), void *arg) {
        cleanup_free char *text = NULL;
        char *lines = NULL, *fields;

        if (io_read_file(AT_FDCWD, "/proc/self/mountinfo", MAX_MOUNTINFO, &text, NULL) < 0)
                return;
        for (char *line = strtok_r(text, "\n", &lines); line; line = strtok_r(NULL, "\n", &lines)) {
                char *f[5] = { NULL };

                for (size_t i = 0; i < ARRAY_LEN(f); i++)
                        f[i] = strtok_r(i == 0 ? line : NULL, " ", &fields);
                if (f[4]) {
                        io_unescape_mount(f[4]);
                        fn(f[2], f[4], arg);
                }
        }
}

struct mount_search {
        const char *dev;
        bool found;
};

static void match_device(const char *dev, const char *point, void *arg) {
        struct mount_search *s = arg;

        s->found |= strcmp(dev, s->dev) == 0;
}

/* A bind mount in a directory that is to go: lazily, for who holds it is dead or dying. */
static void detach_if_below(const char *dev, const char *point, void *arg) {
        const char *dir = arg;
        size_t n = strlen(dir);

        if (strncmp(point, dir, n) == 0 && (point[n] == '/' || point[n] == '\0') &&
            umount2(point, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
                log_warning("cannot unmount %s: %s", point, strerror(errno));
}

static void detach_below(char *dir) {
        each_mount(detach_if_below, dir);
}

/* ---- temporary files ---- */

static bool is_temporary(const char *name) {
        size_t n = strlen(name), mark = sizeof(TMP_MARK) - 1;

        return n > mark + ID_LEN && memcmp(name + n - ID_LEN - mark, TMP_MARK, mark) == 0 && id_valid(name + n - ID_LEN);
}

static void look_at_temporary(struct orphans *o, const char *dir, const char *name) {
        char path[PATH_MAX];

        if (is_temporary(name) && join(path, sizeof(path), dir, name))
                orphans_tell(o, "temporary", path, remove_it(o, path), "a write that was cut off");
}

/* What is not locked was a transaction, or a removal, of a process that is gone. */
static void look_at_store_tmp(struct orphans *o, const char *dir, const char *name) {
        cleanup_fd int fd = -1;
        char path[PATH_MAX];

        if (!join(path, sizeof(path), dir, name))
                return;
        fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0)
                return;
        orphans_tell(o, "temporary", path, remove_it(o, path), "a snapshot that was being made or removed");
}

static void temporaries(struct orphans *o) {
        char path[PATH_MAX];

        if (join(path, sizeof(path), o->d->state_dir, "journal"))
                each_name(path, look_at_temporary, o);
        if (o->d->run_dir[0])
                each_name(o->d->run_dir, look_at_temporary, o);
        if ((o->d->offline || !worker_pool_is_busy(o->d->workers)) && join(path, sizeof(path), o->d->store_dir, "tmp"))
                each_name(path, look_at_store_tmp, o);
}

/* ---- directories ---- */

static bool has_record(struct daemon *d, const char *id) {
        char path[PATH_MAX];

        (void) snprintf(path, sizeof(path), "%s/vms/%s/record", d->state_dir, id);
        return access(path, F_OK) == 0;
}

static void look_at_state(struct orphans *o, const char *dir, const char *name) {
        char path[PATH_MAX];

        if (!id_valid(name) || !join(path, sizeof(path), dir, name))
                return;
        if (!vm_by_id(o->d, name) && !has_record(o->d, name))
                orphans_tell(o, "directory", path, remove_it(o, path), "of a VM without a record");
        else
                each_name(path, look_at_temporary, o);
}

/* What belongs to a record that cannot be read stays. A VM on standby has all in its snapshot. */
static void look_at_files(struct orphans *o, const char *dir, const char *name) {
        struct vm *vm = id_valid(name) ? vm_by_id(o->d, name) : NULL;
        char path[PATH_MAX];

        if (!id_valid(name) || !join(path, sizeof(path), dir, name) || (!vm && has_record(o->d, name)))
                return;
        if (vm && (vm->state != VM_STANDBY || orphans_claimed(vm)))
                return;
        orphans_tell(o, "directory", path, remove_it(o, path), vm ? "of a VM that stands by" : "of a VM that is not there");
}

static void look_at_run(struct orphans *o, const char *dir, const char *name) {
        struct vm *vm = id_valid(name) ? vm_by_id(o->d, name) : NULL;
        char path[PATH_MAX];

        if (!id_valid(name) || !join(path, sizeof(path), dir, name) || (vm && orphans_claimed(vm)) ||
            (o->d->shells && shells_has(o->d->shells, name)))
                return;
        if (o->fix)
                detach_below(path);
        orphans_tell(o, "directory", path, remove_it(o, path), "of a VMM that is not there");
}

static void directories(struct orphans *o) {
        char path[PATH_MAX];

        if (o->d->run_dir[0] && join(path, sizeof(path), o->d->run_dir, "vms"))
                each_name(path, look_at_run, o);
        if (join(path, sizeof(path), o->d->store_dir, "vms"))
                each_name(path, look_at_files, o);
        if (join(path, sizeof(path), o->d->state_dir, "vms"))
                each_name(path, look_at_state, o);
}

/* ---- sockets ---- */

/* We hold the lock of the run directory: no forkd listens. */
static void sockets(struct orphans *o) {
        static const char *const of_pager[] = { "pager.sock", "pager.pid", "pager.sock.next", "pager.pid.next" };
        char path[PATH_MAX];

        if (!o->d->offline || !o->d->run_dir[0])
                return;
        if (join(path, sizeof(path), o->d->run_dir, "forkd.sock") && access(path, F_OK) == 0)
                orphans_tell(o, "socket", path, remove_it(o, path), "of a forkd that is gone");
        for (size_t i = 0; i < ARRAY_LEN(of_pager) && !orphans_pager_is_needed(o->d); i++)
                if (join(path, sizeof(path), o->d->run_dir, of_pager[i]) && access(path, F_OK) == 0)
                        orphans_tell(o, "socket", path, remove_it(o, path), "of a pager that is gone");
}

/* ---- the store's mount and its loop device ---- */

static void store_mount(struct orphans *o) {
        struct err e;
        int r;

        if (!o->d->offline || orphans_any_claimed(o->d) || store_is_attached(o->d->state_dir) != 1)
                return;
        r = o->fix ? store_detach(o->d->state_dir, &e) : -EAGAIN;
        if (o->fix && r < 0)
                log_warning("%s", e.message);
        orphans_tell(o, "mount", o->d->store_dir, r == 0, "the store, of which no VM needs anything");
}

/* The device with that number ("7:3"), somewhere in our mount namespace? */
static bool device_is_mounted(const char *number) {
        struct mount_search s = { .dev = number };

        each_mount(match_device, &s);
        return s.found;
}

static bool read_line(const char *path, char *buf, size_t size) {
        cleanup_free char *text = NULL;

        if (io_read_file(AT_FDCWD, path, PATH_MAX, &text, NULL) < 0)
                return false;
        (void) snprintf(buf, size, "%.*s", (int) strcspn(text, "\n"), text);
        return true;
}

static bool detach_loop(const char *dev) {
        cleanup_fd int fd = open(dev, O_RDONLY | O_CLOEXEC);

        return fd >= 0 && (ioctl(fd, LOOP_CLR_FD, 0) == 0 || errno == ENXIO);
}

/* The whole path, not a part of it: /x/001/store.img is not /x/0010/store.img. */
static void look_at_block(struct orphans *o, const char *dir, const char *name) {
        char path[PATH_MAX], backing[PATH_MAX], image[PATH_MAX], number[32], dev[64];

        if (strncmp(name, "loop", 4) != 0 || snprintf(path, sizeof(path), "%s/%.32s/loop/backing_file", dir, name) < 0 ||
            !read_line(path, backing, sizeof(backing)) || !join(image, sizeof(image), o->d->state_dir, STORE_IMAGE) ||
            strcmp(backing, image) != 0)
                return;
        (void) snprintf(path, sizeof(path), "%s/%.32s/dev", dir, name);
        if (!read_line(path, number, sizeof(number)) || device_is_mounted(number))
                return;
        (void) snprintf(dev, sizeof(dev), "/dev/%.32s", name);
        orphans_tell(o, "loop", dev, o->fix && detach_loop(dev), "over %s, and mounted nowhere", image);
}

/* ---- the journal ---- */

static void bad_entry(const char *path, const char *why, void *arg) {
        struct orphans *o = arg;

        orphans_tell(o, "journal", path, remove_it(o, path), "an entry that cannot be read: %s", why);
}

/* ---- all of it ---- */

void orphans_walk(struct orphans *o) {
        orphans_guests(o);
        if (o->processes)
                return;
        orphans_pager(o);
        directories(o);
        temporaries(o);
        sockets(o);
        store_mount(o);
        /* A mount that is being attached has its device first. */
        if (!o->d->attaching)
                each_name("/sys/block", look_at_block, o);
        if (!o->certain)
                journal_each_bad(o->d, bad_entry, o);
}
