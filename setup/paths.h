/* SPDX-License-Identifier: MIT */
/* Small helpers for paths that several files of setup/ need. */
#pragma once

#include <errno.h>
#include <stddef.h>

#include "common/err.h"
#include "common/io.h"

/** "@dir/@name" into @buf; -ENAMETOOLONG. */
static inline int path_join(char *buf, size_t size, const char *dir, const char *name) {
        int n = snprintf(buf, size, "%s/%s", dir, name);

        return n > 0 && (size_t) n < size ? 0 : -ENAMETOOLONG;
}

/** io_remove_tree where nobody could do anything about a failure: the next run tries again. */
static inline void remove_quietly(int dirfd, const char *path) {
        if (io_remove_tree(dirfd, path) < 0)
                return;
}
