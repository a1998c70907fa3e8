/* SPDX-License-Identifier: MIT */
/* The monitor over probes that we play: what it makes of numbers that are odd, of processes that come, go, and come again under the
 * same pid, name or id, and of time that does not pass as it should. */
#include "common_test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/io.h"
#include "common/log.h"
#include "fake_probes.h"
#include "forkd/daemon.h"
#include "forkd/events.h"
#include "forkd/guest/internal.h"
#include "forkd/monitor/internal.h"
#include "forkd/pager/internal.h"

#define MS 1000000ull
#define TURN (200 * MS)

static struct daemon d;
static struct pager pager;
static struct monitor *m;
static struct vmm_ops ops;
static struct guest_link link_;
static uint64_t now;

static int setup(void **state) {
        fake_reset();
        d = (struct daemon){
                .base = event_base_new(),
                .cfg = { .window_ms = 1000, .keep_ended_seconds = 300, .max_vms = 1000, .probes = CONFIG_PROBES_AUTO }
        };
        TAILQ_INIT(&d.vms);
        pager = (struct pager){ .d = &d };
        d.pager = &pager;
        assert_ok(events_new(&d.events));
        ops = (struct vmm_ops){ .thread_vcpu = vmm_qemu.thread_vcpu };
        assert_ok(monitor_new(&d, &m));
        d.monitor = m;
        now = now_ns();
        link_ = (struct guest_link){ .state = LINK_CONNECTED };
        return 0;
}

static int teardown(void **state) {
        monitor_free(m);
        events_free(d.events);
        event_base_free(d.base);
        return 0;
}

static void make(struct vm *vm, const char *id, const char *name, unsigned vcpus) {
        *vm = (struct vm){ .d = &d, .ops = &ops, .machine.vcpus = vcpus, .state = VM_RUNNING, .ending_fd = -1, .link = &link_ };
        pager_hold_init(&vm->hold);
        (void) snprintf(vm->id, sizeof(vm->id), "%.16s", id);
        (void) snprintf(vm->name, sizeof(vm->name), "%s", name);
}

static void born(struct vm *vm, pid_t pid) {
        vm->pid = pid;
        monitor_vm_born(m, vm, -1, pid);
}

static void turn(void) {
        now += TURN;
        monitor_read(m);
        monitor_mark_all(m, now);
        monitor_judge(m, now);
}

/* A turn in which @t spent that much of it on a CPU, and the rest idle. */
static void burn(struct fake_thread *t, unsigned percent) {
        t->t.sum.ns[PROBES_ONCPU] += TURN / 100 * percent;
        t->t.sum.ns[PROBES_IDLE] += TURN / 100 * (100 - percent);
        turn();
}

static unsigned events_of(const char *kind) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        const msgpack_object *list;
        unsigned n = 0;

        mp_buf_init(&b);
        assert_ok(events_read(d.events, 0, 0, NULL, &b));
        assert_ok(mp_parse(b.sb.data, b.sb.size, &doc));
        list = mp_get_array(&doc.root, "events");
        for (uint32_t i = 0; i < list->via.array.size; i++) {
                char k[24];

                assert_ok(mp_get_str(&list->via.array.ptr[i], "kind", k, sizeof(k)));
                n += strcmp(k, kind) == 0;
        }
        return n;
}

/* ---- sums ---- */

static void test_sums(void **state) {
        struct fake_thread *cpu0 = fake_thread(7, 70, "CPU 0/TCG"), *cpu1 = fake_thread(7, 71, "CPU 1/TCG"),
                           *io = fake_thread(7, 7, "qemu-system-x86");
        const struct monitor_vm *mv;
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 2);
        born(&vm, 7);
        mv = monitor_of(&vm);
        cpu0->t.sum.ns[PROBES_ONCPU] = 100;
        cpu0->t.sum.ns[PROBES_LOCK] = 5; /* its VMM's way of being idle */
        cpu0->t.sum.wait[3] = cpu0->t.sum.waits = 2;
        cpu1->t.sum.ns[PROBES_ONCPU] = 50;
        io->t.sum.ns[PROBES_ONCPU] = 7;
        io->t.sum.wait[4] = io->t.sum.waits = 1;
        io->t.sum.longest_ns = 99;
        monitor_read(m);
        assert_int_equal(mv->vcpu[0].sum.ns[PROBES_ONCPU], 100);
        assert_int_equal(mv->vcpu[0].sum.ns[PROBES_IDLE], 5);
        assert_int_equal(mv->vcpu[0].sum.ns[PROBES_LOCK], 0);
        assert_int_equal(mv->vcpu[1].sum.ns[PROBES_ONCPU], 50);
        assert_int_equal(mv->others.sum.ns[PROBES_ONCPU], 7);
        assert_int_equal(mv->others.threads, 1);
        assert_int_equal(mv->sum.waits, 3);
        assert_int_equal(mv->sum.longest_ns, 99);
        cpu0->t.sum.ns[PROBES_ONCPU] = 160;
        fake_end(io); /* what ended threads did stays */
        monitor_read(m);
        assert_int_equal(mv->vcpu[0].sum.ns[PROBES_ONCPU], 160);
        assert_int_equal(mv->others.sum.ns[PROBES_ONCPU], 7);
        assert_int_equal(mv->others.threads, 0);
        assert_int_equal(mv->sum.ns[PROBES_ONCPU], 217);
}

/* Nothing ever shrinks, and nothing is counted twice. */
static void test_back(void **state) {
        struct fake_thread *cpu = fake_thread(7, 70, "CPU 0/KVM");
        const struct monitor_vm *mv;
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 1);
        born(&vm, 7);
        mv = monitor_of(&vm);
        cpu->t.sum.ns[PROBES_ONCPU] = 1000;
        monitor_read(m);
        cpu->t.sum.ns[PROBES_ONCPU] = 10; /* another thread under its number, or a counter that went back */
        monitor_read(m);
        assert_int_equal(mv->vcpu[0].sum.ns[PROBES_ONCPU], 1000);
        assert_int_equal(mv->sum.ns[PROBES_ONCPU], 1000);
        cpu->t.sum.ns[PROBES_ONCPU] = 15;
        monitor_read(m);
        assert_int_equal(mv->vcpu[0].sum.ns[PROBES_ONCPU], 1005);
        fake.read_r = -EAGAIN;
        cpu->t.sum.ns[PROBES_ONCPU] = 1100;
        monitor_read(m);
        fake.read_r = 0;
        monitor_read(m);
        assert_int_equal(mv->vcpu[0].sum.ns[PROBES_ONCPU], 2090);
        assert_int_equal(mv->sum.ns[PROBES_ONCPU], 1100);
        assert_true(mv->others.sum.ns[PROBES_ONCPU] == 0);
}

/* Names are the VMM's: as many places as vCPUs, no more. */
static void test_names(void **state) {
        static const char *const bad[] = { "CPU 2/TCG", "CPU 99999999/K", "CPU -1/TCG", "CPU /TCG",
                                           "CPU 0",     "CPU 0x0/TCG",    "",           "cpu 0/TCG" };
        struct fake_thread *one, *two, *other;
        const struct monitor_vm *mv;
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 2);
        born(&vm, 7);
        mv = monitor_of(&vm);
        for (size_t i = 0; i < ARRAY_LEN(bad); i++)
                fake_thread(7, 700 + (pid_t) i, bad[i])->t.sum.ns[PROBES_ONCPU] = 1;
        one = fake_thread(7, 71, "CPU 1/TCG");
        two = fake_thread(7, 72, "CPU 1/TCG");
        other = fake_thread(8, 80, "CPU 0/TCG"); /* of nobody that is watched */
        one->t.sum.ns[PROBES_ONCPU] = 100;
        two->t.sum.ns[PROBES_ONCPU] = 1000;
        other->t.sum.ns[PROBES_ONCPU] = 5;
        monitor_read(m);
        assert_int_equal(mv->vcpu[0].tid, 0);
        assert_int_equal(mv->vcpu[1].sum.ns[PROBES_ONCPU], 100);
        assert_int_equal(mv->others.sum.ns[PROBES_ONCPU], 1000 + ARRAY_LEN(bad));
        fake_end(one); /* its namesake has its place from the look after the next, with all that it did */
        monitor_read(m);
        monitor_read(m);
        assert_int_equal(mv->vcpu[1].tid, 72);
        assert_int_equal(mv->sum.ns[PROBES_ONCPU], 1100 + ARRAY_LEN(bad));
}

/* ---- processes that come and go ---- */

static void test_standby_and_back(void **state) {
        struct fake_thread *cpu = fake_thread(7, 70, "CPU 0/TCG");
        const struct monitor_vm *mv;
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 1);
        born(&vm, 7);
        mv = monitor_of(&vm);
        cpu->t.sum.ns[PROBES_ONCPU] = 100;
        monitor_read(m);
        cpu->t.sum.ns[PROBES_ONCPU] = 130; /* between the last look and its end */
        fake_end(cpu);
        monitor_vm_gone(m, &vm);
        vm.pid = 0;
        assert_false(mv->watched);
        assert_ptr_equal(monitor_of(&vm), mv);
        cpu = fake_thread(9, 70, "CPU 0/TCG"); /* even with the same number */
        born(&vm, 9);
        cpu->t.sum.ns[PROBES_ONCPU] = 11;
        monitor_read(m);
        assert_true(mv->watched);
        assert_int_equal(fake.processes, 1);
        assert_int_equal(mv->vcpu[0].sum.ns[PROBES_ONCPU], 111);
        assert_int_equal(mv->sum.ns[PROBES_ONCPU], 141);
        assert_int_equal(mv->others.sum.ns[PROBES_ONCPU], 30);
}

static void test_pid_reused(void **state) {
        static struct vm a, b;

        make(&a, "0000000000000001", "a", 1);
        make(&b, "0000000000000002", "b", 1);
        fake_thread(7, 70, "CPU 0/TCG")->t.sum.ns[PROBES_ONCPU] = 100;
        born(&a, 7);
        monitor_read(m);
        fake_end(&fake.thread[0]);
        monitor_vm_gone(m, &a);
        monitor_vm_forget(m, &a);
        monitor_read(m);
        fake.ended[0].pid = 0; /* the watch that ended has told it */
        fake_thread(7, 70, "CPU 0/TCG")->t.sum.ns[PROBES_ONCPU] = 3;
        born(&b, 7);
        monitor_read(m);
        assert_int_equal(monitor_of(&b)->vcpu[0].sum.ns[PROBES_ONCPU], 3);
        assert_string_equal(monitor_first_vm(m)->name, "a");
        assert_int_equal(monitor_first_vm(m)->sum.ns[PROBES_ONCPU], 100);
        assert_null(monitor_first_vm(m)->vm);
        monitor_vm_forget(m, &b);
}

static void test_name_reused(void **state) {
        static struct vm a, b;

        make(&a, "0000000000000001", "web", 1);
        make(&b, "0000000000000002", "web", 1);
        born(&a, 7);
        monitor_vm_forget(m, &a); /* read a last time only when its place was another's already */
        born(&b, 8);
        assert_ptr_equal(monitor_first_vm(m), monitor_of(&b));
        assert_null(monitor_next_vm(monitor_of(&b)));
        monitor_read(m);
        assert_int_equal(fake.processes, 1);
        monitor_vm_forget(m, &b);
}

static void test_ended_are_kept(void **state) {
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 1);
        born(&vm, 7);
        monitor_vm_forget(m, &vm);
        monitor_housekeeping(m);
        assert_non_null(monitor_first_vm(m));
        d.cfg.keep_ended_seconds = 0;
        monitor_housekeeping(m);
        assert_null(monitor_first_vm(m));
        d.cfg.keep_ended_seconds = 300;
        for (unsigned i = 0; i < MONITOR_MAX_ENDED + 10; i++) {
                char name[24];

                (void) snprintf(name, sizeof(name), "vm-%u", i);
                make(&vm, "0000000000000001", name, 1);
                born(&vm, 7);
                monitor_vm_forget(m, &vm);
        }
        assert_int_equal(m->n_ended, MONITOR_MAX_ENDED);
        assert_string_equal(monitor_first_vm(m)->name, "vm-10");
}

static void test_no_place(void **state) {
        struct monitor_probes p;
        static struct vm vm[10];
        char why[MONITOR_WHY_SIZE];
        unsigned reads;

        for (unsigned i = 0; i < 10; i++) {
                char id[24];

                (void) snprintf(id, sizeof(id), "%016u", i);
                make(&vm[i], id, id, 1);
                born(&vm[i], (pid_t) (100 + i));
        }
        monitor_get_probes(m, &p);
        assert_int_equal(p.watched_vms, 8);
        assert_int_equal(p.unwatched_vms, 2);
        assert_false(monitor_of(&vm[9])->watched);
        assert_true(monitor_of(&vm[9])->refused);
        assert_int_equal(monitor_vm_health(monitor_of(&vm[9]), why), MONITOR_UNKNOWN);
        assert_int_equal(events_of("probes.full"), 1);
        /* one ends: its place is another's at once, read or not */
        monitor_vm_gone(m, &vm[0]);
        born(&vm[8], 108);
        assert_true(monitor_of(&vm[8])->watched);
        for (unsigned i = 0; i < 10; i++)
                monitor_vm_forget(m, &vm[i]);
        /* nobody is left who found no place: the next one is told of; and where nobody has ended nothing is read */
        for (unsigned i = 0; i < 8; i++)
                born(&vm[i], (pid_t) (200 + i));
        reads = fake.reads;
        born(&vm[8], 208);
        assert_int_equal(events_of("probes.full"), 2);
        assert_int_equal(fake.reads, reads);
        for (unsigned i = 0; i < 9; i++)
                monitor_vm_forget(m, &vm[i]);
}

static void test_no_probes(void **state) {
        struct monitor_probes p;
        static struct vm vm;

        monitor_free(m);
        fake.open_r = -ENOMEM;
        assert_ok(monitor_new(&d, &m));
        d.monitor = m;
        make(&vm, "0000000000000001", "web", 1);
        born(&vm, 7);
        turn();
        monitor_get_probes(m, &p);
        assert_false(p.ok);
        assert_string_equal(p.reason, "the test has none");
        assert_int_equal(monitor_vm_health(monitor_of(&vm), NULL), MONITOR_UNKNOWN);
        assert_int_equal(events_of("probes.absent"), 1);
        fake.open_r = 0; /* there is memory again */
        m->tried_ns -= 61000 * MS;
        monitor_housekeeping(m);
        assert_true(monitor_is_up(m));
        assert_false(monitor_is_blind(m));
        fake.method = PROBES_NONE; /* they look, and of waits for memory nothing is known */
        assert_true(monitor_is_blind(m));
        d.cfg.probes = CONFIG_PROBES_OFF;
        monitor_vm_forget(m, &vm);
        monitor_free(m);
        fake.opens = 0;
        assert_ok(monitor_new(&d, &m));
        assert_int_equal(fake.opens, 0);
        assert_false(monitor_is_up(m));
        assert_false(monitor_is_blind(m)); /* nobody looks at all */
}

/* Idle: not one system call. */
static void test_idle(void **state) {
        static struct vm vm;

        assert_false(m->ticking);
        make(&vm, "0000000000000001", "web", 1);
        d.cfg.window_ms = 500;
        born(&vm, 7);
        while (fake.reads < 3)
                (void) event_base_loop(d.base, EVLOOP_ONCE);
        monitor_vm_forget(m, &vm);
        while (m->ticking)
                (void) event_base_loop(d.base, EVLOOP_ONCE);
        assert_true(fake.reads <= 4);
        assert_int_equal(event_base_loop(d.base, EVLOOP_NONBLOCK), 1); /* nobody waits for anything */
}

/* ---- the pager ---- */

static void test_pager(void **state) {
        struct pager_process first = { .p = &pager, .pid = 7, .pidfd = -1 }, second = { .p = &pager, .pid = 8, .pidfd = -1 };
        const struct monitor_pager *p = monitor_get_pager(m);
        struct fake_thread *control = fake_thread(7, 7, "uffd-pager"), *fault = fake_thread(7, 71, "uffd-pager"),
                           *odd = fake_thread(7, 72, "\033[2Jx");

        monitor_pager_born(m, &first);
        monitor_pager_born(m, &first);
        control->t.sum.ns[PROBES_ONCPU] = 1;
        monitor_read(m);
        (void) strcpy(fault->t.comm, "fault-0"); /* named a moment after its birth */
        fault->t.sum.ns[PROBES_DISK] = 20;
        odd->t.sum.ns[PROBES_LOCK] = 300;
        monitor_read(m);
        assert_int_equal(p->n_threads, 3);
        assert_int_equal(p->role[MONITOR_CONTROL].ns[PROBES_ONCPU], 1);
        assert_int_equal(p->role[MONITOR_FAULT].ns[PROBES_DISK], 20);
        assert_int_equal(p->role[MONITOR_OTHER].ns[PROBES_LOCK], 300);
        assert_string_equal(p->thread[2].name, "?[2Jx");
        fault->t.sum.ns[PROBES_DISK] = 25;
        fake_end(fault);
        fake_end(odd);
        fake_end(control);
        monitor_pager_gone(m, &first);
        monitor_pager_born(m, &second);
        fake_thread(8, 8, "fill-0")->t.sum.ns[PROBES_ONCPU] = 9;
        monitor_read(m);
        assert_int_equal(p->n_threads, 1);
        assert_int_equal(p->role[MONITOR_FAULT].ns[PROBES_DISK], 20); /* what it did last is nobody's in particular */
        assert_int_equal(p->role[MONITOR_OTHER].ns[PROBES_DISK], 5);
        assert_int_equal(p->role[MONITOR_FILL].ns[PROBES_ONCPU], 9);
        for (pid_t i = 0; i < FAKE_THREADS - 2; i++)
                fake_thread(8, 800 + i, "fault-1");
        monitor_read(m);
        assert_true(p->n_threads <= MONITOR_MAX_PAGER_THREADS);
}

/* ---- verdicts ---- */

static void test_spinning(void **state) {
        struct fake_thread *cpu = fake_thread(7, 70, "CPU 0/TCG");
        const struct monitor_vm *mv;
        char why[MONITOR_WHY_SIZE];
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 1);
        born(&vm, 7);
        mv = monitor_of(&vm);
        turn();
        for (unsigned i = 0; i < 9; i++)
                burn(cpu, 100);
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_SPINNING); /* within two windows, of five turns each */
        assert_string_equal(why, "vCPU 0: its agent is not connected");
        assert_true(mv->vcpu[0].window.known && mv->vcpu[0].window.part[PROBES_ONCPU] > 0.99);
        for (unsigned i = 0; i < 20; i++)
                burn(cpu, 100);
        assert_int_equal(events_of("vcpu.spinning"), 1);
        for (unsigned i = 0; i < 5; i++)
                burn(cpu, 20);
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_OK);
        assert_string_equal(why, "");
        assert_int_equal(events_of("vcpu.ok"), 1);
}

/* A guest that computes is heard of, once a window. */
static void test_busy(void **state) {
        struct fake_thread *cpu = fake_thread(7, 70, "CPU 0/TCG");
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 1);
        born(&vm, 7);
        for (unsigned i = 0; i < 60; i++) {
                burn(cpu, 100);
                if (i % 6 == 0)
                        link_.heard_ns = now;
        }
        assert_int_equal(events_of("vcpu.spinning"), 0);
        for (unsigned i = 0; i < 9; i++) /* and then no more */
                burn(cpu, 100);
        assert_int_equal(events_of("vcpu.spinning"), 1);
        vm.busy = "snapshot"; /* what was said stays */
        for (unsigned i = 0; i < 7; i++)
                burn(cpu, 50);
        assert_int_equal(events_of("vcpu.ok"), 0);
        vm.busy = NULL;
        vm.state = VM_PAUSED;
        burn(cpu, 100);
        assert_int_equal(events_of("vcpu.ok"), 1);
        vm.state = VM_RUNNING;
        vm.busy = "taking back"; /* and nothing new is */
        for (unsigned i = 0; i < 20; i++)
                burn(cpu, 100);
        assert_int_equal(events_of("vcpu.spinning"), 1);
        vm.busy = NULL;
}

/* On a host that has no CPU for it, an agent has longer to answer. */
static void test_starved(void **state) {
        struct fake_thread *cpu = fake_thread(7, 70, "CPU 0/TCG");
        static struct vm vm;
        unsigned i;

        make(&vm, "0000000000000001", "web", 1);
        born(&vm, 7);
        turn();
        for (i = 0; i < 7; i++) {
                cpu->t.sum.ns[PROBES_RUNQUEUE] += TURN / 100 * 88;
                burn(cpu, 12);
                cpu->t.sum.ns[PROBES_IDLE] -= TURN / 100 * 88;
        }
        assert_int_equal(events_of("vcpu.spinning"), 0);
        for (; i < 12; i++) {
                cpu->t.sum.ns[PROBES_RUNQUEUE] += TURN / 100 * 88;
                burn(cpu, 12);
                cpu->t.sum.ns[PROBES_IDLE] -= TURN / 100 * 88;
        }
        assert_int_equal(events_of("vcpu.spinning"), 1);
}

static void test_served(void **state) {
        struct fake_thread *cpu = fake_thread(7, 70, "CPU 0/TCG");
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 1);
        born(&vm, 7);
        for (unsigned i = 0; i < 40; i++) {
                cpu->t.sum.waits += i % 4 == 0;
                burn(cpu, 99);
        }
        assert_int_equal(events_of("vcpu.spinning"), 0);
}

static void test_orphan(void **state) {
        struct pager_process o = { .refs = 9, .p = &pager, .pidfd = -1 };
        struct fake_thread *cpu = fake_thread(7, 70, "CPU 0/TCG");
        const struct monitor_vm *mv;
        char why[MONITOR_WHY_SIZE];
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 1);
        vm.session = true;
        vm.hold.process = &o;
        born(&vm, 7);
        mv = monitor_of(&vm);
        for (unsigned i = 0; i < 6; i++) {
                burn(cpu, 100);
                link_.heard_ns = now;
        }
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_OK);
        vm.hold.process = NULL;
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_ORPHAN); /* that is known without any window */
        burn(cpu, 100);
        burn(cpu, 100);
        assert_true(mv->vcpu[0].spinning); /* and this within one */
        assert_string_equal(mv->vcpu[0].why, "its pager session is gone");
        link_.heard_ns = 1; /* long ago */
        vm.hold.process = &o;
        for (unsigned i = 0; i < 6; i++) /* it is served again, and goes on: its agent is asked, and that ends it */
                burn(cpu, 100);
        assert_true(mv->vcpu[0].spinning && mv->asked_ns != 0);
        link_.heard_ns = now + TURN;
        burn(cpu, 100);
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_OK);
        assert_int_equal(events_of("vcpu.spinning"), 1);
        assert_int_equal(events_of("vcpu.ok"), 1);
}

static void test_stuck(void **state) {
        struct fake_thread *cpu = fake_thread(7, 70, "CPU 0/TCG"), *io = fake_thread(7, 7, "qemu");
        const struct monitor_vm *mv;
        char why[MONITOR_WHY_SIZE];
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 1);
        born(&vm, 7);
        mv = monitor_of(&vm);
        cpu->t.state = PROBES_MEMORY;
        cpu->t.wait_since_ns = now_ns() - 900 * MS;
        turn();
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_OK);
        assert_true(mv->waiting_ns >= 900 * MS);
        cpu->t.wait_since_ns = now_ns() - 1001 * MS;
        turn();
        turn();
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_STUCK);
        assert_true(mv->vcpu[0].stuck);
        cpu->t.state = PROBES_ONCPU;
        cpu->t.wait_since_ns = 0;
        turn();
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_OK);
        assert_int_equal(events_of("vcpu.stuck"), 1);
        assert_int_equal(events_of("vcpu.ok"), 1);
        cpu->t.state = PROBES_RUNQUEUE; /* it has its page, and no CPU */
        cpu->t.wait_since_ns = now_ns() - 1500 * MS;
        turn();
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_OK);
        assert_true(mv->waiting_ns == 0 && mv->vcpu[0].waiting_ns == 0);
        io->t.state = PROBES_MEMORY;
        io->t.wait_since_ns = now_ns() - 1500 * MS; /* a device's thread, by a whole VMM's health */
        turn();
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_STUCK);
        assert_int_equal(events_of("vcpu.stuck"), 1);
        io->t.wait_since_ns = now_ns() + 1000000 * MS; /* nonsense */
        turn();
        assert_int_equal(monitor_vm_health(mv, why), MONITOR_OK);
}

/* The host was suspended: what was measured over it says nothing, and the verdict that was stays. */
static void test_void(void **state) {
        struct fake_thread *cpu = fake_thread(7, 70, "CPU 0/TCG");
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 1);
        born(&vm, 7);
        for (unsigned i = 0; i < 5; i++)
                burn(cpu, 100);
        now += 3600000 * MS;
        cpu->t.sum.ns[PROBES_ONCPU] += 3600000 * MS;
        monitor_void(m);
        for (unsigned i = 0; i < 5; i++)
                burn(cpu, 100);
        assert_false(monitor_of(&vm)->vcpu[0].window.known);
        assert_int_equal(events_of("vcpu.spinning"), 0);
        for (unsigned i = 0; i < 4; i++)
                burn(cpu, 100);
        assert_true(monitor_of(&vm)->vcpu[0].window.known);
        assert_int_equal(events_of("vcpu.spinning"), 1);
        monitor_void(m);
        burn(cpu, 100);
        assert_int_equal(events_of("vcpu.ok"), 0);
}

/* Anything at all may be read: sums only grow. */
static void test_random(void **state) {
        struct probes_sample before = { 0 }, others = { 0 }, vcpu = { 0 };
        const struct monitor_vm *mv;
        struct rng rng = { 5 };
        static struct vm vm;

        make(&vm, "0000000000000001", "web", 2);
        born(&vm, 7);
        mv = monitor_of(&vm);
        for (unsigned i = 0; i < 2000; i++) {
                struct fake_thread *t = &fake.thread[rng_below(&rng, 8)];
                char comm[16];

                (void) snprintf(comm, sizeof(comm), "CPU %u/TCG", (unsigned) rng_below(&rng, 4));
                if (t->pid == 0)
                        t = fake_thread(7, (pid_t) (70 + rng_below(&rng, 8)), comm);
                else if (rng_below(&rng, 4) == 0)
                        t->pid = 0; /* it vanishes without a trace */
                t->t.sum.ns[rng_below(&rng, PROBES_N_STATES)] = rng_below(&rng, 1000);
                t->t.sum.wait[rng_below(&rng, PROBES_BUCKETS)] = rng_below(&rng, 1000);
                t->t.wait_since_ns = rng_below(&rng, 2) ? rng_next(&rng) : 0;
                turn();
                for (unsigned k = 0; k < sizeof(before) / sizeof(uint64_t); k++) {
                        assert_true(((const uint64_t *) &mv->sum)[k] >= ((uint64_t *) &before)[k]);
                        assert_true(((const uint64_t *) &mv->others.sum)[k] >= ((uint64_t *) &others)[k]);
                        assert_true(((const uint64_t *) &mv->vcpu[0].sum)[k] >= ((uint64_t *) &vcpu)[k]);
                }
                before = mv->sum;
                others = mv->others.sum;
                vcpu = mv->vcpu[0].sum;
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
#define T(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
                T(test_sums),        T(test_back),     T(test_names),     T(test_standby_and_back), T(test_pid_reused),
                T(test_name_reused), T(test_no_place), T(test_no_probes), T(test_ended_are_kept),   T(test_idle),
                T(test_pager),       T(test_spinning), T(test_busy),      T(test_starved),          T(test_served),
                T(test_orphan),      T(test_stuck),    T(test_void),      T(test_random),
        };

        log_init("test_monitor", LOG_LVL_ERROR);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
