/* SPDX-License-Identifier: MIT */
#include "tests/bench/uffd_bench/proc.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/ids.h"
#include "common/io.h"

#define MAX_PROC_FILE (4u << 20)

static int read_proc(const char *path, char **ret, struct err *e) {
        size_t len;
        int r = io_read_file(AT_FDCWD, path, MAX_PROC_FILE, ret, &len);

        return r < 0 ? err_errno(e, r, "reading %s", path) : 0;
}

/** The number behind the line that begins with @key, which ends in ':', in kB. */
static bool find_kb(const char *text, const char *key, uint64_t *ret_bytes) {
        size_t len = strlen(key);

        for (const char *line = text; line; line = strchr(line, '\n')) {
                if (*line == '\n')
                        line++;
                if (strncmp(line, key, len) == 0) {
                        *ret_bytes = strtoull(line + len, NULL, 10) * 1024;
                        return true;
                }
        }
        return false;
}

int bench_cpu_ns(pid_t pid, uint64_t *ret, struct err *e) {
        char path[64 + NAME_MAX_LEN];
        uint64_t sum = 0;
        struct dirent *d;
        DIR *dir;
        int r = 0;

        (void) snprintf(path, sizeof(path), "/proc/%d/task", (int) pid);
        dir = opendir(path);
        if (!dir)
                return err_errno(e, -errno, "reading %s", path);
        while (r == 0 && (d = readdir(dir))) {
                cleanup_free char *text = NULL;

                if (!isdigit((unsigned char) d->d_name[0]))
                        continue;
                (void) snprintf(path, sizeof(path), "/proc/%d/task/%.20s/schedstat", (int) pid, d->d_name);
                r = read_proc(path, &text, e);
                if (r == 0)
                        sum += strtoull(text, NULL, 10);
        }
        (void) closedir(dir);
        if (r == 0)
                *ret = sum;
        return r;
}

int bench_memory_of(pid_t pid, struct bench_memory_use *ret, struct err *e) {
        cleanup_free char *rollup = NULL, *status = NULL;
        struct bench_memory_use m;
        char path[64];
        int r;

        (void) snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int) pid);
        r = read_proc(path, &rollup, e);
        if (r < 0)
                return r;
        (void) snprintf(path, sizeof(path), "/proc/%d/status", (int) pid);
        r = read_proc(path, &status, e);
        if (r < 0)
                return r;
        if (!find_kb(rollup, "Pss:", &m.pss) || !find_kb(rollup, "Pss_Shmem:", &m.pss_shmem) ||
            !find_kb(rollup, "Anonymous:", &m.private_anon) || !find_kb(status, "VmPTE:", &m.page_tables))
                return err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "this kernel does not tell the memory of process %d", (int) pid);
        *ret = m;
        return 0;
}

int bench_mapping_of(pid_t pid, uint64_t addr, uint64_t *ret_pss, uint64_t *ret_anon, struct err *e) {
        cleanup_free char *text = NULL;
        char path[64], head[32];
        const char *at;
        int r;

        (void) snprintf(path, sizeof(path), "/proc/%d/smaps", (int) pid);
        r = read_proc(path, &text, e);
        if (r < 0)
                return r;
        (void) snprintf(head, sizeof(head), "\n%llx-", (unsigned long long) addr);
        at = strstr(text, head);
        if (!at && strncmp(text, head + 1, strlen(head + 1)) == 0)
                at = text;
        if (!at || !find_kb(at, "Pss:", ret_pss) || !find_kb(at, "Anonymous:", ret_anon))
                return err_set(e, ERR_INTERNAL, -ENOENT, "process %d has no mapping at %llx", (int) pid,
                               (unsigned long long) addr);
        return 0;
}

int bench_available_bytes(uint64_t *ret, struct err *e) {
        cleanup_free char *text = NULL;
        int r = read_proc("/proc/meminfo", &text, e);

        if (r < 0)
                return r;
        return find_kb(text, "MemAvailable:", ret) ? 0
                                                   : err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "no MemAvailable in /proc/meminfo");
}

int bench_need_memory(uint64_t bytes, const char *what, struct err *e) {
        char want[32], have[32];
        uint64_t available;
        int r = bench_available_bytes(&available, e);

        if (r < 0)
                return r;
        /* What is left is for the kernel's own tables and for those who share the host. */
        if (bytes > available - available / 16)
                return err_set(e, ERR_NO_SPACE, -ENOSPC, "%s takes %s of memory, and %s are available", what,
                               size_format(bytes, want, sizeof(want)), size_format(available, have, sizeof(have)));
        return 0;
}

int bench_warm_memory(uint64_t bytes, struct err *e) {
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (p == MAP_FAILED)
                return err_errno(e, -errno, "mapping memory to warm it");
        /* Small pages, as what is measured uses them. */
        (void) madvise(p, bytes, MADV_NOHUGEPAGE);
        for (uint64_t at = 0; at < bytes; at += 4096)
                ((volatile uint8_t *) p)[at] = 1;
        (void) munmap(p, bytes);
        return 0;
}
