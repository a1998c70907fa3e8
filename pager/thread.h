/* SPDX-License-Identifier: MIT */
/* The pager's threads: what they are called, and by which number the kernel knows them. */
#pragma once

#include <pthread.h>
#include <semaphore.h>
#include <sys/types.h>

#include "common/cleanup.h"

/** Part of the object whose thread it is, which stays where it is until the thread is joined. */
struct pager_thread {
        char name[16];
        pid_t tid;

        /* thread.c's */
        pthread_t thread;
        void *(*main)(void *);
        void *arg;
        sem_t known;
};

/** Starts @main(@arg) as a thread of the name @name (15 bytes at most) that takes no signals: those are the control
 *  loop's. On return its number is known. -EAGAIN: the host, or a limit, has no room for it. */
int pager_thread_start(void *(*main)(void *), void *arg, const char *name, struct pager_thread *ret) attr_warn_unused;
void pager_thread_join(struct pager_thread *t);
