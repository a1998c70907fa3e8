/* SPDX-License-Identifier: MIT */
/* Picks kernel modules and what they depend on, in load order. Debian's package brings no modules.dep (it is
 * made when the package is installed), so the modules are asked themselves: .modinfo has "depends=". */
#pragma once

#include <stddef.h>

#include "common/err.h"

#define MODULES_MAX 32
#define MODULES_MAX_FILES 20000

struct module {
        char name[56]; /* with underscores, as the kernel says it */
        char *data;    /* uncompressed */
        size_t len;
};

struct module_set {
        size_t n;
        struct module m[MODULES_MAX];
};

/** Adds each of @wanted (NULL-terminated) with its dependencies before it, from the tree below @dir
 *  (…/lib/modules/<release>). A wanted module that is built into the kernel (modules.builtin), or that starts
 *  with '?' and does not exist, is left out; any other missing one is -ENOENT. */
int modules_collect(const char *dir, const char *const *wanted, struct module_set *ret, struct err *e) attr_warn_unused;
void module_set_clear(struct module_set *s);
#define cleanup_module_set attr_cleanup(module_set_clear)
