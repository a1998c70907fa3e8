/* SPDX-License-Identifier: MIT */
/* For tests in which sessions go from one pager to another: pagers as processes of their own, which can be killed, and
 * what forkd keeps of a session. Functions fail the test themselves. */
#pragma once

#include "tests/unit/pager/harness.h"

/** A uffd-pager with a control connection, in `h`. */
struct other {
        struct harness h;
        pid_t pid;
        int pidfd;
};
/** @budget: for --memory-budget. */
void other_start(struct other *o, const char *budget);
/** The same as a user without rights but that of opening userfaultfds. */
void other_start_as_nobody(struct other *o, const char *budget);
/** SIGSTOP, and waits until no thread of it runs. */
void other_freeze(struct other *o);
/** SIGKILL, and waits for its end, as forkd does. */
void other_kill(struct other *o);
/** Asks it to end, by force if sessions are open, and checks that it has not crashed. */
void other_stop(struct other *o);

/** What is kept of a session. */
struct kept {
        id_str session;
        uint64_t ram_bytes;
        int memfd, sock, uffd; /* uffd -1: not attached */
        uint64_t region[4][3];
        size_t n_regions;
};
/** session.handles. */
void kept_get(struct harness *h, const struct vmm *v, struct kept *k);
void kept_clear(struct kept *k);

struct pages {
        uint64_t first, n;
};
/** What process @pid has discarded: what lies in a region and is no mapping of the memfd. Returns how many ranges. */
size_t discarded(pid_t pid, const struct kept *k, struct pages *ret, size_t max);

/** session.adopt; @fds: in place of those that are kept, where not -1. Free the answer. */
struct adopt_how {
        const struct pages *removed;
        size_t n_removed;
        bool hold;
        pid_t vm_pid;
        uint64_t ram_bytes;          /* 0: as it is */
        const uint64_t (*region)[3]; /* NULL: as they are */
        size_t n_regions;
        int image_fd, sock, memfd, uffd; /* 0: as they are */
};
void begin_adopt(struct harness *h, struct call *c, const struct kept *k, const struct image *img, const struct adopt_how *how);
struct answer try_adopt(struct harness *h, const struct kept *k, const struct image *img, const struct adopt_how *how);
/** After the death of its pager: with what @v has discarded. Must succeed. */
void adopt_after_death(struct harness *h, const struct vmm *v, const struct kept *k, const struct image *img);

/** A method with the session as its only parameter, which must succeed. */
void call_ok(struct harness *h, const char *method, const char *session);
struct answer call_session(struct harness *h, const char *method, const char *session);
void begin_session(struct harness *h, struct call *c, const char *method, const char *session);
