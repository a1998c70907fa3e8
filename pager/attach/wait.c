/* SPDX-License-Identifier: MIT */
/* Guest memory that comes later: a VMM shell.
 *
 * Theory of operation. A shell is a VMM that has started, built its machine, and waits for device state, before anybody knows
 * which VM it will be. Instead of guest memory it has a reservation, private and anonymous, which nobody touches: its vCPUs do
 * not run, and loading device state is what comes first. A thread of ours waits on a socket for what is missing (wait.h). It
 * then puts the VM's files in the place of the ones that the VMM was started with, whatever numbers the VMM has given them by
 * now: a descriptor is known by the file it is of. Then guest memory goes over the reservation, at the same address, and
 * becomes what attach.c would have made it at once.
 *
 * All of it happens while the VMM's own threads sleep: forkd tells it nothing before it has our answer. When forkd goes
 * without having said anything, so does the shell.
 *
 * The thread is there because QEMU cannot be made to wait at a place of our choice after its machine is built. It takes no
 * signal, allocates nothing, and ends with its answer. */
#include "pager/attach/wait.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pager/attach/attach.h"

#define STACK_BYTES (256u << 10)
#define MAX_NUMBER 65536

struct given {
        struct attach_wait_msg msg;
        int fds[ATTACH_WAIT_MAX];
};

/* ---- the message ---- */

static size_t take_fds(struct msghdr *mh, int fds[ATTACH_WAIT_MAX]) {
        size_t n = 0;

        for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                size_t here = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                if (here > ATTACH_WAIT_MAX - n)
                        attach_die("shell", "was given too many descriptors");
                memcpy(fds + n, CMSG_DATA(c), here * sizeof(int));
                n += here;
        }
        return n;
}

static void await_given(int sock, struct given *g) {
        union {
                struct cmsghdr align;
                char buf[CMSG_SPACE(sizeof(int) * ATTACH_WAIT_MAX)];
        } control;
        struct iovec iov = { .iov_base = &g->msg, .iov_len = sizeof(g->msg) };
        struct msghdr mh = {
                .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof(control.buf)
        };
        ssize_t n;

        do
                n = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC);
        while (n < 0 && errno == EINTR);
        if (n == 0 || (n < 0 && errno == ECONNRESET))
                _exit(0); /* forkd is gone, or has no use for us */
        if (n < 0)
                attach_die_errno("shell: waiting", errno);
        if (mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || (size_t) n != sizeof(g->msg) || g->msg.magic != ATTACH_WAIT_MAGIC ||
            g->msg.n > ATTACH_WAIT_MAX || take_fds(&mh, g->fds) != g->msg.n)
                attach_die("shell", "was given what it does not understand");
}

/* ---- the files ---- */

static void replace(int number, int fd) {
        int flags = fcntl(number, F_GETFD);

        if (flags < 0 || dup3(fd, number, flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0)
                attach_die_errno("shell: replacing a descriptor", errno);
}

/* @number may be any descriptor of the process. */
static void replace_if_meant(int number, const struct given *g) {
        struct stat st;

        for (uint32_t i = 0; i < g->msg.n; i++)
                if (number == g->fds[i])
                        return;
        if (fstat(number, &st) < 0)
                return;
        for (uint32_t i = 0; i < g->msg.n; i++) {
                const struct attach_wait_entry *en = &g->msg.entries[i];

                if (en->kind == ATTACH_WAIT_FILE && en->dev == st.st_dev && en->ino == st.st_ino) {
                        replace(number, g->fds[i]);
                        return;
                }
        }
}

static int number_of(const char *name) {
        int v = 0;

        for (; *name; name++) {
                if (*name < '0' || *name > '9' || v > MAX_NUMBER)
                        return -1;
                v = v * 10 + (*name - '0');
        }
        return v;
}

struct entry { /* struct linux_dirent64 */
        uint64_t ino;
        int64_t off;
        uint16_t len;
        uint8_t type;
        char name[];
};

/* opendir would allocate, and a thread's first allocation costs the process an arena. */
static void replace_files(const struct given *g) {
        _Alignas(struct entry) char buf[4096];
        int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        long n;

        if (dir < 0)
                attach_die_errno("shell: /proc/self/fd", errno);
        while ((n = syscall(SYS_getdents64, dir, buf, sizeof(buf))) > 0) {
                for (long at = 0; at < n;) {
                        const struct entry *en = (const struct entry *) (buf + at);
                        int number = number_of(en->name);

                        if (number >= 0 && number != dir)
                                replace_if_meant(number, g);
                        at += en->len;
                }
        }
        if (n < 0)
                attach_die_errno("shell: /proc/self/fd", errno);
        (void) close(dir);
}

/* ---- the shell's own thread ---- */

static void use(const struct given *g) {
        struct attach *a = &attach_state;

        replace_files(g);
        for (uint32_t i = 0; i < g->msg.n; i++) {
                switch (g->msg.entries[i].kind) {
                case ATTACH_WAIT_SESSION:
                        a->sock_fd = g->fds[i];
                        break;
                case ATTACH_WAIT_FILE:
                        (void) close(g->fds[i]);
                        break;
                default:
                        attach_die("shell", "was given a descriptor of an unknown kind");
                }
        }
        if (a->sock_fd < 0)
                attach_die("shell", "was given no memory");
        attach_put_segments((void *) a->base, a->len, a->prot, MAP_FIXED);
}

static void *wait_thread(void *arg) {
        struct attach *a = &attach_state;
        const char done = ATTACH_WAIT_DONE;
        struct given g;

        await_given(a->wait_fd, &g);
        use(&g);
        if (send(a->wait_fd, &done, 1, MSG_NOSIGNAL) != 1)
                attach_die_errno("shell: answering", errno);
        (void) close(a->wait_fd);
        a->wait_fd = -1;
        return arg;
}

void attach_wait_begin(void) {
        sigset_t all, before;
        pthread_attr_t attr;
        pthread_t thread;
        int r;

        (void) sigfillset(&all);
        (void) pthread_sigmask(SIG_SETMASK, &all, &before);
        r = pthread_attr_init(&attr);
        if (r == 0)
                r = pthread_attr_setstacksize(&attr, STACK_BYTES);
        if (r == 0)
                r = pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        if (r == 0)
                r = pthread_create(&thread, &attr, wait_thread, NULL);
        if (r != 0)
                attach_die_errno("shell: starting its thread", r);
        (void) pthread_attr_destroy(&attr);
        (void) pthread_sigmask(SIG_SETMASK, &before, NULL);
}
