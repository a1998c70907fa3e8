/* SPDX-License-Identifier: MIT */
/* Inside libuffd-attach: shared by attach.c (mapping and handshake) and discard.c (what may happen to guest
 * memory afterwards). Nothing here is exported; the library's outside are the libc functions it replaces. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ATTACH_EXIT_CODE 97
#define ATTACH_PAGE 4096ull

/** INERT: not told to do anything. ARMED: waits for the mapping of guest RAM. ATTACHED: it has been made. */
enum attach_phase { ATTACH_INERT, ATTACH_ARMED, ATTACH_ATTACHED };

struct attach {
        _Atomic int phase;
        int ram_fd, sock_fd, layout_fd, dev_fd, wait_fd; /* as inherited, -1: not there */
        dev_t ram_dev;
        ino_t ram_ino;
        uint64_t ram_size;

        /* Valid once ATTACHED. The range shrinks when its ends are unmapped. */
        _Atomic uintptr_t base;
        _Atomic size_t len;
        int prot;
        int uffd;      /* the VMM's own copy, never closed: see attach.c; -1 for a fresh VM */
        int idle_uffd; /* of a fresh VM: registered with nothing by us; -1: the host has none to give */
};

extern struct attach attach_state;

/** Writes "uffd-attach: @what: @why" to stderr and ends the process with ATTACH_EXIT_CODE. */
_Noreturn void attach_die(const char *what, const char *why);
_Noreturn void attach_die_errno(const char *what, int err);

/** Does [@addr, @addr + @len) touch guest memory? False before there is any. */
bool attach_overlaps(const void *addr, size_t len);
/** Does it lie in guest memory as a whole? */
bool attach_contains(const void *addr, size_t len);

/** Guest memory as the pager at sock_fd tells, mapped at @addr (@fixed) or anywhere, and as it is to stay: ATTACHED. */
void *attach_put_segments(void *addr, size_t len, int prot, int fixed);
/** Starts to wait for what attach_put_segments needs: wait.c. */
void attach_wait_begin(void);
/** Starts the thread that maps guest memory anew when the pager says so on @sock. */
void attach_rebase_start(int sock);

void *attach_raw_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
int attach_raw_madvise(void *addr, size_t len, int advice);
