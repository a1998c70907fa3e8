/* SPDX-License-Identifier: MIT */
#include "pager/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The process's, as its privileges are: kept for a time when it may not open it any more. */
static int kept_device = -1;
static bool no_device; /* it was looked for, and is not looked for again */

void uffd_keep_device(void) {
        cleanup_fd int dev = open(UFFD_DEVICE, O_RDWR | O_CLOEXEC), fd = -1;

        /* Something else may be in its place, in a container for instance. */
        fd = dev >= 0 ? ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK) : -1;
        if (fd >= 0 && kept_device < 0)
                kept_device = TAKE_FD(dev);
        no_device = kept_device < 0;
}

bool uffd_has_device(void) {
        return kept_device >= 0;
}

static int uffd_new(int *ret_fd) {
        cleanup_fd int opened = kept_device >= 0 || no_device ? -1 : open(UFFD_DEVICE, O_RDWR | O_CLOEXEC);
        int dev = kept_device >= 0 ? kept_device : opened;
        int fd = dev >= 0 ? ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK) : -1;

        if (fd < 0)
                fd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
                return -errno;
        *ret_fd = fd;
        return 0;
}

int uffd_open(uint64_t features, int *ret_fd) {
        cleanup_fd int probe = -1, fd = -1;
        struct uffdio_api api = { .api = UFFD_API };
        int r;

        /* A refused UFFDIO_API spoils the descriptor, so the features are asked for on another one. */
        r = uffd_new(&probe);
        if (r < 0)
                return r;
        if (ioctl(probe, UFFDIO_API, &api) < 0)
                return -errno;
        if ((api.features & features) != features)
                return -EOPNOTSUPP;
        r = uffd_new(&fd);
        if (r < 0)
                return r;
        api = (struct uffdio_api){ .api = UFFD_API, .features = features };
        if (ioctl(fd, UFFDIO_API, &api) < 0)
                return -errno;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int uffd_register(int fd, uint64_t start, uint64_t len) {
        struct uffdio_register reg = {
                .range = { .start = start, .len = len },
                .mode = UFFDIO_REGISTER_MODE_MISSING,
        };

        return ioctl(fd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

int uffd_register_as(int fd, uint64_t start, uint64_t len, bool missing, bool writes) {
        struct uffdio_register reg = {
                .range = { .start = start, .len = len },
                .mode = (missing ? UFFDIO_REGISTER_MODE_MISSING : 0) | (writes ? UFFDIO_REGISTER_MODE_WP : 0),
        };

        if (reg.mode == 0)
                return ioctl(fd, UFFDIO_UNREGISTER, &reg.range) < 0 ? -errno : 0;
        if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
                return errno == EINVAL && writes ? -EOPNOTSUPP : -errno;
        return writes && !(reg.ioctls >> _UFFDIO_WRITEPROTECT & 1) ? -EOPNOTSUPP : 0;
}

int uffd_protect(int fd, uint64_t start, uint64_t len, bool on) {
        struct uffdio_writeprotect wp = {
                .range = { .start = start, .len = len },
                .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
        };

        return ioctl(fd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
}

/** 0: it is a userfaultfd; -EINVAL. */
static int check_kind(int fd) {
        static const char expected[] = "anon_inode:[userfaultfd]";
        char path[64], target[sizeof(expected) + 1];
        ssize_t n;

        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        n = readlink(path, target, sizeof(target));
        if (n < 0)
                return -errno;
        return (size_t) n == sizeof(expected) - 1 && memcmp(target, expected, (size_t) n) == 0 ? 0 : -EINVAL;
}

bool uffd_is(int fd) {
        return check_kind(fd) == 0;
}

int uffd_check(int fd, uint64_t addr) {
        int r = check_kind(fd);

        /* Before UFFDIO_API every other request is -EINVAL; a wake-up of a page harms nobody. */
        return r < 0 ? r : uffd_wake(fd, addr, 4096);
}

bool uffd_changing(int fd) {
        struct uffdio_copy nothing = { 0 };

        /* The kernel looks for changes under way before it looks at the range, which is refused as empty. */
        return ioctl(fd, UFFDIO_COPY, &nothing) < 0 && errno == EAGAIN;
}

int uffd_copy(int fd, uint64_t dst, const void *src, uint64_t len, uint64_t *ret_done) {
        *ret_done = 0;
        while (*ret_done < len) {
                struct uffdio_copy c = {
                        .dst = dst + *ret_done,
                        .src = (uintptr_t) src + *ret_done,
                        .len = len - *ret_done,
                };
                if (ioctl(fd, UFFDIO_COPY, &c) == 0) {
                        *ret_done = len;
                } else if (c.copy > 0) {
                        /* partly done: the next turn says what stands in the way */
                        *ret_done += (uint64_t) c.copy;
                } else {
                        return -errno;
                }
        }
        return 0;
}

int uffd_continue(int fd, uint64_t start, uint64_t len, uint64_t *ret_done) {
        *ret_done = 0;
        while (*ret_done < len) {
                struct uffdio_continue c = { .range = { .start = start + *ret_done, .len = len - *ret_done } };
                if (ioctl(fd, UFFDIO_CONTINUE, &c) == 0)
                        *ret_done = len;
                else if (c.mapped > 0)
                        *ret_done += (uint64_t) c.mapped;
                else
                        return -errno;
        }
        return 0;
}

int uffd_zeropage(int fd, uint64_t start, uint64_t len, uint64_t *ret_done) {
        *ret_done = 0;
        while (*ret_done < len) {
                struct uffdio_zeropage z = { .range = { .start = start + *ret_done, .len = len - *ret_done } };
                if (ioctl(fd, UFFDIO_ZEROPAGE, &z) == 0)
                        *ret_done = len;
                else if (z.zeropage > 0)
                        *ret_done += (uint64_t) z.zeropage;
                else
                        return -errno;
        }
        return 0;
}

int uffd_poison(int fd, uint64_t start, uint64_t len, uint64_t *ret_done) {
        *ret_done = 0;
        while (*ret_done < len) {
                struct uffd_poison_args p = { .range = { .start = start + *ret_done, .len = len - *ret_done } };
                if (ioctl(fd, UFFD_IOC_POISON, &p) == 0)
                        *ret_done = len;
                else if (p.updated > 0)
                        *ret_done += (uint64_t) p.updated;
                else
                        return errno == EINVAL || errno == ENOTTY ? -EOPNOTSUPP : -errno;
        }
        return 0;
}

int uffd_wake(int fd, uint64_t start, uint64_t len) {
        struct uffdio_range range = { .start = start, .len = len };

        return ioctl(fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int uffd_read(int fd, struct uffd_msg *msgs, size_t max) {
        struct iovec iov = { .iov_base = msgs, .iov_len = max * sizeof(*msgs) };
        ssize_t n;

        do
                n = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
        while (n < 0 && errno == EINTR);
        if (n < 0 && (errno == EOPNOTSUPP || errno == ESPIPE)) {
                /* Before Linux 6.10 only the file's own flag counts. Asking first keeps a blocking file from
                 * blocking us, unless its owner also takes the message away in this very moment. */
                struct pollfd p = { .fd = fd, .events = POLLIN };

                if (poll(&p, 1, 0) <= 0 || !(p.revents & POLLIN))
                        return -EAGAIN;
                n = read(fd, msgs, max * sizeof(*msgs));
        }
        if (n < 0)
                return -errno;
        if (n == 0 || (size_t) n % sizeof(*msgs))
                return -EIO;
        return (int) ((size_t) n / sizeof(*msgs));
}
