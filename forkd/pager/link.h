/* SPDX-License-Identifier: MIT */
/* forkd's side of the pager: starts it, finds one that an earlier forkd started, opens and closes sessions,
 * and sees to it that no guest outlives its pager. */
#pragma once

#include "common/err.h"
#include "common/mp.h"
#include "common/rpc.h"

struct daemon;
struct pager;
struct vm;

int pager_new(struct daemon *d, struct pager **ret) attr_warn_unused;
void pager_free(struct pager *p); /* the process lives on */

/** Connects to a pager that runs already; 0 too when there is none. A coroutine call. */
int pager_find(struct pager *p, struct err *e) attr_warn_unused;
/** Makes sure that a pager serves: starts one if need be. */
int pager_ensure(struct pager *p, struct err *e) attr_warn_unused;
bool pager_is_up(const struct pager *p);
pid_t pager_pid(const struct pager *p);

/** Opens a session for @vm on the image in @image_fd, whose recorded working set is in @workingset_fd (-1: none); it
 *  records if vm->recording. On success *ret_memfd is the image's memory
 *  (read-only) and *ret_sock the VMM's end of the handshake's socket; both are the caller's. From here on
 *  the watchdog holds this VM responsible: it dies with the pager. */
int pager_session_open(struct pager *p, struct vm *vm, int image_fd, int workingset_fd, int *ret_memfd, int *ret_sock,
                       struct err *e) attr_warn_unused;
/** Names the process of @pidfd, which stays the caller's, as the VMM of @vm's session: only it may attach. A coroutine
 *  call. */
int pager_session_expect(struct pager *p, struct vm *vm, int pidfd, struct err *e) attr_warn_unused;
/** After the VMM was reaped. No session is no error. */
void pager_session_close(struct pager *p, struct vm *vm);
/** Marks the VMs for which the pager has an attached session that has not failed (vm->session_known), and notes why one
 *  has (vm->lost). */
int pager_mark_sessions(struct pager *p, struct err *e) attr_warn_unused;
/** What the guest discarded: *ret_n ranges [first page, pages], encoded one behind the other in @ret. */
int pager_session_removed(struct pager *p, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, struct err *e) attr_warn_unused;
/** What the guest needed since it was restored, in the order of need: *ret_n ranges as above, at most
 *  SNAP_WORKINGSET_MAX_RUNS; none of a session that does not record. *ret_complete: its time to record is over. @vm may be
 *  gone when it returns. */
int pager_session_workingset(struct pager *p, struct vm *vm, struct mp_buf *ret, uint64_t *ret_n, bool *ret_complete,
                             struct err *e) attr_warn_unused;

int pager_status(struct pager *p, struct mp_buf *ret, struct err *e) attr_warn_unused;
/** Ends the pager; guests must be gone. */
void pager_shutdown(struct pager *p);
