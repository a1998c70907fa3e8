/* SPDX-License-Identifier: MIT */
#include "forkd/vm/origin.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/daemon.h"
#include "forkd/worker/worker.h"

#define DISK_COPY_TIMEOUT_MS 600000

void origin_nascent(const struct snap_manifest *m, struct vm_origin *ret) {
        *ret = (struct vm_origin){ .m = m, .vmstate_fd = -1 };
        for (unsigned i = 0; i < VMM_MAX_DISKS; i++)
                ret->disk_fd[i] = -1;
}

void origin_published(struct snap_entry *s, struct vm_origin *ret) {
        origin_nascent(&s->m, ret);
        ret->entry = s;
}

static int dup_fd(int fd, int *ret) {
        *ret = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
        return fd >= 0 && *ret < 0 ? -errno : 0;
}

int origin_copy(const struct vm_origin *o, struct vm_origin *ret) {
        int r;

        origin_nascent(NULL, ret);
        ret->m = ret->own = malloc(sizeof(*ret->own));
        if (!ret->own)
                return -ENOMEM;
        *ret->own = *o->m;
        ret->entry = o->entry;
        r = dup_fd(o->vmstate_fd, &ret->vmstate_fd);
        for (unsigned i = 0; r == 0 && i < VMM_MAX_DISKS; i++)
                r = dup_fd(o->disk_fd[i], &ret->disk_fd[i]);
        if (r < 0)
                origin_clear(ret);
        return r;
}

void origin_clear(struct vm_origin *o) {
        o->vmstate_fd = close_fd(o->vmstate_fd);
        for (unsigned i = 0; i < VMM_MAX_DISKS; i++)
                o->disk_fd[i] = close_fd(o->disk_fd[i]);
        free(TAKE_PTR(o->own));
        o->m = NULL;
}

/* ---- disks ---- */

/* A regular file of the size that the manifest tells: a disk has no checksum. */
static int open_disk(struct vm *vm, const struct snap_manifest *m, const char *file, unsigned i, int *ret_fd) {
        cleanup_fd int fd = -1;
        struct stat st;
        int r = snap_store_open_file(vm->d->store, m->id, file, &fd);

        if (r < 0)
                return r;
        if (fstat(fd, &st) < 0)
                return -errno;
        if ((uint64_t) st.st_size != m->disk_bytes[i])
                return -EBADMSG;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static int share_disk(struct vm *vm, const struct vm_origin *o, unsigned i, struct err *e) {
        cleanup_fd int opened = -1, dst = -1;
        char to[PATH_MAX], file[32];
        int r;

        (void) snprintf(file, sizeof(file), "disk-%u.img", i);
        r = vm_store_path(vm, file, to, sizeof(to));
        if (r == 0 && o->entry)
                r = open_disk(vm, o->m, file, i, &opened);
        if (r == 0 && (dst = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) < 0)
                r = -errno;
        if (r == 0)
                r = io_clone_file(o->entry ? opened : o->disk_fd[i], dst, NULL);
        return r < 0 ? err_errno(e, r, "preparing disk %u of '%s'", i, vm->name) : 0;
}

/* Where extents cannot be shared a disk is copied, which may take long: not here. */
static int copy_disk(struct vm *vm, const struct snap_manifest *m, unsigned i, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        char from[PATH_MAX], to[PATH_MAX], file[32];
        cleanup_fd int checked = -1;
        int r;

        mp_buf_init(&b);
        (void) snprintf(file, sizeof(file), "disk-%u.img", i);
        r = vm_store_path(vm, file, to, sizeof(to));
        if (r == 0)
                r = open_disk(vm, m, file, i, &checked);
        if (r == 0)
                r = snap_store_path(vm->d->store, m->id, file, from, sizeof(from));
        if (r < 0)
                return err_errno(e, r, "preparing disk %u of '%s'", i, vm->name);
        mp_map(&b, 3);
        mp_kv_str(&b, "from", from);
        mp_kv_str(&b, "to", to);
        mp_key(&b, "caller"); /* forkd itself: the file is its own */
        mp_nil(&b);
        return worker_do(vm->d->workers, "disk.copy", &b, NULL, 0, DISK_COPY_TIMEOUT_MS, NULL, e);
}

/* ---- memory ---- */

int origin_link_memory(struct vm *vm, const char *id, const char *file) {
        char from[PATH_MAX], to[PATH_MAX], tmp[PATH_MAX];
        int r;

        r = snap_store_path(vm->d->store, id, SNAP_FILE_MEMORY, from, sizeof(from));
        if (r == 0)
                r = vm_store_path(vm, file, to, sizeof(to));
        if (r == 0)
                r = vm_store_path(vm, "new.img", tmp, sizeof(tmp));
        if (r < 0)
                return r;
        /* A link does not replace: one of a forkd that died in between may be there. */
        if ((unlink(tmp) < 0 && errno != ENOENT) || link(from, tmp) < 0)
                return -errno;
        if (rename(tmp, to) < 0) {
                r = -errno;
                (void) unlink(tmp);
                return r;
        }
        /* Two names of one file: rename() leaves both (POSIX). */
        (void) unlink(tmp);
        return 0;
}

int vm_open_base(const struct vm *vm, const char *file, int *ret_fd) {
        cleanup_fd int fd = -1;
        char path[PATH_MAX];
        struct stat st;
        int r = vm_store_path(vm, file, path, sizeof(path));

        if (r < 0)
                return r;
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd < 0)
                return errno == ELOOP ? -EBADMSG : -errno;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode))
                return -EBADMSG;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* ---- all of it ---- */

int origin_make_files(struct vm *vm, const struct vm_origin *o, struct err *e) {
        char dir[PATH_MAX];
        int r;

        r = vm_store_path(vm, NULL, dir, sizeof(dir));
        if (r == 0)
                r = io_remove_tree(AT_FDCWD, dir);
        if (r == 0)
                r = io_mkdir_p(dir, 0700);
        if (r == 0 && o->entry)
                r = origin_link_memory(vm, o->m->id, VM_BASE_FILE);
        if (r < 0)
                return err_errno(e, r, "preparing the memory of '%s'", vm->name);
        vm->has_base = o->entry != NULL;
        for (unsigned i = 0; r == 0 && i < o->m->n_disks; i++)
                r = vm->d->reflink ? share_disk(vm, o, i, e) : copy_disk(vm, o->m, i, e);
        return r;
}

/* The position belongs to the open file: clones that load at the same time must not share one. */
static int open_again(int fd, int *ret_fd) {
        char path[32];
        int r;

        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        r = open(path, O_RDONLY | O_CLOEXEC);
        if (r < 0)
                return -errno;
        *ret_fd = r;
        return 0;
}

int origin_open_vmstate(struct vm *vm, const struct vm_origin *o, int *ret_fd, struct err *e) {
        cleanup_fd int fd = -1;
        int r;

        if (!o->entry) {
                r = open_again(o->vmstate_fd, &fd);
        } else {
                fd = memfd_create("forkd-vmstate", MFD_CLOEXEC);
                r = fd < 0 ? -errno : snap_store_read_vmstate(vm->d->store, o->m->id, fd);
                if (r == 0 && lseek(fd, 0, SEEK_SET) < 0)
                        r = -errno;
        }
        if (r < 0)
                return err_errno(e, r, "reading the device state of snapshot %s", o->m->id);
        *ret_fd = TAKE_FD(fd);
        return 0;
}
