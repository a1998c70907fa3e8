/* SPDX-License-Identifier: MIT */
/* Theory of operation
 *
 * Standby waits for the disk, so the number of cache flushes decides. A flush per file, per directory and
 * per rename, as the textbook has it, makes six of them for a snapshot of three files. Here:
 *
 *   any file system   syncfs; marker; rename; fsync(snapshot's directory), fsync(parent directory)
 *   XFS               write out the files' data and wait for it, without a flush; marker; rename;
 *                     fsync(directory that changed last): one log force, one flush
 *
 * Why the second is safe on XFS: all changes of metadata (new files, their sizes and extents, the marker,
 * the rename) go through one log in the order in which they were made, and replay keeps that order, so a
 * rename that survives a crash brings everything before it. A file's size and extents are logged when its
 * data I/O has completed and before the page leaves writeback state (xfs_end_ioend), hence before
 * sync_file_range(WAIT_AFTER) returns. The data itself may still sit in the disk's cache, but the log write
 * that the fsync forces starts with a cache flush (REQ_PREFLUSH of the first iclog). Reflinks are logged
 * extent maps; the kernel writes out the source's dirty pages before it makes them.
 * The marker can therefore not be on disk without all that it vouches for.
 *
 * Btrfs finishes data extents after the page has left writeback state, so it, like every other file system,
 * takes the first way. There the marker becomes visible in the same transaction as the rename or before it,
 * but in any case after syncfs.
 *
 * tests/unit/snapstore/test_crash.c holds a copy of the disk, taken at the moment publish returns, to this. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/io.h"
#include "snapstore/store_internal.h"

#ifndef XFS_SUPER_MAGIC /* in linux/magic.h since 6.1 */
#define XFS_SUPER_MAGIC 0x58465342
#endif

static bool is_xfs(int fd) {
        struct statfs st;

        return fstatfs(fd, &st) == 0 && st.f_type == XFS_SUPER_MAGIC;
}

/* sync_file_range with @flags on every regular file of the directory. A range of length 0 is the whole file. */
static int each_file_range(int dir_fd, unsigned flags) {
        DIR *dir;
        int r;

        r = io_opendir(dir_fd, &dir);
        if (r < 0)
                return r;
        for (struct dirent *de; r == 0 && (errno = 0, de = readdir(dir));) {
                cleanup_fd int file = -1;

                if (de->d_name[0] == '.')
                        continue;
                file = openat(dir_fd, de->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
                if (file < 0 || sync_file_range(file, 0, 0, flags) < 0)
                        r = -errno;
        }
        if (r == 0 && errno != 0)
                r = -errno;
        (void) closedir(dir);
        return r;
}

void snap_sync_start(int dir_fd) {
        (void) each_file_range(dir_fd, SYNC_FILE_RANGE_WRITE);
}

int snap_sync_files(int dir_fd) {
        int r;

        if (is_xfs(dir_fd)) {
                /* First start all, then wait for each: their I/O overlaps. */
                r = each_file_range(dir_fd, SYNC_FILE_RANGE_WRITE);
                if (r == 0)
                        r = each_file_range(dir_fd,
                                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
                if (r != -ESPIPE && r != -EINVAL && r != -EOPNOTSUPP)
                        return r;
        }
        return syncfs(dir_fd) < 0 ? -errno : 0;
}

int snap_sync_mark(int dir_fd) {
        cleanup_fd int fd = openat(dir_fd, SNAP_FILE_DURABLE, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);

        return fd < 0 ? -errno : 0;
}

int snap_sync_finish(int last_fd, int other_fd) {
        if (!is_xfs(last_fd) && fsync(other_fd) < 0)
                return -errno;
        return fsync(last_fd) < 0 ? -errno : 0;
}
