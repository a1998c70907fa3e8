/* SPDX-License-Identifier: MIT */
/* Theory of operation. Descriptors arrive with calls and handshakes. When the process can hold no more of them the
 * kernel drops some, and the connection they came on is of no use any more: forkd would lose its pager, and all guests
 * with it, because one more was to be started. So a session is admitted only if all that it may need later still
 * leaves PAGER_SPARE_FDS free. The limit is read each time: it may be changed from outside. */
#include "pager/rlimit.h"

#include <dirent.h>
#include <errno.h>
#include <sys/resource.h>

#include "pager/limits.h"

static void raise(int resource) {
        struct rlimit rl;

        if (getrlimit(resource, &rl) == 0 && rl.rlim_cur < rl.rlim_max) {
                rl.rlim_cur = rl.rlim_max;
                (void) setrlimit(resource, &rl);
        }
}

void pager_rlimit_raise(void) {
        raise(RLIMIT_NOFILE); /* the usual soft limit of 1024 is for select() */
        raise(RLIMIT_FSIZE);
}

int pager_rlimit_open_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        int n = 0;

        if (!d)
                return -errno;
        while (readdir(d))
                n++;
        (void) closedir(d);
        return n - 3; /* ".", "..", and the directory's own */
}

int pager_rlimit_admit(unsigned others, unsigned sessions, unsigned images, struct err *e) {
        struct rlimit rl;
        unsigned long long need =
                others + PAGER_SPARE_FDS + (sessions + 1ull) * PAGER_FDS_OF_SESSION + (images + 1ull) * PAGER_FDS_OF_IMAGE;

        if (getrlimit(RLIMIT_NOFILE, &rl) < 0 || need <= rl.rlim_cur)
                return 0;
        (void) err_set(e, ERR_LIMIT, -EMFILE,
                       "%u sessions of %u images are open, and the pager may have no more than %llu descriptors", sessions,
                       images, (unsigned long long) rl.rlim_cur);
        return err_hint(e, "allow it more (LimitNOFILE=, ulimit -Hn), or end some VMs");
}
