/* SPDX-License-Identifier: MIT */
/* The machine a guest sees, and why it is this one.
 *
 * microvm: no PCI, no legacy devices; QEMU builds it in 5 ms and its whole device state is 13 KB. Of what it
 * has by default, the second interrupt controller (16 more virtio slots, 2 MB of QEMU's memory) is there only
 * when the disks need it; the old PIC never. The PIT stays: kernels calibrate against it when all else
 * fails. The firmware is qboot, which saves 0.2 s of a boot under TCG against SeaBIOS.
 *
 * All of this is part of what a snapshot restores into. Whatever is changed here keeps older snapshots from
 * loading unless it depends on the machine only. */
#include "forkd/vmm/qemu_args.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forkd/vmm/qemu.h"

/* Translated code of a booting Debian guest is 40 MiB, that of a clone that answers requests a tenth. It is
 * only memory once it is used; when it is full QEMU throws all of it away and starts again. */
#define TB_SIZE_BASE_MB 64u
#define TB_SIZE_PER_VCPU_MB 32u
#define TB_SIZE_MAX_MB 512u

/* virtio-mmio slots of the machine with one interrupt controller; the agent's port, the random numbers and a
 * network card come on top of the disks. */
#define SLOTS_SMALL 8u
#define SLOTS_FIXED 3u

/* All that TCG can emulate, except five-level page tables: they make each TLB miss longer (5 % of a boot), and
 * no guest here has that much memory. Leaving out AVX or XSAVE gains nothing that can be measured. RDRAND and
 * RDSEED are in "max", and give each clone numbers of its own. */
#define CPU_TCG "max,la57=off"
#define CPU_KVM "host"

void qemu_args_clear(struct qemu_args *a) {
        for (size_t i = 0; i < a->n_owned; i++)
                free(a->owned[i]);
        a->n = a->n_owned = 0;
        a->argv[0] = NULL;
}

void qemu_args_add(struct qemu_args *a, const char *option, const char *value) {
        if (a->n + 2 > QEMU_ARGS_MAX) {
                a->r = a->r ? a->r : -E2BIG;
                return;
        }
        a->argv[a->n++] = option;
        if (value)
                a->argv[a->n++] = value;
        a->argv[a->n] = NULL;
}

/* Takes @value. */
static void add_owned(struct qemu_args *a, const char *option, char *value) {
        if (!value || a->n_owned == QEMU_ARGS_MAX) {
                a->r = a->r ? a->r : value ? -E2BIG : -ENOMEM;
                free(value);
                return;
        }
        a->owned[a->n_owned++] = value;
        qemu_args_add(a, option, value);
}

void qemu_args_addf(struct qemu_args *a, const char *option, const char *fmt, ...) {
        char *value = NULL;
        va_list ap;

        va_start(ap, fmt);
        if (vasprintf(&value, fmt, ap) < 0)
                value = NULL;
        va_end(ap);
        add_owned(a, option, value);
}

/* An option whose value is JSON, so that no path needs escaping. Takes @j. */
static void add_json(struct qemu_args *a, const char *option, json_t *j) {
        add_owned(a, option, j ? json_dumps(j, JSON_COMPACT) : NULL);
        json_decref(j);
}

void qemu_args_machine(struct qemu_args *a, const struct vmm_machine *m, const char *firmware, const char *memory_backend) {
        unsigned tb = MIN_OF(TB_SIZE_BASE_MB + TB_SIZE_PER_VCPU_MB * (m->vcpus - 1), TB_SIZE_MAX_MB);
        bool small = m->n_disks + SLOTS_FIXED <= SLOTS_SMALL;

        qemu_args_addf(a, "-M",
                       "microvm,acpi=on,rtc=on,pit=on,pic=off,usb=off,pcie=off,ioapic2=%s,x-option-roms=off,"
                       "isa-serial=on,dump-guest-core=off%s%s",
                       small ? "off" : "on", memory_backend ? ",memory-backend=" : "", memory_backend ? memory_backend : "");
        if (m->accel == VMM_ACCEL_KVM) {
                qemu_args_add(a, "-accel", "kvm");
                qemu_args_add(a, "-cpu", CPU_KVM);
        } else {
                qemu_args_addf(a, "-accel", "tcg,tb-size=%u", tb);
                qemu_args_add(a, "-cpu", CPU_TCG);
        }
        qemu_args_addf(a, "-smp", "cpus=%u,maxcpus=%u", m->vcpus, m->vcpus);
        qemu_args_addf(a, "-m", "size=%" PRIu64 "B", m->mem_bytes);
        if (firmware)
                qemu_args_addf(a, "-bios", "%s", firmware);
        qemu_args_add(a, "-nodefaults", NULL);
        qemu_args_add(a, "-no-user-config", NULL);
        qemu_args_add(a, "-display", "none");
        qemu_args_add(a, "-no-reboot", NULL);
}

/* With debug-threads; older QEMUs name none without. */
int qemu_thread_vcpu(const char *comm) {
        unsigned vcpu = 0;
        const char *c;

        if (strncmp(comm, "ALL CPUs/", 9) == 0) /* one thread for all, where TCG can do no better */
                return 0;
        if (strncmp(comm, "CPU ", 4) != 0 || comm[4] < '0' || comm[4] > '9')
                return -1;
        for (c = comm + 4; *c >= '0' && *c <= '9'; c++)
                vcpu = vcpu * 10 + (unsigned) (*c - '0');
        return *c == '/' && c - comm <= 7 ? (int) vcpu : -1;
}

static void add_disks(struct qemu_args *a, const struct vmm_start *s) {
        for (unsigned i = 0; i < s->machine->n_disks; i++) {
                char node[16], file[32];

                (void) snprintf(node, sizeof(node), "disk%u", i);
                (void) snprintf(file, sizeof(file), "/dev/fdset/%u", QEMU_FDSET_DISK + i);
                qemu_args_addf(a, "-add-fd", "fd=%u,set=%u", QEMU_FD_DISK + i, QEMU_FDSET_DISK + i);
                /* raw, always: a guest that writes another format's header into its disk gets nothing by it */
                add_json(a, "-blockdev",
                         json_pack("{s:s, s:s, s:s, s:{s:s, s:s, s:s, s:s, s:{s:b, s:b}}}", "driver", "raw", "node-name", node,
                                   "discard", "unmap", "file", "driver", "file", "filename", file, "aio", "threads", "discard",
                                   "unmap", "cache", "direct", 0, "no-flush", 0));
                qemu_args_addf(a, "-device", "virtio-blk-device,drive=%s,id=vd%u", node, i);
        }
}

static void add_memory(struct qemu_args *a, const struct vmm_machine *m) {
        /* share=on keeps the RAM out of the device state. The attach library puts the real memory, which is
         * private, under this mapping before QEMU sees it. */
        qemu_args_addf(a, "-object",
                       "memory-backend-file,id=ram,size=%" PRIu64 "B,share=on,merge=off,dump=off,"
                       "mem-path=" QEMU_OWN_FD,
                       m->mem_bytes, QEMU_FD_RAM);
}

static void add_devices(struct qemu_args *a) {
        /* QEMU opens what it has already and needs no path. */
        qemu_args_addf(a, "-add-fd", "fd=%d,set=%d", QEMU_FD_CONSOLE, QEMU_FDSET_CONSOLE);
        qemu_args_addf(a, "-chardev", "file,id=console,path=/dev/fdset/%d,append=on", QEMU_FDSET_CONSOLE);
        qemu_args_add(a, "-serial", "chardev:console");

        qemu_args_add(a, "-device", "virtio-serial-device,id=serial,max_ports=2");
        qemu_args_addf(a, "-chardev", "socket,id=agent,fd=%d,server=on,wait=off", QEMU_FD_AGENT);
        qemu_args_add(a, "-device", "virtserialport,chardev=agent,name=forkd.agent,nr=1");

        qemu_args_add(a, "-object", "rng-random,id=rng,filename=/dev/urandom");
        qemu_args_add(a, "-device", "virtio-rng-device,rng=rng");
}

int qemu_args_build(const char *qemu, bool firmware, const struct vmm_start *s, const char *cmdline_extra,
                    struct qemu_args *ret) {
        struct qemu_args a = { .n = 0 };
        char fw[32];

        qemu_args_add(&a, qemu, NULL);
        /* First of all, before anything of a guest is touched. spawn=deny also keeps QEMU from starting the
         * helpers of network back ends, none of which we use. */
        qemu_args_add(&a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        qemu_args_add(&a, "-msg", "timestamp=on");
        qemu_args_add(&a, "-name", "debug-threads=on"); /* each vCPU's thread is told by its name */
        (void) snprintf(fw, sizeof(fw), QEMU_OWN_FD, QEMU_FD_FIRMWARE);
        qemu_args_machine(&a, s->machine, firmware ? fw : NULL, "ram");
        add_memory(&a, s->machine);
        add_devices(&a);
        add_disks(&a, s);
        qemu_args_addf(&a, "-chardev", "socket,id=qmp,fd=%d,server=on,wait=off", QEMU_FD_QMP);
        qemu_args_add(&a, "-mon", "chardev=qmp,mode=control");
        qemu_args_add(&a, "-S", NULL);
        /* see qemu_state.c */
        qemu_args_add(&a, "-global", "migration.send-configuration=off");
        if (s->kernel)
                qemu_args_addf(&a, "-kernel", QEMU_OWN_FD, QEMU_FD_KERNEL);
        if (s->initrd)
                qemu_args_addf(&a, "-initrd", QEMU_OWN_FD, QEMU_FD_INITRD);
        if (s->kernel && (s->cmdline || cmdline_extra))
                qemu_args_addf(&a, "-append", "%s%s%s", s->cmdline ? s->cmdline : "", s->cmdline && cmdline_extra ? " " : "",
                               cmdline_extra ? cmdline_extra : "");
        if (s->incoming)
                qemu_args_add(&a, "-incoming", "defer");
        if (a.r < 0) {
                qemu_args_clear(&a);
                return a.r;
        }
        *ret = a;
        return 0;
}
