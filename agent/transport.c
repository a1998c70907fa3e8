/* SPDX-License-Identifier: MIT */
#include "agent/transport.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
/* after sys/socket.h, which it needs */
#include <linux/vm_sockets.h>

#include "common/io.h"

#define PORTS_DIR "/sys/class/virtio-ports"

/* Looks for the port that bears our name. -ENOENT: none (yet). */
static int port_find(char *path, size_t size) {
        DIR *d = opendir(PORTS_DIR);
        struct dirent *de;
        int r = -ENOENT;

        if (!d)
                return -ENOENT;
        while (r < 0 && (de = readdir(d))) {
                char file[sizeof(PORTS_DIR) + sizeof(de->d_name) + 8], name[64] = "";
                cleanup_fclose FILE *f = NULL;

                if (de->d_name[0] == '.')
                        continue;
                (void) snprintf(file, sizeof(file), PORTS_DIR "/%s/name", de->d_name);
                f = fopen(file, "re");
                if (!f || !fgets(name, sizeof(name), f))
                        continue;
                name[strcspn(name, "\n")] = '\0';
                if (strcmp(name, TRANSPORT_PORT_NAME) == 0 && (size_t) snprintf(path, size, "/dev/%s", de->d_name) < size)
                        r = 0;
        }
        (void) closedir(d);
        return r;
}

static int port_open(const char *path, struct transport *ret) {
        cleanup_fd int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);

        if (fd < 0)
                return -errno;
        *ret = (struct transport){ .kind = TRANSPORT_PORT, .fd = TAKE_FD(fd), .listen_fd = -1 };
        (void) snprintf(ret->name, sizeof(ret->name), "virtio-serial:%.100s", path);
        return 0;
}

/* The module may still be loading when init starts us, and devtmpfs makes the node a moment after sysfs has
 * the name; there is nothing to wait on for both, so look again until the deadline. */
static int port_wait(int wait_ms, struct transport *ret) {
        const struct timespec pause = { .tv_nsec = 20000000 };
        char path[300];
        int r;

        for (;;) {
                r = port_find(path, sizeof(path));
                if (r == 0)
                        r = port_open(path, ret);
                if (r == 0 || wait_ms <= 0)
                        return r;
                (void) nanosleep(&pause, NULL);
                wait_ms -= 20;
        }
}

static void listening(int fd, struct transport *ret) {
        *ret = (struct transport){ .kind = TRANSPORT_LISTEN, .fd = -1, .listen_fd = fd };
}

static int vsock_open(unsigned port, struct transport *ret) {
        struct sockaddr_vm addr = { .svm_family = AF_VSOCK, .svm_port = port, .svm_cid = VMADDR_CID_ANY };
        cleanup_fd int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        if (fd < 0 || bind(fd, (struct sockaddr *) &addr, sizeof(addr)) < 0 || listen(fd, 4) < 0)
                return -errno;
        listening(TAKE_FD(fd), ret);
        (void) snprintf(ret->name, sizeof(ret->name), "vsock:%u", port);
        return 0;
}

static int unix_open(const char *path, struct transport *ret) {
        int fd, r = io_listen_unix(path, 0600, &fd);

        if (r < 0)
                return r;
        listening(fd, ret);
        (void) snprintf(ret->name, sizeof(ret->name), "unix:%.100s", path);
        return 0;
}

static int fd_open(int fd, struct transport *ret) {
        int flags = fcntl(fd, F_GETFL);

        if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
                return -errno;
        *ret = (struct transport){ .kind = TRANSPORT_FD, .fd = fd, .listen_fd = -1 };
        (void) snprintf(ret->name, sizeof(ret->name), "fd:%d", fd);
        return 0;
}

static int parse_number(const char *s, unsigned long max, unsigned long *ret) {
        char *end;
        unsigned long v;

        if (*s < '0' || *s > '9')
                return -EINVAL;
        errno = 0;
        v = strtoul(s, &end, 10);
        if (errno || *end || v > max)
                return -EINVAL;
        *ret = v;
        return 0;
}

int transport_open(const char *spec, int wait_ms, struct transport *ret) {
        unsigned long n;

        if (!spec)
                return port_wait(wait_ms, ret) == 0 ? 0 : vsock_open(TRANSPORT_VSOCK_PORT, ret);
        if (strcmp(spec, "virtio-serial") == 0)
                return port_wait(wait_ms, ret);
        if (strncmp(spec, "virtio-serial:", 14) == 0)
                return port_open(spec + 14, ret);
        if (strcmp(spec, "vsock") == 0)
                return vsock_open(TRANSPORT_VSOCK_PORT, ret);
        if (strncmp(spec, "vsock:", 6) == 0)
                return parse_number(spec + 6, UINT32_MAX - 1, &n) < 0 ? -EINVAL : vsock_open((unsigned) n, ret);
        if (strncmp(spec, "unix:", 5) == 0)
                return unix_open(spec + 5, ret);
        if (strncmp(spec, "fd:", 3) == 0)
                return parse_number(spec + 3, INT_MAX, &n) < 0 ? -EINVAL : fd_open((int) n, ret);
        return -EINVAL;
}

void transport_close(struct transport *t) {
        t->fd = close_fd(t->fd);
        t->listen_fd = close_fd(t->listen_fd);
}

int transport_accept(struct transport *t, int *ret_fd) {
        int fd = accept4(t->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0)
                return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED ? 0 : -errno;
        *ret_fd = fd;
        return 1;
}
