/* SPDX-License-Identifier: MIT */
/* The drivers of this build. */
#include <string.h>

#include "forkd/vmm/vmm.h"

const struct vmm_ops *vmm_driver(const char *name) {
        static const struct vmm_ops *const drivers[] = { &vmm_qemu };

        for (size_t i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++)
                if (strcmp(drivers[i]->name, name) == 0)
                        return drivers[i];
        return NULL;
}
