/* SPDX-License-Identifier: MIT */
#include "fake_kernel.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/io.h"
#include "elf_maker.h"
#include "setup/kernel_source.h"

void put_file(const char *path, const void *data, unsigned long len) {
        FILE *f = fopen(path, "w");

        assert_non_null(f);
        assert_int_equal(fwrite(data, 1, len, f), len);
        assert_int_equal(fclose(f), 0);
}

void fake_kernel(const char *cache, const char *release, const char *const *modules) {
        static const char vmlinux[] = "\177ELF pretended kernel";
        char dir[PATH_MAX - 64], path[PATH_MAX], info[4096];
        struct kernel_source installed;
        const char *comma = "";
        size_t len;

        if (kernel_source_installed("", &installed) == 0)
                (void) snprintf(dir, sizeof(dir), "%s/kernel/%s", cache, installed.key);
        else
                (void) snprintf(dir, sizeof(dir), "%s/kernel/deb-%s-test", cache, release);
        (void) snprintf(path, sizeof(path), "%s/modules", dir);
        assert_int_equal(io_mkdir_p(path, 0755), 0);
        (void) snprintf(path, sizeof(path), "%s/vmlinux", dir);
        put_file(path, vmlinux, sizeof(vmlinux));
        int n = snprintf(info, sizeof(info),
                         "{\"format\":1,\"release\":\"%s\",\"source\":\"test\",\"hash\":\"%032d\","
                         "\"vmlinux_bytes\":%zu,\"modules\":[",
                         release, 7, sizeof(vmlinux));
        for (; *modules; modules++, comma = ",") {
                char *m = make_module("depends=", 9, &len);

                (void) snprintf(path, sizeof(path), "%s/modules/%s.ko", dir, *modules);
                put_file(path, m, len);
                free(m);
                n += snprintf(info + n, sizeof(info) - (size_t) n, "%s\"%s\"", comma, *modules);
        }
        n += snprintf(info + n, sizeof(info) - (size_t) n, "]}");
        (void) snprintf(path, sizeof(path), "%s/info.json", dir);
        put_file(path, info, (unsigned long) n);
}
