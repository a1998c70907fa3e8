/* SPDX-License-Identifier: MIT */
/* libfloor-map: the least that turns a RAM file in tmpfs into a clone's memory. Preloaded into QEMU in the place
 * of libuffd-attach, it maps the file private where QEMU would have mapped its dummy, and does nothing else: no
 * userfaultfd, no pager, no checks. What a fork costs with it is the floor that forkd is measured against.
 *
 * The environment is the same as libuffd-attach's (docs/protocol.md): FORKD_ATTACH_RAM_FD is the dummy,
 * FORKD_ATTACH_SOCK_FD is no session's socket but the RAM file, FORKD_ATTACH_LAYOUT_FD gets the line that tells where
 * it is. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

static int ram_fd = -1, image_fd = -1, layout_fd = -1;
static struct stat ram;

static int env_fd(const char *name) {
        const char *s = getenv(name);

        return s ? atoi(s) : -1;
}

__attribute__((constructor)) static void floor_arm(void) {
        ram_fd = env_fd("FORKD_ATTACH_RAM_FD");
        image_fd = env_fd("FORKD_ATTACH_SOCK_FD");
        layout_fd = env_fd("FORKD_ATTACH_LAYOUT_FD");
        if (ram_fd < 0 || image_fd < 0 || fstat(ram_fd, &ram) < 0) {
                (void) dprintf(STDERR_FILENO, "floor-map: no RAM file was passed\n");
                _exit(97);
        }
}

static void *map(void *addr, size_t len, int prot, int flags, int fd, off_t off) {
        return (void *) syscall(SYS_mmap, addr, len, prot, flags, fd, off);
}

static void *map_guest_ram(void *addr, size_t len, int prot, int flags) {
        void *p = map(addr, len, prot, MAP_PRIVATE | MAP_NORESERVE | (flags & MAP_FIXED), image_fd, 0);

        if (p != MAP_FAILED && layout_fd >= 0)
                (void) dprintf(layout_fd, "{\"host_addr\":%ju,\"size\":%zu,\"offset\":0}\n", (uintmax_t) (uintptr_t) p, len);
        return p;
}

EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off) {
        int saved = errno;
        struct stat st;

        if (fd < 0 || flags & MAP_ANONYMOUS)
                return map(addr, len, prot, flags, fd, off);
        if (fstat(fd, &st) == 0 && st.st_dev == ram.st_dev && st.st_ino == ram.st_ino)
                return map_guest_ram(addr, len, prot, flags);
        errno = saved;
        return map(addr, len, prot, flags, fd, off);
}

EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off) {
        return mmap(addr, len, prot, flags, fd, off);
}
