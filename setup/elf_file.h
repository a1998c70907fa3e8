/* SPDX-License-Identifier: MIT */
/* The little that setup must know of 64-bit ELF files: is a program static, and what a kernel module says
 * about itself. Every offset is checked against the file's size. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/cleanup.h"

/** 1 if @data is an x86-64 program that needs no loader, 0 if it needs one, -EBADMSG if it is no such program. */
int elf_is_static(const void *data, size_t len) attr_warn_unused;

/** Finds section @name. -ENOENT, -EBADMSG. */
int elf_section(const void *data, size_t len, const char *name, const char **ret_data, size_t *ret_len) attr_warn_unused;

/** The value of "@key=" in a module's .modinfo, a string inside @data. -ENOENT, -EBADMSG. */
int elf_modinfo(const void *data, size_t len, const char *key, const char **ret) attr_warn_unused;
