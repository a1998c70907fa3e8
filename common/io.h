/* SPDX-License-Identifier: MIT */
/* Files and descriptors: whole reads and writes, crash-safe replacement, reflinks, descriptors over
 * unix sockets. All functions return 0 (or a count) or -errno. */
#pragma once

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "common/cleanup.h"

/** Reads until @len bytes or end of file; returns the count, or -errno. */
ssize_t io_read_full(int fd, void *buf, size_t len) attr_warn_unused;
/** Writes all of @len or fails; ENOSPC and friends come back as -errno. */
int io_write_full(int fd, const void *buf, size_t len) attr_warn_unused;
/** -EBADMSG if the file ends before @len bytes were read. */
int io_pread_full(int fd, void *buf, size_t len, uint64_t offset) attr_warn_unused;
int io_pwrite_full(int fd, const void *buf, size_t len, uint64_t offset) attr_warn_unused;

/** Reads a whole file of at most @max bytes (-EFBIG beyond). *ret_data gets a NUL behind the last byte. */
int io_read_file(int dirfd, const char *path, size_t max, char **ret_data, size_t *ret_len) attr_warn_unused;

/** Replaces @path atomically: a temporary file beside it is written, fsynced if @sync, renamed, and the
 *  directory fsynced if @sync. Readers see the old content or the new. */
int io_write_file_atomic(int dirfd, const char *path, const void *data, size_t len, mode_t mode, bool sync) attr_warn_unused;

/** Makes @tmp visible as @path: renameat2(RENAME_NOREPLACE), so an existing @path is -EEXIST; with @sync
 *  the directories are fsynced afterwards. Both are relative to @dirfd and on one file system. */
int io_publish(int dirfd, const char *tmp, const char *path, bool sync) attr_warn_unused;

/** Opens the directory that @dirfd is (which stays the caller's) for reading, with a position of its own: duplicates of
 *  a descriptor would share one. */
int io_opendir(int dirfd, DIR **ret) attr_warn_unused;

/** fsync of the directory @path itself. */
int io_fsync_dir(int dirfd, const char *path) attr_warn_unused;

/** Makes directory @path and its parents as needed. -ENOTDIR: a file is in the way. */
int io_mkdir_p(const char *path, mode_t mode) attr_warn_unused;

/** Removes @path and everything below it, without following symbolic links and without crossing into what
 *  is mounted below it, bind mounts included (-EXDEV). A missing @path is no error. */
int io_remove_tree(int dirfd, const char *path) attr_warn_unused;

/** Makes @dst_fd (empty) a copy of @src_fd: FICLONE where the file system can, else a sparse copy.
 *  *ret_reflinked (may be NULL) tells which. */
int io_clone_file(int src_fd, int dst_fd, bool *ret_reflinked) attr_warn_unused;

/** Tries a reflink in directory @dir. 1: works; 0: does not; -errno. */
int io_probe_reflink(const char *dir) attr_warn_unused;

/** Bytes an unprivileged writer could still put on the file system of @path. */
int io_free_bytes(const char *path, uint64_t *ret) attr_warn_unused;

/** Mount points in /proc/self/mountinfo have space, tab, newline and backslash as three octal digits: back, in place. */
void io_unescape_mount(char *s);

int io_set_nonblock(int fd, bool on) attr_warn_unused;

#define IO_MAX_FDS 16

/** sendmsg of @len (> 0) bytes with @n_fds descriptors (0 … IO_MAX_FDS). Returns the bytes sent, which
 *  may be fewer than @len (the descriptors went with the first), or -errno (-EAGAIN …). No SIGPIPE. */
ssize_t io_send_fds(int sock, const void *buf, size_t len, const int *fds, size_t n_fds) attr_warn_unused;

/** recvmsg. Returns bytes, 0 at end of stream, or -errno. At most *@n_fds descriptors are stored, CLOEXEC,
 *  and owned by the caller; when the peer sent more than fit, all are closed and the result is -EMSGSIZE, or
 *  -EMFILE when this process can hold no more. The bytes are lost then: close the socket. */
ssize_t io_recv_fds(int sock, void *buf, size_t len, int *fds, size_t *n_fds) attr_warn_unused;
/** The same on a unix socket with SO_PASSCRED: *ret_sender is the process that sent these bytes, as seen from here.
 *  What two processes sent comes in two calls. A pid of 0: not visible from this pid namespace, or sent before the
 *  option was set. */
ssize_t io_recv_fds_from(int sock, void *buf, size_t len, int *fds, size_t *n_fds, struct ucred *ret_sender) attr_warn_unused;

/** Listens on a unix stream socket at @path (mode @mode); a stale socket file is removed, a live one
 *  (something listens) is -EADDRINUSE, any other file -EEXIST. CLOEXEC, non-blocking. */
int io_listen_unix(const char *path, mode_t mode, int *ret_fd) attr_warn_unused;
/** Blocking connect. -ENAMETOOLONG when @path does not fit a socket address. */
int io_connect_unix(const char *path, int *ret_fd) attr_warn_unused;

/** Monotonic time in nanoseconds / milliseconds with fraction. */
uint64_t now_ns(void);
static inline double ms_since(uint64_t start_ns) {
        return (double) (now_ns() - start_ns) / 1e6;
}
