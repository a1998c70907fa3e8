/* SPDX-License-Identifier: MIT */
#include "common_test.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* splitmix64 (public domain, Sebastiano Vigna): passes any test that matters here, from any seed. */
uint64_t rng_next(struct rng *r) {
        uint64_t z = r->state += 0x9e3779b97f4a7c15u;

        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
}

void temp_dir(char *buf, size_t size) {
        const char *base = getenv("TMPDIR");

        if ((size_t) snprintf(buf, size, "%s/forkd-test-XXXXXX", base ? base : "/tmp") >= size || !mkdtemp(buf))
                fail_msg("no temporary directory");
}

/* By rm and not by io_remove_tree, which is what is tested here. */
void temp_dir_remove(const char *path) {
        pid_t pid = fork();

        if (pid == 0) {
                (void) execl("/bin/rm", "rm", "-rf", "--one-file-system", path, (char *) NULL);
                _exit(127);
        }
        (void) waitpid(pid, NULL, 0);
}

const char *in_dir(const char *dir, const char *name) {
        static char bufs[4][PATH_MAX];
        static unsigned next;
        char *buf = bufs[next++ % 4];

        (void) snprintf(buf, PATH_MAX, "%s/%s", dir, name);
        return buf;
}

unsigned count_fds(void) {
        DIR *dir = opendir("/proc/self/fd");
        unsigned n = 0;

        assert_non_null(dir);
        while (readdir(dir))
                n++;
        (void) closedir(dir);
        return n;
}

void skip_because(const char *reason) {
        if (getenv("FORKD_TEST_NO_SKIP"))
                fail_msg("%s", reason);
        print_message("[  SKIPPED ] %s\n", reason);
        skip();
}
