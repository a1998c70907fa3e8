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

int space_check(const struct space_need *needs, size_t n, struct err *e) {
        for (size_t i = 0; i < n; i++) {
                char where[512], need_text[32], free_text[32], missing_text[32];
                uint64_t need = 0, avail;
                struct stat st, other;

                int r = space_existing_parent(needs[i].path, where, sizeof(where));
                if (r == 0)
                        r = io_free_bytes(where, &avail);
                if (r < 0 || stat(where, &st) < 0)
                        return err_errno(e, r < 0 ? r : -errno, "cannot tell the free space of %s", needs[i].path);
                for (size_t k = 0; k < n; k++) {
                        char path[512];

                        if (space_existing_parent(needs[k].path, path, sizeof(path)) == 0 && stat(path, &other) == 0 &&
                            other.st_dev == st.st_dev)
                                need += needs[k].bytes;
                }
                if (needs[i].bytes == 0 || need <= avail)
                        continue;
                err_set(e, ERR_NO_SPACE, -ENOSPC, "no room for %s in %s: %s needed on that file system, %s free, %s missing",
                        needs[i].what, needs[i].path, size_format(need, need_text, sizeof(need_text)),
                        size_format(avail, free_text, sizeof(free_text)),
                        size_format(need - avail, missing_text, sizeof(missing_text)));
                return err_hint(e, "%s", needs[i].advice);
        }
        return 0;
}
