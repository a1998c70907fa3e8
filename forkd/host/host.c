/* SPDX-License-Identifier: MIT */
#include "forkd/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/cgroup_dir.h"
#include "common/io.h"

#define MAX_MOUNTINFO (4u << 20)
#define MAX_FILE 65536u

/* A group and those above it, up to the mount. */
struct group {
        char *dir; /* NULL: none */
        size_t mount_len;
};

struct host {
        char *root;
        struct group v2, memory, pids; /* cgroup v2, and the controllers of version 1 */
};

static char *read_text(const char *root, const char *path, size_t max) {
        char full[PATH_MAX], *text = NULL;

        if ((size_t) snprintf(full, sizeof(full), "%s%s", root, path) >= sizeof(full) ||
            io_read_file(AT_FDCWD, full, max, &text, NULL) < 0)
                return NULL;
        return text;
}

/* Where VMMs can be given a group of their own they do not live in forkd's: they live below the mount. */
static int use_instance_group(struct group *g, const char *instance) {
        cleanup_free char *own = TAKE_PTR(g->dir);

        own[g->mount_len] = '\0';
        if (asprintf(&g->dir, "%s/forkd-%s", own, instance) < 0) {
                g->dir = NULL;
                return -ENOMEM;
        }
        return 0;
}

static int find_groups(struct host *h, const char *instance) {
        cleanup_free char *mounts = read_text(h->root, "/proc/self/mountinfo", MAX_MOUNTINFO),
                          *groups = read_text(h->root, "/proc/self/cgroup", MAX_FILE);
        char mount[PATH_MAX];
        int r;

        if (!mounts || !groups)
                return 0;
        r = cgroup_dir_parse(h->root, mounts, groups, NULL, &h->v2.dir, &h->v2.mount_len);
        if (r == 0)
                r = cgroup_dir_parse(h->root, mounts, groups, "memory", &h->memory.dir, &h->memory.mount_len);
        if (r == 0)
                r = cgroup_dir_parse(h->root, mounts, groups, "pids", &h->pids.dir, &h->pids.mount_len);
        if (r < 0 || !h->v2.dir)
                return r;
        (void) snprintf(mount, sizeof(mount), "%.*s", (int) h->v2.mount_len, h->v2.dir);
        return access(mount, W_OK) == 0 ? use_instance_group(&h->v2, instance) : 0;
}

int host_new(const char *root, const char *instance, struct host **ret) {
        struct host *h = calloc(1, sizeof(*h));
        int r = h ? 0 : -ENOMEM;

        if (r == 0 && !(h->root = strdup(root)))
                r = -ENOMEM;
        if (r == 0)
                r = find_groups(h, instance);
        if (r < 0) {
                host_free(h);
                return r;
        }
        *ret = h;
        return 0;
}

void host_free(struct host *h) {
        if (!h)
                return;
        free(h->v2.dir);
        free(h->memory.dir);
        free(h->pids.dir);
        free(h->root);
        free(h);
}

/* ---- files of one number ---- */

/* "max", and what is not there, is UINT64_MAX. */
static uint64_t file_number(const char *dir, const char *name) {
        cleanup_free char *text = NULL;
        char path[PATH_MAX];
        uint64_t v;

        if ((size_t) snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path) ||
            io_read_file(AT_FDCWD, path, MAX_FILE, &text, NULL) < 0 || sscanf(text, "%" SCNu64, &v) != 1)
                return UINT64_MAX;
        return v;
}

/* The number behind @key, at the beginning of a line: "MemAvailable: 12 kB", "inactive_file 12". 0: not there. */
static uint64_t keyed(const char *text, const char *key) {
        size_t len = strlen(key);
        uint64_t v;

        for (const char *p = text; p && *p; p = strchr(p, '\n'), p = p ? p + 1 : NULL)
                if (strncmp(p, key, len) == 0 && sscanf(p + len, " %" SCNu64, &v) == 1)
                        return v;
        return 0;
}

/* ---- rooms ---- */

struct files {
        const char *max, *current;
        const char *cache; /* of memory.stat: clean pages of files, which the kernel gives back when it is asked; NULL */
};

static uint64_t room_in(const char *dir, const struct files *f) {
        uint64_t max = file_number(dir, f->max), used = file_number(dir, f->current), cache = 0;
        cleanup_free char *stat = NULL;

        if (max == UINT64_MAX || used == UINT64_MAX)
                return UINT64_MAX;
        if (f->cache && (stat = read_text(dir, "/memory.stat", MAX_FILE)))
                cache = keyed(stat, f->cache);
        used -= MIN_OF(cache, used);
        return max > used ? max - used : 0;
}

/* The least that a group or one above it has left. */
static uint64_t room_up(const struct group *g, const struct files *f) {
        cleanup_free char *dir = g->dir ? strdup(g->dir) : NULL;
        uint64_t least = UINT64_MAX;
        char *slash;

        while (dir) {
                least = MIN_OF(least, room_in(dir, f));
                slash = strlen(dir) > g->mount_len ? strrchr(dir, '/') : NULL;
                if (!slash || (size_t) (slash - dir) < g->mount_len)
                        break;
                *slash = '\0';
        }
        return least;
}

uint64_t host_memory(const struct host *h) {
        static const struct files v2 = { "memory.max", "memory.current", "inactive_file" },
                                  v1 = { "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file" };
        cleanup_free char *text = read_text(h->root, "/proc/meminfo", MAX_FILE);
        uint64_t kib = text ? keyed(text, "MemAvailable:") : 0;
        uint64_t room = kib > 0 ? kib * 1024 : UINT64_MAX;

        room = MIN_OF(room, room_up(&h->v2, &v2));
        return MIN_OF(room, room_up(&h->memory, &v1));
}

/* The fourth word of /proc/loadavg is "running/threads". */
static uint64_t threads(const struct host *h) {
        cleanup_free char *text = read_text(h->root, "/proc/loadavg", 4096);
        uint64_t n;

        return text && sscanf(text, "%*s %*s %*s %*u/%" SCNu64, &n) == 1 ? n : 0;
}

uint64_t host_pids(const struct host *h) {
        static const struct files files = { "pids.max", "pids.current", NULL };
        char kernel[PATH_MAX];
        uint64_t most, used = threads(h), room;

        (void) snprintf(kernel, sizeof(kernel), "%s/proc/sys/kernel", h->root);
        most = MIN_OF(file_number(kernel, "threads-max"), file_number(kernel, "pid_max"));
        room = most == UINT64_MAX ? most : most > used ? most - used : 0;
        room = MIN_OF(room, room_up(&h->v2, &files));
        return MIN_OF(room, room_up(&h->pids, &files));
}

uint64_t host_disk(const char *path) {
        uint64_t have;

        return io_free_bytes(path, &have) < 0 ? UINT64_MAX : have;
}

uint64_t host_private_bytes(const struct host *h, int pid) {
        uint64_t resident, shared;
        cleanup_free char *text = NULL;
        char path[64];

        (void) snprintf(path, sizeof(path), "/proc/%d/statm", pid);
        text = read_text(h->root, path, 4096);
        if (!text || sscanf(text, "%*u %" SCNu64 " %" SCNu64, &resident, &shared) != 2 || shared > resident)
                return 0;
        return (resident - shared) * (uint64_t) sysconf(_SC_PAGESIZE);
}

uint64_t host_descriptors(void) {
        struct rlimit files;

        return getrlimit(RLIMIT_NOFILE, &files) < 0 ? UINT64_MAX : files.rlim_cur;
}
