/* SPDX-License-Identifier: MIT */
#include "pager/thread.h"

#include <signal.h>

int pager_thread_start(void *(*main)(void *), void *arg, const char *name, pthread_t *ret) {
        sigset_t all, old;
        int r;

        (void) sigfillset(&all);
        (void) pthread_sigmask(SIG_SETMASK, &all, &old);
        r = -pthread_create(ret, NULL, main, arg);
        (void) pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r == 0)
                (void) pthread_setname_np(*ret, name);
        return r;
}
