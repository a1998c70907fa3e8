/* SPDX-License-Identifier: MIT */
/* Theory of operation. /proc/self/mountinfo tells where a hierarchy is mounted and which part of it (the mount's
 * root), /proc/self/cgroup which group is ours; the mount's root is taken off the front of the group's path. In a
 * container whose group lies outside of what is mounted, the mount point itself is the best there is. */
#include "pager/memcg.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>

#include "common/io.h"

#define MAX_MOUNTINFO (4u << 20)
#define MAX_CGROUP_FILE (64u << 10)

static int read_text(const char *dir, const char *name, size_t max, char **ret) {
        char path[PATH_MAX];

        if ((size_t) snprintf(path, sizeof(path), "%s%s", dir, name) >= sizeof(path))
                return -ENAMETOOLONG;
        return io_read_file(AT_FDCWD, path, max, ret, NULL);
}

/* mountinfo escapes space, tab, newline and backslash as three octal digits. */
static void unescape(char *s) {
        char *w = s;

        for (; *s; s++) {
                if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' && s[3] >= '0' && s[3] <= '7') {
                        *w++ = (char) ((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
                        s += 3;
                } else {
                        *w++ = *s;
                }
        }
        *w = '\0';
}

/** Is @word one of the words between commas? */
static bool has_option(const char *list, const char *word) {
        size_t len = strlen(word);

        while (list) {
                if (strncmp(list, word, len) == 0 && (list[len] == ',' || list[len] == '\0'))
                        return true;
                list = strchr(list, ',');
                if (list)
                        list++;
        }
        return false;
}

/** "31 23 0:28 ROOT MOUNT rw,relatime shared:1 - cgroup2 cgroup2 rw": the v2 hierarchy, or with @v1 that of the
 *  controller "memory". *ret_… point into @line, which is taken apart. */
static bool parse_mount(char *line, bool v1, char **ret_root, char **ret_mount) {
        char *sep = strstr(line, " - "), *save, *type, *options, *field[5];

        if (!sep)
                return false;
        *sep = '\0';
        type = strtok_r(sep + 3, " ", &save);
        if (!type || strcmp(type, v1 ? "cgroup" : "cgroup2") != 0)
                return false;
        if (v1 && (!strtok_r(NULL, " ", &save) || !(options = strtok_r(NULL, " ", &save)) || !has_option(options, "memory")))
                return false;
        for (unsigned i = 0; i < 5; i++) {
                field[i] = strtok_r(i == 0 ? line : NULL, " ", &save);
                if (!field[i])
                        return false;
        }
        unescape(field[3]);
        unescape(field[4]);
        *ret_root = field[3];
        *ret_mount = field[4];
        return true;
}

/** Of /proc/self/cgroup, "5:cpu,memory:/path", v2: "0::/path". Takes @text apart; NULL: none. */
static char *find_group(char *text, bool v1) {
        char *save;

        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;

                if (!path)
                        continue;
                *path++ = '\0';
                if (v1 ? has_option(controllers + 1, "memory") : strcmp(line, "0:") == 0 || strcmp(line, "0::") == 0)
                        return path;
        }
        return NULL;
}

/** *ret stays NULL where there is none. */
static int find_dir(const char *root, const char *mounts, const char *groups, bool v1, char **ret, size_t *ret_mount_len) {
        cleanup_free char *m = strdup(mounts), *g = strdup(groups);
        char *save, *mount_root = NULL, *mount = NULL, *path;
        size_t len;
        int n;

        if (!m || !g)
                return -ENOMEM;
        for (char *line = strtok_r(m, "\n", &save); line && !mount; line = strtok_r(NULL, "\n", &save))
                if (!parse_mount(line, v1, &mount_root, &mount))
                        mount = NULL;
        path = find_group(g, v1);
        if (!mount || !path)
                return 0;
        len = strcmp(mount_root, "/") == 0 ? 0 : strlen(mount_root);
        if (strncmp(path, mount_root, len) == 0 && (path[len] == '/' || path[len] == '\0'))
                path += len;
        else
                path = (char *) "";
        if (strcmp(path, "/") == 0 || strstr(path, "/.."))
                path = (char *) "";
        n = asprintf(ret, "%s%s%s", root, mount, path);
        if (n < 0) {
                *ret = NULL;
                return -ENOMEM;
        }
        *ret_mount_len = (size_t) n - strlen(path);
        return 0;
}

int pager_memcg_parse(const char *root, const char *mounts, const char *groups, struct pager_memcg *ret) {
        size_t v1_mount_len;
        int r;

        *ret = (struct pager_memcg){ 0 };
        r = find_dir(root, mounts, groups, false, &ret->v2, &ret->v2_mount_len);
        return r < 0 ? r : find_dir(root, mounts, groups, true, &ret->v1, &v1_mount_len);
}

int pager_memcg_find(const char *root, struct pager_memcg *ret) {
        cleanup_free char *mounts = NULL, *groups = NULL;

        *ret = (struct pager_memcg){ 0 };
        if (read_text(root, "/proc/self/mountinfo", MAX_MOUNTINFO, &mounts) < 0 ||
            read_text(root, "/proc/self/cgroup", MAX_CGROUP_FILE, &groups) < 0)
                return 0;
        return pager_memcg_parse(root, mounts, groups, ret);
}

void pager_memcg_clear(struct pager_memcg *m) {
        free(m->v2);
        free(m->v1);
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

static uint64_t file_number(const char *dir, const char *name) {
        cleanup_free char *text = NULL;

        return read_text(dir, name, MAX_CGROUP_FILE, &text) < 0 ? UINT64_MAX : number(text);
}

uint64_t pager_memcg_limit(const struct pager_memcg *m) {
        static const char key[] = "hierarchical_memory_limit ";
        cleanup_free char *dir = m->v2 ? strdup(m->v2) : NULL, *stat = NULL;
        uint64_t limit = UINT64_MAX;

        while (dir && strlen(dir) >= m->v2_mount_len) { /* a container's own group is the mount's root */
                uint64_t max = file_number(dir, "/memory.max"), high = file_number(dir, "/memory.high");

                limit = MIN_OF(limit, MIN_OF(max, high));
                *strrchr(dir, '/') = '\0';
        }
        if (m->v1 && read_text(m->v1, "/memory.stat", MAX_CGROUP_FILE, &stat) == 0) {
                const char *line = strstr(stat, key);

                if (line)
                        limit = MIN_OF(limit, number(line + sizeof(key) - 1));
        }
        return limit;
}
