/* SPDX-License-Identifier: MIT */
/* A kernel directory in a cache, as a download would have left it, so that setup needs no network. */
#pragma once

/** Makes <cache>/kernel/deb-@release-test with one module per name in @modules (NULL-terminated). Asserts. */
void fake_kernel(const char *cache, const char *release, const char *const *modules);

/** Is a cloud kernel installed on this host? Then setup takes that one, and tests with a fake one must skip. */
int host_has_kernel(void);

/** Writes a file. Asserts. */
void put_file(const char *path, const void *data, unsigned long len);
