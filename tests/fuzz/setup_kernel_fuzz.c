/* SPDX-License-Identifier: MIT */
/* What setup reads of kernel packages: bzImages, compressed payloads, ELF programs and modules. xz and gzip are
 * left out: they are busybox's work, in a process of its own. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "setup/elf_file.h"
#include "setup/unpack.h"

#define MAX_OUT (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The payload that unpack_vmlinux would look at may be any kind too. */
static int needs_busybox(const uint8_t *data, size_t size) {
        for (size_t i = 0; i + 6 <= size; i++)
                if (memcmp(data + i,
                           "\xfd"
                           "7zXZ",
                           6) == 0 ||
                    memcmp(data + i, "\x1f\x8b", 2) == 0)
                        return 1;
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static const char *const keys[] = { "depends", "name", "" };
        const char *v = NULL;
        size_t sum = 0, len;
        struct err e;

        sum += elf_is_static(data, size) > 0;
        for (size_t i = 0; i < ARRAY_LEN(keys); i++)
                if (elf_modinfo(data, size, keys[i], &v) == 0)
                        sum += strlen(v);
        if (!needs_busybox(data, size)) {
                cleanup_free char *a = NULL, *b = NULL;

                if (unpack_any(data, size, MAX_OUT, "fuzz", &a, &len, &e) == 0) {
                        if (len > MAX_OUT)
                                abort();
                        sum += len;
                }
                if (unpack_vmlinux(data, size, &b, &len, &e) == 0)
                        sum += len;
        }
        return sum == SIZE_MAX; /* never: keeps the reads above */
}
