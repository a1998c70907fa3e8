/* SPDX-License-Identifier: MIT */
/* Small ELF files for tests: kernel modules with a .modinfo, programs with or without a loader. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/** A relocatable object with sections .modinfo (@modinfo, @len bytes) and .shstrtab. The caller frees it. */
char *make_module(const char *modinfo, size_t len, size_t *ret_len);
/** A program header table only: enough to be asked whether it is static. */
char *make_program(bool with_interp, size_t *ret_len);
