/* SPDX-License-Identifier: MIT */
#include "pager/memcg.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>

#include "common/cgroup_dir.h"
#include "common/io.h"

#define MAX_MOUNTINFO (4u << 20)
#define MAX_CGROUP_FILE (64u << 10)

static int read_text(const char *dir, const char *name, size_t max, char **ret) {
        char path[PATH_MAX];

        if ((size_t) snprintf(path, sizeof(path), "%s%s", dir, name) >= sizeof(path))
                return -ENAMETOOLONG;
        return io_read_file(AT_FDCWD, path, max, ret, NULL);
}

/* The same below the directory @fd, if there is one (> 0), which is the first @skip characters of @dir. */
static int read_below(int fd, size_t skip, const char *dir, const char *name, char **ret) {
        char path[PATH_MAX];

        if (fd <= 0)
                return read_text(dir, name, MAX_CGROUP_FILE, ret);
        if ((size_t) snprintf(path, sizeof(path), ".%s%s", dir + skip, name) >= sizeof(path))
                return -ENAMETOOLONG;
        return io_read_file(fd, path, MAX_CGROUP_FILE, ret, NULL);
}

static int open_dir(const char *path, size_t len) {
        char dir[PATH_MAX];

        if (!path || (size_t) snprintf(dir, sizeof(dir), "%.*s", (int) len, path) >= sizeof(dir))
                return -1;
        return open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

int pager_memcg_parse(const char *root, const char *mounts, const char *groups, struct pager_memcg *ret) {
        size_t v1_mount_len;
        int r;

        *ret = (struct pager_memcg){ 0 };
        r = cgroup_dir_parse(root, mounts, groups, NULL, &ret->v2, &ret->v2_mount_len);
        return r < 0 ? r : cgroup_dir_parse(root, mounts, groups, "memory", &ret->v1, &v1_mount_len);
}

int pager_memcg_find(const char *root, struct pager_memcg *ret) {
        cleanup_free char *mounts = NULL, *groups = NULL;
        int r;

        *ret = (struct pager_memcg){ 0 };
        if (read_text(root, "/proc/self/mountinfo", MAX_MOUNTINFO, &mounts) < 0 ||
            read_text(root, "/proc/self/cgroup", MAX_CGROUP_FILE, &groups) < 0)
                return 0;
        r = pager_memcg_parse(root, mounts, groups, ret);
        ret->v2_mount_fd = open_dir(ret->v2, ret->v2_mount_len);
        ret->v1_fd = open_dir(ret->v1, ret->v1 ? strlen(ret->v1) : 0);
        return r;
}

void pager_memcg_clear(struct pager_memcg *m) {
        free(m->v2);
        free(m->v1);
        if (m->v2_mount_fd > 0)
                (void) close_fd(m->v2_mount_fd);
        if (m->v1_fd > 0)
                (void) close_fd(m->v1_fd);
        *m = (struct pager_memcg){ 0 };
}

/** The number that @text begins with; "max" and all that is no number are UINT64_MAX. */
static uint64_t number(const char *text) {
        unsigned long long v;
        char *end;

        if (text[0] < '0' || text[0] > '9')
                return UINT64_MAX;
        errno = 0;
        v = strtoull(text, &end, 10);
        return errno || (*end != '\n' && *end != '\0') ? UINT64_MAX : v;
}

static uint64_t v2_number(const struct pager_memcg *m, const char *dir, const char *name) {
        cleanup_free char *text = NULL;

        return read_below(m->v2_mount_fd, m->v2_mount_len, dir, name, &text) < 0 ? UINT64_MAX : number(text);
}

uint64_t pager_memcg_limit(const struct pager_memcg *m) {
        static const char key[] = "hierarchical_memory_limit ";
        cleanup_free char *dir = m->v2 ? strdup(m->v2) : NULL, *stat = NULL;
        uint64_t limit = UINT64_MAX;

        while (dir && strlen(dir) >= m->v2_mount_len) { /* a container's own group is the mount's root */
                uint64_t max = v2_number(m, dir, "/memory.max"), high = v2_number(m, dir, "/memory.high");

                limit = MIN_OF(limit, MIN_OF(max, high));
                *strrchr(dir, '/') = '\0';
        }
        if (m->v1 && read_below(m->v1_fd, strlen(m->v1), m->v1, "/memory.stat", &stat) == 0) {
                const char *line = strstr(stat, key);

                if (line)
                        limit = MIN_OF(limit, number(line + sizeof(key) - 1));
        }
        return limit;
}
