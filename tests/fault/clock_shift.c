/* SPDX-License-Identifier: MIT */
/* Preloaded into forkd by a test: the wall clock jumps by so many seconds as the file FORKD_TEST_CLOCK says at that moment.
 * Only CLOCK_REALTIME and what is made from it; the host's own clock is left alone. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *t);
int gettimeofday(struct timeval *restrict t, void *restrict zone);
time_t time(time_t *ret);

static long shift(void) {
        const char *path = getenv("FORKD_TEST_CLOCK");
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        char text[32] = "";

        if (fd < 0)
                return 0;
        if (read(fd, text, sizeof(text) - 1) < 0)
                text[0] = '\0';
        (void) close(fd);
        return strtol(text, NULL, 10);
}

int clock_gettime(clockid_t id, struct timespec *t) {
        int (*real)(clockid_t, struct timespec *) = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
        int r = real(id, t);

        if (r == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
                t->tv_sec += shift();
        return r;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
        struct timespec now;
        int r = clock_gettime(CLOCK_REALTIME, &now);

        t->tv_sec = now.tv_sec;
        t->tv_usec = now.tv_nsec / 1000;
        return r;
}

time_t time(time_t *ret) {
        struct timespec now;

        (void) clock_gettime(CLOCK_REALTIME, &now);
        if (ret)
                *ret = now.tv_sec;
        return now.tv_sec;
}
