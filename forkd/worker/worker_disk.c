/* SPDX-License-Identifier: MIT */
#include "forkd/worker/worker_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/io.h"

#define SECTOR 512

/* Their files are made when they are read, and some ask who reads. */
static bool is_kernels_own(const struct statfs *fs) {
        static const unsigned long magics[] = { PROC_SUPER_MAGIC,   SYSFS_MAGIC,         DEBUGFS_MAGIC,    TRACEFS_MAGIC,
                                                CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, SECURITYFS_MAGIC, BPF_FS_MAGIC,
                                                EFIVARFS_MAGIC,     PSTOREFS_MAGIC,      SELINUX_MAGIC,    NSFS_MAGIC };

        for (size_t i = 0; i < ARRAY_LEN(magics); i++)
                if ((unsigned long) fs->f_type == magics[i])
                        return true;
        return false;
}

/* O_NONBLOCK: neither a FIFO nor a file with a lease may hold us. */
static int open_source(const char *path, int *ret_fd, struct err *e) {
        struct open_how how = {
                .flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                .resolve = RESOLVE_NO_MAGICLINKS,
        };
        cleanup_fd int fd = (int) syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
        struct statfs fs;
        struct stat st;

        if (fd < 0 && errno == ELOOP) {
                (void) err_set(e, ERR_INVALID, -ELOOP, "the disk %s leads through a link of /proc, or through too many links",
                               path);
                return err_hint(e, "name the file itself");
        }
        if (fd < 0 && (errno == EACCES || errno == EPERM)) {
                int r = -errno;

                (void) err_set(e, ERR_FORBIDDEN, r, "opening the disk %s: %s", path, strerror(-r));
                return err_hint(e, "forkd reads a disk with the rights of who names it");
        }
        if (fd < 0 || fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
                return err_errno(e, -errno, "opening the disk %s", path);
        if (!S_ISREG(st.st_mode) || st.st_size == 0 || st.st_size % SECTOR != 0 || is_kernels_own(&fs)) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "the disk %s is no raw disk image", path);
                return err_hint(e, "a disk is a regular file whose size is a multiple of 512 bytes");
        }
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int worker_copy_disk(const struct caller *who, const char *from, const char *to, bool *ret_reflinked, struct err *e) {
        cleanup_fd int src = -1, dst = -1;
        int r;

        r = caller_become(who);
        if (r < 0)
                return err_errno(e, r, "acting as the user %u", (unsigned) who->uid);
        r = open_source(from, &src, e);
        caller_revert(who);
        if (r < 0)
                return r;
        dst = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (dst < 0)
                return err_errno(e, -errno, "copying the disk %s", from);
        r = caller_become(who);
        if (r == 0) {
                r = io_clone_file(src, dst, ret_reflinked);
                caller_revert(who);
        }
        return r < 0 ? err_errno(e, r, "copying the disk %s", from) : 0;
}
