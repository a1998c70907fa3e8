/* SPDX-License-Identifier: MIT */
/* Finding the assets. Making them is in assets_build.c, which forkd does not need. */
#include "setup/assets.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/ids.h"
#include "common/io.h"
#include "setup/assets_build.h"

#define INFO_MAX_BYTES (64u << 10)

const char *assets_cache_dir(void) {
        const char *dir = getenv("FORKD_CACHE_DIR");

        return dir && *dir ? dir : ASSETS_CACHE_DEFAULT;
}

static bool whole_file(const char *path, json_int_t size) {
        struct stat st;

        return stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == size && size > 0;
}

int assets_read(const char *cache_dir, const char *id, struct assets *ret) {
        cleanup_free char *text = NULL;
        struct assets a = { 0 };
        char path[PATH_MAX];
        json_int_t kernel_bytes, initrd_bytes;
        const char *release;
        uint8_t raw[ASSETS_ID_LEN / 2];
        size_t len;

        if (hex_decode(id, raw, sizeof(raw)) < 0 || strlen(cache_dir) > ASSETS_MAX_PATH - 64)
                return -EINVAL;
        (void) snprintf(a.id, sizeof(a.id), "%s", id);
        (void) snprintf(a.dir, sizeof(a.dir), "%s/assets/%s", cache_dir, id);
        (void) snprintf(a.kernel, sizeof(a.kernel), "%s/assets/%s/" ASSETS_KERNEL, cache_dir, id);
        (void) snprintf(a.initrd, sizeof(a.initrd), "%s/assets/%s/" ASSETS_INITRD, cache_dir, id);
        (void) snprintf(path, sizeof(path), "%s/" ASSETS_INFO, a.dir);
        int r = io_read_file(AT_FDCWD, path, INFO_MAX_BYTES, &text, &len);
        if (r < 0)
                return r;

        json_t *info = json_loadb(text, len, 0, NULL);
        if (json_unpack(info, "{s:s, s:I, s:I}", "release", &release, "kernel_bytes", &kernel_bytes, "initrd_bytes",
                        &initrd_bytes) < 0 ||
            strlen(release) >= sizeof(a.release) || !whole_file(a.kernel, kernel_bytes) || !whole_file(a.initrd, initrd_bytes))
                r = -EBADMSG;
        else
                (void) snprintf(a.release, sizeof(a.release), "%s", release);
        json_decref(info);
        if (r == 0)
                *ret = a;
        return r;
}

int assets_locate(const char *cache_dir, struct assets *ret, struct err *e) {
        char link[PATH_MAX], target[ASSETS_ID_LEN + 64];
        int r;

        (void) snprintf(link, sizeof(link), "%s/" ASSETS_CURRENT, cache_dir);
        ssize_t n = readlink(link, target, sizeof(target) - 1);
        if (n < 0) {
                r = -errno;
        } else {
                target[n] = '\0';
                r = strncmp(target, "assets/", 7) == 0 ? assets_read(cache_dir, target + 7, ret) : -EBADMSG;
        }
        if (r == 0)
                return 0;
        if (r == -EACCES)
                return err_errno(e, r, "cannot read the guest assets in %s", cache_dir);
        /* Half there counts as missing: setup repairs it. */
        return err_set(e, ERR_ASSETS, -ENOENT, "guest assets missing: run 'forkctl setup' first, or pass --setup");
}
