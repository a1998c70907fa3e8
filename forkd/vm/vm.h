/* SPDX-License-Identifier: MIT */
/* One virtual machine as forkd knows it: its record (which survives forkd) and its living parts.
 *
 *      creating → booting → running ⇄ paused;  running/paused → standby → (restore) → running
 *      any state → stopping → stopped;  any state → failed(reason)
 *
 * One operation at a time: vm_op_begin takes the VM for an operation, which runs as one coroutine and may
 * wait; whoever else wants to change the VM meanwhile is told that it is busy. Only what forkd does by itself (a chore:
 * cleaning up, reconnecting) is waited for. What an operation changed is written to the record before its side effects,
 * so that the next forkd can finish or undo it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "common/err.h"
#include "common/ids.h"
#include "forkd/host/admission.h"
#include "forkd/guest/guest_link.h"
#include "forkd/vm/identity.h"
#include "forkd/pager/link.h"
#include "forkd/vmm/vmm.h"

struct caller;
struct daemon;
struct journal_entry;
struct monitor_vm;
struct stream_call;
struct vm_origin;
struct vm_waiter;

enum vm_state {
        VM_CREATING,
        VM_BOOTING,
        VM_RUNNING,
        VM_PAUSED,
        VM_STANDBY,
        VM_STOPPING,
        VM_STOPPED,
        VM_FAILED,
};

struct vm {
        TAILQ_ENTRY(vm) entry;
        struct daemon *d;
        struct admission_claim claim;    /* on the host's memory, vCPUs … */
        struct identity_holder identity; /* of its name and id, and what its VMM needs for itself */

        /* ---- the record ---- */
        id_str id;
        char name[NAME_MAX_LEN + 1];
        enum vm_state state;
        char reason[256]; /* of VM_FAILED, or of a VM_PAUSED that nobody asked for; else empty */
        char driver[16];
        char vmm_version[32];
        struct vmm_machine machine;
        char on_pager_loss[8]; /* "kill" or "recover" */
        char net[8];
        id_str snapshot;     /* stands by in it, or was restored from it; "" for a VM that booted */
        id_str parent;       /* that snapshot's parent */
        uint32_t generation; /* snapshots in its chain */
        bool has_base;       /* store/vms/<id>/base.img: what its memory is mapped from */
        id_str origin;       /* what a restore brings back, if has_origin: @snapshot before it was forked live; "": nothing */
        bool has_origin;
        bool has_parent; /* parent.img beside it: the image of @snapshot, made since; its next snapshot is a child of that */
        bool live;       /* a live fork of it is under way, or was cut off: some of its memory may be write-protected, and
                                  * what is not need not be all that has changed (op_live.c) */
        id_str pending_snapshot; /* a standby under way: completed if this one is published, else undone */
        bool needs_wake;         /* restored, but its agent has not yet been told who it is */
        bool removing;           /* rm has begun: the next forkd finishes it */
        int64_t created_ns;
        pid_t pid;
        id_str group;                /* of its VMM's cgroup, if that was a shell's; else it is named by the VM's id */
        uint32_t uid;                /* whose process the VMM is; 0: root's, or there is none */
        uint64_t start_time;         /* of the pid, /proc/<pid>/stat field 22 */
        char pool[NAME_MAX_LEN + 1]; /* it waits in that pool to be taken, and is nobody's to use; "": in none (vm_pool_mark) */

        /* ---- living parts, gone when forkd goes ---- */
        const struct vmm_ops *ops;
        struct vmm *vmm;
        struct monitor_vm *monitored; /* the monitor's notes on it, and the monitor's to set; NULL: none */
        struct guest_link *link;
        bool session;                    /* the pager serves it */
        bool recording;                  /* its session records for the working set of @snapshot */
        bool session_known;              /* said a pager of an earlier forkd's (pager_mark_sessions) */
        char lost[256];                  /* why its memory is gone and it is being killed, else "" */
        bool io_error;                   /* the VMM has paused it, for a disk cannot be written */
        enum wire_wake_kind wake_kind;   /* of the last wake-up */
        bool agent_lost;                 /* the agent's link broke while the VMM lives: to be made anew */
        bool vmm_exited;                 /* the process has ended; the operation under way, or vm_reap, cleans up */
        bool guest_shutdown;             /* the guest itself asked for its end */
        bool ended;                      /* the one of ending_fd has */
        bool chore;                      /* what it is busy with is one of forkd's own */
        struct pager_hold hold;          /* of that session */
        int ending_fd;                   /* pidfd of a VMM that was killed and has not ended (vm_end.c), or -1 */
        struct event *ending_ev;         /* for its end */
        const char *busy;                /* the operation under way */
        TAILQ_HEAD(, vm_waiter) waiters; /* for the end of a chore */
        uint64_t regained_ns;            /* when an attempt to get the agent back ended last */
        uint64_t checked_ns;             /* when its pool looked at it last */
        struct co_wait *idle_waiter;
        TAILQ_HEAD(, stream_call) calls;
};
TAILQ_HEAD(vm_list, vm);

const char *vm_state_name(enum vm_state s);

/* ---- the table ---- */

/** By name or id. -ENOENT. */
int vm_find(struct daemon *d, const char *name_or_id, struct vm **ret, struct err *e) attr_warn_unused;
struct vm *vm_by_id(struct daemon *d, const char *id); /* NULL */
/** The name of the cgroup of its VMM, and the VM that has it (NULL). */
const char *vm_group(const struct vm *vm);
struct vm *vm_by_group(struct daemon *d, const char *group);
bool vm_name_taken(struct daemon *d, const char *name);

/** May a new VM be called that? -EINVAL; -EEXIST, with who is. */
int vm_check_name(struct daemon *d, const char *name, struct err *e) attr_warn_unused;
/** Another name, in memory: whoever holds the VM writes its record. The same errors. */
int vm_rename(struct vm *vm, const char *name, struct err *e) attr_warn_unused;

/** A new VM with a valid, free @name, in VM_CREATING with a new id; nothing is on disk yet. */
int vm_new(struct daemon *d, const char *name, struct vm **ret, struct err *e) attr_warn_unused;
/** Memory for one, and back: nothing is known of it yet, and it is not in the table. NULL: out of memory. */
struct vm *vm_alloc(struct daemon *d);
void vm_free(struct vm *vm);
/** Takes its name and id, and puts it into the table. -EEXIST, with who has them. */
int vm_enter(struct vm *vm, struct err *e) attr_warn_unused;
/** Forgets the VM; its files are removed if @files. Nothing of it may be alive. */
void vm_delete(struct vm *vm, bool files);
/** Frees the table's entries at forkd's exit; VMMs live on. */
void vm_release_all(struct daemon *d);

/** "<state>/vms/<id>[/<file>]", "<run>/vms/<id>[/…]", "<store>/vms/<id>[/…]". -ENAMETOOLONG. */
int vm_state_path(const struct vm *vm, const char *file, char *buf, size_t size) attr_warn_unused;
int vm_run_path(const struct vm *vm, const char *file, char *buf, size_t size) attr_warn_unused;
int vm_store_path(const struct vm *vm, const char *file, char *buf, size_t size) attr_warn_unused;
#define VM_BASE_FILE "base.img"
#define VM_PARENT_FILE "parent.img"
/** One of these images of a VM, for reading. -EBADMSG when something else than a file stands in its place. */
int vm_open_base(const struct vm *vm, const char *file, int *ret_fd) attr_warn_unused;

/** What becomes of a guest whose pager is lost: is @policy one ("kill", "recover")? */
int vm_check_policy(const char *policy, struct err *e) attr_warn_unused;

/* ---- operations ---- */

/** Takes the VM for operation @what. A coroutine call, which waits for the end of a chore: what was known of the VM before
 *  must be looked at again. -EBUSY: another operation is under way; -ENOENT: the VM was removed meanwhile, and @vm means
 *  nothing any more; -ECANCELED: forkd is about to exit. */
int vm_op_begin(struct vm *vm, const char *what, struct err *e) attr_warn_unused;
/** Takes an idle VM for a chore, which @fn runs in a coroutine; it ends with vm_op_end. */
void vm_chore(struct vm *vm, const char *what, void (*fn)(void *vm));
/** Gives it back. A VMM that died meanwhile is cleaned up now, which may wait; @vm stays valid until the caller
 *  waits for something else. */
void vm_op_end(struct vm *vm);
/** Sets the state and writes the record. VM_RUNNING and VM_PAUSED are refused for a VM whose VMM has ended or whose
 *  memory is lost, so that no operation ends well on a dead VM. */
int vm_set_state(struct vm *vm, enum vm_state state, struct err *e);
/** The same without the record. */
int vm_enter_state(struct vm *vm, enum vm_state state, struct err *e) attr_warn_unused;
/** To VM_FAILED with a reason; the record is written as far as the disk allows. */
void vm_fail(struct vm *vm, const char *fmt, ...) attr_printf(2, 3);

/** What it comes back from when it is restored: "" if from nothing. A live fork makes it a child of a snapshot that nobody has put
 *  it on standby in; it comes back from where it came from before. */
const char *vm_comes_back_from(const struct vm *vm);

/* ---- records (record.c) ---- */
int vm_record_save(struct vm *vm, struct err *e);
/** It waits in @pool from now on, until it leaves it as vm->name: one file comes, and gets another name. Neither is synced. Whoever
 *  finds that it has left before its record was written takes it for one that runs, under that name. */
int vm_pool_mark(struct vm *vm, const char *pool, struct err *e) attr_warn_unused;
int vm_pool_unmark(struct vm *vm, struct err *e) attr_warn_unused;
/** Its record has been written since. */
void vm_pool_settle(const struct vm *vm);
/** Reads every record of the state directory into the table; what cannot be read is logged and left alone. */
int vm_records_load(struct daemon *d, struct err *e) attr_warn_unused;

/* ---- living parts (vm_life.c); all are coroutine calls ---- */

struct vm_launch {
        const char *kernel, *initrd, *cmdline; /* of a boot */
        int pager_sock;                        /* of a restore; -1 */
        bool no_shell;                         /* … with a VMM that is started for it */
};
/** Makes the directories, opens the console, starts the VMM (or takes a shell), and records its pid. -ERESTART: a shell was taken
 *  and failed; nothing of it is left but a session of the pager's that it may have used. */
int vm_launch(struct vm *vm, const struct vm_launch *l, struct err *e) attr_warn_unused;
/** Connects to the agent's channel. */
int vm_link_open(struct vm *vm, struct err *e) attr_warn_unused;
/** Tells the guest who it is (fresh entropy, time, hostname, machine-id), or with WIRE_WAKE_RECONNECT only that it is
 *  talked to anew; connects first when there is no fresh connection. The VMM may still be paused. */
int vm_wake_queue(struct vm *vm, enum wire_wake_kind kind, struct err *e) attr_warn_unused;
/** Waits for the acknowledgement, over connections that break (vm_agent.c). */
int vm_wake_wait(struct vm *vm, struct err *e) attr_warn_unused;
/** Gets in touch with the agent of a running guest again, whatever became of the last connection: within @timeout_ms, but a
 *  guest that has to be told who it is has the configured time. */
int vm_agent_regain(struct vm *vm, int timeout_ms, struct err *e) attr_warn_unused;
#define VM_REGAIN_TIMEOUT_MS 10000 /* for a guest that only has to answer */
/** The same in the background, if a loss was noted (agent_lost) and nothing else is under way. */
void vm_agent_regain_later(struct vm *vm);
/** After a failure to come up: adds what the guest and its VMM said last, before their files go. */
void vm_explain(struct vm *vm, struct err *e);
/** Cuts the console's log when the guest has written too much, and its VMM's; called every few seconds. */
void vm_trim_logs(const struct vm *vm);
/** Notes that the VMM has paused the guest by itself. A coroutine call, when nothing else is under way. */
void vm_check_io_error(struct vm *vm);
/** Kills a guest that lost its memory, from anywhere: state failed with @reason, at once or when the operation under
 *  way has ended. */
void vm_kill_lost(struct vm *vm, const char *reason);
extern const struct vmm_events vm_vmm_events;

/* ---- their end (vm_end.c); coroutine calls but for what only looks ---- */

/** Ends everything that lives of this VM, in order: calls, link, VMM (killed and reaped), pager session, run
 *  directory, cgroup. Files and record stay. False: the VMM was killed but does not end within 5 s. The VM lingers then:
 *  what its VMM holds stays its own, and goes by itself when it has ended. */
bool vm_teardown(struct vm *vm);
/** The same, and forgets the VM with its files: @vm is gone. -EBUSY with @e: it lingers; it is forgotten when its VMM ends,
 *  and its operation has ended. */
int vm_remove(struct vm *vm, struct err *e);
/** Of a VMM that did not come up and is reaped: its session, its user, its cgroup, its directory. The VM may be given another. */
void vm_drop_vmm(struct vm *vm);
/** Is there a VMM that was killed and has not ended? */
bool vm_lingers(const struct vm *vm);
/** -EBUSY, with the sentence, if there is. Nothing may be started for the VM then. */
int vm_check_ended(const struct vm *vm, struct err *e) attr_warn_unused;
/** "its VMM (pid 12, state D (disk sleep)) was killed and has not ended yet"; of a VM that lingers. Returns @buf. */
char *vm_describe_end(const struct vm *vm, char *buf, size_t size);
/** Cleans up in the background if the VMM of a VM that lingers has ended and nothing else is under way. */
void vm_end_later(struct vm *vm);
/** At forkd's own exit: it is left to the next one. */
void vm_forget_end(struct vm *vm);
/** The VM's disks and memory in the store: gone, for they are in a snapshot now, or were never needed. */
void vm_drop_files(struct vm *vm);

/* ---- after a restart (adopt.c) ---- */

/** Takes back what an earlier forkd left running, finds out how the rest ended, and removes what belongs to nobody:
 *  processes, cgroups, directories. A coroutine call; agents that take long are waited for in the background. */
void vms_adopt(struct daemon *d);

/* ---- whole operations (one file each): the VM is taken by them ---- */

struct vm_run_params {
        const struct caller *caller; /* with whose rights the disks are read */
        const char *name;
        uint64_t mem_bytes;
        unsigned vcpus;
        const char *vmm, *accel, *net, *on_pager_loss;
        unsigned n_disks;
        const char *disks[VMM_MAX_DISKS];
};
int vm_op_run(struct daemon *d, const struct vm_run_params *p, struct vm **ret, double *ret_boot_ms,
              struct err *e) attr_warn_unused;

struct vm_snap_params {
        const char *tag; /* NULL or "": none */
        int codec, level;
        bool sync;
        struct journal_entry *journal; /* of a VM that runs on: gets the snapshot's id before there is one */
        /** Called when the VM runs again and its memory is being copied: VMs may come to life on @o already. What is to be
         *  kept of @o must be copied, and nothing waited for. May be NULL; not called if there is only the snapshot. */
        void (*on_nascent)(const struct vm_origin *o, void *arg);
        void *arg;
};
struct vm_snap_result {
        id_str snapshot;
        double pause_ms, total_ms, device_ms, memory_ms;
        uint64_t dirty_bytes, stored_bytes;
        bool durable;
};
/** @keep_running: the VM goes on after the snapshot (snapshot.create, fork of a running VM), and @p has a journal; else
 *  it ends in VM_STANDBY. */
int vm_op_snapshot(struct vm *vm, const struct vm_snap_params *p, bool keep_running, struct vm_snap_result *ret,
                   struct err *e) attr_warn_unused;

/** Undoes what a live fork that failed, or was cut off, has left in the VM's memory. Before that is looked at. A coroutine call. */
int vm_unprotect(struct vm *vm, struct err *e) attr_warn_unused;

/** `snapshot create`: the VM runs on, and the snapshot is there if and only if this succeeds. */
int vm_op_snapshot_create(struct vm *vm, struct vm_snap_params *p, struct vm_snap_result *ret, struct err *e) attr_warn_unused;

struct vm_clone_result {
        double total_ms, load_ms, ack_ms;
};
/** Brings @vm (in VM_STANDBY, or new in VM_CREATING) to life from snapshot @id. */
int vm_op_restore(struct vm *vm, const char *snapshot, bool paused, bool force, struct vm_clone_result *ret,
                  struct err *e) attr_warn_unused;

int vm_op_pause(struct vm *vm, struct err *e) attr_warn_unused;
int vm_op_resume(struct vm *vm, struct err *e) attr_warn_unused;
int vm_op_stop(struct vm *vm, struct err *e) attr_warn_unused;
/** Removes the VM (killed if it lives). @vm is gone on success. */
int vm_op_rm(struct vm *vm, struct err *e) attr_warn_unused;
