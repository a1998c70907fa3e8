/* SPDX-License-Identifier: MIT */
/* What belongs to this forkd's directories and to nobody any more: processes, cgroups, mounts, loop devices, directories,
 * sockets, temporary files. One piece of code knows it, for the start of forkd and for `doctor --orphans`.
 *
 * How each is known to be ours, and nobody else's:
 *
 *      process     it is in a cgroup below forkd-<instance>, or has FORKD_INSTANCE=<instance> in the environment it was
 *                  started with; <instance> is a hash of the state directory's real path
 *      cgroup      forkd-<instance>/<id of a VM>, /pager, /workers
 *      mount       <state>/store, if it is a mount of <state>/store.img; what is mounted below <run>/vms/<id>
 *      loop        its backing file is <state>/store.img, and it is mounted nowhere
 *      directory   <state>/vms/<id>, <state>/store/vms/<id>, <run>/vms/<id>
 *      temporary   in <state>/store/tmp, locked by nobody; *.tmp-<id> of an atomic write in a directory of ours
 *      socket      <run>/forkd.sock, pager.sock, pager.pid, where nobody can listen any more
 *      journal     a file in <state>/journal that cannot be read
 *
 * Paths are compared component by component. What a VM claims is none of these: one that an operation holds, that has a
 * VMM, or whose record names a process that lives (by pid and start time) and is to be taken back. */
#pragma once

#include <stdbool.h>

#include "forkd/daemon.h"

struct orphan {
        const char *kind; /* as above */
        const char *what; /* "1234", a path */
        const char *detail;
        bool fixed;
};
/** Told of each, once. The strings are the caller's for that long. */
typedef void orphan_fn(const struct orphan *o, void *arg);

struct orphans {
        struct daemon *d;
        bool fix;       /* remove them */
        bool processes; /* only these, and their cgroups */
        bool certain;   /* nothing that a person should have seen first: unreadable entries of the journal */
        orphan_fn *fn;
        void *arg;
        unsigned found, fixed;
};

/** Finds them all, in the order in which they can be removed: guests before the pager, processes before what they hold.
 *  With @fix in a coroutine, or where no forkd runs (d->offline). Blocking, milliseconds; to end processes at most 5 s
 *  each. */
void orphans_walk(struct orphans *o);

/** As a helper of forkctl, without a running forkd: takes the directories' locks, so that none starts meanwhile, and prints
 *  one JSON document. Returns the exit code: 1, with {"error"}, if it cannot be done. */
int orphans_main(const struct daemon_options *opt, bool fix);

/* ---- between orphans.c and orphans_procs.c ---- */

bool orphans_claimed(const struct vm *vm);
bool orphans_any_claimed(struct daemon *d);
void orphans_tell(struct orphans *o, const char *kind, const char *what, bool fixed, const char *fmt, ...) attr_printf(5, 6);
/** Processes of VMs that do not claim them, and of workers without a forkd. */
void orphans_guests(struct orphans *o);
/** A pager that nobody uses, and the groups that are left. */
void orphans_pager(struct orphans *o);
/** May the pager's processes live? */
bool orphans_pager_is_needed(struct daemon *d);
