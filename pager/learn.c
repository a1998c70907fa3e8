/* SPDX-License-Identifier: MIT */
#include "pager/learn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "common/io.h"
#include "snapstore/store.h"

/** The set that is there; an empty one if there is none of use. -ENOMEM. */
static int read_old(int dir_fd, const struct snap_image_info *info, struct snap_workingset *ret) {
        cleanup_fd int fd = openat(dir_fd, SNAP_FILE_WORKINGSET, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        int r;

        if (fd < 0)
                return 0;
        r = snap_workingset_read(fd, info->uuid, info->ram_bytes / PAGER_PAGE, ret);
        return r == -ENOMEM ? r : 0;
}

static int copy_runs(const struct pager_record *rec, struct snap_run **ret, size_t *ret_n) {
        uint64_t n = pager_record_runs(rec);
        struct snap_run *run = calloc(n + 1, sizeof(*run));

        if (!run)
                return -ENOMEM;
        for (uint64_t i = 0; i < n; i++)
                run[i] = pager_record_get(rec, i);
        *ret = run;
        *ret_n = n;
        return 0;
}

int pager_learn(int dir_fd, const struct pager_image *img, const struct pager_record *rec, uint64_t *ret_new) {
        cleanup_snap_workingset struct snap_workingset old = { 0 }, merged = { 0 };
        const struct snap_image_info *info = pager_image_info(img);
        uint64_t ram_pages = info->ram_bytes / PAGER_PAGE, n_new;
        cleanup_free struct snap_run *run = NULL;
        cleanup_free void *data = NULL;
        size_t n, len;
        int r;

        r = copy_runs(rec, &run, &n);
        if (r == 0)
                r = read_old(dir_fd, info, &old);
        if (r == 0)
                r = snap_workingset_merge(&old, run, n, ram_pages, snap_workingset_max_pages(ram_pages), &merged, &n_new);
        if (r < 0)
                return r;
        if (n_new == 0 || n_new < old.n_pages / SNAP_WORKINGSET_NEWS_PART) {
                *ret_new = 0;
                return 0;
        }
        r = snap_workingset_encode(&merged, info->uuid, ram_pages, &data, &len);
        /* Not synced: nobody waits for the disk here, and a torn one is found out by its checksum and ignored. */
        if (r == 0)
                r = io_write_file_atomic(dir_fd, SNAP_FILE_WORKINGSET, data, len, 0600, false);
        if (r == 0)
                *ret_new = n_new;
        return r;
}
