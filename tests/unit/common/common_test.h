/* SPDX-License-Identifier: MIT */
/* What the unit tests of common/ and forkd/ share. cmocka wants its headers in this order. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "common/cleanup.h"

/** @expr is 0 or a count; a failure tells which error it was. */
#define assert_ok(expr)                                                 \
        do {                                                            \
                long _r = (long) (expr);                                \
                if (_r < 0)                                             \
                        fail_msg("%s: %s", #expr, strerror((int) -_r)); \
        } while (0)

/** @expr is exactly the error -@err. */
#define assert_fails(expr, err)                                                                                        \
        do {                                                                                                           \
                long _r = (long) (expr);                                                                               \
                if (_r != -(long) (err))                                                                               \
                        fail_msg("%s: %ld (%s), not -%s", #expr, _r, _r < 0 ? strerror((int) -_r) : "no error", #err); \
        } while (0)

/** A generator that gives the same sequence everywhere. */
struct rng {
        uint64_t state;
};
uint64_t rng_next(struct rng *r);
static inline uint64_t rng_below(struct rng *r, uint64_t n) {
        return rng_next(r) % n;
}

/** A new directory below TMPDIR; temp_dir_remove takes it away with everything in it. */
void temp_dir(char *buf, size_t size);
void temp_dir_remove(const char *path);
/** "<dir>/<name>" in a static buffer that lives until the fourth next call. */
const char *in_dir(const char *dir, const char *name);

/** Open descriptors of this process: equal before and after means that nothing leaked. */
unsigned count_fds(void);

/** Skips the test because the host lacks something; a failure if FORKD_TEST_NO_SKIP is set. */
void skip_because(const char *reason);
#define skip_unless(cond, reason)             \
        do {                                  \
                if (!(cond)) {                \
                        skip_because(reason); \
                        return;               \
                }                             \
        } while (0)
