/* SPDX-License-Identifier: MIT */
#include "pager/pack.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/ids.h"
#include "common/io.h"
#include "snapstore/store.h"

#define CHUNK_PAGES (SNAP_REGION_PAGES * 2)

/** Gives the writer the pages of [@start, @end), which the file has. */
static int put_range(struct snap_writer *w, int fd, uint64_t start, uint64_t end, uint8_t *buf) {
        while (start < end) {
                uint64_t n = MIN_OF((end - start) / SNAP_PAGE_SIZE, (uint64_t) CHUNK_PAGES);
                int r = io_pread_full(fd, buf, n * SNAP_PAGE_SIZE, start);

                if (r == 0)
                        r = snap_writer_put(w, start / SNAP_PAGE_SIZE, buf, n);
                if (r < 0)
                        return r;
                start += n * SNAP_PAGE_SIZE;
        }
        return 0;
}

/** All of the file but its holes, which read zero, as pages that were never put do. */
static int put_all(struct snap_writer *w, int fd, uint64_t bytes) {
        cleanup_free uint8_t *buf = malloc((size_t) CHUNK_PAGES * SNAP_PAGE_SIZE);
        off_t data, hole = 0;

        if (!buf)
                return -ENOMEM;
        while ((uint64_t) hole < bytes) {
                data = lseek(fd, hole, SEEK_DATA);
                if (data < 0 && errno == ENXIO)
                        break; /* nothing but a hole up to the end */
                hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
                if (data < 0 || hole < 0)
                        return -errno;
                int r = put_range(w, fd, (uint64_t) data / SNAP_PAGE_SIZE * SNAP_PAGE_SIZE,
                                  MIN_OF(((uint64_t) hole + SNAP_PAGE_SIZE - 1) / SNAP_PAGE_SIZE * SNAP_PAGE_SIZE, bytes), buf);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int open_memory(const char *path, int *ret_fd, uint64_t *ret_bytes, struct err *e) {
        cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct stat st;

        if (fd < 0 || fstat(fd, &st) < 0)
                return err_errno(e, -errno, "opening %s", path);
        if (!S_ISREG(st.st_mode) || st.st_size == 0 || (uint64_t) st.st_size % SNAP_PAGE_SIZE ||
            (uint64_t) st.st_size > SNAP_MAX_RAM)
                return err_set(e, ERR_INVALID, -EINVAL, "%s is no file of whole memory pages, up to %llu GiB", path,
                               SNAP_MAX_RAM >> 30);
        *ret_bytes = (uint64_t) st.st_size;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static int write_image(int dir_fd, const char *name, int memory_fd, const struct snap_writer_params *params,
                       struct snap_writer_stats *ret) {
        cleanup_fd int fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        cleanup_snap_writer struct snap_writer *w = NULL;
        int r;

        if (fd < 0)
                return -errno;
        r = snap_writer_new(fd, -1, params, &w);
        if (r == 0)
                r = put_all(w, memory_fd, params->ram_bytes);
        if (r == 0)
                r = snap_writer_finish(w, ret);
        if (r == 0 && fsync(fd) < 0)
                r = -errno;
        return r;
}

int pager_pack(const struct pager_pack_config *cfg, uint64_t *ret_ram, uint64_t *ret_stored, struct err *e) {
        struct snap_writer_params params = { .codec = cfg->codec, .level = cfg->level };
        cleanup_fd int memory = -1, dir = -1;
        char name[sizeof(SNAP_FILE_MEMORY) + ID_LEN + 8];
        struct snap_writer_stats stats;
        id_str id;
        int r;

        r = open_memory(cfg->memory, &memory, &params.ram_bytes, e);
        if (r < 0)
                return r;
        r = io_mkdir_p(cfg->snapshot, 0700);
        if (r == 0) {
                dir = open(cfg->snapshot, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                r = dir < 0 ? -errno : 0;
        }
        if (r < 0)
                return err_errno(e, r, "opening the directory %s", cfg->snapshot);
        if (faccessat(dir, SNAP_FILE_MEMORY, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
                return err_set(e, ERR_EXISTS, -EEXIST, "%s has a %s already", cfg->snapshot, SNAP_FILE_MEMORY);
        id_new(id);
        (void) snprintf(name, sizeof(name), "%s.tmp-%s", SNAP_FILE_MEMORY, id);
        r = write_image(dir, name, memory, &params, &stats);
        if (r == 0)
                r = io_publish(dir, name, SNAP_FILE_MEMORY, true);
        if (r < 0) {
                (void) unlinkat(dir, name, 0);
                return err_errno(e, r, "writing %s/%s", cfg->snapshot, SNAP_FILE_MEMORY);
        }
        *ret_ram = params.ram_bytes;
        *ret_stored = stats.file_bytes;
        return 0;
}
