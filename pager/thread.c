/* SPDX-License-Identifier: MIT */
#include "pager/thread.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static void *thread_main(void *arg) {
        struct pager_thread *t = arg;

        t->tid = gettid();
        (void) sem_post(&t->known);
        return t->main(t->arg);
}

int pager_thread_start(void *(*main)(void *), void *arg, const char *name, struct pager_thread *ret) {
        sigset_t all, old;
        int r;

        *ret = (struct pager_thread){ .main = main, .arg = arg };
        (void) snprintf(ret->name, sizeof(ret->name), "%s", name);
        (void) sem_init(&ret->known, 0, 0);
        (void) sigfillset(&all);
        (void) pthread_sigmask(SIG_SETMASK, &all, &old);
        r = -pthread_create(&ret->thread, NULL, thread_main, ret);
        (void) pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r == 0) {
                (void) pthread_setname_np(ret->thread, name);
                while (sem_wait(&ret->known) < 0)
                        ; /* a signal */
        }
        (void) sem_destroy(&ret->known);
        return r;
}

void pager_thread_join(struct pager_thread *t) {
        (void) pthread_join(t->thread, NULL);
}
