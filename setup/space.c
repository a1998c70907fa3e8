/* SPDX-License-Identifier: MIT */
#include "setup/space.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/ids.h"
#include "common/io.h"

int space_existing_parent(const char *path, char *buf, size_t size) {
        struct stat st;

        if ((size_t) snprintf(buf, size, "%s", path) >= size)
                return -ENAMETOOLONG;
        while (stat(buf, &st) < 0) {
                if (errno != ENOENT)
                        return -errno;
                char *slash = strrchr(buf, '/');
                if (!slash) { /* a relative name */
                        (void) snprintf(buf, size, ".");
                        return 0;
                }
                slash[slash == buf] = '\0'; /* "/" stays "/" */
        }
        return 0;
}

static int no_room(const struct space_need *need, uint64_t total, uint64_t avail, struct err *e) {
        char a[32], b[32], c[32];

        err_set(e, ERR_NO_SPACE, -ENOSPC, "no room for %s in %s: %s needed on that file system, %s free, %s missing", need->what,
                need->path, size_format(total, a, sizeof(a)), size_format(avail, b, sizeof(b)),
                size_format(total - avail, c, sizeof(c)));
        return err_hint(e, "%s", need->advice);
}

int space_check(const struct space_need *needs, size_t n, struct err *e) {
        dev_t dev[SPACE_MAX_NEEDS];
        uint64_t avail[SPACE_MAX_NEEDS];

        if (n > SPACE_MAX_NEEDS)
                return err_set(e, ERR_INTERNAL, -E2BIG, "too many needs");
        for (size_t i = 0; i < n; i++) {
                char where[512];
                struct stat st;

                int r = space_existing_parent(needs[i].path, where, sizeof(where));
                if (r == 0)
                        r = io_free_bytes(where, &avail[i]);
                if (r < 0 || stat(where, &st) < 0)
                        return err_errno(e, r < 0 ? r : -errno, "cannot tell the free space of %s", needs[i].path);
                dev[i] = st.st_dev;
        }
        for (size_t i = 0; i < n; i++) {
                const struct space_need *most = &needs[i]; /* the one to be blamed */
                uint64_t total = 0;

                for (size_t k = 0; k < n; k++)
                        if (dev[k] == dev[i]) {
                                total += needs[k].bytes;
                                if (needs[k].bytes > most->bytes)
                                        most = &needs[k];
                        }
                if (total > avail[i])
                        return no_room(most, total, avail[i], e);
        }
        return 0;
}
