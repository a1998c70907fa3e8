/* SPDX-License-Identifier: MIT */
/* What the tests of snapstore share: a reference model of guest RAM, images in memfds, temporary stores. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "snapstore/store.h"
#include "snapstore/writer.h"

#define assert_ok(expr)                                           \
        do {                                                      \
                int _r = (expr);                                  \
                if (_r < 0)                                       \
                        fail_msg("%s: %s", #expr, strerror(-_r)); \
        } while (0)

/** A generator that gives the same sequence everywhere. */
struct rng {
        uint64_t state;
};
uint64_t rng_next(struct rng *r);
static inline uint64_t rng_below(struct rng *r, uint64_t n) {
        return rng_next(r) % n;
}

/** Fills a page with one of several kinds of content, from all zero to random bytes. */
void page_fill(struct rng *r, void *page);
/** Content that compresses to almost nothing and names @tag. */
void page_fill_small(uint64_t tag, void *page);

/** The RAM as it should be. */
struct model {
        uint64_t n_pages;
        uint8_t *ram;
};
void model_init(struct model *m, uint64_t n_pages);
void model_clear(struct model *m);
static inline uint8_t *model_page(const struct model *m, uint64_t page) {
        return m->ram + page * SNAP_PAGE_SIZE;
}

/** An empty file in memory. */
int temp_fd(void);

struct snap_writer *writer_start(int fd, int parent_fd, const struct model *m, enum snap_codec codec);
/** Puts random runs of pages, zeroes others, in model and writer alike; about @n_runs of each. */
void write_random(struct rng *r, struct model *m, struct snap_writer *w, unsigned n_runs);
/** All of the model as a base image; returns its descriptor. */
int image_of(const struct model *m, enum snap_codec codec);
/** Reads every page in two ways (by page, and by frame as a pager does) and compares with the model. */
void check_image(int fd, const struct model *m);

/** A new directory below TMPDIR. */
void temp_dir(char *buf, size_t size);
void temp_dir_remove(const char *path);

/** Fills the fields of a manifest that a caller has to. */
void manifest_fill(struct snap_manifest *m, const struct model *ram);
/** Publishes a snapshot of @ram (a child of @parent unless NULL) with some device state; id in @ret_id. */
void publish(struct snap_store *s, const struct model *ram, const struct snap_manifest *parent, bool sync,
             struct snap_manifest *ret);

/** Skips the test because the host lacks something; a failure if FORKD_TEST_NO_SKIP is set. */
void skip_because(const char *reason);
#define skip_unless(cond, reason)             \
        do {                                  \
                if (!(cond)) {                \
                        skip_because(reason); \
                        return;               \
                }                             \
        } while (0)

/** Mounts from now on are seen by this process only, and gone with it. False without the right to. */
bool private_mounts(void);

/** A file system of its own in a loop-mounted file (XFS with reflinks). False if it cannot be. After private_mounts(). */
struct loop_fs {
        char dir[64], image[128], mnt[128];
        bool mounted;
};
bool loop_fs_setup(struct loop_fs *fs, const char *size);
void loop_fs_remount(struct loop_fs *fs);
void loop_fs_teardown(struct loop_fs *fs);
/** Runs a command with stdout and stderr discarded; its exit code, or -1. */
int run_quiet(const char *const argv[]);
