/* SPDX-License-Identifier: MIT */
/* Guest memory that is mapped anew while the guest runs.
 *
 * Theory of operation. After a VM was forked live, what it had written is in the memory of the new snapshot's image, too. The pager
 * has it map those parts from there, so that each page is held once, and what the VM writes from then on is its own again. Only
 * the process itself can map its memory: a thread of the library waits for the pager's word on the session socket, for as long
 * as the VMM lives.
 *
 * It maps over what is there, page by page the same content. Nobody writes those pages meanwhile: they are protected, and the
 * pager holds such writes back until it has the answer and has registered the new mappings. Nor are there holes in what is mapped:
 * the pager keeps the image's pages where they are until then. So a vCPU that reads sees the same before, between and after.
 *
 * The thread does nothing else, and nothing that a signal handler, a fork or an exit of the VMM would have to know about. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pager/attach/attach.h"
#include "pager/attach/segments.h"

#define STACK_BYTES (64u << 10)

static struct {
        int sock;
        struct segments_msg msg;
} told;

/** Waits for @want bytes. False: the pager's end of the socket is gone. */
static bool receive(size_t have, size_t want, int *fd) {
        union {
                struct cmsghdr align;
                char buf[CMSG_SPACE(sizeof(int))];
        } control;

        while (have < want) {
                struct iovec iov = { .iov_base = (char *) &told.msg + have, .iov_len = want - have };
                struct msghdr mh = {
                        .msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = control.buf,
                        .msg_controllen = sizeof(control.buf),
                };
                ssize_t n = recvmsg(told.sock, &mh, MSG_CMSG_CLOEXEC);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return false;
                if (mh.msg_flags & MSG_CTRUNC)
                        attach_die("guest memory", "came anew with more than one descriptor");
                struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);
                if (cm && cm->cmsg_level == SOL_SOCKET && cm->cmsg_type == SCM_RIGHTS && cm->cmsg_len == CMSG_LEN(sizeof(int))) {
                        if (*fd >= 0)
                                attach_die("guest memory", "came anew with more than one descriptor");
                        memcpy(fd, CMSG_DATA(cm), sizeof(int));
                }
                have += (size_t) n;
        }
        return true;
}

static void check(int fd) {
        const struct attach *a = &attach_state;
        const char *wrong = segments_anew_check(&told.msg, a->len, fd >= 0 ? 1 : 0);
        struct stat st;

        if (wrong)
                attach_die("guest memory as told anew by the pager", wrong);
        if (fstat(fd, &st) < 0)
                attach_die_errno("image", errno);
        if (!S_ISREG(st.st_mode) || (uint64_t) st.st_size != a->len)
                attach_die("image", "its size is not the guest memory's");
}

static void map_anew(int fd) {
        struct attach *a = &attach_state;

        /* From here on a discard must not bring the image's page back. */
        if (a->uffd < 0)
                a->uffd = a->idle_uffd;
        for (uint32_t i = 0; i < told.msg.head.n; i++) {
                const struct segments_one *s = &told.msg.one[i];
                char *at = (char *) a->base + s->offset;

                if (attach_raw_mmap(at, s->size, a->prot, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, fd, (off_t) s->offset) ==
                    MAP_FAILED)
                        attach_die_errno("mapping guest memory anew", errno);
                if (attach_raw_madvise(at, s->size, MADV_DONTFORK) < 0 || attach_raw_madvise(at, s->size, MADV_DONTDUMP) < 0)
                        attach_die_errno("guest memory: MADV_DONTFORK, MADV_DONTDUMP", errno);
                if (attach_raw_madvise(at, s->size, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
                        attach_die_errno("guest memory: MADV_NOHUGEPAGE", errno);
        }
}

static void *wait_for_word(void *arg) {
        const char ok[] = "ok\n";

        for (;;) {
                int fd = -1;
                size_t len;

                if (!receive(0, sizeof(told.msg.head), &fd))
                        break;
                len = segments_anew_length(&told.msg.head);
                if (len == 0)
                        attach_die("guest memory", "was told of anew in another way than this library knows");
                if (!receive(sizeof(told.msg.head), len, &fd))
                        break;
                check(fd);
                map_anew(fd);
                (void) close(fd);
                if (send(told.sock, ok, sizeof(ok) - 1, MSG_NOSIGNAL) != (ssize_t) sizeof(ok) - 1)
                        break;
        }
        return arg;
}

void attach_rebase_start(int sock) {
        pthread_attr_t attr;
        pthread_t thread;
        sigset_t all, before;
        int r;

        told.sock = sock;
        if (pthread_attr_init(&attr) != 0)
                attach_die("guest memory", "there can be no thread for it");
        /* Signals are the VMM's own threads'. */
        (void) sigfillset(&all);
        (void) pthread_sigmask(SIG_SETMASK, &all, &before);
        (void) pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        (void) pthread_attr_setstacksize(&attr, STACK_BYTES);
        r = pthread_create(&thread, &attr, wait_for_word, NULL);
        (void) pthread_sigmask(SIG_SETMASK, &before, NULL);
        (void) pthread_attr_destroy(&attr);
        if (r != 0)
                attach_die_errno("guest memory: a thread for it", r);
        (void) pthread_setname_np(thread, "uffd-attach");
}
