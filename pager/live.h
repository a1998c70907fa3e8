/* SPDX-License-Identifier: MIT */
/* Live forks: a VM is copied while it runs. live.c tells how. Control thread. */
#pragma once

#include "common/err.h"
#include "common/ids.h"
#include "common/rpc.h"

struct pager;
struct pager_cached;
struct pager_image;
struct pager_live;
struct pager_session;

/** What live.prepare brings; both descriptors are taken. */
struct pager_live_params {
        const char *id;
        struct pager_session *source;
        int mem_fd, pagemap_fd; /* /proc/<pid>/mem and /proc/<pid>/pagemap of the VMM */
};
/** Everything that needs no pause. Answered when the VMM is ready; at once, unless it is being rebased. -EOPNOTSUPP: the kernel
 *  cannot protect such memory. */
int pager_live_prepare(struct pager *p, const struct pager_live_params *lp, struct rpc_conn *conn, uint32_t msgid,
                       struct err *e) attr_warn_unused;
/** It is not being rebased any more. */
void pager_live_go_on(struct pager_session *s);
struct pager_live *pager_live_find(struct pager *p, const char *id);
/** The VMM stands still: protects what it has written. Answered later. */
int pager_live_protect(struct pager_live *l, struct rpc_conn *conn, uint32_t msgid, struct err *e) attr_warn_unused;
/** What a clone lives on: in use once more, as by pager_cache_get. */
int pager_live_open(struct pager *p, const char *id, struct pager_cached **ret, struct err *e) attr_warn_unused;
/** Answered when all is copied, or never will be. */
int pager_live_wait(struct pager_live *l, struct rpc_conn *conn, uint32_t msgid, struct err *e) attr_warn_unused;
/** It is in @fd (stays the caller's). @l is gone. */
int pager_live_publish(struct pager_live *l, int fd, struct err *e) attr_warn_unused;
/** Undone: clones that live on it fail, nothing is protected any more. @l is gone. */
void pager_live_cancel(struct pager_live *l);
/** The same of whatever there is of @s. */
void pager_live_unprotect(struct pager_session *s);

/** Asks the source's worker to catch up; once it has its new one, if it moves. pager_live_synced follows, at once if there is none. */
void pager_live_sync(struct pager_session *s);
/** The letter is back from the worker. */
void pager_live_letter(struct pager_session *s);
/** The source's worker has caught up. */
void pager_live_synced(struct pager_session *s);
/** All of it is copied, or that has failed. */
void pager_live_copied(struct pager *p, struct pager_image *img);
/** The session ends. */
void pager_live_source_gone(struct pager_session *s);
void pager_live_free_all(struct pager *p);

/* ---- control_live.c ---- */
int pager_do_join(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_live_prepare(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_live_protect(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_live_wait(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_live_publish(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_live_cancel(struct pager *p, struct rpc_msg *msg, struct err *e);
int pager_do_unprotect(struct pager *p, struct rpc_msg *msg, struct err *e);
