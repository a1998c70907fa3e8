/* SPDX-License-Identifier: MIT */
/* What the kernel tells of processes and of memory. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

/** Time that all threads of @pid have had on a CPU, in ns. */
int bench_cpu_ns(pid_t pid, uint64_t *ret, struct err *e) attr_warn_unused;

struct bench_memory_use {
        uint64_t pss, pss_shmem, private_anon; /* bytes */
        uint64_t page_tables;
};
/** Of the whole process. */
int bench_memory_of(pid_t pid, struct bench_memory_use *ret, struct err *e) attr_warn_unused;
/** Pss and Anonymous, in bytes, of the mapping of @pid that begins at @addr. */
int bench_mapping_of(pid_t pid, uint64_t addr, uint64_t *ret_pss, uint64_t *ret_anon, struct err *e) attr_warn_unused;

int bench_available_bytes(uint64_t *ret, struct err *e) attr_warn_unused;
/** Refuses with ERR_NO_SPACE and numbers if @bytes are more than this host can give; @what for the sentence. */
int bench_need_memory(uint64_t bytes, const char *what, struct err *e) attr_warn_unused;

/** Touches @bytes and gives them back. A virtual host gets its memory from its own host at the first touch, which
 *  takes fifty times as long as any later one. */
int bench_warm_memory(uint64_t bytes, struct err *e) attr_warn_unused;
