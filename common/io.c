/* SPDX-License-Identifier: MIT */
#include "common/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

#include "common/ids.h"

ssize_t io_read_full(int fd, void *buf, size_t len) {
        size_t done = 0;

        while (done < len) {
                ssize_t n = read(fd, (char *) buf + done, len - done);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        break;
                done += (size_t) n;
        }
        return (ssize_t) done;
}

int io_write_full(int fd, const void *buf, size_t len) {
        size_t done = 0;

        while (done < len) {
                ssize_t n = write(fd, (const char *) buf + done, len - done);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                done += (size_t) n;
        }
        return 0;
}

int io_pread_full(int fd, void *buf, size_t len, uint64_t offset) {
        size_t done = 0;

        while (done < len) {
                ssize_t n = pread(fd, (char *) buf + done, len - done, (off_t) (offset + done));

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        return -EBADMSG;
                done += (size_t) n;
        }
        return 0;
}

int io_pwrite_full(int fd, const void *buf, size_t len, uint64_t offset) {
        size_t done = 0;

        while (done < len) {
                ssize_t n = pwrite(fd, (const char *) buf + done, len - done, (off_t) (offset + done));

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                done += (size_t) n;
        }
        return 0;
}

int io_read_file(int dirfd, const char *path, size_t max, char **ret_data, size_t *ret_len) {
        cleanup_fd int fd = -1;
        cleanup_free char *buf = NULL;
        size_t len = 0, cap = 4096;

        fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        if (fd < 0)
                return -errno;
        for (;;) {
                char *p;
                ssize_t n;

                /* Grown as bytes arrive, because files in /proc say they are empty. */
                p = realloc(buf, cap + 1);
                if (!p)
                        return -ENOMEM;
                buf = p;
                n = io_read_full(fd, buf + len, cap - len);
                if (n < 0)
                        return (int) n;
                len += (size_t) n;
                if (len > max)
                        return -EFBIG;
                if (len < cap)
                        break;
                cap *= 2;
        }
        buf[len] = '\0';
        *ret_data = TAKE_PTR(buf);
        if (ret_len)
                *ret_len = len;
        return 0;
}

int io_opendir(int dirfd, DIR **ret) {
        cleanup_fd int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *dir;

        if (fd < 0)
                return -errno;
        dir = fdopendir(fd);
        if (!dir)
                return -errno;
        (void) TAKE_FD(fd);
        *ret = dir;
        return 0;
}

int io_fsync_dir(int dirfd, const char *path) {
        cleanup_fd int fd = openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        if (fd < 0)
                return -errno;
        return fsync(fd) < 0 ? -errno : 0;
}

/* The directory that holds @path, in @buf. */
static int parent_of(const char *path, char *buf, size_t size) {
        const char *slash = strrchr(path, '/');
        size_t n = slash ? (size_t) (slash - path) : 0;

        if (n >= size)
                return -ENAMETOOLONG;
        if (!slash)
                (void) strcpy(buf, ".");
        else if (n == 0)
                (void) strcpy(buf, "/");
        else {
                memcpy(buf, path, n);
                buf[n] = '\0';
        }
        return 0;
}

static int fsync_parent(int dirfd, const char *path) {
        char parent[PATH_MAX];
        int r = parent_of(path, parent, sizeof(parent));

        return r < 0 ? r : io_fsync_dir(dirfd, parent);
}

int io_write_file_atomic(int dirfd, const char *path, const void *data, size_t len, mode_t mode, bool sync) {
        char tmp[PATH_MAX];
        cleanup_fd int fd = -1;
        id_str id;
        int r;

        id_new(id);
        if ((size_t) snprintf(tmp, sizeof(tmp), "%s.tmp-%s", path, id) >= sizeof(tmp))
                return -ENAMETOOLONG;
        fd = openat(dirfd, tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (fd < 0)
                return -errno;
        r = io_write_full(fd, data, len);
        if (r == 0 && sync && fsync(fd) < 0)
                r = -errno;
        if (r == 0 && renameat(dirfd, tmp, dirfd, path) < 0)
                r = -errno;
        if (r < 0) {
                (void) unlinkat(dirfd, tmp, 0);
                return r;
        }
        return sync ? fsync_parent(dirfd, path) : 0;
}

int io_publish(int dirfd, const char *tmp, const char *path, bool sync) {
        int r;

        if (renameat2(dirfd, tmp, dirfd, path, RENAME_NOREPLACE) < 0)
                return -errno;
        if (!sync)
                return 0;
        r = fsync_parent(dirfd, path);
        if (r < 0)
                return r;
        return fsync_parent(dirfd, tmp);
}

int io_mkdir_p(const char *path, mode_t mode) {
        char buf[PATH_MAX];
        size_t n = strlen(path);
        struct stat st;

        if (n == 0 || n >= sizeof(buf))
                return n ? -ENAMETOOLONG : -EINVAL;
        memcpy(buf, path, n + 1);
        for (char *p = buf + 1;; p++) {
                char c = *p;

                if (c != '/' && c != '\0')
                        continue;
                *p = '\0';
                if (mkdir(buf, mode) < 0 && errno != EEXIST)
                        return -errno;
                *p = c;
                if (c == '\0')
                        break;
        }
        /* EEXIST may have meant a file. */
        if (stat(path, &st) < 0)
                return -errno;
        return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

#define REMOVE_MAX_DEPTH 64

/* Opens directory @name in @dir_fd, unless it is a symbolic link (-ELOOP) or something is mounted on it (-EXDEV):
 * a bind mount, too, which comparing st_dev would not show. */
static int open_below(int dir_fd, const char *name) {
        struct open_how how = {
                .flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
                .resolve = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS,
        };
        int fd = (int) syscall(SYS_openat2, dir_fd, name, &how, sizeof(how));

        return fd < 0 ? -errno : fd;
}

static int remove_below(int taken_fd, unsigned depth) {
        cleanup_fd int fd = taken_fd;
        DIR *dir;
        int r = 0;

        if (depth > REMOVE_MAX_DEPTH)
                return -ELOOP;
        dir = fdopendir(fd);
        if (!dir)
                return -errno;
        (void) TAKE_FD(fd);
        for (struct dirent *de; r == 0 && (errno = 0, de = readdir(dir));) {
                int sub;

                if (strcmp(de->d_name, ".") == 0 || strcmp(de->d_name, "..") == 0)
                        continue;
                if (unlinkat(dirfd(dir), de->d_name, 0) == 0 || errno == ENOENT)
                        continue;
                if (errno != EISDIR && errno != EPERM) {
                        r = -errno;
                        break;
                }
                sub = open_below(dirfd(dir), de->d_name);
                r = sub < 0 ? sub : remove_below(sub, depth + 1);
                if (r == 0 && unlinkat(dirfd(dir), de->d_name, AT_REMOVEDIR) < 0)
                        r = -errno;
        }
        if (r == 0 && errno != 0)
                r = -errno;
        (void) closedir(dir);
        return r;
}

int io_remove_tree(int dirfd, const char *path) {
        int fd, r;

        if (unlinkat(dirfd, path, 0) == 0 || errno == ENOENT)
                return 0;
        if (errno != EISDIR && errno != EPERM)
                return -errno;
        /* What leads to @path may be mounts; only below it none is crossed. */
        fd = openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        r = remove_below(fd, 0);
        if (r == 0 && unlinkat(dirfd, path, AT_REMOVEDIR) < 0)
                r = -errno;
        return r;
}

/* A copy that keeps holes: only data extents are read. */
static int copy_sparse(int src_fd, int dst_fd, uint64_t size) {
        uint64_t pos = 0;

        while (pos < size) {
                off_t data = lseek(src_fd, (off_t) pos, SEEK_DATA), hole;
                loff_t in, out;

                if (data < 0 && errno == ENXIO)
                        break; /* a hole to the end */
                if (data < 0)
                        return -errno;
                hole = lseek(src_fd, data, SEEK_HOLE);
                if (hole < 0)
                        return -errno;
                for (in = out = data; in < hole;) {
                        ssize_t n = copy_file_range(src_fd, &in, dst_fd, &out, (size_t) (hole - in), 0);

                        if (n < 0 && errno == EINTR)
                                continue;
                        if (n < 0 && (errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP)) {
                                /* Kernels and file systems that refuse: by hand. */
                                char buf[65536];
                                ssize_t m = pread(src_fd, buf, MIN_OF(sizeof(buf), (size_t) (hole - in)), in);
                                int r;

                                if (m < 0 && errno == EINTR)
                                        continue;
                                if (m <= 0)
                                        return m < 0 ? -errno : -EIO;
                                r = io_pwrite_full(dst_fd, buf, (size_t) m, (uint64_t) in);
                                if (r < 0)
                                        return r;
                                in += m;
                                out = in;
                                continue;
                        }
                        if (n < 0)
                                return -errno;
                        if (n == 0)
                                return -EIO; /* shrunk while we copied */
                }
                pos = (uint64_t) hole;
        }
        return ftruncate(dst_fd, (off_t) size) < 0 ? -errno : 0;
}

int io_clone_file(int src_fd, int dst_fd, bool *ret_reflinked) {
        struct stat st;
        int r;

        if (ioctl(dst_fd, FICLONE, src_fd) == 0) {
                if (ret_reflinked)
                        *ret_reflinked = true;
                return 0;
        }
        if (errno != EOPNOTSUPP && errno != EXDEV && errno != EINVAL && errno != ENOTTY && errno != ENOSYS)
                return -errno;
        if (fstat(src_fd, &st) < 0)
                return -errno;
        r = copy_sparse(src_fd, dst_fd, (uint64_t) st.st_size);
        if (r == 0 && ret_reflinked)
                *ret_reflinked = false;
        return r;
}

int io_probe_reflink(const char *dir) {
        cleanup_fd int dfd = -1, a = -1, b = -1;
        int r;

        dfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (dfd < 0)
                return -errno;
        a = openat(dfd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        b = openat(dfd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (a < 0 || b < 0)
                return errno == EOPNOTSUPP || errno == EISDIR ? 0 : -errno;
        r = io_pwrite_full(a, "x", 1, 4095);
        if (r < 0)
                return r;
        return ioctl(b, FICLONE, a) == 0;
}

int io_free_bytes(const char *path, uint64_t *ret) {
        struct statvfs st;

        if (statvfs(path, &st) < 0)
                return -errno;
        *ret = (uint64_t) st.f_bavail * st.f_frsize;
        return 0;
}

void io_unescape_mount(char *s) {
        char *w = s;

        for (; *s; s++) {
                if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' && s[3] >= '0' && s[3] <= '7') {
                        *w++ = (char) ((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
                        s += 3;
                } else {
                        *w++ = *s;
                }
        }
        *w = '\0';
}

int io_set_nonblock(int fd, bool on) {
        int flags = fcntl(fd, F_GETFL);

        if (flags < 0)
                return -errno;
        flags = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
        return fcntl(fd, F_SETFL, flags) < 0 ? -errno : 0;
}

ssize_t io_send_fds(int sock, const void *buf, size_t len, const int *fds, size_t n_fds) {
        union {
                struct cmsghdr align;
                char space[CMSG_SPACE(sizeof(int) * IO_MAX_FDS)];
        } control = { 0 };
        struct iovec iov = { .iov_base = (void *) buf, .iov_len = len };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n;

        if (n_fds > IO_MAX_FDS)
                return -EINVAL;
        if (n_fds > 0) {
                struct cmsghdr *c;

                msg.msg_control = control.space;
                msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
                c = CMSG_FIRSTHDR(&msg);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
                memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
        }
        do
                n = sendmsg(sock, &msg, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : n;
}

ssize_t io_recv_fds(int sock, void *buf, size_t len, int *fds, size_t *n_fds) {
        struct ucred ignored;

        return io_recv_fds_from(sock, buf, len, fds, n_fds, &ignored);
}

ssize_t io_recv_fds_from(int sock, void *buf, size_t len, int *fds, size_t *n_fds, struct ucred *ret_sender) {
        union {
                struct cmsghdr align;
                /* SCM_MAX_FD: nothing is ever truncated */
                char space[CMSG_SPACE(sizeof(int) * 253) + CMSG_SPACE(sizeof(struct ucred))];
        } control;
        struct iovec iov = { .iov_base = buf, .iov_len = len };
        struct msghdr msg = {
                .msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = control.space,
                .msg_controllen = sizeof(control.space),
        };
        struct ucred sender = { .uid = (uid_t) -1, .gid = (gid_t) -1 };
        size_t got = 0, room = *n_fds;
        int failed = 0;
        ssize_t n;

        do
                n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return -errno;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
                size_t count;

                if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len == CMSG_LEN(sizeof(sender)))
                        memcpy(&sender, CMSG_DATA(c), sizeof(sender));
                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                for (size_t i = 0; i < count; i++) {
                        int fd;

                        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
                        if (got < room)
                                fds[got++] = fd;
                        else {
                                failed = -EMSGSIZE;
                                (void) close_fd(fd);
                        }
                }
        }
        /* Our table of descriptors is full. What the kernel has dropped cannot be had again, and must not make
         * a later message's descriptors look like this one's. */
        if (msg.msg_flags & MSG_CTRUNC)
                failed = -EMFILE;
        if (failed) {
                while (got > 0)
                        (void) close_fd(fds[--got]);
                return failed;
        }
        *n_fds = got;
        *ret_sender = sender;
        return n;
}

static int unix_address(const char *path, struct sockaddr_un *ret) {
        /* An empty path would be a nameless socket or, zero-padded, one in the abstract namespace. */
        if (!path[0])
                return -EINVAL;
        if (strlen(path) >= sizeof(ret->sun_path))
                return -ENAMETOOLONG;
        *ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
        (void) strcpy(ret->sun_path, path);
        return 0;
}

static int connect_unix(const char *path, int flags, int *ret_fd) {
        cleanup_fd int fd = -1;
        struct sockaddr_un sa;
        int r = unix_address(path, &sa);

        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
        if (fd < 0)
                return -errno;
        do /* a unix socket that was interrupted while it waited for the backlog is as it was before */
                r = connect(fd, (struct sockaddr *) &sa, sizeof(sa)) < 0 ? -errno : 0;
        while (r == -EINTR);
        if (r < 0)
                return r;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int io_connect_unix(const char *path, int *ret_fd) {
        return connect_unix(path, 0, ret_fd);
}

/* Makes way for a new socket at @path: only a socket on which nobody listens is removed. */
static int remove_stale_socket(const char *path) {
        cleanup_fd int probe = -1;
        struct stat st;
        int r;

        if (lstat(path, &st) < 0)
                return errno == ENOENT ? 0 : -errno;
        if (!S_ISSOCK(st.st_mode))
                return -EEXIST;
        r = connect_unix(path, SOCK_NONBLOCK, &probe);
        if (r == 0 || r == -EAGAIN) /* it listens; perhaps its backlog is full */
                return -EADDRINUSE;
        if (r != -ECONNREFUSED)
                return r == -ENOENT ? 0 : r;
        return unlink(path) < 0 && errno != ENOENT ? -errno : 0;
}

int io_listen_unix(const char *path, mode_t mode, int *ret_fd) {
        cleanup_fd int fd = -1;
        struct sockaddr_un sa;
        mode_t old;
        int r = unix_address(path, &sa);

        if (r == 0)
                r = remove_stale_socket(path);
        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;
        /* The mode must be right from the first moment: umask, not chmod after bind. */
        old = umask(0777 & ~mode);
        r = bind(fd, (struct sockaddr *) &sa, sizeof(sa)) < 0 ? -errno : 0;
        (void) umask(old);
        if (r < 0)
                return r;
        if (listen(fd, 128) < 0) {
                r = -errno;
                (void) unlink(path);
                return r;
        }
        *ret_fd = TAKE_FD(fd);
        return 0;
}

uint64_t now_ns(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}
