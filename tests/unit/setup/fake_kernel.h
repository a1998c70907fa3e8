/* SPDX-License-Identifier: MIT */
/* A kernel directory in a cache, as a download would have left it, so that setup needs no network. */
#pragma once

/** Makes <cache>/kernel/… with one module per name in @modules (NULL-terminated), under the name that setup
 *  looks for on this host: the installed cloud kernel's if there is one. Asserts. */
void fake_kernel(const char *cache, const char *release, const char *const *modules);

/** Writes a file. Asserts. */
void put_file(const char *path, const void *data, unsigned long len);
