/* SPDX-License-Identifier: MIT */
/* Theory of operation. /proc/self/mountinfo tells where a hierarchy is mounted and which part of it (the mount's
 * root), /proc/self/cgroup which group is ours; the mount's root is taken off the front of the group's path. In a
 * container whose group lies outside of what is mounted, the mount point itself is the best there is. */
#include "common/cgroup_dir.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/** "31 23 0:28 ROOT MOUNT rw,relatime shared:1 - cgroup2 cgroup2 rw": the v2 hierarchy, or that of the v1 controller @v1.
 *  *ret_… point into @line, which is taken apart. */
static bool parse_mount(char *line, const char *v1, char **ret_root, char **ret_mount) {
        char *sep = strstr(line, " - "), *save, *type, *options, *field[5];

        if (!sep)
                return false;
        *sep = '\0';
        type = strtok_r(sep + 3, " ", &save);
        if (!type || strcmp(type, v1 ? "cgroup" : "cgroup2") != 0)
                return false;
        if (v1 && (!strtok_r(NULL, " ", &save) || !(options = strtok_r(NULL, " ", &save)) || !has_option(options, v1)))
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
static char *find_group(char *text, const char *v1) {
        char *save;

        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;

                if (!path)
                        continue;
                *path++ = '\0';
                if (v1 ? has_option(controllers + 1, v1) : strcmp(line, "0:") == 0 || strcmp(line, "0::") == 0)
                        return path;
        }
        return NULL;
}

int cgroup_dir_parse(const char *root, const char *mounts, const char *groups, const char *v1, char **ret,
                     size_t *ret_mount_len) {
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
