/* SPDX-License-Identifier: MIT */
/* A queue between two threads, with a descriptor to wait on. Letters are part of the objects they are about,
 * so posting cannot fail; one letter is in at most one mailbox at a time. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/cleanup.h"

struct pager_letter {
        struct pager_letter *next; /* owned by the mailbox from posting to taking */
        int kind;
        void *object;
};

struct pager_mailbox {
        int fd; /* an eventfd: readable while letters may be there */
        pthread_mutex_t lock;
        struct pager_letter *first, **last;
        _Atomic bool posted; /* since the last time that letters were taken */
};

/** Is there something to be taken? Without a lock or a system call. */
static inline bool pager_mailbox_has(const struct pager_mailbox *m) {
        return atomic_load_explicit(&m->posted, memory_order_relaxed);
}

int pager_mailbox_init(struct pager_mailbox *m) attr_warn_unused;
void pager_mailbox_destroy(struct pager_mailbox *m); /* letters in it are dropped */

void pager_mailbox_post(struct pager_mailbox *m, struct pager_letter *l, int kind, void *object);

/** Takes all letters, oldest first; NULL if there are none. Clears the descriptor. Read a letter's `next`
 *  before acting on it: its object may go away. */
struct pager_letter *pager_mailbox_take(struct pager_mailbox *m);
