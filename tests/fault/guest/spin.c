/* SPDX-License-Identifier: MIT */
/* In a guest: a process that lets nothing else run on its CPU, for ever. It says so on the console, just before. */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int say(const char *path, const char *text) {
        int fd = open(path, O_WRONLY | O_CLOEXEC), r;

        if (fd < 0)
                return -1;
        r = write(fd, text, strlen(text)) < 0 ? -1 : 0;
        (void) close(fd);
        return r;
}

int main(void) {
        struct sched_param first = { .sched_priority = 99 };

        /* else the kernel gives the others a twentieth of each second */
        if (say("/proc/sys/kernel/sched_rt_runtime_us", "-1\n") < 0 || say("/dev/console", "it begins\n") < 0 ||
            sched_setscheduler(0, SCHED_FIFO, &first) < 0) {
                perror("spin");
                return 1;
        }
        for (;;)
                __asm__ volatile("" ::: "memory");
}
