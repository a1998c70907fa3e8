/* SPDX-License-Identifier: MIT */
/* In place of the VMM driver: a QEMU of a chosen version, and a KVM trial with a chosen end. */
#pragma once

struct fake_vmm {
        const char *version; /* NULL: no QEMU */
        int probe_result;    /* 1, 0 or -errno */
        unsigned probes;     /* how often it was tried */
};
extern struct fake_vmm fake_vmm;
