/* SPDX-License-Identifier: MIT */
/* /proc/self/mountinfo and /proc/self/cgroup, whose names people choose: whatever they say, a group is looked for below
 * what is mounted, and nowhere else. The input is the one, a NUL, and the other. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pager/memcg.h"

#define ROOT "/fuzz"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* abort, not assert: a build with NDEBUG must find things too */
static void must(int ok) {
        if (!ok)
                abort();
}

/** What stands behind the mount point leads nowhere else. */
static void check(const char *dir, size_t mount_len) {
        size_t len = strlen(dir);

        must(mount_len <= len && (dir[mount_len] == '/' || dir[mount_len] == '\0'));
        must(!strstr(dir + mount_len, "/../"));
        must(len < 3 || strcmp(dir + len - 3, "/..") != 0 || mount_len == len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        char *text = malloc(size + 2);
        struct pager_memcg m;

        must(text != NULL);
        if (size > 0)
                memcpy(text, data, size);
        text[size] = text[size + 1] = '\0';
        must(pager_memcg_parse(ROOT, text, text + strlen(text) + 1, &m) == 0);
        must(!m.v2 || strncmp(m.v2, ROOT, strlen(ROOT)) == 0);
        must(!m.v1 || strncmp(m.v1, ROOT, strlen(ROOT)) == 0);
        if (m.v2)
                check(m.v2, m.v2_mount_len);
        pager_memcg_clear(&m);
        free(text);
        return 0;
}
