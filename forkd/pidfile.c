/* SPDX-License-Identifier: MIT */
#include "forkd/pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "common/spawn.h"

#define PIDFILE_MAX_BYTES 256

int pidfile_write(const char *path, const char *boot_id, pid_t pid) {
        char text[PIDFILE_MAX_BYTES];
        uint64_t start_time;
        int n, r;

        r = spawn_start_time(pid, &start_time);
        if (r < 0)
                return r;
        n = snprintf(text, sizeof(text), "%d %" PRIu64 " %s\n", (int) pid, start_time, boot_id);
        if (n < 0 || (size_t) n >= sizeof(text))
                return -ENAMETOOLONG;
        return io_write_file_atomic(AT_FDCWD, path, text, (size_t) n, 0600, false);
}

int pidfile_open(const char *path, const char *boot_id, pid_t *ret_pid, int *ret_pidfd) {
        cleanup_free char *text = NULL;
        cleanup_fd int fd = -1;
        uint64_t start_time;
        char boot[64];
        int pid, r;

        r = io_read_file(AT_FDCWD, path, PIDFILE_MAX_BYTES, &text, NULL);
        if (r < 0)
                return r;
        if (sscanf(text, "%d %" SCNu64 " %63s", &pid, &start_time, boot) != 3 || pid <= 1 || start_time == 0 ||
            strcmp(boot, boot_id) != 0)
                return -ESRCH;
        r = spawn_pidfd_open((pid_t) pid, start_time, &fd);
        if (r < 0)
                return r;
        if (spawn_wait(fd, 0, NULL) == 0)
                return -ESRCH; /* ended, not reaped yet */
        *ret_pid = (pid_t) pid;
        *ret_pidfd = TAKE_FD(fd);
        return 0;
}
