/* SPDX-License-Identifier: MIT */
#include "tests/kernel/subject.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "common/io.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define PAGE 4096ull
#define PAGES_OF_THREAD 4u
#define TIMEOUT_MS 20000

struct order {
        uint32_t what, n;
};

struct subject_notes {
        _Atomic uint64_t took[SUBJECT_PAGES];
        _Atomic unsigned next; /* page */
        _Atomic uint64_t cpu_ns;
};

/* In the subject. */
struct self {
        struct subject_notes *notes;
        char *memory;
        int zero;
        bool by_stores; /* only those may wait: we lack the right for others */
        _Atomic uint32_t never;
};

static void sleep_us(uint64_t us) {
        struct timespec t = { .tv_sec = (time_t) (us / 1000000), .tv_nsec = (long) (us % 1000000 * 1000) };

        while (nanosleep(&t, &t) < 0)
                ;
}

static void touch(struct self *s, unsigned n) {
        for (unsigned i = 0; i < n; i++) {
                unsigned page = atomic_fetch_add(&s->notes->next, 1);
                char *p = s->memory + page * PAGE;
                uint64_t begin;

                CHECK(page < SUBJECT_PAGES, "the subject has no page left");
                begin = now_ns();
                if (page % 2 || s->by_stores)
                        *(volatile char *) p = 1;
                else
                        CHECK(read(s->zero, p, 1) == 1, "reading /dev/zero: %s", strerror(errno));
                atomic_store(&s->notes->took[page], now_ns() - begin);
        }
}

static void *touching_thread(void *arg) {
        touch(arg, PAGES_OF_THREAD);
        return NULL;
}

static _Noreturn void *standing_thread(void *arg) {
        struct self *s = arg;

        touch(s, 1);
        for (;;)
                (void) syscall(SYS_futex, &s->never, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

static void run_threads(struct self *s, unsigned n, bool stand) {
        pthread_t t[SUBJECT_THREADS];

        CHECK(n <= SUBJECT_THREADS, "too many threads");
        for (unsigned i = 0; i < n; i++)
                CHECK(pthread_create(&t[i], NULL, stand ? standing_thread : touching_thread, s) == 0, "pthread_create");
        for (unsigned i = 0; i < n && !stand; i++)
                (void) pthread_join(t[i], NULL);
}

static uint64_t cpu_ns(void) {
        struct timespec t;

        (void) clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

static void wait_at_futex(struct self *s, unsigned ms) {
        const struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l };

        (void) syscall(SYS_futex, &s->never, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
}

static void carry_out(struct self *s, const struct order *o) {
        uint64_t until = cpu_ns() + o->n * 1000000ull;

        switch ((enum subject_order) o->what) {
        case SUBJECT_TOUCH:
                touch(s, o->n);
                break;
        case SUBJECT_THREAD:
        case SUBJECT_STAND:
                run_threads(s, o->n, o->what == SUBJECT_STAND);
                break;
        case SUBJECT_SPIN:
                while (cpu_ns() < until)
                        ;
                break;
        case SUBJECT_SLEEP:
                sleep_us(o->n * 1000ull);
                break;
        case SUBJECT_FUTEX:
                wait_at_futex(s, o->n);
                break;
        }
}

static int open_memory(struct self *s) {
        struct uffdio_api api = { .api = UFFD_API };
        struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING, .range.len = SUBJECT_PAGES * PAGE };
        int fd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

        if (fd < 0 && errno == EPERM) {
                s->by_stores = true;
                fd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
        }
        s->memory = mmap(NULL, SUBJECT_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        reg.range.start = (uintptr_t) s->memory;
        CHECK(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0, "userfaultfd: %s", strerror(errno));
        CHECK(s->memory != MAP_FAILED && ioctl(fd, UFFDIO_REGISTER, &reg) == 0, "UFFDIO_REGISTER: %s", strerror(errno));
        return fd;
}

static _Noreturn void subject_main(struct subject_notes *notes, int sock) {
        struct self s = { .notes = notes, .zero = open("/dev/zero", O_RDONLY | O_CLOEXEC) };
        int uffd = open_memory(&s);
        struct order o;

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        CHECK(io_send_fds(sock, &s.memory, sizeof(s.memory), &uffd, 1) == sizeof(s.memory), "sending the userfaultfd");
        (void) close_fd(uffd); /* the server's is the only one */
        while (recv(sock, &o, sizeof(o), 0) == sizeof(o)) {
                carry_out(&s, &o);
                atomic_store(&notes->cpu_ns, cpu_ns());
                CHECK(send(sock, &o, sizeof(o), 0) == sizeof(o), "telling that it is done");
        }
        _exit(0);
}

/* ---- the caller's side ---- */

static pid_t start_as(pid_t as, int *ret_pidfd) {
        struct clone_args args = { .flags = CLONE_PIDFD, .exit_signal = SIGCHLD, .pidfd = (uintptr_t) ret_pidfd };

        if (as) {
                args.set_tid = (uintptr_t) &as;
                args.set_tid_size = 1;
        }
        return (pid_t) syscall(SYS_clone3, &args, sizeof(args));
}

bool subject_start(struct subject *s, pid_t as) {
        size_t n_fds = 1;
        int pair[2];

        *s = (struct subject){ .pidfd = -1, .uffd = -1, .held = calloc(SUBJECT_PAGES, sizeof(uint64_t)) };
        s->notes = mmap(NULL, sizeof(*s->notes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(s->held && s->notes != MAP_FAILED, "no memory");
        CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair: %s", strerror(errno));
        s->pid = start_as(as, &s->pidfd);
        if (s->pid == 0) {
                (void) close_fd(pair[0]);
                subject_main(s->notes, pair[1]);
        }
        (void) close_fd(pair[1]);
        s->sock = pair[0];
        if (s->pid < 0) {
                CHECK(as, "clone3: %s", strerror(errno));
                s->sock = close_fd(s->sock);
                return false;
        }
        CHECK(io_recv_fds(s->sock, &s->memory, sizeof(s->memory), &s->uffd, &n_fds) == sizeof(s->memory) && n_fds == 1,
              "no userfaultfd has come");
        return true;
}

void subject_end(struct subject *s) {
        if (s->pidfd >= 0) {
                (void) syscall(SYS_pidfd_send_signal, s->pidfd, SIGKILL, NULL, 0);
                (void) waitpid(s->pid, NULL, 0);
        }
        s->pidfd = close_fd(s->pidfd);
        s->sock = close_fd(s->sock);
        s->uffd = close_fd(s->uffd);
        free(s->held);
        (void) munmap(s->notes, sizeof(*s->notes));
        *s = (struct subject){ .pidfd = -1, .sock = -1, .uffd = -1 };
}

void subject_begin(struct subject *s, enum subject_order what, unsigned n) {
        struct order o = { what, n };

        CHECK(send(s->sock, &o, sizeof(o), MSG_NOSIGNAL) == sizeof(o), "the subject takes no orders");
}

void subject_finish(struct subject *s) {
        struct pollfd pfd = { .fd = s->sock, .events = POLLIN };
        struct order o;

        CHECK(poll(&pfd, 1, TIMEOUT_MS) == 1 && recv(s->sock, &o, sizeof(o), 0) == sizeof(o),
              "the subject does not come to an end");
}

uint64_t subject_leave(struct subject *s, unsigned *ret_page) {
        struct pollfd pfd = { .fd = s->uffd, .events = POLLIN };
        struct uffd_msg msg;

        CHECK(poll(&pfd, 1, TIMEOUT_MS) == 1, "no fault has come");
        CHECK(read(s->uffd, &msg, sizeof(msg)) == sizeof(msg) && msg.event == UFFD_EVENT_PAGEFAULT, "reading a fault: %s",
              strerror(errno));
        *ret_page = (unsigned) ((msg.arg.pagefault.address - s->memory) / PAGE);
        CHECK(*ret_page < SUBJECT_PAGES, "a fault somewhere else");
        return now_ns();
}

void subject_answer(struct subject *s, unsigned page, uint64_t read_ns) {
        struct uffdio_zeropage zero = { .range = { .start = s->memory + page * PAGE, .len = PAGE } };

        s->held[page] = now_ns() - read_ns + 1; /* not 0 */
        CHECK(ioctl(s->uffd, UFFDIO_ZEROPAGE, &zero) == 0, "UFFDIO_ZEROPAGE: %s", strerror(errno));
}

void subject_serve(struct subject *s, unsigned n, unsigned hold_us) {
        for (unsigned i = 0; i < n; i++) {
                unsigned page;
                uint64_t read_ns = subject_leave(s, &page);

                if (hold_us)
                        sleep_us(hold_us);
                subject_answer(s, page, read_ns);
        }
}

unsigned subject_touched(const struct subject *s) {
        return atomic_load(&s->notes->next);
}

uint64_t subject_took_ns(const struct subject *s, unsigned i) {
        return atomic_load(&s->notes->took[i]);
}

uint64_t subject_cpu_ns(const struct subject *s) {
        return atomic_load(&s->notes->cpu_ns);
}
