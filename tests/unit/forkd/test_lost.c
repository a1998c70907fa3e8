/* SPDX-License-Identifier: MIT */
/* Faults that a pager has lost: real ones, of a thread of ours, read from a real userfaultfd and forgotten; and probes that we play, which
 * tell that it waits. */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "fake_probes.h"
#include "forkd/daemon.h"
#include "forkd/events.h"
#include "forkd/monitor/internal.h"
#include "forkd/pager/internal.h"
#include "pager/uffd_compat.h"

#define MS 1000000ull
#define DEADLINE_MS 1000
#define VMS 4

static struct daemon d;
static struct pager pager;
static struct pager_process process;
static struct vmm_ops ops;
static struct vm vms[VMS];
static struct fake_thread *cpu[VMS];
static pthread_t toucher;
static uint8_t *memory;

static void *touch(void *arg) {
        return (void *) (uintptr_t) * (volatile uint8_t *) arg;
}

/* Its first page is touched by a thread. */
static int fault(void) {
        struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
        struct uffdio_api api = { .api = UFFD_API };
        int fd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

        if (fd < 0)
                return fd;
        memory = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(memory, MAP_FAILED);
        reg.range.start = (uintptr_t) memory;
        reg.range.len = 2 * 4096;
        assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
        assert_int_equal(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
        assert_int_equal(pthread_create(&toucher, NULL, touch, memory + 4096), 0);
        return fd;
}

/* Waits for a fault, and forgets it. */
static void forget(int uffd) {
        struct pollfd p = { .fd = uffd, .events = POLLIN };
        struct uffd_msg msg;

        assert_int_equal(poll(&p, 1, 10000), 1);
        assert_int_equal(read(uffd, &msg, sizeof(msg)), sizeof(msg));
        assert_int_equal(msg.event, UFFD_EVENT_PAGEFAULT);
}

static void answer(int uffd) {
        struct uffdio_zeropage zero = { .range = { .start = (uintptr_t) memory + 4096, .len = 4096 } };

        assert_int_equal(ioctl(uffd, UFFDIO_ZEROPAGE, &zero), 0);
        assert_int_equal(pthread_join(toucher, NULL), 0);
        (void) munmap(memory, 2 * 4096);
}

static int setup(void **state) {
        fake_reset();
        d = (struct daemon){ .base = event_base_new(),
                             .cfg = { .window_ms = 5000, .max_vms = 100, .probes = CONFIG_PROBES_AUTO } };
        TAILQ_INIT(&d.vms);
        pager = (struct pager){ .d = &d };
        d.pager = &pager;
        assert_ok(events_new(&d.events));
        assert_ok(monitor_new(&d, &d.monitor));
        ops = (struct vmm_ops){ .thread_vcpu = vmm_qemu.thread_vcpu };
        process = (struct pager_process){ .refs = 100, .p = &pager, .pidfd = -1 };
        for (unsigned i = 0; i < VMS; i++) {
                vms[i] = (struct vm){
                        .d = &d, .ops = &ops, .machine.vcpus = 1, .state = VM_RUNNING, .ending_fd = -1, .session = true
                };
                (void) snprintf(vms[i].id, sizeof(vms[i].id), "%016u", i);
                (void) snprintf(vms[i].name, sizeof(vms[i].name), "vm-%u", i);
                pager_hold_init(&vms[i].hold);
                vms[i].hold.process = &process;
                vms[i].hold.pid = vms[i].pid = (pid_t) (0x7f000000 + i); /* nobody's */
                vms[i].hold.memfd = memfd_create("none", MFD_CLOEXEC);
                vms[i].hold.sock = memfd_create("none", MFD_CLOEXEC);
                vms[i].hold.uffd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); /* nothing to be read */
                vms[i].hold.n_regions = 1;
                vms[i].hold.image_ino = 1;
                vms[i].hold.mapped = true;
                TAILQ_INSERT_TAIL(&d.vms, &vms[i], entry);
                monitor_vm_born(d.monitor, &vms[i], -1, vms[i].pid);
                cpu[i] = fake_thread(vms[i].pid, vms[i].pid, "CPU 0/TCG");
        }
        return 0;
}

static int teardown(void **state) {
        monitor_free(d.monitor);
        for (unsigned i = 0; i < VMS; i++) {
                vms[i].hold.process = NULL;
                pager_hold_clear(&vms[i].hold);
        }
        events_free(d.events);
        event_base_free(d.base);
        return 0;
}

/* VM @i has waited for @ms. */
static void waits(unsigned i, uint64_t ms) {
        cpu[i]->t.wait_since_ns = ms ? now_ns() - ms * MS : 0;
        cpu[i]->t.state = ms ? PROBES_MEMORY : PROBES_IDLE;
}

static const char *beat(uint64_t oldest_ms) {
        d.monitor->look_ns = 0; /* as if the last one was long ago */
        monitor_read(d.monitor);
        return pager_lost_faults(&process, oldest_ms, DEADLINE_MS);
}

/* As if VM @i had been woken a deadline and a bit ago. */
static void woken_long_ago(unsigned i) {
        assert_true(vms[i].hold.woken_ns != 0);
        vms[i].hold.woken_ns -= (DEADLINE_MS + 1) * MS;
}

static void test_woken(void **state) {
        int uffd = fault();

        skip_unless(uffd >= 0, "this host has no userfaultfd for us");
        (void) close_fd(vms[0].hold.uffd);
        vms[0].hold.uffd = uffd;
        vms[0].hold.region[0] = (struct pager_hold_region){ (uintptr_t) memory, 2 * 4096, 0 };
        forget(uffd);
        waits(0, DEADLINE_MS / 2);
        assert_null(beat(0));
        assert_true(vms[0].hold.woken_ns == 0);
        waits(0, DEADLINE_MS + 1);
        assert_null(beat(0));
        assert_true(vms[0].hold.woken_ns != 0);
        forget(uffd); /* it is there again */
        assert_null(beat(0));
        answer(uffd);
        waits(0, 0);
        assert_null(beat(0));
        assert_int_equal(events_newest(d.events), 2); /* probes.ready, vm.woken */
}

/* The pager knows of it: that is the other signs' business. */
static void test_slow(void **state) {
        waits(0, 10 * DEADLINE_MS);
        assert_null(beat(9 * DEADLINE_MS));
        assert_null(beat(5 * DEADLINE_MS + 100));
        assert_true(vms[0].hold.woken_ns == 0);
        pager.replacing = 1; /* nor while sessions are moved */
        assert_null(beat(0));
        assert_true(vms[0].hold.woken_ns == 0);
}

/* Nor is it lost while a pager that is busy with others has not read it; one that does nothing, or takes for ever, has no excuse. */
static void test_unread(void **state) {
        assert_int_equal(eventfd_write(vms[0].hold.uffd, 1), 0);
        process.at_work_ns = now_ns();
        waits(0, 10 * DEADLINE_MS);
        assert_null(beat(0));
        assert_true(vms[0].hold.woken_ns == 0);
        waits(0, PAGER_PATIENCE_MS + DEADLINE_MS);
        assert_null(beat(0));
        assert_true(vms[0].hold.woken_ns != 0);
        assert_int_equal(eventfd_write(vms[1].hold.uffd, 1), 0);
        process.at_work_ns = now_ns() - 2 * DEADLINE_MS * MS;
        waits(1, DEADLINE_MS + 1);
        assert_null(beat(0));
        assert_true(vms[1].hold.woken_ns != 0);
}

/* It has got its memory, and no CPU: nobody's fault is lost. */
static void test_no_cpu(void **state) {
        waits(0, 10 * DEADLINE_MS);
        cpu[0]->t.state = PROBES_RUNQUEUE;
        assert_null(beat(0));
        assert_true(vms[0].hold.woken_ns == 0);
}

static void test_one_of_many(void **state) {
        waits(0, DEADLINE_MS + 1);
        assert_null(beat(0));
        woken_long_ago(0);
        waits(0, DEADLINE_MS);
        assert_null(beat(0)); /* that guest, and nobody else */
        assert_non_null(strstr(vms[0].lost, "pager-lost"));
        assert_int_equal(pager.counts.killed, 1);
        assert_int_equal(pager.counts.hangs, 0);
        for (unsigned i = 1; i < VMS; i++)
                assert_string_equal(vms[i].lost, "");
        assert_null(beat(0)); /* once */
        assert_int_equal(pager.counts.killed, 1);
}

static void test_most(void **state) {
        for (unsigned i = 0; i < 3; i++)
                waits(i, DEADLINE_MS + 1);
        assert_null(beat(0));
        for (unsigned i = 0; i < 3; i++) {
                woken_long_ago(i);
                waits(i, DEADLINE_MS);
        }
        assert_non_null(beat(0));
        assert_int_equal(pager.counts.killed, 0); /* what becomes of them is decided when it has ended */
}

/* Another fault that is lost, later: it is woken again. */
static void test_again(void **state) {
        waits(0, DEADLINE_MS + 1);
        assert_null(beat(0));
        vms[0].hold.woken_ns -= 60 * DEADLINE_MS * MS;
        assert_null(beat(0));
        assert_true(now_ns() - vms[0].hold.woken_ns < 10 * DEADLINE_MS * MS);
        assert_string_equal(vms[0].lost, "");
}

static void test_no_probes(void **state) {
        struct probes *probes = TAKE_PTR(d.monitor->probes);

        waits(0, 100 * DEADLINE_MS);
        assert_null(pager_lost_faults(&process, 0, DEADLINE_MS));
        assert_true(vms[0].hold.woken_ns == 0);
        d.monitor->probes = probes;
}

int main(void) {
        const struct CMUnitTest tests[] = {
#define T(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
                T(test_woken),       T(test_slow), T(test_unread), T(test_no_cpu),
                T(test_one_of_many), T(test_most), T(test_again),  T(test_no_probes),
        };

        log_init("test_lost", LOG_LVL_ERROR);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
