/* SPDX-License-Identifier: MIT */
/* Programs, disks, memory and limits. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/loop.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "common/ids.h"
#include "common/io.h"
#include "forkd/vmm/vmm.h"
#include "setup/doctor_internal.h"
#include "setup/run.h"
#include "setup/setup.h"
#include "setup/space.h"

#define FREE_STORE_WARN (2ull << 30)  /* a few guests' snapshots */
#define FREE_MEMORY_WARN (1ull << 30) /* an image of 256 MiB and some QEMUs of 30 MiB each */
#define MAP_COUNT_WARN 65530          /* the kernel's own default; a pager maps some areas for each session */
#define OPEN_FILES_WARN 4096          /* about 10 descriptors for each VM, in forkd and in the pager */

void doctor_qemu(struct doctor_report *rep) {
        static const char *const hint = "apt-get install qemu-system-x86";
        struct err e = { 0 };
        char version[64];

        if (vmm_qemu.version(version, sizeof(version), &e) < 0)
                doctor_add(rep, "qemu", DOCTOR_FAIL, e.hint[0] ? e.hint : hint, "%.180s; it runs the guests", e.message);
        else if (strtol(version, NULL, 10) < 7)
                doctor_add(rep, "qemu", DOCTOR_FAIL, hint, "version %s is too old, 7.2 or newer runs the guests", version);
        else
                doctor_add(rep, "qemu", DOCTOR_OK, "", "version %s; it runs the guests", version);
}

void doctor_accel(struct doctor_report *rep, const struct doctor_params *p) {
        struct err e = { 0 };
        struct assets a;

        int r = setup_kvm_verdict(p->cache_dir, p->kvm_timeout_ms, &e);
        if (r > 0)
                doctor_add(rep, "kvm", DOCTOR_OK, "", "a Linux guest boots under KVM; guests run at full speed");
        else if (r < 0 && assets_locate(p->cache_dir, &a, NULL) < 0)
                doctor_add(rep, "kvm", DOCTOR_WARN, "run 'forkctl setup', which tries it",
                           "/dev/kvm opens, but without guest assets it cannot be tried; guests would run at full speed");
        else
                doctor_add(rep, "kvm", DOCTOR_WARN,
                           "not needed; for speed enable virtualization in the firmware, or "
                           "nested virtualization of the host's own hypervisor",
                           "%.150s; guests run under TCG instead", e.message);
        /* QEMU's own emulation needs nothing of the host; that QEMU has it was asked with its version. */
        doctor_add(rep, "tcg", DOCTOR_OK, "", "QEMU's emulation always works%s",
                   r > 0 ? "" : "; slower than KVM, snapshots and forks are as fast");
}

void doctor_assets(struct doctor_report *rep, const struct doctor_params *p) {
        struct assets a;

        if (assets_locate(p->cache_dir, &a, NULL) < 0)
                doctor_add(rep, "assets", DOCTOR_FAIL, "forkctl setup", "no guest kernel and initramfs in %.120s", p->cache_dir);
        else
                doctor_add(rep, "assets", DOCTOR_OK, "", "guest kernel %s and initramfs in %.120s", a.release, a.dir);

        char path[64];
        if (run_find("busybox", path, sizeof(path)) == 0)
                doctor_add(rep, "busybox", DOCTOR_OK, "", "%s; the guests' user space is made of it", path);
        else
                doctor_add(rep, "busybox", DOCTOR_WARN, "apt-get install busybox-static",
                           "not installed; setup makes the guests' user space of it");
}

void doctor_store(struct doctor_report *rep, const struct doctor_params *p) {
        struct store_info info;
        struct err e = { 0 };
        char size[32];

        if (store_inspect(p->state_dir, &info, &e) < 0) {
                doctor_add(rep, "reflink", DOCTOR_WARN, "run as root", "%.200s", e.message);
                return;
        }
        switch (info.kind) {
        case STORE_NATIVE:
                doctor_add(rep, "reflink", DOCTOR_OK, "",
                           "%.120s is on a file system with reflink; snapshots share their extents", info.path);
                return;
        case STORE_LOOP:
                doctor_add(rep, "reflink", info.reflink ? DOCTOR_OK : DOCTOR_WARN, "remove store.img and run 'forkctl setup'",
                           "store.img of %s, %s; snapshots share their extents", size_format(info.size_bytes, size, sizeof(size)),
                           info.attached ? "mounted" : "forkd mounts it");
                return;
        case STORE_COPYING:
                doctor_add(rep, "reflink", DOCTOR_WARN,
                           "stop forkd, move the store's content away, run 'forkctl setup', move it back",
                           "%.120s has no reflink: every snapshot copies its parent's", info.path);
                return;
        case STORE_NONE:
                doctor_add(rep, "reflink", DOCTOR_WARN, "forkctl setup",
                           "no store yet in %.100s (%s reflink there); snapshots "
                           "share extents in it",
                           p->state_dir, info.reflink ? "the file system has" : "no");
                return;
        }
}

void doctor_loop(struct doctor_report *rep) {
        cleanup_fd int fd = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
        int nr = fd < 0 ? -1 : ioctl(fd, LOOP_CTL_GET_FREE);

        if (nr >= 0)
                doctor_add(rep, "loop", DOCTOR_OK, "", "/dev/loop%d is free; a store that is a file is mounted by one", nr);
        else
                doctor_add(rep, "loop", DOCTOR_WARN,
                           "run as root, load the module 'loop'; not needed where the state "
                           "directory's own file system has reflink",
                           "/dev/loop-control: %s", strerror(errno));
}

static void space_of(struct doctor_report *rep, const char *name, const char *path, const char *purpose) {
        char where[512], text[32];
        uint64_t bytes;

        int r = space_existing_parent(path, where, sizeof(where));
        if (r == 0)
                r = io_free_bytes(where, &bytes);
        if (r < 0)
                doctor_add(rep, name, DOCTOR_WARN, "check the path", "%.120s: %s", path, strerror(-r));
        else
                doctor_add(rep, name, bytes < FREE_STORE_WARN ? DOCTOR_WARN : DOCTOR_OK, "delete what is not needed there",
                           "%s free in %.120s, for %s", size_format(bytes, text, sizeof(text)), where, purpose);
}

void doctor_space(struct doctor_report *rep, const struct doctor_params *p) {
        char store[PATH_MAX];

        (void) snprintf(store, sizeof(store), "%s/" STORE_DIR, p->state_dir);
        space_of(rep, "space-store", store, "snapshots and VM records");
        space_of(rep, "space-cache", p->cache_dir, "guest assets");
}

static int read_number(const char *path, const char *key, uint64_t *ret) {
        cleanup_fclose FILE *f = fopen(path, "re");
        char line[256];
        unsigned long long v;

        if (!f)
                return -errno;
        while (fgets(line, sizeof(line), f)) {
                size_t n = strlen(key);
                if (strncmp(line, key, n) == 0 && sscanf(line + n, "%llu", &v) == 1) {
                        *ret = v;
                        return 0;
                }
        }
        return -ENOENT;
}

void doctor_limits(struct doctor_report *rep) {
        struct rlimit lim;
        char text[32];
        uint64_t v;

        if (read_number("/proc/meminfo", "MemAvailable:", &v) == 0)
                doctor_add(rep, "memory", v * 1024 < FREE_MEMORY_WARN ? DOCTOR_WARN : DOCTOR_OK,
                           "end other programs, or use a host with more memory",
                           "%s available; a clone takes what it dirties and some 30 MiB of QEMU",
                           size_format(v * 1024, text, sizeof(text)));
        if (read_number("/proc/sys/vm/max_map_count", "", &v) == 0)
                doctor_add(rep, "max_map_count", v < MAP_COUNT_WARN ? DOCTOR_WARN : DOCTOR_OK, "sysctl vm.max_map_count=262144",
                           "%llu; the pager maps the memory of every image", (unsigned long long) v);
        if (getrlimit(RLIMIT_NOFILE, &lim) == 0)
                doctor_add(rep, "open-files", lim.rlim_max < OPEN_FILES_WARN ? DOCTOR_WARN : DOCTOR_OK,
                           "raise LimitNOFILE= of forkd's unit, or ulimit -Hn", "at most %llu; some ten for each VM",
                           (unsigned long long) lim.rlim_max);
}

/* Beside our own program in a build tree, or where they are installed; as forkd looks for them. */
static bool find_helper(const char *const *places, char *buf, size_t size) {
        char exe[PATH_MAX];

        ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
        if (n < 0)
                return false;
        exe[n] = '\0';
        *(strrchr(exe, '/') + 1) = '\0';
        for (; *places; places++)
                if ((size_t) snprintf(buf, size, "%s%s", exe, *places) < size && access(buf, R_OK) == 0)
                        return true;
        return false;
}

void doctor_programs(struct doctor_report *rep) {
        static const char *const pager[] = { "uffd-pager", "../libexec/forkd/uffd-pager", "../bin/uffd-pager", NULL };
        static const char *const attach[] = { "../lib/libuffd-attach.so", "../lib/forkd/libuffd-attach.so",
                                              "../" INSTALL_LIBDIR "/forkd/libuffd-attach.so", NULL };
        char path[PATH_MAX];

        if (find_helper(pager, path, sizeof(path)))
                doctor_add(rep, "uffd-pager", DOCTOR_OK, "", "%.160s; serves the guests' pages", path);
        else
                doctor_add(rep, "uffd-pager", DOCTOR_FAIL, "build or install forkd completely",
                           "not found beside this program; serves the guests' pages");
        if (find_helper(attach, path, sizeof(path)))
                doctor_add(rep, "libuffd-attach", DOCTOR_OK, "", "%.160s; connects QEMU to the pager", path);
        else
                doctor_add(rep, "libuffd-attach", DOCTOR_FAIL, "build or install forkd completely",
                           "libuffd-attach.so not found beside this program; connects QEMU to the pager");
}

void doctor_forkd(struct doctor_report *rep, const struct doctor_params *p) {
        cleanup_fd int fd = -1;

        int r = io_connect_unix(p->socket, &fd);
        if (r == 0)
                doctor_add(rep, "forkd", DOCTOR_OK, "", "accepts connections on %.160s", p->socket);
        else
                doctor_add(rep, "forkd", DOCTOR_WARN, "start forkd, or name its socket with --socket or FORKD_SOCKET",
                           "%.140s: %s", p->socket, strerror(-r));
}
