/* SPDX-License-Identifier: MIT */
#include "bpf/trial.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/io.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

#define PAGE 4096u
#define STACK (64u << 10)
#define FAULT_TIMEOUT_MS 3000

struct trial {
        int uffd, go;
        char *page;
        bool started;
        pthread_t thread;
        _Atomic pid_t tid;
        _Atomic bool over; /* nothing is touched any more */
};

static void *trial_main(void *arg) {
        struct trial *t = arg;
        uint64_t n;

        atomic_store(&t->tid, (pid_t) syscall(SYS_gettid));
        if (read(t->go, &n, sizeof(n)) != sizeof(n))
                return NULL;
        if (!atomic_load(&t->over))
                *(volatile char *) t->page = 1;
        (void) !read(t->go, &n, sizeof(n));
        return NULL;
}

static int start_thread(struct trial *t) {
        pthread_attr_t attr;
        sigset_t all, old;
        int r = -pthread_attr_init(&attr);

        if (r < 0)
                return r;
        r = -pthread_attr_setstacksize(&attr, STACK > PTHREAD_STACK_MIN ? STACK : PTHREAD_STACK_MIN);
        /* Signals are for the threads that know what to do with them, and would end a wait. */
        (void) sigfillset(&all);
        (void) pthread_sigmask(SIG_SETMASK, &all, &old);
        if (r == 0)
                r = -pthread_create(&t->thread, &attr, trial_main, t);
        (void) pthread_sigmask(SIG_SETMASK, &old, NULL);
        (void) pthread_attr_destroy(&attr);
        t->started = r == 0;
        while (r == 0 && atomic_load(&t->tid) == 0)
                (void) sched_yield();
        return r;
}

static int open_page(struct trial *t) {
        struct uffdio_api api = { .api = UFFD_API };
        struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
        void *page;

        t->uffd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
        if (t->uffd < 0 || ioctl(t->uffd, UFFDIO_API, &api) < 0)
                return -errno;
        page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED)
                return -errno;
        t->page = page;
        reg.range.start = (uintptr_t) page;
        reg.range.len = PAGE;
        return ioctl(t->uffd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

int trial_new(struct trial **ret) {
        struct trial *t = calloc(1, sizeof(*t));
        int r;

        if (!t)
                return -ENOMEM;
        t->uffd = t->go = -1;
        r = open_page(t);
        if (r == 0) {
                t->go = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
                r = t->go < 0 ? -errno : start_thread(t);
        }
        if (r < 0) {
                trial_free(t);
                return r;
        }
        *ret = t;
        return 0;
}

/** Lets it get past so many reads. */
static int go(struct trial *t, uint64_t n) {
        return write(t->go, &n, sizeof(n)) == sizeof(n) ? 0 : -errno;
}

void trial_free(struct trial *t) {
        if (!t)
                return;
        atomic_store(&t->over, true);
        if (t->started)
                (void) go(t, 2);
        (void) close_fd(t->uffd); /* a fault that waits is answered with zeros */
        if (t->started)
                (void) pthread_join(t->thread, NULL);
        (void) close_fd(t->go);
        if (t->page)
                (void) munmap(t->page, PAGE);
        free(t);
}

pid_t trial_tid(const struct trial *t) {
        return atomic_load(&t->tid);
}

/** How often the thread has given up its CPU. */
static int sleeps(const struct trial *t, unsigned long *ret) {
        static const char key[] = "voluntary_ctxt_switches:";
        char path[64], *data, *at;
        size_t len;
        int r;

        (void) snprintf(path, sizeof(path), "/proc/self/task/%d/status", (int) trial_tid(t));
        r = io_read_file(AT_FDCWD, path, 16384, &data, &len);
        if (r < 0)
                return r;
        at = strstr(data, key); /* the one of those that were not: "nonvoluntary_…", which comes after it */
        if (at)
                *ret = strtoul(at + strlen(key), NULL, 10);
        free(data);
        return at ? 0 : -EPROTO;
}

/** The fault is told before the thread sleeps, and on a busy host long before. */
static int wait_for_sleep(const struct trial *t, unsigned long before) {
        const struct timespec turn = { .tv_nsec = 200000 };
        uint64_t begin = now_ns();
        unsigned long n = 0;
        int r;

        while ((r = sleeps(t, &n)) == 0 && n <= before) {
                if (ms_since(begin) > FAULT_TIMEOUT_MS)
                        return -ETIMEDOUT;
                (void) nanosleep(&turn, NULL);
        }
        return r;
}

int trial_fault(struct trial *t) {
        struct pollfd pfd = { .fd = t->uffd, .events = POLLIN };
        unsigned long before = 0;
        struct uffd_msg msg;
        int r;

        r = sleeps(t, &before);
        if (r == 0)
                r = go(t, 1);
        if (r < 0)
                return r;
        do
                r = poll(&pfd, 1, FAULT_TIMEOUT_MS);
        while (r < 0 && errno == EINTR);
        if (r <= 0)
                return r < 0 ? -errno : -ETIMEDOUT;
        if (read(t->uffd, &msg, sizeof(msg)) != sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
                return -EIO;
        return wait_for_sleep(t, before);
}

int trial_answer(struct trial *t) {
        struct uffdio_zeropage zero = { .range = { .start = (uintptr_t) t->page, .len = PAGE } };

        return ioctl(t->uffd, UFFDIO_ZEROPAGE, &zero) < 0 ? -errno : 0;
}
