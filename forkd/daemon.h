/* SPDX-License-Identifier: MIT */
/* forkd's one context: everything else hangs on struct daemon.
 *
 * Directories:
 *      <state>/lock               held while a forkd runs here
 *      <state>/store/             the reflink store: snapshots/, tmp/, vms/<id>/{disk-<n>.img, base.img}
 *      <state>/vms/<id>/          record, console.log, vmm.log
 *      <state>/pools/<name>       a pool's record
 *      <state>/journal/<id>       one for each operation on several things that is under way
 *      <run>/forkd.sock, pager.sock, pager.pid, forkd.lock, vms/<id>/ (the VMM's sockets)
 */
#pragma once

#include <event2/event.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "common/co.h"
#include "common/err.h"
#include "common/rpc.h"
#include "forkd/config.h"
#include "forkd/monitor/times.h"
#include "forkd/vm/vm.h"
#include "snapstore/store.h"

#define FORKD_PROTOCOL 1
#define FORKD_MAX_CLIENTS 256
/* A unix socket's path has 108 bytes; "/vms/<16 digits>/agent.sock" must fit behind the run directory. */
#define FORKD_MAX_RUN_DIR 70
#define FORKD_MAX_DIR 400

struct host;
struct identities;
struct notify;
struct journal_found;
struct vmm_jail;
struct events;
struct http;
struct metrics;
struct page;
struct monitor;
struct pager;
struct pools;
struct shutdown_wait;
struct turns;
struct shells;
struct worker_pool;
struct catalog;
struct admission;
struct api;

struct daemon {
        struct event_base *base;
        struct config cfg;
        char state_dir[FORKD_MAX_DIR], run_dir[FORKD_MAX_RUN_DIR + 1], cache_dir[FORKD_MAX_DIR];
        char store_dir[FORKD_MAX_DIR + 8]; /* <state>/store */
        char bin_dir[FORKD_MAX_DIR], attach_lib[FORKD_MAX_DIR + 40];
        char instance[17]; /* names this forkd's cgroup: a hash of the state directory's path */
        char boot_id[40];  /* of the kernel: what was a process in another boot is none now */
        int lock_fd, run_lock_fd;
        uint64_t started_ns; /* CLOCK_MONOTONIC */
        bool offline;        /* no forkd, but somebody who looks at what one has left (orphans.h): most of this is not there */

        struct snap_store *store; /* NULL while it is being attached */
        bool attaching;
        bool reflink;            /* of the store's file system */
        struct catalog *catalog; /* the published snapshots */

        struct journal_found *journal; /* what the last forkd left half done, until it is settled */

        struct vm_list vms;
        unsigned n_vms;
        struct identities *identities; /* what only one can have, and who has it */
        struct vmm_jail *vmm_jail;     /* NULL until the first VMM is started (jail.h) */
        uint32_t next_uid;             /* where the search for a VMM's user begins */

        struct pools *pools; /* clones that wait to be taken */

        struct pager *pager;
        struct times times;      /* of operations */
        struct http *http;       /* what of forkd can be read by HTTP */
        struct metrics *metrics; /* … by Prometheus */
        struct page *page;
        struct monitor *monitor; /* of VMMs and the pager, by the kernel's word */
        struct events *events;
        struct worker_pool *workers;
        struct host *host;           /* what it has to give */
        struct admission *admission; /* what of it is claimed */
        struct turns *turns;         /* heavy work, a few at a time */
        struct shells *shells;       /* VMMs that wait to become a VM's */
        struct api *api;

        struct notify *notify; /* the service manager */
        struct event *sigterm, *sigint, *housekeeping;
        bool stopping;                         /* no new operation begins */
        bool stop_all;                         /* `shutdown --all`: VMs are stopped first */
        struct co_wait *stopped;               /* woken when the end begins */
        TAILQ_HEAD(, shutdown_wait) shutdowns; /* requests that wait for the VMs' end */
        int exit_code;
};

struct daemon_options {
        const char *state_dir, *run_dir, *config; /* NULL: defaults */
        const char *log_level;                    /* NULL: of the configuration */
};

/** Runs forkd until it is told to stop; returns the process's exit code. */
int daemon_run(const struct daemon_options *opt);

/** Tells forkd to end; returns at once. */
void daemon_begin_stop(struct daemon *d, bool all);
/** Begins to stop, as SIGTERM does (VMs live on), or with @all after stopping every VM; waits until no operation is
 *  under way any more and the VMs have stopped, and appends the names of those to @names. forkd ends then. A coroutine
 *  call. -ECANCELED: it is about to end already, and not with @all. */
int daemon_shutdown(struct daemon *d, bool all, struct mp_buf *names, unsigned *ret_n, struct err *e) attr_warn_unused;

/** The path of one of forkd's helper programs: beside its own binary, or in libexec. -ENOENT. */
int daemon_helper(const struct daemon *d, const char *name, char *buf, size_t size) attr_warn_unused;

/** The end itself, by forkd's own coroutine. */
void daemon_end(struct daemon *d);
bool daemon_has_live_vms(struct daemon *d);

/** Opens (or opens again) the store at <state>/store; see `store.attach`. */
int daemon_open_store(struct daemon *d, struct err *e) attr_warn_unused;
int daemon_attach_store(struct daemon *d, struct err *e) attr_warn_unused;
/** Closes it, and unmounts what forkd mounted. */
void daemon_close_store(struct daemon *d);
