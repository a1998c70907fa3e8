/* SPDX-License-Identifier: MIT */
#include "forkd/monitor/store_use.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include "forkd/catalog.h"
#include "forkd/daemon.h"

static uint64_t disks(const struct daemon *d) {
        uint64_t sum = 0;
        const struct vm *vm;
        char path[PATH_MAX], file[32];
        struct stat st;

        TAILQ_FOREACH (vm, &d->vms, entry)
                for (unsigned i = 0; i < vm->machine.n_disks; i++) {
                        (void) snprintf(file, sizeof(file), "disk-%u.img", i);
                        if (vm_store_path(vm, file, path, sizeof(path)) == 0 && stat(path, &st) == 0)
                                sum += (uint64_t) st.st_blocks * 512u;
                }
        return sum;
}

void store_use_get(const struct daemon *d, struct store_use *ret) {
        struct statvfs fs = { 0 };
        bool known = d->store && statvfs(d->store_dir, &fs) == 0;

        *ret = (struct store_use){
                .total = known ? (uint64_t) fs.f_blocks * fs.f_frsize : UINT64_MAX,
                .free = known ? (uint64_t) fs.f_bavail * fs.f_frsize : UINT64_MAX,
                .reserve = d->cfg.disk_reserve,
                .vms = disks(d),
        };
        for (const struct snap_entry *e = catalog_first(d->catalog); e; e = TAILQ_NEXT(e, entry))
                ret->snapshots += e->m.stored_bytes;
}
