/* SPDX-License-Identifier: MIT */
/* libuffd-attach: makes a VMM's guest memory a private view of an image.
 *
 * Theory of operation. forkd starts QEMU with this library preloaded and guest RAM on a memory backend file
 * that is a dummy: an empty memfd of the right size, told `share=on` so that QEMU leaves RAM out of its
 * device state. The library sees QEMU map that file and puts something else in its place:
 *
 *   with a session   what uffd-pager says on the session socket: MAP_PRIVATE mappings of one or several images' memfds
 *                    (segments.h), registered with one userfaultfd for missing pages; descriptor and layout go back to
 *                    the pager, and the memory is handed to QEMU only when that has said "ok"
 *   without one      private anonymous memory: a fresh VM, which needs no pager. A userfaultfd is made for it that is
 *                    registered with nothing, and its number written down: when the VM is forked while it runs, forkd
 *                    fetches it and the pager registers the memory (docs/protocol.md)
 *
 * The library keeps its own copy of the userfaultfd open for ever. When the last descriptor of a userfaultfd
 * is closed the kernel lets waiting faults through to zeros; with this copy a guest whose pager has died
 * waits, until forkd kills it. It also keeps the session socket: its hang-up tells the pager that the VMM is
 * gone. And the dummy's descriptor, so that its inode number stays taken and a second mapping is noticed.
 *
 * Rules. Any failure ends the process with one line on stderr: there is no guest that runs on zeros. The
 * mmap path neither allocates nor uses stdio, and calls the kernel directly: mmap is called from within
 * allocators and before other libraries are set up. */
#include "pager/attach/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "pager/attach/segments.h"
#include "pager/uffd_compat.h"

#define EXPORT __attribute__((visibility("default")))
#define ANSWER_DEADLINE_MS 10000
#define ANSWER_MAX 256
#define LINE_MAX_LEN 512

struct attach attach_state = {
        .ram_fd = -1,
        .sock_fd = -1,
        .layout_fd = -1,
        .dev_fd = -1,
        .wait_fd = -1,
        .uffd = -1,
        .idle_uffd = -1,
};

/* ---- saying things without stdio ---- */

struct line {
        char s[LINE_MAX_LEN];
        size_t n;
};

static void line_str(struct line *l, const char *s) {
        size_t n = strlen(s);

        if (n > sizeof(l->s) - l->n)
                n = sizeof(l->s) - l->n;
        memcpy(l->s + l->n, s, n);
        l->n += n;
}

static void line_u64(struct line *l, uint64_t v) {
        char digits[24];
        size_t i = sizeof(digits) - 1;

        digits[i] = '\0';
        do {
                digits[--i] = (char) ('0' + v % 10);
                v /= 10;
        } while (v > 0);
        line_str(l, digits + i);
}

_Noreturn void attach_die(const char *what, const char *why) {
        struct line l = { .n = 0 };

        line_str(&l, "uffd-attach: ");
        line_str(&l, what);
        line_str(&l, ": ");
        line_str(&l, why);
        if (l.n == sizeof(l.s))
                l.n--;
        line_str(&l, "\n");
        if (write(STDERR_FILENO, l.s, l.n) < 0) {
                /* nobody listens; the exit code still tells */
        }
        _exit(ATTACH_EXIT_CODE);
}

_Noreturn void attach_die_errno(const char *what, int err) {
        const char *why = strerrordesc_np(err); /* unlike strerror: no locale, no allocation */

        attach_die(what, why ? why : "unknown error");
}

/* ---- the kernel, directly ---- */

void *attach_raw_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off) {
        /* the six-argument call takes bytes here; 32-bit hosts (mmap2) are refused below */
        return (void *) syscall(SYS_mmap, addr, len, prot, flags, fd, off);
}
_Static_assert(sizeof(void *) == 8 && sizeof(off_t) == 8, "64-bit hosts only");

int attach_raw_madvise(void *addr, size_t len, int advice) {
        return (int) syscall(SYS_madvise, addr, len, advice);
}

bool attach_overlaps(const void *addr, size_t len) {
        const struct attach *a = &attach_state;

        if (atomic_load_explicit(&a->phase, memory_order_acquire) != ATTACH_ATTACHED)
                return false;
        uintptr_t start = (uintptr_t) addr, base = a->base;
        size_t ram = a->len;
        return ram > 0 && len > 0 && start < base + ram && (start + len > base || start + len < start);
}

bool attach_contains(const void *addr, size_t len) {
        uintptr_t start = (uintptr_t) addr, base = attach_state.base;

        return attach_overlaps(addr, len) && start >= base && len <= attach_state.len && start - base <= attach_state.len - len;
}

/* ---- what forkd passed ---- */

static int env_fd(const char *name) {
        const char *s = getenv(name);
        char *end;

        if (!s)
                return -1;
        errno = 0;
        long v = strtol(s, &end, 10);
        if (errno || end == s || *end || v < 0 || v > 1 << 20)
                attach_die(name, "is not a descriptor's number");
        if (fcntl((int) v, F_GETFD) < 0)
                attach_die_errno(name, errno);
        return (int) v;
}

/* A child of the VMM has no guest memory of its own, and no business with our descriptors. Not before the VMM has mapped its memory: what was started
 * may be a wrapper that only goes on to start the VMM. */
static void forget_environment(void) {
        const int fds[] = { attach_state.ram_fd, attach_state.sock_fd, attach_state.layout_fd, attach_state.dev_fd,
                            attach_state.wait_fd };

        for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
                if (fds[i] >= 0 && fcntl(fds[i], F_SETFD, FD_CLOEXEC) < 0)
                        attach_die_errno("inherited descriptor", errno);
        unsetenv("LD_PRELOAD");
        unsetenv("FORKD_ATTACH_RAM_FD");
        unsetenv("FORKD_ATTACH_SOCK_FD");
        unsetenv("FORKD_ATTACH_LAYOUT_FD");
        unsetenv("FORKD_ATTACH_UFFD_DEV_FD");
        unsetenv("FORKD_ATTACH_WAIT_FD");
}

__attribute__((constructor)) static void attach_arm(void) {
        struct attach *a = &attach_state;
        struct stat st;

        a->ram_fd = env_fd("FORKD_ATTACH_RAM_FD");
        a->sock_fd = env_fd("FORKD_ATTACH_SOCK_FD");
        a->layout_fd = env_fd("FORKD_ATTACH_LAYOUT_FD");
        a->dev_fd = env_fd("FORKD_ATTACH_UFFD_DEV_FD");
        a->wait_fd = env_fd("FORKD_ATTACH_WAIT_FD");

        if (a->ram_fd < 0) {
                if (a->sock_fd >= 0 || a->layout_fd >= 0 || a->wait_fd >= 0)
                        attach_die("environment", "FORKD_ATTACH_RAM_FD is missing");
                return;
        }
        if (a->wait_fd >= 0 && a->sock_fd >= 0)
                attach_die("environment", "FORKD_ATTACH_WAIT_FD is for memory that comes later");
        if (fstat(a->ram_fd, &st) < 0)
                attach_die_errno("guest memory file", errno);
        if (!S_ISREG(st.st_mode) || st.st_size <= 0 || (uint64_t) st.st_size % ATTACH_PAGE)
                attach_die("guest memory file", "is no file of whole pages");
        a->ram_dev = st.st_dev;
        a->ram_ino = st.st_ino;
        a->ram_size = (uint64_t) st.st_size;
        atomic_store_explicit(&a->phase, ATTACH_ARMED, memory_order_release);
}

/* ---- userfaultfd ---- */

static int uffd_new(int dev_fd) {
        return dev_fd >= 0 ? ioctl(dev_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
                           : (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
}

/** A descriptor whose features are agreed on. The device first, the inherited one or our own: access to it is
 *  granted with file permissions, while the system call wants CAP_SYS_PTRACE or a sysctl. -1: *ret_what and *ret_why
 *  tell why there is none. */
static int uffd_try_agreed(int inherited_dev, const char **ret_what, const char **ret_why) {
        int dev = inherited_dev >= 0 ? inherited_dev : open(UFFD_DEVICE, O_RDWR | O_CLOEXEC);

        attach_state.dev_fd = -1;
        *ret_what = "userfaultfd";
        *ret_why = NULL;
        /* Asking for a feature that the kernel lacks spoils the descriptor: ask with a throw-away first. */
        int probe = uffd_new(dev);
        if (probe < 0 && dev >= 0) {
                (void) close(dev);
                dev = -1;
                probe = uffd_new(dev);
        }
        struct uffdio_api api = { .api = UFFD_API };
        int fd = -1;
        if (probe < 0) {
                *ret_why = strerrordesc_np(errno);
        } else if (ioctl(probe, UFFDIO_API, &api) < 0) {
                *ret_what = "userfaultfd: UFFDIO_API";
                *ret_why = strerrordesc_np(errno);
        } else if ((api.features & UFFD_FEATURES_NEEDED) != UFFD_FEATURES_NEEDED) {
                *ret_why = "the kernel cannot report missing shmem pages, or removed or moved memory";
        } else if (!(api.features & UFFD_FEATURE_PROVES_CONTINUE)) {
                *ret_why = "the kernel has no UFFDIO_CONTINUE for shmem (needs 5.14)";
        } else if ((fd = uffd_new(dev)) < 0) {
                *ret_why = strerrordesc_np(errno);
        } else {
                api = (struct uffdio_api){ .api = UFFD_API, .features = UFFD_FEATURES_NEEDED };
                if (ioctl(fd, UFFDIO_API, &api) < 0) {
                        *ret_what = "userfaultfd: UFFDIO_API";
                        *ret_why = strerrordesc_np(errno);
                        (void) close(fd);
                        fd = -1;
                }
        }
        if (probe >= 0)
                (void) close(probe);
        if (dev >= 0)
                (void) close(dev);
        return fd;
}

static int uffd_open_agreed(int inherited_dev) {
        const char *what, *why;
        int fd = uffd_try_agreed(inherited_dev, &what, &why);

        if (fd < 0)
                attach_die(what, why ? why : "unknown error");
        return fd;
}

static int uffd_register(int dev_fd, void *base, size_t len) {
        const uint64_t needed = 1ull << _UFFDIO_WAKE | 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_ZEROPAGE;
        struct uffdio_register reg = {
                .range = { .start = (uintptr_t) base, .len = len },
                .mode = UFFDIO_REGISTER_MODE_MISSING,
        };
        int fd = uffd_open_agreed(dev_fd);

        if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
                attach_die_errno("userfaultfd: UFFDIO_REGISTER", errno);
        if ((reg.ioctls & needed) != needed)
                attach_die("userfaultfd", "the kernel cannot resolve faults of this mapping");
        return fd;
}

/* ---- the handshake ---- */

static void send_layout(int sock, const struct line *msg, int uffd) {
        union {
                struct cmsghdr align;
                char buf[CMSG_SPACE(sizeof(int))];
        } control = { 0 };
        struct iovec iov = { .iov_base = (void *) msg->s, .iov_len = msg->n };
        struct msghdr mh = {
                .msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = control.buf,
                .msg_controllen = sizeof(control.buf),
        };
        struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);

        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cm), &uffd, sizeof(int));
        while (iov.iov_len > 0) {
                ssize_t n = sendmsg(sock, &mh, MSG_NOSIGNAL);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        attach_die_errno("pager: sending the layout", errno);
                iov.iov_base = (char *) iov.iov_base + n;
                iov.iov_len -= (size_t) n;
                mh.msg_control = NULL; /* the descriptor went with the first byte */
                mh.msg_controllen = 0;
        }
}

static int64_t clock_ms(void) {
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/** Until there is something to be read. forkd has a duplicate of the pager's end, so the death of the pager is no hang-up. */
static void await_input(int sock, int64_t end) {
        for (;;) {
                int64_t left = end - clock_ms();
                struct pollfd p = { .fd = sock, .events = POLLIN };
                int r = left > 0 ? poll(&p, 1, (int) left) : 0;
                if (r > 0)
                        return;
                if (r == 0)
                        attach_die("pager", "no answer within 10 seconds");
                if (errno != EINTR)
                        attach_die_errno("pager: waiting for its answer", errno);
        }
}

/** Waits for "ok\n". Everything else ends the process: a refusal with the pager's own words. */
static void await_ok(int sock) {
        char answer[ANSWER_MAX + 1];
        size_t n = 0;
        int64_t end = clock_ms() + ANSWER_DEADLINE_MS;

        while (n == 0 || answer[n - 1] != '\n') {
                if (n == ANSWER_MAX)
                        attach_die("pager", "its answer is too long");
                await_input(sock, end);
                ssize_t k = recv(sock, answer + n, 1, MSG_DONTWAIT);
                if (k < 0 && (errno == EINTR || errno == EAGAIN))
                        continue;
                if (k < 0)
                        attach_die_errno("pager: reading its answer", errno);
                if (k == 0)
                        attach_die("pager", "hung up during the handshake");
                n++;
        }
        answer[n - 1] = '\0';
        if (strcmp(answer, "ok") != 0)
                attach_die("pager refused", answer);
}

static void handshake(int sock, int uffd, void *base, size_t len) {
        struct line msg = { .n = 0 };

        line_str(&msg, "[{\"base_host_virt_addr\":");
        line_u64(&msg, (uintptr_t) base);
        line_str(&msg, ",\"size\":");
        line_u64(&msg, len);
        line_str(&msg, ",\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096,"
                       "\"forkd\":{\"mode\":\"memfd\",\"version\":1}}]");
        send_layout(sock, &msg, uffd);
        await_ok(sock);
}

static void write_layout(int fd, void *base, size_t len) {
        struct line l = { .n = 0 };

        line_str(&l, "{\"host_addr\":");
        line_u64(&l, (uintptr_t) base);
        line_str(&l, ",\"size\":");
        line_u64(&l, len);
        line_str(&l, ",\"offset\":0");
        if (attach_state.idle_uffd >= 0) {
                line_str(&l, ",\"uffd\":");
                line_u64(&l, (uint64_t) attach_state.idle_uffd);
        }
        line_str(&l, "}\n");
        ssize_t n = write(fd, l.s, l.n);
        if (n < 0)
                attach_die_errno("layout file", errno);
        if ((size_t) n != l.n)
                attach_die("layout file", "short write");
}

/* ---- the mapping ---- */

/* Received before any guest memory is there; static, for nothing is allocated here. */
static struct {
        struct segments_msg msg;
        int fds[SEGMENTS_MAX_IMAGES];
        size_t n_fds;
} segments;

/** Keeps the descriptors that came. More than there is room for are none of a pager's. */
static void take_fds(struct msghdr *mh) {
        if (mh->msg_flags & MSG_CTRUNC)
                attach_die("guest memory", "its descriptors could not all be received");
        for (struct cmsghdr *cm = CMSG_FIRSTHDR(mh); cm; cm = CMSG_NXTHDR(mh, cm)) {
                size_t n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
                        continue;
                if (n > SEGMENTS_MAX_IMAGES - segments.n_fds)
                        attach_die("guest memory", "came with too many descriptors");
                memcpy(segments.fds + segments.n_fds, CMSG_DATA(cm), n * sizeof(int));
                segments.n_fds += n;
        }
}

/** Receives up to @want bytes of the message. */
static void receive_until(int sock, size_t *have, size_t want, int64_t end) {
        union {
                struct cmsghdr align;
                char buf[CMSG_SPACE(SEGMENTS_MAX_IMAGES * sizeof(int))];
        } control;

        while (*have < want) {
                struct iovec iov = { .iov_base = (char *) &segments.msg + *have, .iov_len = want - *have };
                struct msghdr mh = {
                        .msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = control.buf,
                        .msg_controllen = sizeof(control.buf),
                };
                await_input(sock, end);
                ssize_t n = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
                if (n < 0 && (errno == EINTR || errno == EAGAIN))
                        continue;
                if (n < 0)
                        attach_die_errno("pager: being told of guest memory", errno);
                take_fds(&mh);
                if (n == 0)
                        attach_die("pager", "hung up before it told of guest memory");
                *have += (size_t) n;
        }
}

/** What guest memory of @len bytes is made of. */
static void receive_segments(int sock, size_t len) {
        int64_t end = clock_ms() + ANSWER_DEADLINE_MS;
        size_t have = 0, want;
        char first;

        await_input(sock, end);
        if (recv(sock, &first, 1, MSG_DONTWAIT | MSG_PEEK) == 1 && first != SEGMENTS_MAGIC[0])
                await_ok(sock); /* a refusal, told as such */
        receive_until(sock, &have, sizeof(segments.msg.head), end);
        want = segments_length(&segments.msg.head);
        if (want == 0)
                attach_die("guest memory", "was told of in another way than this library knows");
        receive_until(sock, &have, want, end);
        const char *wrong = segments_check(&segments.msg, len, segments.n_fds);
        if (wrong)
                attach_die("guest memory as told by the pager", wrong);
        for (size_t i = 0; i < segments.n_fds; i++) {
                struct stat st;
                if (fstat(segments.fds[i], &st) < 0)
                        attach_die_errno("image", errno);
                if (!S_ISREG(st.st_mode) || (uint64_t) st.st_size != len)
                        attach_die("image", "its size is not the guest memory's");
        }
}

static void *map_segments(void *addr, size_t len, int prot, int fixed) {
        struct attach *a = &attach_state;

        receive_segments(a->sock_fd, len);
        char *p = attach_raw_mmap(addr, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
        if (p == MAP_FAILED)
                attach_die_errno("mapping guest memory", errno);
        for (uint32_t i = 0; i < segments.msg.head.n; i++) {
                const struct segments_one *s = &segments.msg.one[i];
                if (attach_raw_mmap(p + s->offset, s->size, prot, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, segments.fds[s->image],
                                    (off_t) s->offset) == MAP_FAILED)
                        attach_die_errno("mapping the image", errno);
        }
        for (size_t i = 0; i < segments.n_fds; i++)
                (void) close(segments.fds[i]);
        /* Before the first touch. A child made by fork() would not be registered: it would read zeros where
         * the image has a hole, and the kernel would put these zeros into the image for all its siblings. */
        if (attach_raw_madvise(p, len, MADV_DONTFORK) < 0)
                attach_die_errno("guest memory: MADV_DONTFORK", errno);
        a->uffd = uffd_register(a->dev_fd, p, len);
        handshake(a->sock_fd, a->uffd, p, len);
        return p;
}

static void *map_anonymous(void *addr, size_t len, int prot, int fixed) {
        void *p = attach_raw_mmap(addr, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);

        if (p == MAP_FAILED)
                attach_die_errno("mapping guest memory", errno);
        return p;
}

/* What the guest writes is found page by page; a huge page would make 512 of one. A kernel without huge pages says EINVAL. */
static void finish(void *p, size_t len, int prot) {
        struct attach *a = &attach_state;

        if (attach_raw_madvise(p, len, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
                attach_die_errno("guest memory: MADV_NOHUGEPAGE", errno);
        if (a->dev_fd >= 0)
                (void) close(a->dev_fd);
        a->dev_fd = -1;
        a->prot = prot;
        a->base = (uintptr_t) p;
        a->len = len;
        atomic_store_explicit(&a->phase, ATTACH_ATTACHED, memory_order_release);
}

void *attach_put_segments(void *addr, size_t len, int prot, int fixed) {
        void *p = map_segments(addr, len, prot, fixed);

        /* The VMM's own advice (no memory of guests in core files) may have been for what was here before. */
        if (fixed && attach_raw_madvise(p, len, MADV_DONTDUMP) < 0)
                attach_die_errno("guest memory: MADV_DONTDUMP", errno);
        finish(p, len, prot);
        attach_rebase_start(attach_state.sock_fd);
        return p;
}

/* Of a shell: the address, and nothing there yet. */
static void *reserve(void *addr, size_t len, int prot, int fixed) {
        struct attach *a = &attach_state;
        void *p = map_anonymous(addr, len, prot, fixed);

        a->prot = prot;
        a->base = (uintptr_t) p;
        a->len = len;
        attach_wait_begin();
        return p;
}

static void *attach_guest_ram(void *addr, size_t len, int prot, int flags, off_t off) {
        struct attach *a = &attach_state;
        int type = flags & MAP_TYPE, fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
        int armed = ATTACH_ARMED;
        void *p;

        if (!atomic_compare_exchange_strong(&a->phase, &armed, ATTACH_INERT))
                attach_die("guest memory", "is mapped a second time");
        forget_environment();
        if (type != MAP_SHARED && type != MAP_SHARED_VALIDATE)
                attach_die("guest memory", "is not mapped shared (memory backend without share=on)");
        if (off != 0 || len != a->ram_size)
                attach_die("guest memory", "is not mapped as a whole");

        if (a->wait_fd >= 0) {
                p = reserve(addr, len, prot, fixed);
        } else if (a->sock_fd >= 0) {
                p = attach_put_segments(addr, len, prot, fixed);
        } else {
                /* Where there is none the VM runs all the same: forking it costs it a longer pause. */
                const char *what, *why;
                p = map_anonymous(addr, len, prot, fixed);
                a->idle_uffd = uffd_try_agreed(a->dev_fd, &what, &why);
                finish(p, len, prot);
        }
        if (a->layout_fd >= 0) {
                write_layout(a->layout_fd, p, len);
                (void) close(a->layout_fd);
                a->layout_fd = -1;
        }
        return p;
}

static bool is_guest_ram(int flags, int fd) {
        const struct attach *a = &attach_state;
        struct stat st;
        int saved = errno;

        if (a->ram_fd < 0 || fd < 0 || flags & MAP_ANONYMOUS)
                return false;
        if (fstat(fd, &st) < 0) { /* the real mmap will say what is wrong with it */
                errno = saved;
                return false;
        }
        return st.st_dev == a->ram_dev && st.st_ino == a->ram_ino;
}

EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off) {
        if (__builtin_expect(is_guest_ram(flags, fd), false))
                return attach_guest_ram(addr, len, prot, flags, off);
        return attach_raw_mmap(addr, len, prot, flags, fd, off);
}

EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off) {
        return mmap(addr, len, prot, flags, fd, off);
}
