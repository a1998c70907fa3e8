/* SPDX-License-Identifier: MIT */
/* One virtual machine monitor, whatever its kind: QEMU today, Firecracker beside it.
 *
 * A driver is a table of functions. All of them that take time run in a coroutine (common/co.h) and return
 * when the step is done, has failed, or its deadline has passed; the rest of forkd goes on meanwhile. A
 * function returns 0 or -errno with *e filled. When the VMM dies in the middle of a step, the step returns
 * -EPIPE with the end of the VMM's log in the message. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

#define VMM_MAX_DISKS 8
#define VMM_MAX_VCPUS 64
#define VMM_MIN_MEM (96ull << 20) /* Debian's kernel panics with 72 MiB and boots with 80 */
#define VMM_MAX_MEM (1ull << 40)

struct vmm_jail;

enum vmm_accel { VMM_ACCEL_TCG, VMM_ACCEL_KVM };

/** What a VM is made of; the part of it that a snapshot must reproduce exactly. */
struct vmm_machine {
        uint64_t mem_bytes;
        unsigned vcpus;
        enum vmm_accel accel;
        unsigned n_disks;
};

/** Everything to start a VMM with. Paths and descriptors stay the caller's. */
struct vmm_start {
        const struct vmm_machine *machine;
        const char *run_dir;  /* private directory of this VM (0700): control and agent sockets go there */
        const char *log_path; /* the VMM's own stdout and stderr, appended */
        int console_fd;       /* the guest's serial console goes there: a file open O_APPEND */
        const char *disks[VMM_MAX_DISKS];
        const struct vmm_jail *jail;           /* NULL: it runs as root, in forkd's namespaces */
        uid_t uid;                             /* its user (and group) in the jail */
        const char *instance;                  /* goes into its environment as FORKD_INSTANCE; see forkd/host/orphans.h */
        int cgroup_fd;                         /* the cgroup it is born in, see spawn.h; -1: none */
        const char *kernel, *initrd, *cmdline; /* for a boot; NULL when device state will be loaded */
        bool incoming;                         /* wait for load_state */
        bool shell;                            /* … and first for take: memory, log, console and disks come then */
        uint64_t disk_bytes[VMM_MAX_DISKS];    /* of a shell, which has no disks yet */

        /* Guest memory. A fresh VM has pager_sock -1: its RAM is private anonymous memory. Else it is the VMM's end of the
         * session's socketpair, from which it gets its memory. */
        int pager_sock;
        const char *attach_lib; /* libuffd-attach.so */
        /** Called in the same coroutine when the process exists, before it is waited for; may be NULL. @pidfd stays the
         *  driver's. A failure ends the start. The argument is the one of the events. */
        int (*on_spawn)(int pidfd, void *arg, struct err *e);
};

struct vmm_region {
        uint64_t host_addr, size, offset;
};

struct vmm; /* one running VMM; `struct vmm { const struct vmm_ops *ops; … }` in each driver */

struct vmm_events {
        /** The process has ended (@status: wait status, -1 unknown) and is reaped. Called once, from the
         *  loop, unless the driver's object was freed before. */
        void (*on_exit)(int status, void *arg);
        /** The guest itself asked for an end ("shutdown", "reset", "panic"), or paused by itself ("io-error"). */
        void (*on_guest_event)(const char *what, void *arg);
};

struct vmm_ops {
        const char *name;
        /** Names the machine as this driver builds it. Device state loads only into the same: whatever changes the
         *  guest's devices changes this, and older snapshots are then refused by name. */
        const char *machine;

        /** Version of the installed VMM ("7.2.22"), for manifests and doctor. Blocking but quick; cached by
         *  the driver while the binary's inode and time stay the same. */
        int (*version)(char *buf, size_t size, struct err *e);

        /** Spawns the process and waits until its control channel answers. The guest's vCPUs do not run yet.
         *  On failure nothing is left behind. */
        int (*start)(struct event_base *base, const struct vmm_start *s, const struct vmm_events *ev, void *arg, struct vmm **ret,
                     struct err *e);

        /** Makes a shell (started with `shell`) the VMM of a VM: its memory, log, console and disks are now those of @s, its files
         *  have moved to s->run_dir, and events go to @ev. on_spawn of @s is called. -ESTALE: it is none of what would be
         *  started today, and @s was not touched; after any other failure the shell is good for nothing but kill. */
        int (*take)(struct vmm *v, const struct vmm_start *s, const struct vmm_events *ev, void *arg, struct err *e);
        /** Is a shell still what would be started with @attach_lib, or has something been upgraded? */
        bool (*is_current)(const struct vmm *v, const char *attach_lib);

        /** Takes back a VMM that an earlier forkd started (pidfd is taken on success). */
        int (*adopt)(struct event_base *base, const char *run_dir, const char *log_path, pid_t pid, int pidfd,
                     const struct vmm_machine *machine, const struct vmm_events *ev, void *arg, struct vmm **ret, struct err *e);

        int (*resume)(struct vmm *v, struct err *e); /* vCPUs run when it returns */
        int (*pause)(struct vmm *v, struct err *e);  /* vCPUs stopped, disks drained when it returns */
        /** Device state without RAM into @fd (a regular file or pipe). The VM must be paused; it stays paused
         *  and can be resumed afterwards. */
        int (*save_state)(struct vmm *v, int fd, struct err *e);
        /** The opposite, into a VMM started with `incoming`; the VM is paused afterwards. */
        int (*load_state)(struct vmm *v, int fd, struct err *e);
        /** Path of the unix socket on which the agent's byte stream is reachable (in run_dir). */
        const char *(*agent_socket)(struct vmm *v);
        /** Is it running, as the VMM itself sees it? */
        int (*is_running)(struct vmm *v, bool *ret, struct err *e);
        /** The live process's guest-RAM mappings, for the worker that copies dirty pages: at most @max of
         *  {host address, size, guest-RAM offset}. */
        int (*ram_regions)(struct vmm *v, struct vmm_region *ret, size_t max, size_t *ret_n, struct err *e);

        /** A duplicate of the userfaultfd that the VMM has made for memory that no image is below of (a guest that booted),
         *  registered with nothing by itself; the caller's. -EOPNOTSUPP: it has none. */
        int (*idle_uffd)(struct vmm *v, int *ret_fd, struct err *e);

        /** Which vCPU a thread of the VMM runs, by the name that the VMM gives it; -1: none. Not to be trusted: any thread may
         *  call itself anything. */
        int (*thread_vcpu)(const char *comm);

        pid_t (*pid)(struct vmm *v);
        int (*pidfd)(struct vmm *v);
        /** SIGKILL and wait until reaped (a coroutine), at most 5 s. on_exit is not called for it. */
        int (*kill)(struct vmm *v, struct err *e);
        /** Frees the object. A living process is left alone (forkd's own exit); see kill. NULL is fine. */
        void (*free)(struct vmm *v);
};

/** Drivers by name; NULL when this build has none of that name. */
const struct vmm_ops *vmm_driver(const char *name);
extern const struct vmm_ops vmm_qemu;

/** The guest's kernel command line that fits this machine (console, reboot on panic, virtio-mmio). */
const char *vmm_qemu_cmdline(void);

/** Does KVM really run a Linux guest here? Boots @kernel with @initrd under KVM and waits (blocking, at most
 *  @timeout_ms) for the agent's line on the console. 1 yes, 0 no with the reason in @e->message, -errno. */
int vmm_kvm_probe(const char *kernel, const char *initrd, int timeout_ms, struct err *e) attr_warn_unused;
