/* SPDX-License-Identifier: MIT */
#include "pager/mailbox.h"

#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>

int pager_mailbox_init(struct pager_mailbox *m) {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

        if (fd < 0)
                return -errno;
        *m = (struct pager_mailbox){ .fd = fd };
        m->last = &m->first;
        (void) pthread_mutex_init(&m->lock, NULL);
        return 0;
}

void pager_mailbox_destroy(struct pager_mailbox *m) {
        if (!m->last)
                return;
        (void) pthread_mutex_destroy(&m->lock);
        m->fd = close_fd(m->fd);
        m->last = NULL;
}

void pager_mailbox_post(struct pager_mailbox *m, struct pager_letter *l, int kind, void *object) {
        *l = (struct pager_letter){ .kind = kind, .object = object };
        (void) pthread_mutex_lock(&m->lock);
        *m->last = l;
        m->last = &l->next;
        atomic_store_explicit(&m->posted, true, memory_order_relaxed);
        (void) pthread_mutex_unlock(&m->lock);
        /* The counter cannot overflow: one a letter, and each reading clears it. */
        if (eventfd_write(m->fd, 1) < 0)
                return;
}

struct pager_letter *pager_mailbox_take(struct pager_mailbox *m) {
        struct pager_letter *l;
        eventfd_t n;

        if (eventfd_read(m->fd, &n) < 0)
                return NULL;
        (void) pthread_mutex_lock(&m->lock);
        l = m->first;
        m->first = NULL;
        m->last = &m->first;
        atomic_store_explicit(&m->posted, false, memory_order_relaxed);
        (void) pthread_mutex_unlock(&m->lock);
        return l;
}
