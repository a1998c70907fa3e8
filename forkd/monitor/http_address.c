/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/http_address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "common/io.h"

#define BACKLOG 64

static int parse_port(const char *text, in_port_t *ret) {
        unsigned long v = 0;

        for (const char *p = text; *p; p++) {
                if (*p < '0' || *p > '9')
                        return -EINVAL;
                v = v * 10 + (unsigned long) (*p - '0');
                if (v > UINT16_MAX)
                        return -EINVAL;
        }
        if (!text[0])
                return -EINVAL;
        *ret = htons((uint16_t) v);
        return 0;
}

static int parse_unix(const char *path, struct http_address *a, const char **ret_why) {
        if (path[0] != '/' || strlen(path) >= sizeof(a->path)) {
                *ret_why = "is unix: and an absolute path of at most 107 characters";
                return -EINVAL;
        }
        a->kind = HTTP_UNIX;
        (void) strcpy(a->path, path);
        return 0;
}

static int parse_tcp(const char *text, struct http_address *a, const char **ret_why) {
        const char *colon = strrchr(text, ':');
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *) &a->room;
        struct sockaddr_in *v4 = (struct sockaddr_in *) &a->room;
        char host[32];
        in_port_t port;

        *ret_why = "is off, unix:PATH, or a loopback address with a port: 127.0.0.1:9464, [::1]:9464";
        if (!colon || (size_t) (colon - text) >= sizeof(host) || parse_port(colon + 1, &port) < 0)
                return -EINVAL;
        memcpy(host, text, (size_t) (colon - text));
        host[colon - text] = '\0';
        a->kind = HTTP_TCP;
        if (strcmp(host, "[::1]") == 0) {
                *v6 = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = port, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
                a->len = sizeof(*v6);
                return 0;
        }
        *v4 = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = port };
        a->len = sizeof(*v4);
        if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, &v4->sin_addr) != 1)
                return -EINVAL;
        if (ntohl(v4->sin_addr.s_addr) >> 24 == 127)
                return 0;
        *ret_why = "is a loopback address (127.0.0.1, [::1]) or a unix socket: whoever reaches it may read";
        return -EINVAL;
}

int http_address_parse(const char *text, struct http_address *ret, const char **ret_why) {
        struct http_address a = { 0 };
        int r = 0;

        if (strncmp(text, "unix:", 5) == 0)
                r = parse_unix(text + 5, &a, ret_why);
        else if (strcmp(text, "off") != 0)
                r = parse_tcp(text, &a, ret_why);
        if (r == 0)
                *ret = a;
        return r;
}

static int listen_unix(const struct http_address *a, gid_t gid, int *ret_fd) {
        bool shared = gid != (gid_t) -1;
        cleanup_fd int fd = -1;
        int r;

        r = io_listen_unix(a->path, shared ? 0660 : 0600, &fd);
        if (r < 0)
                return r;
        if (shared && chown(a->path, (uid_t) -1, gid) < 0)
                return -errno;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static int listen_tcp(const struct http_address *a, int *ret_fd) {
        cleanup_fd int fd = socket(a->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        /* Connections of a forkd that has just ended do not keep the next one away. */
        if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int)) < 0 || bind(fd, &a->sa, a->len) < 0 ||
            listen(fd, BACKLOG) < 0)
                return -errno;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static int tell(const struct http_address *a, int fd, char *told, size_t size) {
        char host[INET6_ADDRSTRLEN];
        struct http_address real = { .len = sizeof(real.room) };
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *) &real.room;
        const struct sockaddr_in *v4 = (const struct sockaddr_in *) &real.room;

        if (a->kind == HTTP_UNIX) {
                (void) snprintf(told, size, "unix:%s", a->path);
                return 0;
        }
        if (getsockname(fd, &real.sa, &real.len) < 0)
                return -errno;
        if (real.sa.sa_family == AF_INET6)
                (void) snprintf(told, size, "[%s]:%u", inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host)),
                                ntohs(v6->sin6_port));
        else
                (void) snprintf(told, size, "%s:%u", inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host)), ntohs(v4->sin_port));
        return 0;
}

int http_address_listen(const struct http_address *a, gid_t gid, int *ret_fd, char *told, size_t size) {
        cleanup_fd int fd = -1;
        int r;

        r = a->kind == HTTP_UNIX ? listen_unix(a, gid, &fd) : listen_tcp(a, &fd);
        if (r == 0)
                r = tell(a, fd, told, size);
        if (r == 0)
                *ret_fd = TAKE_FD(fd);
        return r;
}
