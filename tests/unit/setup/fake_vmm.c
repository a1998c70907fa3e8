/* SPDX-License-Identifier: MIT */
#include "fake_vmm.h"

#include <errno.h>

#include "forkd/vmm/vmm.h"

struct fake_vmm fake_vmm = { .version = "7.2.22" };

static int fake_version(char *buf, size_t size, struct err *e) {
        if (!fake_vmm.version)
                return err_set(e, ERR_UNSUPPORTED, -ENOENT, "no QEMU here");
        (void) snprintf(buf, size, "%s", fake_vmm.version);
        return 0;
}

const struct vmm_ops vmm_qemu = { .name = "qemu", .version = fake_version };

int vmm_kvm_probe(const char *kernel, const char *initrd, int timeout_ms, struct err *e) {
        fake_vmm.probes++;
        if (fake_vmm.probe_result == 0)
                err_set(e, ERR_UNSUPPORTED, -EOPNOTSUPP, "the guest hung");
        else if (fake_vmm.probe_result < 0)
                err_errno(e, fake_vmm.probe_result, "QEMU did not start");
        return fake_vmm.probe_result;
}
