/* SPDX-License-Identifier: MIT */
#include "forkd/notify.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/log.h"

#define EXTEND_EVERY_S 15 /* while starting and stopping; each asks for EXTEND_S from then on */
#define EXTEND_S 60
#define MAX_WATCHDOG_USEC (86400ull * 1000000)

struct notify {
        struct sockaddr_un addr;
        socklen_t addr_len; /* 0: nobody listens */
        uint64_t watchdog_usec;
        struct event *tick;
        bool ready, stopping;
        char status[200];
};

/* @flags: MSG_DONTWAIT for what may be lost; a manager that is stuck must not hold the loop for a ping. */
static void send_text(const struct notify *n, const char *text, int flags) {
        cleanup_fd int fd = -1;

        if (n->addr_len == 0)
                return;
        fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || sendto(fd, text, strlen(text), flags | MSG_NOSIGNAL, (const struct sockaddr *) &n->addr, n->addr_len) < 0)
                log_debug("telling the service manager '%s': %s", text, strerror(errno));
}

static void on_tick(evutil_socket_t fd, short what, void *arg) {
        const struct notify *n = arg;
        char text[80] = "";

        if (n->watchdog_usec > 0)
                (void) strcpy(text, "WATCHDOG=1\n");
        if (!n->ready || n->stopping)
                (void) snprintf(text + strlen(text), sizeof(text) - strlen(text), "EXTEND_TIMEOUT_USEC=%d\n", EXTEND_S * 1000000);
        if (text[0])
                send_text(n, text, MSG_DONTWAIT);
}

/* "/path" or "@abstract". */
static int set_address(struct notify *n, const char *path) {
        size_t len = strlen(path);

        if ((path[0] != '/' && path[0] != '@') || len < 2 || len >= sizeof(n->addr.sun_path))
                return -EINVAL;
        n->addr.sun_family = AF_UNIX;
        memcpy(n->addr.sun_path, path, len);
        if (path[0] == '@')
                n->addr.sun_path[0] = '\0';
        n->addr_len = (socklen_t) (offsetof(struct sockaddr_un, sun_path) + len);
        return 0;
}

static int parse_number(const char *text, uint64_t max, uint64_t *ret) {
        char *end;
        unsigned long long v;

        errno = 0;
        v = strtoull(text, &end, 10);
        if (errno || end == text || *end || text[0] == '-' || v == 0 || v > max)
                return -EINVAL;
        *ret = v;
        return 0;
}

static int read_environment(struct notify *n) {
        const char *path = getenv("NOTIFY_SOCKET"), *usec = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
        uint64_t for_pid = (uint64_t) getpid();
        int r = 0;

        if (path && path[0])
                r = set_address(n, path);
        if (r == 0 && pid)
                r = parse_number(pid, INT_MAX, &for_pid);
        if (r == 0 && usec)
                r = parse_number(usec, MAX_WATCHDOG_USEC, &n->watchdog_usec);
        if (for_pid != (uint64_t) getpid())
                n->watchdog_usec = 0; /* meant for who started us */
        (void) unsetenv("NOTIFY_SOCKET");
        (void) unsetenv("WATCHDOG_USEC");
        (void) unsetenv("WATCHDOG_PID");
        return r;
}

int notify_new(struct event_base *base, struct notify **ret) {
        uint64_t usec = EXTEND_EVERY_S * 1000000ull;
        struct notify *n = calloc(1, sizeof(*n));
        struct timeval every;
        int r;

        if (!n)
                return -ENOMEM;
        r = read_environment(n);
        if (n->watchdog_usec > 0)
                usec = MAX_OF(MIN_OF(usec, n->watchdog_usec / 2), (uint64_t) 1000);
        if (r == 0 && n->addr_len > 0) {
                every = (struct timeval){ .tv_sec = (time_t) (usec / 1000000), .tv_usec = (suseconds_t) (usec % 1000000) };
                n->tick = event_new(base, -1, EV_PERSIST, on_tick, n);
                if (!n->tick || event_add(n->tick, &every) < 0)
                        r = -ENOMEM;
        }
        if (r < 0) {
                notify_free(n);
                return r;
        }
        *ret = n;
        return 0;
}

void notify_free(struct notify *n) {
        if (!n)
                return;
        if (n->tick)
                event_free(n->tick);
        free(n);
}

void notify_ready(struct notify *n) {
        if (!n)
                return;
        n->ready = true;
        send_text(n, "READY=1", 0);
}

void notify_stopping(struct notify *n) {
        if (!n)
                return;
        n->stopping = true;
        send_text(n, "STOPPING=1", 0);
}

void notify_status(struct notify *n, const char *fmt, ...) {
        char text[sizeof(n->status) + 8], status[sizeof(n->status)];
        va_list ap;

        if (!n || n->addr_len == 0)
                return;
        va_start(ap, fmt);
        (void) vsnprintf(status, sizeof(status), fmt, ap);
        va_end(ap);
        if (strcmp(status, n->status) == 0)
                return;
        (void) strcpy(n->status, status);
        (void) snprintf(text, sizeof(text), "STATUS=%s", status);
        send_text(n, text, MSG_DONTWAIT);
}
