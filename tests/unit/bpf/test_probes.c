/* SPDX-License-Identifier: MIT */
/* What the programs tell, against what is known: threads and processes of our own, whose doings we decide, on this kernel, by
 * each method that it can run. */
#include "bpf/probes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "bpf/internal.h"
#include "bpf/trial.h"
#include "common/io.h"

#define SKIPPED 77
#ifdef __SANITIZE_THREAD__
#define SANITIZER_THREADS 1 /* a process may have of its own, below ThreadSanitizer */
#else
#define SANITIZER_THREADS 0
#endif
#define DEADLINE_MS 5000

/* ---- a look ---- */

#define MAX_SEEN 64

struct look {
        struct probes_watch *watch; /* whose */
        unsigned n;
        struct probes_thread thread[MAX_SEEN];
        struct probes_sample ended, sum; /* sum: with the threads */
        unsigned strangers;              /* of another watch */
};

static void see(void *arg, struct probes_watch *w, const struct probes_thread *thread, const struct probes_sample *ended) {
        struct look *l = arg;

        if (w != l->watch) {
                l->strangers++;
                return;
        }
        if (ended)
                l->ended = *ended;
        probes_add(&l->sum, ended ? ended : &thread->sum);
        if (thread && l->n < MAX_SEEN)
                l->thread[l->n++] = *thread;
}

static void look_at(struct probes *p, struct probes_watch *w, struct look *l) {
        *l = (struct look){ .watch = w };
        assert_int_equal(probes_read(p, see, l), 0);
}

static const struct probes_thread *find(const struct look *l, pid_t tid) {
        for (unsigned i = 0; i < l->n; i++)
                if (l->thread[i].tid == tid)
                        return &l->thread[i];
        return NULL;
}

static void turn(void) {
        const struct timespec ms = { .tv_nsec = 1000000 };

        (void) nanosleep(&ms, NULL);
}

/** Looks until thread @tid is in @state. */
static void wait_for_state(struct probes *p, struct probes_watch *w, pid_t tid, enum probes_state state, struct look *l) {
        uint64_t begin = now_ns();

        for (;;) {
                const struct probes_thread *t;

                look_at(p, w, l);
                t = find(l, tid);
                if (t && t->state == state)
                        return;
                if (ms_since(begin) > DEADLINE_MS)
                        fail_msg("thread %d is %s%d, not in state %d", (int) tid, t ? "in state " : "not known, ",
                                 t ? (int) t->state : 0, (int) state);
                turn();
        }
}

/** Looks until thread @tid is gone: it can be joined a moment earlier. */
static void wait_for_end(struct probes *p, struct probes_watch *w, pid_t tid, struct look *l) {
        uint64_t begin = now_ns();

        for (look_at(p, w, l); find(l, tid); look_at(p, w, l)) {
                if (ms_since(begin) > DEADLINE_MS)
                        fail_msg("thread %d does not end", (int) tid);
                turn();
        }
}

static int pidfd_of(pid_t pid) {
        int fd = (int) syscall(SYS_pidfd_open, pid, 0);

        assert_true(fd >= 0);
        return fd;
}

static struct probes *open_probes(int method, unsigned processes, unsigned threads) {
        struct probes_options opt = { .method = method, .max_processes = processes, .max_threads = threads };
        struct probes *p = NULL;
        struct err e = { 0 };

        if (probes_open(&opt, &p, &e) < 0)
                fail_msg("%s", e.message);
        return p;
}

static struct probes_watch *watch(struct probes *p, pid_t pid) {
        cleanup_fd int fd = pidfd_of(pid);
        struct probes_watch *w = NULL;

        assert_int_equal(probes_watch(p, fd, pid, NULL, &w), 0);
        return w;
}

/* ---- threads that do what they are told ---- */

enum doing { SPIN, SLEEP, BURN, LOCK, TOUCH, TOUCH_AND_SPIN };

#define BURN_NS 300000

struct worker {
        enum doing doing;
        pthread_t thread;
        _Atomic pid_t tid;
        _Atomic uint32_t stop;
        _Atomic uint64_t touched_ns; /* how long its touching took */
        _Atomic uint64_t cpu_ns;     /* when it has ended */
        int efd;
        char *pages;
        unsigned n_pages;
};

static uint64_t cpu_ns(void) {
        struct timespec cpu;

        (void) clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
        return (uint64_t) cpu.tv_sec * 1000000000ull + (uint64_t) cpu.tv_nsec;
}

static void *worker_main(void *arg) {
        struct worker *w = arg;
        uint64_t n, begin;

        atomic_store(&w->tid, (pid_t) syscall(SYS_gettid));
        switch (w->doing) {
        case SPIN:
                while (!atomic_load(&w->stop))
                        ;
                break;
        case BURN:
                while (cpu_ns() < BURN_NS)
                        ;
                break;
        case SLEEP:
                (void) !read(w->efd, &n, sizeof(n));
                break;
        case LOCK:
                while (!atomic_load(&w->stop))
                        (void) syscall(SYS_futex, &w->stop, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
                break;
        case TOUCH:
        case TOUCH_AND_SPIN:
                begin = now_ns();
                for (unsigned i = 0; i < w->n_pages; i++)
                        ((volatile char *) w->pages)[i * 4096u] = 1;
                atomic_store(&w->touched_ns, now_ns() - begin);
                while (w->doing == TOUCH_AND_SPIN && !atomic_load(&w->stop))
                        ;
                break;
        }
        atomic_store(&w->cpu_ns, cpu_ns());
        return NULL;
}

static void start(struct worker *w, enum doing doing) {
        w->doing = doing;
        w->efd = eventfd(0, EFD_CLOEXEC);
        assert_true(w->efd >= 0);
        assert_int_equal(pthread_create(&w->thread, NULL, worker_main, w), 0);
        while (atomic_load(&w->tid) == 0)
                (void) sched_yield();
}

static void stop(struct worker *w) {
        uint64_t one = 1;

        atomic_store(&w->stop, 1);
        (void) syscall(SYS_futex, &w->stop, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        (void) !write(w->efd, &one, sizeof(one));
        assert_int_equal(pthread_join(w->thread, NULL), 0);
        (void) close_fd(w->efd);
}

static void run_for(unsigned ms) {
        uint64_t begin = now_ns();

        while (ms_since(begin) < ms)
                turn();
}

/* ---- tests ---- */

static void test_states(void **state) {
        struct probes *p = open_probes(-1, 0, 0);
        struct probes_watch *w = watch(p, getpid());
        struct worker spin = { 0 }, sleep = { 0 }, lock = { 0 };
        const struct probes_sample *s;
        struct look l;
        uint64_t begin = now_ns(), on, all;

        start(&spin, SPIN);
        start(&sleep, SLEEP);
        start(&lock, LOCK);
        run_for(300);
        wait_for_state(p, w, sleep.tid, PROBES_IDLE, &l);
        assert_true(find(&l, sleep.tid)->since_ns >= begin);
        wait_for_state(p, w, lock.tid, PROBES_LOCK, &l);
        s = &find(&l, spin.tid)->sum;
        assert_true(s->ns[PROBES_ONCPU] > 0);
        on = s->ns[PROBES_ONCPU];
        all = on + s->ns[PROBES_RUNQUEUE];
        /* What it is not on the CPU it waits for one: nothing is lost in between. */
        assert_true(all > 250000000ull);
        assert_true((double) all <= ms_since(begin) * 1e6);
        assert_true(s->ns[PROBES_IDLE] + s->ns[PROBES_LOCK] <
                    25000000); /* it does not sleep; a sanitizer's thread may, a moment */
        s = &find(&l, lock.tid)->sum;
        assert_true(s->ns[PROBES_LOCK] > 250000000ull);
        stop(&spin);
        stop(&sleep);
        stop(&lock);
        /* They are gone, and what they counted is the process's. */
        wait_for_end(p, w, spin.tid, &l);
        wait_for_end(p, w, sleep.tid, &l);
        wait_for_end(p, w, lock.tid, &l);
        assert_true(l.ended.ns[PROBES_ONCPU] >= on);
        /* What a hypervisor takes away the clock of the CPU does not count. */
        assert_in_range((double) l.ended.ns[PROBES_ONCPU] / (double) (spin.cpu_ns + sleep.cpu_ns + lock.cpu_ns) * 100, 80, 150);
        assert_true(l.ended.ns[PROBES_LOCK] > 250000000ull);
        probes_close(p);
}

#define PAGES 400

struct memory {
        int uffd;
        char *pages;
};

static void open_memory(struct memory *m) {
        struct uffdio_api api = { .api = UFFD_API };
        struct uffdio_register reg = { .range = { .len = PAGES * 4096u }, .mode = UFFDIO_REGISTER_MODE_MISSING };

        m->uffd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* UFFD_USER_MODE_ONLY */);
        assert_true(m->uffd >= 0);
        assert_int_equal(ioctl(m->uffd, UFFDIO_API, &api), 0);
        m->pages = mmap(NULL, PAGES * 4096u, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(m->pages, MAP_FAILED);
        reg.range.start = (uintptr_t) m->pages;
        assert_int_equal(ioctl(m->uffd, UFFDIO_REGISTER, &reg), 0);
}

static uint64_t next_fault(const struct memory *m) {
        struct pollfd pfd = { .fd = m->uffd, .events = POLLIN };
        struct uffd_msg msg;

        assert_int_equal(poll(&pfd, 1, DEADLINE_MS), 1);
        assert_int_equal(read(m->uffd, &msg, sizeof(msg)), sizeof(msg));
        assert_int_equal(msg.event, UFFD_EVENT_PAGEFAULT);
        return msg.arg.pagefault.address & ~4095ull;
}

static void answer(const struct memory *m, uint64_t page) {
        struct uffdio_zeropage zero = { .range = { .start = page, .len = 4096 } };

        assert_int_equal(ioctl(m->uffd, UFFDIO_ZEROPAGE, &zero), 0);
}

/** A fault is told a moment before its thread sleeps. */
static void wait_until_asleep(pid_t tid) {
        uint64_t begin = now_ns();
        char path[64], *data;
        bool asleep = false;
        size_t len;

        (void) snprintf(path, sizeof(path), "/proc/self/task/%d/stack", (int) tid);
        while (!asleep && ms_since(begin) < DEADLINE_MS) {
                assert_int_equal(io_read_file(AT_FDCWD, path, 65536, &data, &len), 0);
                asleep = strstr(data, "handle_userfault") != NULL;
                free(data);
                turn();
        }
        assert_true(asleep);
}

static void close_memory(struct memory *m) {
        m->uffd = close_fd(m->uffd);
        (void) munmap(m->pages, PAGES * 4096u);
}

/* @beside: another one looks at the same events, which makes the kernel's way to them longer. */
static void check_waits(int method, bool beside) {
        struct probes *p = open_probes(method, 0, 0), *other = beside ? open_probes(-1, 0, 0) : NULL;
        struct probes_watch *w = watch(p, getpid());
        struct worker touch = { .n_pages = PAGES };
        struct memory m;
        struct look l;
        uint64_t held = 0, sum = 0, slow = 0, first;

        open_memory(&m);
        touch.pages = m.pages;
        start(&touch, TOUCH);
        for (unsigned i = 0; i < PAGES; i++) {
                uint64_t page = next_fault(&m), begin;

                if (i == 0) {
                        /* One that is under way is seen, and since when. */
                        wait_for_state(p, w, touch.tid, PROBES_MEMORY, &l);
                        first = find(&l, touch.tid)->wait_since_ns;
                        assert_true(first > 0 && first <= now_ns() && now_ns() - first < DEADLINE_MS * 1000000ull);
                        assert_int_equal(find(&l, touch.tid)->sum.waits, 0);
                }
                if (i % 20 == 0) {
                        wait_for_state(p, w, touch.tid, PROBES_MEMORY, &l);
                }
                begin = now_ns(); /* on a busy host a fault is told long before its thread sleeps */
                if (i % 20 == 0)
                        run_for(3);
                answer(&m, page);
                held += now_ns() - begin;
        }
        stop(&touch);
        wait_for_end(p, w, touch.tid, &l);
        /* An answer may come before the thread sleeps, if the CPU was taken from it just then; and who was woken for something
         * else in between has waited twice. */
        if (l.sum.waits < PAGES * 9 / 10 || l.sum.waits > PAGES + PAGES / 50)
                fail_msg("%u faults, and %llu waits", PAGES, (unsigned long long) l.sum.waits);
        for (unsigned i = 0; i < PROBES_BUCKETS; i++) {
                sum += l.sum.wait[i];
                if (i > 0 && probes_bucket_end_ns(i - 1) >= 2000000)
                        slow += l.sum.wait[i];
        }
        assert_int_equal(sum, l.sum.waits);
        if (slow < PAGES / 20)
                fail_msg("%llu of %u slow waits, %llu in all", (unsigned long long) slow, PAGES / 20,
                         (unsigned long long) l.sum.waits);
        assert_true(l.sum.wait_ns >= held * 9 / 10);
        assert_true(l.sum.longest_ns >= 3000000 && l.sum.longest_ns <= l.sum.wait_ns);
        assert_true(l.sum.ns[PROBES_MEMORY] <= l.sum.wait_ns);
        assert_true(l.sum.ns[PROBES_MEMORY] >= held * 8 / 10);
        close_memory(&m);
        probes_close(other);
        probes_close(p);
}

/** Each method that this kernel can run; which it cannot is said, with its reason. One at least must be there: the scheduler's. */
static void test_waits(void **state) {
        unsigned n = 0;

        for (int m = PROBES_FENTRY; m < (int) PROBES_N_METHODS; m++) {
                struct probes_options opt = { .method = m };
                struct probes *p = NULL;
                struct err e;

                if (probes_open(&opt, &p, &e) < 0) {
                        print_message("not on this kernel: %s\n", e.message);
                        continue;
                }
                probes_close(p);
                print_message("by %s\n", probes_method_name((enum probes_method) m));
                check_waits(m, false);
                check_waits(m, true);
                n++;
        }
        assert_true(n > 0);
}

/** Threads that were there before, and do not move: also the one that waits for memory. */
static void test_there_before(void **state) {
        struct worker touch = { .n_pages = 1 }, lock = { 0 }, spin = { 0 };
        struct probes_watch *w;
        struct memory m;
        struct probes *p;
        struct look l;
        uint64_t page;

        open_memory(&m);
        touch.pages = m.pages;
        start(&touch, TOUCH);
        start(&lock, LOCK);
        start(&spin, SPIN);
        page = next_fault(&m);
        wait_until_asleep(touch.tid);
        p = open_probes(-1, 0, 0);
        w = watch(p, getpid());
        wait_for_state(p, w, touch.tid, PROBES_MEMORY, &l);
        assert_true(find(&l, touch.tid)->wait_since_ns > 0);
        assert_non_null(find(&l, lock.tid));
        assert_non_null(find(&l, spin.tid));
        answer(&m, page);
        stop(&touch);
        stop(&lock);
        stop(&spin);
        look_at(p, w, &l);
        assert_int_equal(l.sum.waits, 1);
        close_memory(&m);
        probes_close(p);
}

/** The programs are not told that a thread has its memory and runs. Neither does its wait go on, nor is what it used of the CPU
 *  taken for a place on the run queue. */
static void test_switch_not_told(void **state) {
        struct probes *p = open_probes(-1, 0, 0);
        struct worker touch = { .n_pages = 1 };
        const struct timespec hold = { .tv_nsec = 20000000 };
        struct probes_watch *w;
        struct memory m;
        struct look l;
        uint64_t page;

        open_memory(&m);
        touch.pages = m.pages;
        w = watch(p, getpid());
        start(&touch, TOUCH_AND_SPIN);
        page = next_fault(&m);
        wait_for_state(p, w, touch.tid, PROBES_MEMORY, &l);
        assert_int_equal(bpf_link__destroy(p->skel->links.on_switch), 0);
        (void) nanosleep(&hold, NULL);
        answer(&m, page);
        while (atomic_load(&touch.touched_ns) == 0)
                turn();
        p->skel->links.on_switch = bpf_program__attach(p->skel->progs.on_switch);
        assert_non_null(p->skel->links.on_switch);
        run_for(200);
        stop(&touch);
        wait_for_end(p, w, touch.tid, &l);
        assert_int_equal(l.ended.waits, 1);
        assert_in_range(l.ended.wait_ns, 20000000, touch.touched_ns + 50000000);
        assert_in_range((double) l.ended.ns[PROBES_ONCPU] / (double) touch.cpu_ns * 100, 80, 150);
        close_memory(&m);
        probes_close(p);
}

/* ---- processes ---- */

static pid_t spawn_spinner(void) {
        pid_t pid = fork();

        assert_true(pid >= 0);
        if (pid == 0) {
                (void) alarm(60); /* should nobody end it */
                for (;;)
                        ;
        }
        return pid;
}

static void end_process(pid_t pid) {
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/** The kernel's next pid, which is how an old one comes back at once. False: it may not be chosen here. */
static bool choose_pid(pid_t pid) {
        FILE *f = fopen("/proc/sys/kernel/ns_last_pid", "w");
        bool ok = f && fprintf(f, "%d", (int) pid - 1) > 0;

        return f && fclose(f) == 0 && ok;
}

static void test_pid_again(void **state) {
        struct probes *p = open_probes(-1, 0, 0);
        struct probes_watch *w, *again;
        uint64_t before, on, begin = now_ns();
        pid_t pid, other = -1;
        struct look l;

        /* A process may be quicker than we are: a few attempts. */
        for (unsigned i = 0; i < 100; i++) {
                pid = spawn_spinner();
                w = watch(p, pid);
                run_for(20);
                end_process(pid);
                if (!choose_pid(pid)) {
                        print_message("ns_last_pid cannot be written\n");
                        probes_close(p);
                        skip();
                }
                other = spawn_spinner();
                if (other == pid)
                        break;
                end_process(other);
                probes_unwatch(w);
        }
        assert_int_equal(other, pid);
        look_at(p, w, &l);
        before = l.sum.ns[PROBES_ONCPU];
        assert_true(before > 0);
        run_for(100);
        look_at(p, w, &l);
        assert_int_equal(l.n, 0);
        assert_int_equal(l.sum.ns[PROBES_ONCPU], before);
        /* Watched itself, it has nothing of the first. */
        begin = now_ns();
        again = watch(p, other);
        run_for(50);
        look_at(p, again, &l);
        assert_non_null(find(&l, other));
        assert_int_equal(l.ended.ns[PROBES_ONCPU], 0);
        on = find(&l, other)->sum.ns[PROBES_ONCPU];
        assert_true(on > 0 && (double) on < ms_since(begin) * 1e6);
        /* … and the first one's end takes nothing from it. */
        probes_unwatch(w);
        look_at(p, again, &l);
        assert_non_null(find(&l, other));
        end_process(other);
        probes_close(p);
}

static void test_ended(void **state) {
        struct probes *p = open_probes(-1, 0, 0);
        struct probes_watch *w = NULL;
        struct probes_status st;
        pid_t pid = spawn_spinner();
        cleanup_fd int fd = pidfd_of(pid);
        int data;
        struct look l;
        uint64_t ns;

        assert_int_equal(probes_watch(p, fd, pid, &data, &w), 0);
        assert_ptr_equal(probes_watch_data(w), &data);
        run_for(50);
        end_process(pid);
        /* Between two reads it has ended: what it did is still told. */
        look_at(p, w, &l);
        assert_int_equal(l.n, 0);
        ns = l.ended.ns[PROBES_ONCPU];
        assert_true(ns > 1000000 && ns < 10000000000ull);
        look_at(p, w, &l);
        assert_int_equal(l.ended.ns[PROBES_ONCPU], ns);
        probes_unwatch(w);
        probes_get_status(p, &st);
        assert_int_equal(st.processes, 0);
        assert_int_equal(st.threads, 0);
        /* Nobody is watched who is gone. */
        assert_int_equal(probes_watch(p, fd, pid, NULL, &w), -ESRCH);
        probes_get_status(p, &st);
        assert_int_equal(st.processes, 0);
        probes_close(p);
}

static void test_unwatch_alive(void **state) {
        struct probes *p = open_probes(-1, 0, 0);
        struct worker spin = { 0 };
        struct probes_watch *w;
        struct look l;
        uint64_t begin;

        start(&spin, SPIN);
        w = watch(p, getpid());
        run_for(30);
        probes_unwatch(w);
        begin = now_ns();
        w = watch(p, getpid());
        look_at(p, w, &l);
        assert_int_equal(l.strangers, 0);
        assert_non_null(find(&l, spin.tid));
        /* Nothing from before: each of its threads has had no more than the time since then. */
        assert_true(l.sum.ns[PROBES_ONCPU] <= (now_ns() - begin) * l.n);
        stop(&spin);
        probes_close(p);
}

static void *exec_main(void *arg) {
        char c;

        if (read(*(int *) arg, &c, 1) == 1)
                (void) execl("/bin/sleep", "sleep", "60", (char *) NULL);
        _exit(1);
}

static bool is_called(pid_t pid, const char *name) {
        char path[32], *data;
        bool is;

        (void) snprintf(path, sizeof(path), "/proc/%d/comm", (int) pid);
        assert_int_equal(io_read_file(AT_FDCWD, path, 64, &data, NULL), 0);
        is = strcmp(data, name) == 0;
        free(data);
        return is;
}

/** A thread that takes its leader's place gets its number, and leaves an entry behind: not for ever. */
static void test_exec_of_a_thread(void **state) {
        struct probes *p = open_probes(-1, 0, 0);
        struct probes_status st;
        struct probes_watch *w;
        int go[2];
        struct look l;
        uint64_t begin;
        pid_t pid;

        assert_int_equal(pipe2(go, O_CLOEXEC), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                pthread_t t;

                if (pthread_create(&t, NULL, exec_main, &go[0]) == 0)
                        (void) pthread_join(t, NULL);
                _exit(1);
        }
        w = watch(p, pid);
        for (begin = now_ns(), look_at(p, w, &l); l.n < 2 && ms_since(begin) < DEADLINE_MS; look_at(p, w, &l))
                turn();
        assert_in_range(l.n, 2, 2 + SANITIZER_THREADS);
        assert_int_equal(write(go[1], "", 1), 1);
        for (begin = now_ns(); !is_called(pid, "sleep\n") && ms_since(begin) < DEADLINE_MS;)
                turn();
        assert_true(is_called(pid, "sleep\n"));
        end_process(pid);
        probes_unwatch(w);
        for (begin = now_ns(); ms_since(begin) < DEADLINE_MS; turn()) {
                assert_int_equal(probes_read(p, see, &l), 0);
                probes_get_status(p, &st);
                if (st.threads == 0)
                        break;
        }
        assert_int_equal(st.threads, 0);
        (void) close_fd(go[0]);
        (void) close_fd(go[1]);
        probes_close(p);
}

static void test_full(void **state) {
        enum { N = 8, PLACES = 4 };
        struct probes *p = open_probes(-1, 2, PLACES);
        struct probes_watch *w = watch(p, getpid()), *second = NULL, *third = NULL;
        struct worker spin[N] = { 0 };
        pid_t pid[2] = { spawn_spinner(), spawn_spinner() };
        cleanup_fd int fd0 = pidfd_of(pid[0]), fd1 = pidfd_of(pid[1]);
        struct probes_status st;
        struct look l;
        uint64_t begin = now_ns();

        for (unsigned i = 0; i < N; i++)
                start(&spin[i], SPIN);
        do {
                turn();
                look_at(p, w, &l);
                probes_get_status(p, &st);
        } while (st.overflows == 0 && ms_since(begin) < DEADLINE_MS);
        assert_true(st.overflows > 0);
        assert_true(l.n <= PLACES && st.threads <= PLACES);
        /* Those that are told are ours, with time of their own. */
        for (unsigned i = 0; i < l.n; i++)
                assert_true((double) l.thread[i].sum.ns[PROBES_ONCPU] <= ms_since(begin) * 1e6);
        assert_int_equal(probes_watch(p, fd0, pid[0], NULL, &second), 0);
        assert_int_equal(probes_watch(p, fd1, pid[1], NULL, &third), -ENOSPC);
        assert_null(third);
        probes_unwatch(second);
        assert_int_equal(probes_watch(p, fd1, pid[1], NULL, &third), 0);
        for (unsigned i = 0; i < N; i++)
                stop(&spin[i]);
        end_process(pid[0]);
        end_process(pid[1]);
        probes_close(p);
}

/** Many short-lived threads, while we read: nothing is counted twice, nothing is lost. */
static void test_coming_and_going(void **state) {
        enum { ROUNDS = 300 };
        struct probes *p = open_probes(-1, 0, 0);
        struct probes_watch *w = watch(p, getpid());
        uint64_t last = 0, cpu = 0;
        struct probes_status st;
        struct look l;

        for (unsigned i = 0; i < ROUNDS; i++) {
                struct worker burn = { 0 };

                start(&burn, BURN);
                look_at(p, w, &l);
                stop(&burn);
                cpu += burn.cpu_ns;
                if (i == ROUNDS - 1)
                        wait_for_end(p, w, burn.tid, &l);
                else
                        look_at(p, w, &l);
                assert_true(l.ended.ns[PROBES_ONCPU] >= last);
                last = l.ended.ns[PROBES_ONCPU];
        }
        /* A thread's first microseconds are nobody's, and its way out of the kernel is its own. */
        if (last < cpu * 8 / 10 || last > cpu * 2)
                fail_msg("%llu ns on a CPU by the programs, %llu by the clock", (unsigned long long) last,
                         (unsigned long long) cpu);
        probes_get_status(p, &st);
        assert_int_equal(st.overflows, 0);
        assert_int_equal(st.missed, 0);
        assert_int_equal(st.threads, l.n);
        probes_close(p);
}

static void test_bad_options(void **state) {
        struct probes_options many = { .method = -1, .max_threads = 1u << 30 }, odd = { .method = 99 };
        struct probes *p = NULL;
        struct err e;

        assert_int_equal(probes_open(&many, &p, &e), -EINVAL);
        assert_int_equal(probes_open(&odd, &p, &e), -EINVAL);
        assert_null(p);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_states),        cmocka_unit_test(test_waits),
                cmocka_unit_test(test_there_before),  cmocka_unit_test(test_switch_not_told),
                cmocka_unit_test(test_pid_again),     cmocka_unit_test(test_ended),
                cmocka_unit_test(test_unwatch_alive), cmocka_unit_test(test_exec_of_a_thread),
                cmocka_unit_test(test_full),          cmocka_unit_test(test_coming_and_going),
                cmocka_unit_test(test_bad_options),
        };
        struct probes_options opt = { .method = -1 };
        struct probes *p = NULL;
        struct err e = { 0 };

        if (probes_open(&opt, &p, &e) < 0) {
                fprintf(stderr, "skipped: %s; %s\n", e.message, e.hint);
                return getenv("FORKD_TEST_NO_SKIP") ? 1 : SKIPPED;
        }
        probes_close(p);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
