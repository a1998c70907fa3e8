/* SPDX-License-Identifier: MIT */
/* For the pager's tests: a pager in a thread of this process, a control connection to it, images, and VMMs of
 * two kinds: a process with libuffd-attach (vmm_probe.c), and one in this process for what a good VMM would
 * not do. Functions fail the test themselves. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <event2/event.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#include "common/ids.h"
#include "common/rpc.h"
#include "pager/pager.h"
#include "pager/uffd.h"
#include "snapstore/writer.h"
#include "tests/unit/pager/content.h"

#define DEADLINE_MS 60000 /* of every wait: far beyond what even a sanitizer on a busy machine needs */
#define MAX_NOTES 1024

struct note {
        char method[RPC_MAX_METHOD + 1], session[ID_LEN + 1], text[256]; /* text: reason, or error */
        bool taken;
        uint64_t regions[2][3];
        size_t n_regions;
        bool good_uffd;
};

struct harness {
        char dir[64], path[96];
        struct event_base *pager_base, *base;
        struct pager *pager;
        pthread_t thread;
        struct rpc_conn *conn;
        struct note notes[MAX_NOTES];
        unsigned n_notes;
        bool conn_closed;
};

/** Starts a pager. @cfg may be NULL; its control_path is set here. */
void harness_start(struct harness *h, const struct pager_config *cfg);
void harness_stop(struct harness *h);
/** Connects (again). */
void harness_connect(struct harness *h);

struct answer {
        int r;
        struct err e;
        struct mp_doc doc;
        char *raw;
        int fds[4];
        size_t n_fds;
};
/** Calls and waits. Free the answer with answer_clear. */
struct answer harness_call(struct harness *h, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds);
/** The same in two parts, so that many calls can be under way. @c must not move in between. */
struct call {
        struct answer answer;
        bool done;
};
void harness_begin(struct harness *h, struct call *c, const char *method, const struct mp_buf *params, const int *fds,
                   size_t n_fds);
struct answer harness_wait(struct harness *h, struct call *c);
void answer_clear(struct answer *a);
/** session.close, which must succeed. */
void harness_close(struct harness *h, const char *session);
/** Waits until a notification of @method about @session (NULL: any) has come, and takes it. */
const struct note *harness_note(struct harness *h, const char *method, const char *session);
/** Is one there that was not taken? Does not wait. */
bool harness_has_note(struct harness *h, const char *method, const char *session);

/** A number out of `status`. @list: "sessions", "images" or "totals"; @which: the session's id, an image's
 *  index is always 0. @key may be "faults.zero"; NULL: @list names a boolean itself. */
double harness_status(struct harness *h, const char *list, const char *which, const char *key);

struct image {
        int fd;
        uint64_t seed, n_pages, n_stored;
        struct snap_writer_stats stats;
        id_str id; /* as session.open tells it */
};
/** Pages [first, first + n) of an image have the content of @seed. */
struct image_change {
        uint64_t first, n, seed;
};
/** A child of @parent. @ret->seed and n_stored are the parent's: of the pages that it has not changed. */
void image_make_child(struct image *ret, const struct image *parent, const struct image_change *change, size_t n);
void image_make(struct image *img, uint64_t n_pages, uint64_t seed, enum snap_codec codec);
void image_clear(struct image *img);
/** Flips a bit in the stored frame that holds @page, which must not be zero. */
void image_corrupt(const struct image *img, uint64_t page);
/** The first page at or after @page that is stored / that is zero. */
uint64_t image_stored_page(const struct image *img, uint64_t page);
uint64_t image_zero_page(const struct image *img, uint64_t page);

struct vmm {
        id_str session;
        int memfd, sock; /* the VMM's ends; -1 once handed on */
        pid_t pid;
        int pidfd;
        FILE *in, *out; /* of the probe */
        int err_fd, layout_fd, ram_fd;
        int uffd_dev; /* an open /dev/userfaultfd to hand to the probe, -1: none; stays the test's */
        uint64_t ram_bytes, workingset_pages;
};
/** session.open. */
void vmm_open(struct harness *h, struct vmm *v, const struct image *img);
/** With more than that; zeroed fields: not given. */
struct vmm_opening {
        pid_t vm_pid;
        bool expect, record;
        bool silent;      /* the VMM is not told of its memory */
        const char *live; /* the nascent image of this live fork, in place of the image's file */
        int workingset_fd;
        const struct image *const *chain; /* ancestors, the nearest first; NULL: the image's descent is not told */
        size_t n_chain;
};
void vmm_open_with(struct harness *h, struct vmm *v, const struct image *img, const struct vmm_opening *o);
/** After vmm_open: spawn, map, and the notification that it is attached. */
void vmm_run(struct harness *h, struct vmm *v, const struct image *img);
/** Starts the probe. */
void vmm_spawn(struct vmm *v);
/** The probe as a shell, which waits on @wait_fd; v->sock stays the test's. */
void vmm_spawn_shell(struct vmm *v, int wait_fd);
/** Starts @argv (which may name the numbers of PROBE_…_FD) in its place; stdin and stdout as for the probe. */
void vmm_spawn_program(struct vmm *v, const char *const *argv);
#define PROBE_RAM_FD 10
#define PROBE_SOCK_FD 12
#define PROBE_LAYOUT_FD 13
#define PROBE_UFFD_DEV_FD 14
/** A probe without an image. */
void vmm_spawn_fresh(struct vmm *v, uint64_t ram_bytes);
/** Sends a command and returns the answer's line without its end, in a static buffer. */
const char *vmm_cmd(struct vmm *v, const char *fmt, ...) attr_printf(2, 3);
/** Sends a command without waiting. */
void vmm_send(struct vmm *v, const char *fmt, ...) attr_printf(2, 3);
const char *vmm_answer(struct vmm *v);
/** open, spawn, map, and the notification that it is attached. */
void vmm_start(struct harness *h, struct vmm *v, const struct image *img);
/** Kills the probe and reaps it. */
void vmm_kill(struct vmm *v);
/** Waits for its own end: wait status; stderr in @err. */
int vmm_wait(struct vmm *v, char *err, size_t size);
/** Kills it and waits for session.gone. */
void vmm_end(struct harness *h, struct vmm *v);

/** A VMM in this process, registered as the library would do it. */
struct raw_vmm {
        uint8_t *map;
        size_t len;
        int uffd;
};
void raw_map(struct raw_vmm *r, int memfd, size_t len);
void raw_unmap(struct raw_vmm *r);
/** Sends @json with @fd (-1: none) on @sock. */
void raw_send(int sock, const char *json, size_t len, int fd);
/** The pager's line (what it says of guest memory is passed over), without its end, in a static buffer; "" when it hung up. */
const char *raw_answer(int sock);
/** The handshake of one region. */
void raw_attach(const struct raw_vmm *r, int sock);

/** Reads a page of @memfd without a userfaultfd. */
void harness_trespass(int memfd, uint64_t page);

int count_fds(void);
