/* SPDX-License-Identifier: MIT */
/* KVM's tracepoints, with a guest of a few bytes: it leaves for a port, or has nothing to do. No Linux has to boot for that. */
#include "bpf/probes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"

#define SKIPPED 77
#define CODE 0x1000u
#define TIMES 200u

struct guest {
        int kvm, vm, vcpu;
        void *code;
        struct kvm_run *run;
        size_t run_size;
};

static void close_guest(struct guest *g) {
        if (g->run)
                (void) munmap(g->run, g->run_size);
        (void) close_fd(g->vcpu);
        (void) close_fd(g->vm);
        (void) close_fd(g->kvm);
        if (g->code)
                (void) munmap(g->code, 4096);
}

/** A guest in real mode that begins with @code. -errno: this host's KVM cannot do that. */
static int open_guest(struct guest *g, const void *code, size_t len, bool irqchip) {
        struct kvm_userspace_memory_region mem = { .guest_phys_addr = CODE, .memory_size = 4096 };
        struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
        struct kvm_sregs sregs;
        void *p;
        int n;

        *g = (struct guest){ .kvm = -1, .vm = -1, .vcpu = -1 };
        g->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        if (g->kvm < 0)
                return -errno;
        g->vm = ioctl(g->kvm, KVM_CREATE_VM, 0);
        if (g->vm < 0 || (irqchip && ioctl(g->vm, KVM_CREATE_IRQCHIP, 0) < 0))
                return -errno;
        p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
                return -errno;
        g->code = memcpy(p, code, len);
        mem.userspace_addr = (uintptr_t) g->code;
        n = ioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
        if (n < 0 || ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &mem) < 0)
                return -errno;
        g->run_size = (size_t) n;
        g->vcpu = ioctl(g->vm, KVM_CREATE_VCPU, 0);
        if (g->vcpu < 0)
                return -errno;
        p = mmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
        if (p == MAP_FAILED)
                return -errno;
        g->run = p;
        if (ioctl(g->vcpu, KVM_GET_SREGS, &sregs) < 0)
                return -errno;
        sregs.cs.base = sregs.cs.selector = 0;
        if (ioctl(g->vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(g->vcpu, KVM_SET_REGS, &regs) < 0)
                return -errno;
        return 0;
}

static void see(void *arg, struct probes_watch *w, const struct probes_thread *thread, const struct probes_sample *ended) {
        probes_add(arg, thread ? &thread->sum : ended);
}

static struct probes *watch_us(void) {
        struct probes_options opt = { .method = -1 };
        int fd = (int) syscall(SYS_pidfd_open, getpid(), 0);
        struct probes_watch *w;
        struct probes *p = NULL;
        struct err e = { 0 };

        assert_true(fd >= 0);
        if (probes_open(&opt, &p, &e) < 0)
                fail_msg("%s", e.message);
        assert_int_equal(probes_watch(p, fd, getpid(), NULL, &w), 0);
        (void) close_fd(fd);
        return p;
}

static void test_exits(void **state) {
        static const uint8_t code[] = { 0xe6, 0x10, 0xeb, 0xfc }; /* out 0x10, al; again */
        struct probes_sample sum = { 0 };
        struct probes *p = watch_us();
        struct guest g;

        assert_int_equal(open_guest(&g, code, sizeof(code), false), 0);
        for (unsigned i = 0; i < TIMES; i++) {
                assert_int_equal(ioctl(g.vcpu, KVM_RUN, 0), 0);
                assert_int_equal(g.run->exit_reason, KVM_EXIT_IO);
        }
        assert_int_equal(probes_read(p, see, &sum), 0);
        if (sum.exits == 0) {
                close_guest(&g);
                probes_close(p);
                if (getenv("FORKD_TEST_NO_SKIP"))
                        fail_msg("no exit was seen");
                print_message("skipped: this KVM (kvm_pvm does so) leaves guests without telling kvm_exit\n");
                skip();
        }
        /* Other exits are the kernel's own matter: there are more, not fewer. */
        if (sum.exits < TIMES)
                fail_msg("%llu exits, %u were made", (unsigned long long) sum.exits, TIMES);
        assert_int_equal(sum.halts, 0);
        close_guest(&g);
        probes_close(p);
}

struct idler {
        struct guest g;
        _Atomic unsigned returns;
        _Atomic bool stop;
};

static void on_signal(int sig) {
}

static void *idle_main(void *arg) {
        struct idler *i = arg;

        while (!atomic_load(&i->stop))
                if (ioctl(i->g.vcpu, KVM_RUN, 0) < 0 && errno == EINTR)
                        (void) atomic_fetch_add(&i->returns, 1);
        return NULL;
}

static void test_halts(void **state) {
        static const uint8_t code[] = { 0xf4, 0xeb, 0xfd }; /* hlt; again */
        const struct sigaction sa = { .sa_handler = on_signal };
        const struct timespec turn = { .tv_nsec = 200000 };
        struct probes_sample sum = { 0 };
        struct probes *p = watch_us();
        struct idler idler = { 0 };
        uint64_t begin = now_ns();
        pthread_t thread;

        assert_int_equal(open_guest(&idler.g, code, sizeof(code), true), 0);
        assert_int_equal(sigaction(SIGUSR1, &sa, NULL), 0);
        assert_int_equal(pthread_create(&thread, NULL, idle_main, &idler), 0);
        /* It sleeps in the kernel, and each signal wakes it for a moment. */
        while (sum.halts < 20 && ms_since(begin) < 5000) {
                (void) pthread_kill(thread, SIGUSR1);
                (void) nanosleep(&turn, NULL);
                sum = (struct probes_sample){ 0 };
                assert_int_equal(probes_read(p, see, &sum), 0);
        }
        atomic_store(&idler.stop, true);
        (void) pthread_kill(thread, SIGUSR1);
        /* Should it just have been on its way in: it looks at `stop` only between two runs. */
        idler.g.run->immediate_exit = 1;
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_true(sum.halts >= 20);
        assert_true(sum.halts <= sum.exits + atomic_load(&idler.returns));
        close_guest(&idler.g);
        probes_close(p);
}

static int skipped(const char *why) {
        fprintf(stderr, "skipped: %s\n", why);
        return getenv("FORKD_TEST_NO_SKIP") ? 1 : SKIPPED;
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_exits),
                cmocka_unit_test(test_halts),
        };
        static const uint8_t out[] = { 0xe6, 0x10 };
        struct probes_options opt = { .method = -1 };
        struct probes_status st;
        struct probes *p = NULL;
        struct err e = { 0 };
        struct guest g;
        int r;

        r = open_guest(&g, out, sizeof(out), true);
        if (r == 0 && (ioctl(g.vcpu, KVM_RUN, 0) < 0 || g.run->exit_reason != KVM_EXIT_IO))
                r = -ENOTSUP;
        close_guest(&g);
        if (r < 0)
                return skipped("KVM does not run the smallest guest here");
        if (probes_open(&opt, &p, &e) < 0)
                return skipped(e.message);
        probes_get_status(p, &st);
        probes_close(p);
        if (!st.kvm)
                return skipped("this kernel's KVM has no tracepoints");
        return cmocka_run_group_tests(tests, NULL, NULL);
}
