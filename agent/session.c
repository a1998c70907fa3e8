/* SPDX-License-Identifier: MIT */
/* A session is more than its leader's process group: an interactive shell puts each job in a group of its
 * own. /proc knows who belongs to which; without it the leader's group has to do. */
#include "agent/agent.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Session of a process: the fourth field after the command's closing parenthesis in /proc/pid/stat. */
static pid_t session_of(const char *pid) {
        char path[64], buf[512];
        int session;
        const char *p;
        ssize_t n;
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/%.16s/stat", pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -1;
        n = read(fd, buf, sizeof(buf) - 1);
        (void) close(fd);
        if (n <= 0)
                return -1;
        buf[n] = '\0';
        p = strrchr(buf, ')');
        return p && sscanf(p + 1, " %*c %*d %*d %d", &session) == 1 ? (pid_t) session : -1;
}

void session_signal(pid_t pid, int signo) {
        struct dirent *de;
        DIR *d;

        if (kill(-pid, signo) < 0)
                (void) kill(pid, signo); /* it has not come to its setsid yet */
        d = opendir("/proc");
        if (!d)
                return;
        while ((de = readdir(d))) {
                char *end;
                long p = strtol(de->d_name, &end, 10);

                if (*end || p <= 1 || session_of(de->d_name) != pid)
                        continue;
                if (getpgid((pid_t) p) != pid) /* else it has it already */
                        (void) kill((pid_t) p, signo);
        }
        (void) closedir(d);
}
