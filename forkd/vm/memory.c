/* SPDX-License-Identifier: MIT */
/* Guest RAM is a private mapping: of it a VM has for itself what is anonymous, and the rest is the image's. Of everything else
 * in the process it is the same, but that the kernel has counted it already. */
#include "forkd/vm/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "common/pagemap.h"
#include "forkd/vm/vm.h"

#define MAX_REGIONS 64
#define MAX_STATUS 16384

static uint64_t kib_of(const char *status, const char *key) {
        const char *p = strstr(status, key);
        unsigned long long kib = 0;

        return p && sscanf(p + strlen(key), "%llu", &kib) == 1 ? kib * 1024 : 0;
}

int vm_memory_of(pid_t pid, uint64_t *ret) {
        cleanup_free char *status = NULL;
        char path[64];
        int r;

        (void) snprintf(path, sizeof(path), "/proc/%d/status", (int) pid);
        r = io_read_file(AT_FDCWD, path, MAX_STATUS, &status, NULL);
        if (r < 0)
                return r == -ENOENT ? -ESRCH : r;
        *ret = kib_of(status, "\nRssAnon:") + kib_of(status, "\nVmSwap:");
        return 0;
}

static int add_run(uint64_t addr, uint64_t n, void *arg) {
        uint64_t *pages = arg;

        *pages += n;
        return 0;
}

static int guest_pages(const struct vm *vm, uint64_t *ret) {
        struct vmm_region regions[MAX_REGIONS];
        cleanup_fd int fd = -1;
        uint64_t pages = 0;
        char path[64];
        struct err ignored;
        size_t n = 0;
        int r;

        r = vm->ops->ram_regions(vm->vmm, regions, MAX_REGIONS, &n, &ignored);
        if (r < 0)
                return r;
        (void) snprintf(path, sizeof(path), "/proc/%d/pagemap", (int) vm->pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return errno == ENOENT ? -ESRCH : -errno;
        for (size_t i = 0; r == 0 && i < n; i++)
                r = pagemap_anonymous(fd, PAGEMAP_ANY, regions[i].host_addr, regions[i].host_addr + regions[i].size, add_run,
                                      &pages);
        if (r < 0)
                return r;
        *ret = pages;
        return 0;
}

int vm_memory(const struct vm *vm, struct vm_memory *ret) {
        uint64_t all, pages;
        int r;

        if (!vm->vmm || vm->vmm_exited || vm->pid <= 0)
                return -ESRCH;
        r = guest_pages(vm, &pages);
        if (r == 0)
                r = vm_memory_of(vm->pid, &all);
        if (r < 0)
                return r;
        ret->guest = pages * PAGEMAP_PAGE;
        ret->vmm = all > ret->guest ? all - ret->guest : 0;
        return 0;
}
