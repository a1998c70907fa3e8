/* SPDX-License-Identifier: MIT */
/* What may happen to guest memory after it was attached: advice, unmapping, moving.
 *
 * Theory of operation. A VMM discards guest memory (balloon, free page reporting) with MADV_DONTNEED and
 * expects zeros afterwards. In a private mapping of the image the next touch would bring back the *image's*
 * page, by an ordinary fault of which nobody hears if the image has it. So a discard lays fresh anonymous
 * memory over the range: it reads zero from then on, costs nothing, and the pager learns of it from the
 * UNMAP event and keeps it in the session's list of removed pages, for the next standby.
 *
 * Each overlay may cost a mapping, and a process has a limited number of them. Where the limit is reached the
 * range is zapped for real and the zero page is mapped over it with the VMM's own userfaultfd, before the
 * call returns; the pager hears of that as a REMOVE event.
 *
 * Advice that would undo what attach.c set up (huge pages, merging, fork) is accepted and ignored: it is a
 * hint in the eyes of the VMM. Populating is ignored too: it would decode the whole image into every clone
 * and, for writing, make every page of it private.
 *
 * posix_madvise is not replaced: glibc leaves POSIX_MADV_DONTNEED without effect, and the others are hints. */
#include "pager/attach/attach.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pager/uffd_compat.h"

#define EXPORT __attribute__((visibility("default")))
#define ZAP_ATTEMPTS 8

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/** Maps the zero page over [@start, @start + @len), which was just zapped. Pages that somebody touched in
 *  between are there again: their content is not known to be zero. Returns how many bytes from @start are
 *  zero for sure. */
static size_t zero_fill(uintptr_t start, size_t len) {
        size_t done = 0;

        while (done < len) {
                struct uffdio_zeropage z = { .range = { .start = start + done, .len = len - done } };
                if (ioctl(attach_state.uffd, UFFDIO_ZEROPAGE, &z) == 0)
                        return len;
                if (z.zeropage > 0) {
                        done += (size_t) z.zeropage;
                        continue;
                }
                if (z.zeropage != -EAGAIN)
                        return done;
                /* EAGAIN: another thread changes the layout and waits for the pager to hear of it. */
                (void) nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
        }
        return done;
}

/** A discard without a new mapping. */
static void zap(uintptr_t start, size_t len) {
        for (int i = 0; i < ZAP_ATTEMPTS && len > 0; i++) {
                if (attach_raw_madvise((void *) start, len, MADV_DONTNEED) < 0)
                        break;
                size_t done = zero_fill(start, len);
                start += done;
                len -= done;
        }
        /* A vCPU that keeps touching what is being discarded: nothing is left but to write zeros. */
        memset((void *) start, 0, len);
}

static int discard(void *addr, size_t len) {
        const struct attach *a = &attach_state;

        if (a->uffd < 0) /* anonymous already: the kernel's own DONTNEED does it */
                return attach_raw_madvise(addr, len, MADV_DONTNEED);
        void *p = attach_raw_mmap(addr, len, a->prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        if (p == MAP_FAILED) {
                zap((uintptr_t) addr, len);
                return 0;
        }
        /* As the rest of guest memory. These are hints here: anonymous memory in a child harms nobody. */
        int saved = errno;
        (void) attach_raw_madvise(addr, len, MADV_DONTFORK);
        (void) attach_raw_madvise(addr, len, MADV_NOHUGEPAGE);
        errno = saved;
        return 0;
}

EXPORT int madvise(void *addr, size_t len, int advice) {
        if (!attach_overlaps(addr, len))
                return attach_raw_madvise(addr, len, advice);
        switch (advice) {
        case MADV_DONTNEED:
        case MADV_FREE:
        case MADV_REMOVE:
                if ((uintptr_t) addr % ATTACH_PAGE || len > SIZE_MAX - ATTACH_PAGE) {
                        errno = EINVAL;
                        return -1;
                }
                len = (len + ATTACH_PAGE - 1) & ~(ATTACH_PAGE - 1); /* as the kernel does */
                if (!attach_contains(addr, len)) {
                        errno = EINVAL;
                        return -1;
                }
                return discard(addr, len);
        case MADV_HUGEPAGE:
        case MADV_COLLAPSE:
        case MADV_MERGEABLE:
        case MADV_DOFORK:
        case MADV_POPULATE_READ:
        case MADV_POPULATE_WRITE:
                return 0;
        default:
                return attach_raw_madvise(addr, len, advice);
        }
}

/** Guest memory may go as a whole or from its ends: the address is then free for other things, and advice
 *  about it is none of ours. A hole in the middle has no meaning for a VMM and is refused. */
EXPORT int munmap(void *addr, size_t len) {
        struct attach *a = &attach_state;

        if (attach_overlaps(addr, len)) {
                uintptr_t base = a->base, end = base + a->len;
                uintptr_t from = (uintptr_t) addr, to = from + ((len + ATTACH_PAGE - 1) & ~(ATTACH_PAGE - 1));

                if (from > base && to < end) {
                        errno = EINVAL;
                        return -1;
                }
                /* Narrowed before the kernel frees the addresses, never after: they may be reused at once. */
                if (from <= base && to >= end) {
                        a->len = 0;
                } else if (from <= base) {
                        a->len = end - to;
                        a->base = to;
                } else {
                        a->len = from - base;
                }
        }
        return (int) syscall(SYS_munmap, addr, len);
}

/** Guest memory stays where its layout says it is. */
EXPORT void *mremap(void *addr, size_t old_len, size_t new_len, int flags, ...) {
        void *target = NULL;
        va_list ap;

        va_start(ap, flags);
        if (flags & MREMAP_FIXED)
                target = va_arg(ap, void *);
        va_end(ap);
        if (attach_overlaps(addr, old_len ? old_len : 1) || (flags & MREMAP_FIXED && attach_overlaps(target, new_len))) {
                errno = EINVAL;
                return MAP_FAILED;
        }
        return (void *) syscall(SYS_mremap, addr, old_len, new_len, flags, target);
}
