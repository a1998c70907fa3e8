/* SPDX-License-Identifier: MIT */
#include "forkd/host.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "common/ids.h"
#include "common/io.h"

static int mem_available(uint64_t *ret) {
        cleanup_free char *text = NULL;
        const char *p;
        uint64_t kib;
        int r = io_read_file(AT_FDCWD, "/proc/meminfo", 65536, &text, NULL);

        if (r < 0)
                return r;
        p = strstr(text, "MemAvailable:");
        if (!p || sscanf(p, "MemAvailable: %" SCNu64, &kib) != 1)
                return -ENODATA;
        *ret = kib * 1024;
        return 0;
}

int host_check_memory(uint64_t bytes, unsigned count, struct err *e) {
        uint64_t have, need = (bytes + HOST_VMM_OVERHEAD) * count;
        char a[32], b[32];

        if (mem_available(&have) < 0 || have >= need)
                return 0; /* a host that cannot tell is not refused */
        (void) err_set(e, ERR_NO_SPACE, -ENOMEM, "not enough memory: %s needed, %s available", size_format(need, a, sizeof(a)),
                       size_format(have, b, sizeof(b)));
        return err_hint(e, "put VMs on standby or stop some, or ask for less (--mem, --count)");
}

int host_check_disk(const char *path, uint64_t bytes, const char *what, struct err *e) {
        char a[32], b[32];
        uint64_t have;

        if (io_free_bytes(path, &have) < 0 || have >= bytes)
                return 0;
        (void) err_set(e, ERR_NO_SPACE, -ENOSPC, "not enough disk space for %s: %s needed, %s free in %s", what,
                       size_format(bytes, a, sizeof(a)), size_format(have, b, sizeof(b)), path);
        return err_hint(e, "remove snapshots ('forkctl snapshot ls' tells what each would free) or give the store more room");
}
