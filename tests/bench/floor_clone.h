/* SPDX-License-Identifier: MIT */
/* One clone of the floor (fork_floor.c): each step that forkd takes with a clone, done by hand through the same driver
 * and the same link to the agent. All functions run in a coroutine and return 0 or -errno with *e filled. */
#pragma once

#include <event2/event.h>
#include <limits.h>
#include <stdint.h>

#include "forkd/guest/guest_link.h"
#include "forkd/vmm/vmm.h"

/** What all clones share. */
struct floor {
        struct event_base *base;
        struct vmm_machine machine;
        const char *lib, *dir;
        char log_path[PATH_MAX];
        uint64_t dirty_bytes;
        int ram_fd, vmstate_fd, console_fd;
};

struct clone {
        struct floor *f;
        char dir[PATH_MAX]; /* its sockets */
        struct vmm *vmm;    /* NULL: somebody else's guest */
        struct guest_link *link;
};

/** QEMU runs, its memory is mapped, and it waits for device state. @number (0 …) tells it from others that live. */
int clone_start(struct clone *c, struct floor *f, unsigned number, struct err *e) attr_warn_unused;
int clone_load(struct clone *c, struct err *e) attr_warn_unused;
/** Connects to the agent; @path NULL: the own guest's. */
int clone_link(struct clone *c, const char *path, struct err *e) attr_warn_unused;
/** Queues a wake-up with a new identity, resumes (an own guest), and waits for the acknowledgement. */
int clone_wake(struct clone *c, struct guest_ack *ret_ack, struct err *e) attr_warn_unused;
/** A round trip to the agent. */
int clone_echo(struct clone *c, struct err *e) attr_warn_unused;
/** `cont`, and one echo over the agent's channel. @ret_resume_ms is the part of `cont`. */
int clone_resume_echo(struct clone *c, double *ret_resume_ms, struct err *e) attr_warn_unused;
int clone_pause(struct clone *c, struct err *e) attr_warn_unused;
/** The guest writes as many bytes as the floor's @dirty_bytes. */
int clone_dirty(struct clone *c, struct err *e) attr_warn_unused;
/** Device state into a memfd that is thrown away. */
int clone_save(struct clone *c, struct err *e) attr_warn_unused;
/** Kills it. A clone that is all zeros is fine. */
void clone_end(struct clone *c);
