/* SPDX-License-Identifier: MIT */
/* Admission: what something needs is reserved before it begins, or refused with figures.
 *
 * A *claim* is what one VM, or one operation, asks for. It is *reserved* from the moment that it is granted, and *held* from
 * when the VM lives. The difference is where it shows: memory and processes of a VM that lives are in the host's own figures
 * already, those of one that is about to start are not, and are taken off what the host says it has left. vCPUs and
 * descriptors are counted by forkd alone. Claims end with what they were for. Nothing is written down: a forkd that starts
 * claims for the VMs that it takes back.
 *
 *      memory       certain: the VMM, and what the guest will have for itself: all of its RAM if it boots, a part if it is a
 *                   clone, whose other pages are the image's. Reserved claims, less what their VMMs have touched, and the new
 *                   one must fit into what the host (or the cgroup) has left. `promised` is all of the guest's RAM: it
 *                   counts against the setting `memory`, if there is one.
 *      disk         new bytes in the store, while a snapshot is taken; `disk_reserve` stays free whatever happens */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/mp.h"

struct admission;

struct admission_limits {
        uint64_t memory;   /* that may be promised in all; 0: no such limit */
        double overcommit; /* how many times `memory` */
        uint64_t vcpus;    /* in all */
        uint64_t disk_reserve;
        uint64_t descriptors; /* of forkd, for VMs */
};

/** What there is at the moment; UINT64_MAX: unknown. */
struct admission_host {
        uint64_t (*memory)(void *arg);
        uint64_t (*pids)(void *arg);
        uint64_t (*disk)(void *arg);
        uint64_t (*touched)(pid_t pid, void *arg); /* private memory of a process */
        /** Gives up what can be spared, before something is refused that is not disk: true if there was anything. A coroutine
         *  call; may be NULL. */
        bool (*yield)(void *arg);
        void *arg;
};

struct admission_need {
        uint64_t memory, promised, disk;
        unsigned vcpus, pids, descriptors;
};

/** Zeroed: claims nothing. */
struct admission_claim {
        TAILQ_ENTRY(admission_claim) entry;
        unsigned count; /* of them at once; 0: claims nothing */
        bool held;
        pid_t pid;                  /* the VMM of one that is reserved, when there is one */
        struct admission_need need; /* of each */
        char who[80];
};

int admission_new(const struct admission_limits *l, const struct admission_host *h, struct admission **ret) attr_warn_unused;
/** NULL is fine. */
void admission_free(struct admission *a);

/** What a VM needs: one that @boots, or a clone. */
struct admission_need admission_vm_need(uint64_t mem_bytes, unsigned vcpus, bool boots);

/** What a VMM without a guest needs. */
struct admission_need admission_shell_need(unsigned vcpus);

/** Reserves @count times @need for @who ("'web'", "8 clones of 'warm'"). Refused: -ENOMEM, -ENOSPC (code no-space), -EMFILE (limit). */
int admission_reserve(struct admission *a, struct admission_claim *c, const char *who, const struct admission_need *need,
                      unsigned count, struct err *e) attr_warn_unused;
/** Gives one of @from's to @to. */
void admission_share(struct admission *a, struct admission_claim *from, struct admission_claim *to, const char *who);
/** It lives. Without a claim (a VM that was taken back) one is made, whatever there is. */
void admission_hold(struct admission *a, struct admission_claim *c, const char *who, const struct admission_need *need);
/** Nothing happens to a claim of nothing. */
void admission_release(struct admission *a, struct admission_claim *c);

/** Appends the values of the map `admission` of docs/protocol.md: five resources, each with its key. */
#define ADMISSION_KEYS 5
void admission_encode(const struct admission *a, struct mp_buf *b);
