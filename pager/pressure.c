/* SPDX-License-Identifier: MIT */
/* Theory of operation. A trigger is a line written into a pressure file; the descriptor is then POLLPRI at most once in
 * a window in which tasks stalled for memory longer than the threshold, and reading the event takes it away. Without
 * CAP_SYS_RESOURCE the kernel takes windows of multiples of two seconds only. A group that is removed, or a source
 * that breaks in another way, is POLLERR from then on.
 *
 * Two sources may tell of one and the same stall, and one that is stuck would tell of it for ever: after an event none
 * is listened to for a while. */
#include "pager/pressure.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "pager/limits.h"

/* Some task stalled for 7.5 % of the window: early, well before the kernel would kill anybody. */
static const char *const triggers[] = { "some 75000 1000000", "some 150000 2000000" };

static int set_trigger(const char *path, int *ret_fd) {
        cleanup_fd int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        int r = fd < 0 ? -errno : -EINVAL;

        if (fd < 0)
                return r;
        for (unsigned i = 0; i < ARRAY_LEN(triggers); i++) {
                if (write(fd, triggers[i], strlen(triggers[i]) + 1) > 0) {
                        *ret_fd = TAKE_FD(fd);
                        return 0;
                }
                r = -errno;
        }
        return r;
}

static void open_source(struct pager_pressure *p, const char *dir, const char *name, const char *whose) {
        char path[PATH_MAX];
        int fd = -1, r;

        if ((size_t) snprintf(path, sizeof(path), "%s%s", dir, name) >= sizeof(path))
                return;
        r = set_trigger(path, &fd);
        if (r < 0)
                log_info("%s memory pressure is not heard of: %s: %s", whose, path, strerrordesc_np(-r));
        else
                p->fd[p->n++] = fd;
}

/** The root group is the host, whose pressure is heard already; it alone has no cgroup.events. */
static bool is_group(const char *dir) {
        char path[PATH_MAX];

        return (size_t) snprintf(path, sizeof(path), "%s/cgroup.events", dir) < sizeof(path) && access(path, F_OK) == 0;
}

void pager_pressure_open(struct pager_pressure *p, const char *root, const struct pager_memcg *memcg) {
        *p = (struct pager_pressure){ 0 };
        open_source(p, root, "/proc/pressure/memory", "the host's");
        if (memcg->v2 && is_group(memcg->v2))
                open_source(p, memcg->v2, "/memory.pressure", "the cgroup's");
}

void pager_pressure_close(struct pager_pressure *p) {
        while (p->n > 0)
                (void) close_fd(p->fd[--p->n]);
}

int pager_pressure_add(struct pager_pressure *p, int fd) {
        if (p->n == PAGER_MAX_PRESSURE_SOURCES)
                return -ENOSPC;
        p->fd[p->n++] = fd;
        return 0;
}

/** How long to wait, in ms for poll: @timeout_ms, or less if we are to listen again before. */
static int wait_ms(const struct pager_pressure *p, int timeout_ms, uint64_t now) {
        int deaf = p->n > 0 && p->deaf_until_ns > now ? (int) ((p->deaf_until_ns - now + 999999) / 1000000) : -1;

        return deaf >= 0 && (timeout_ms < 0 || deaf < timeout_ms) ? deaf : timeout_ms;
}

int pager_pressure_wait(struct pager_pressure *p, int wake_fd, int timeout_ms, bool *ret_short) {
        struct pollfd poll_fd[PAGER_MAX_PRESSURE_SOURCES + 1];
        uint64_t now = now_ns();
        bool is_short = false, deaf = p->deaf_until_ns > now;
        unsigned n = p->n;

        for (unsigned i = 0; i < n; i++)
                poll_fd[i] = (struct pollfd){ .fd = deaf ? -1 : p->fd[i], .events = POLLPRI };
        poll_fd[n] = (struct pollfd){ .fd = wake_fd, .events = POLLIN };
        if (poll(poll_fd, n + 1, wait_ms(p, timeout_ms, now)) < 0 && errno != EINTR)
                return -errno;
        for (unsigned i = n; i-- > 0;) {
                if (poll_fd[i].revents & POLLPRI)
                        is_short = true;
                if (!(poll_fd[i].revents & (POLLERR | POLLHUP | POLLNVAL)))
                        continue;
                log_info("a source of memory pressure has ended");
                (void) close_fd(p->fd[i]);
                p->fd[i] = p->fd[--p->n];
        }
        if (is_short)
                p->deaf_until_ns = now_ns() + PAGER_PRESSURE_PAUSE_MS * 1000000ull;
        *ret_short = is_short;
        return 0;
}
