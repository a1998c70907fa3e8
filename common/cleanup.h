/* SPDX-License-Identifier: MIT */
/* Scope-bound ownership: a variable marked cleanup_… releases what it owns when it goes out of scope,
 * unless TAKE_PTR/TAKE_FD has moved it on. Every function is then seen to leak nothing by itself. */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define attr_cleanup(fn) __attribute__((cleanup(fn)))
#define attr_warn_unused __attribute__((warn_unused_result))
#define attr_printf(fmt, first) __attribute__((format(printf, fmt, first)))

/** Closes @fd if it is open (>= 0). Returns -1, so that `fd = close_fd(fd)` leaves no stale number.
 *  close() is never retried: on Linux the descriptor is gone even when it returns EINTR. */
static inline int close_fd(int fd) {
        if (fd >= 0)
                (void) close(fd);
        return -1;
}

static inline void cleanup_fdp(int *fd) {
        *fd = close_fd(*fd);
}

static inline void cleanup_freep(void *p) {
        free(*(void **) p);
}

static inline void cleanup_fclosep(FILE **f) {
        if (*f)
                (void) fclose(*f);
}

#define cleanup_fd attr_cleanup(cleanup_fdp)
#define cleanup_free attr_cleanup(cleanup_freep)
#define cleanup_fclose attr_cleanup(cleanup_fclosep)

/** Defines `name_p`, the cleanup function for a `type *` that @destroy (which accepts NULL) frees. */
#define DEFINE_CLEANUP(type, destroy)              \
        static inline void destroy##_p(type **p) { \
                destroy(*p);                       \
        }

/** Moves ownership out of a variable: the value is returned and the variable left empty. */
#define TAKE_PTR(ptr)                          \
        ({                                     \
                __typeof__(ptr) *_pp = &(ptr); \
                __typeof__(ptr) _p = *_pp;     \
                *_pp = NULL;                   \
                _p;                            \
        })

#define TAKE_FD(fd)               \
        ({                        \
                int *_fp = &(fd); \
                int _f = *_fp;    \
                *_fp = -1;        \
                _f;               \
        })

/** For a call whose failure changes nothing for the caller; gcc does not take a cast to void for that. */
#define best_effort(call)                     \
        do {                                  \
                __typeof__(call) _r = (call); \
                (void) _r;                    \
        } while (0)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MIN_OF(a, b) ((a) < (b) ? (a) : (b))
#define MAX_OF(a, b) ((a) > (b) ? (a) : (b))
