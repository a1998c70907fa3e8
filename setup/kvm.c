/* SPDX-License-Identifier: MIT */
/* The verdict on KVM and its cache: <cache>/kvm.json, one record, good for one boot of the host, one QEMU and
 * one set of assets. A device node proves nothing: there are hosts whose /dev/kvm opens and runs a toy guest
 * but not Linux. So the assets are really booted, once. A missing /dev/kvm is told without a cache. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/io.h"
#include "forkd/vmm/vmm.h"
#include "setup/setup.h"

#define KVM_CACHE_FILE "kvm.json"
#define KVM_CACHE_MAX (16u << 10)
#define KEY_MAX 256

/* "boot id/QEMU version/assets id" */
static int make_key(const struct assets *a, char *key, size_t size, struct err *e) {
        cleanup_free char *boot = NULL;
        char version[64];
        size_t len;

        int r = vmm_qemu.version(version, sizeof(version), e);
        if (r < 0)
                return r;
        r = io_read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &boot, &len);
        if (r < 0)
                return err_errno(e, r, "cannot read this boot's id");
        boot[strcspn(boot, "\n")] = '\0';
        (void) snprintf(key, size, "%s/%s/%s", boot, version, a->id);
        return 0;
}

static int cache_read(const char *cache_dir, const char *key, struct err *e) {
        char path[PATH_MAX];
        cleanup_free char *text = NULL;
        size_t len;
        const char *k, *reason;
        int works, r = -ENODATA;

        (void) snprintf(path, sizeof(path), "%s/" KVM_CACHE_FILE, cache_dir);
        if (io_read_file(AT_FDCWD, path, KVM_CACHE_MAX, &text, &len) < 0)
                return r;
        json_t *j = json_loadb(text, len, 0, NULL);
        if (json_unpack(j, "{s:s, s:b, s:s}", "key", &k, "works", &works, "reason", &reason) == 0 && strcmp(k, key) == 0) {
                if (!works)
                        err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "%.300s", reason);
                r = works != 0;
        }
        json_decref(j);
        return r;
}

/* Best effort: without a cache the next one tries again. */
static void cache_write(const char *cache_dir, const char *key, bool works, const char *reason) {
        char path[PATH_MAX];
        json_t *j = json_pack("{s:s, s:b, s:s}", "key", key, "works", works, "reason", reason);
        cleanup_free char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;

        json_decref(j);
        (void) snprintf(path, sizeof(path), "%s/" KVM_CACHE_FILE, cache_dir);
        if (text && io_write_file_atomic(AT_FDCWD, path, text, strlen(text), 0644, false) < 0)
                return;
}

/* 1 when the device is there and speaks our API. */
static int device_works(struct err *e) {
        cleanup_fd int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

        if (fd < 0) {
                int r = -errno;
                err_errno(e, r, "cannot open /dev/kvm");
                return 0;
        }
        int version = ioctl(fd, KVM_GET_API_VERSION, 0);
        if (version != KVM_API_VERSION) {
                err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "/dev/kvm has API version %d instead of %d", version, KVM_API_VERSION);
                return 0;
        }
        return 1;
}

int setup_kvm_verdict(const char *cache_dir, int timeout_ms, struct err *e) {
        struct err why = { 0 };
        struct assets a;
        char key[KEY_MAX];

        int r = device_works(e);
        if (r == 0)
                return 0;
        r = assets_locate(cache_dir, &a, e);
        if (r == 0)
                r = make_key(&a, key, sizeof(key), e);
        if (r < 0)
                return r;
        r = cache_read(cache_dir, key, e);
        if (r != -ENODATA)
                return r;
        if (timeout_ms == 0)
                return err_set(e, ERR_STATE, -ENODATA, "KVM was not tried on this host yet");

        r = vmm_kvm_probe(a.kernel, a.initrd, timeout_ms, &why);
        if (r < 0) {
                if (e)
                        *e = why;
                return r;
        }
        cache_write(cache_dir, key, r > 0, r > 0 ? "" : why.message);
        if (r == 0 && e)
                *e = why;
        return r;
}
