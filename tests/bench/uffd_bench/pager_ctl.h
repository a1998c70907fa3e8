/* SPDX-License-Identifier: MIT */
/* A real uffd-pager, started for the benchmark and driven by its control socket. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/ids.h"
#include "common/rpc.h"
#include "tests/bench/uffd_bench/content.h"
#include "tests/bench/uffd_bench/guest.h"

#define BENCH_MAX_NOTES 256u

struct bench_note {
        char method[RPC_MAX_METHOD + 1], session[ID_LEN + 1], text[200];
};

struct bench_pager {
        pid_t pid; /* 0: none */
        int pidfd;
        unsigned workers; /* that it says it has */
        struct event_base *base;
        struct rpc_conn *conn;
        struct bench_note notes[BENCH_MAX_NOTES]; /* that nobody has waited for yet */
        unsigned n_notes;
        bool closed;
};

struct bench_pager_options {
        const char *program;
        const char *run_dir; /* a directory to make the socket in; nothing of it is left once it is connected */
        unsigned workers;    /* 0: the pager's default */
        unsigned idle_seconds;
        unsigned record_seconds; /* 0: the pager's default */
};

int bench_pager_start(const struct bench_pager_options *o, struct bench_pager *ret, struct err *e) attr_warn_unused;
/** Ends it. A pager that was never started is fine. */
void bench_pager_stop(struct bench_pager *p);

struct bench_answer {
        struct mp_doc doc;
        void *raw;
        int fd; /* that came with it, -1: none */
};
void bench_answer_clear(struct bench_answer *a);
#define cleanup_bench_answer attr_cleanup(bench_answer_clear)

/** Calls and waits. @ret may be NULL. */
int bench_pager_call(struct bench_pager *p, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds,
                     struct bench_answer *ret, struct err *e) attr_warn_unused;
/** Waits for a notification of @method (about @session, unless that is NULL), and takes it. A session that fails
 *  meanwhile is an error. */
int bench_pager_wait(struct bench_pager *p, const char *method, const char *session, struct err *e) attr_warn_unused;
/** For bench_watch: has a session failed, or the pager died? @arg: the pager. */
int bench_pager_check(void *arg, struct err *e);

/** A session with its guest. */
struct bench_session {
        id_str id;
        int memfd, sock; /* for the guest */
        uint64_t workingset_pages;
};
#define BENCH_SESSION_NONE ((struct bench_session){ .memfd = -1, .sock = -1 })

/** @workingset_fd: -1, or the snapshot's working set. */
int bench_session_open(struct bench_pager *p, const struct bench_image *img, int workingset_fd, bool record,
                       struct bench_session *ret, struct err *e) attr_warn_unused;
/** Drops what the guest was to get. The pager's side ends with the guest, or by session.close. */
void bench_session_clear(struct bench_session *s);
int bench_session_close(struct bench_pager *p, struct bench_session *s, struct err *e) attr_warn_unused;

/** One number out of `status`: @list is "sessions", "images" or "totals", @which the session's id or NULL (the first);
 *  @key may be "faults.zero". -ENOENT. */
int bench_pager_number(struct bench_pager *p, const char *list, const char *which, const char *key, double *ret,
                       struct err *e) attr_warn_unused;

struct bench_times_us {
        double p50, p99;
        uint64_t count;
};
/** The histogram of service times in the totals of `status`. */
int bench_pager_service(struct bench_pager *p, struct bench_times_us *ret, struct err *e) attr_warn_unused;
