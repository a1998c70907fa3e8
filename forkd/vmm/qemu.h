/* SPDX-License-Identifier: MIT */
/* Inside the QEMU driver: what its files share. Its outside is vmm.h. */
#pragma once

#include <event2/event.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "common/co.h"
#include "forkd/vmm/qmp.h"
#include "forkd/vmm/vmm.h"

/** Files in a VM's run_dir. Sockets are bound before QEMU starts and inherited by it, so that a connection
 *  made at once waits in the socket's queue, and nobody has to try again. */
#define QEMU_QMP_SOCKET "qmp.sock"
#define QEMU_AGENT_SOCKET "agent.sock"
#define QEMU_LAYOUT_FILE "layout"

#define QEMU_START_TIMEOUT_MS 30000 /* 20 ms on an idle host; a swapping one takes seconds */
#define QEMU_CALL_TIMEOUT_MS 10000
#define QEMU_PAUSE_TIMEOUT_MS 60000 /* drains and flushes the disks */
#define QEMU_STATE_TIMEOUT_MS 60000 /* ditto, and 13 KB of device state */
#define QEMU_DEATH_TIMEOUT_MS 2000  /* from a hang-up to the death behind it */
#define QEMU_KILL_TIMEOUT_MS 5000

/** Waits for the process's end; on a coroutine's stack. */
struct qemu_exit_wait {
        TAILQ_ENTRY(qemu_exit_wait) entry;
        struct co_wait wait;
};

struct qemu_shell;

struct vmm {
        const struct vmm_ops *ops;
        struct event_base *base;
        struct vmm_machine machine;
        const struct vmm_events *events;
        void *arg;

        pid_t pid;
        int pidfd;
        struct event *ev_exit;
        bool exited;
        bool quiet; /* nobody is told of its end: it is being started or killed */
        int status; /* wait status once exited, -1 unknown */
        TAILQ_HEAD(, qemu_exit_wait) exit_waits;

        struct qmp *qmp;
        bool running;     /* as QEMU's STOP and RESUME events tell */
        bool wants_state; /* started for load_state, which has not succeeded yet: it must not be resumed */

        char *agent_path, *layout_path, *log_path;
        uint64_t log_start;       /* where this process's own lines begin in the log */
        struct qemu_shell *shell; /* what it stands for; NULL: it is a VM's */
};

/* ---- qemu_args.c ---- */

/** See thread_vcpu of struct vmm_ops. */
int qemu_thread_vcpu(const char *comm);

/* ---- qemu.c ---- */

/** Turns a failed QMP step into what the caller gets to see: "@what: reason". When QEMU has died (or hung
 *  up, which it mostly does by dying) the result is -EPIPE with how it died and the end of its log. */
int qemu_step_failed(struct vmm *v, int r, const char *what, struct err *e);

/** "@dir/@file", to be freed. -ENOMEM. */
int qemu_join(const char *dir, const char *file, char **ret) attr_warn_unused;
/** Where the VM's files are: paths in @run_dir, and @log_path, in place of what they were. -ENOMEM. */
int qemu_set_paths(struct vmm *v, const char *run_dir, const char *log_path) attr_warn_unused;
/** Connects to a unix socket. Never blocks: a QEMU whose queue of connections is full is -EAGAIN, not a wait without end. */
int qemu_connect_now(const char *path, int *ret_fd) attr_warn_unused;

/* ---- qemu_state.c ---- */

/** What is set once after the handshake. */
int qemu_state_setup(struct vmm *v, struct err *e) attr_warn_unused;
/** Asks a QEMU that was taken back what it is doing. */
int qemu_state_recover(struct vmm *v, struct err *e) attr_warn_unused;
int qemu_resume(struct vmm *v, struct err *e);
int qemu_pause(struct vmm *v, struct err *e);
int qemu_save_state(struct vmm *v, int fd, struct err *e);
int qemu_load_state(struct vmm *v, int fd, struct err *e);
int qemu_is_running(struct vmm *v, bool *ret, struct err *e);

/* ---- qemu_shell.c ---- */

int qemu_take(struct vmm *v, const struct vmm_start *s, const struct vmm_events *ev, void *arg, struct err *e);
bool qemu_is_current(const struct vmm *v, const char *attach_lib);
/** NULL is fine. */
void qemu_shell_free(struct qemu_shell *sh);

/* ---- qemu_log.c ---- */

/** Size of the log now, 0 if there is none. */
uint64_t qemu_log_size(const char *path);
/** The reason in the lines that were added to the log since @start: the attach library's if it says one, else
 *  the last ones, in one line. "" if there is nothing. Returns @buf. */
char *qemu_log_reason(const char *path, uint64_t start, char *buf, size_t size);
/** The same on a piece of log text: the part that is worth a fuzzer. */
char *qemu_log_pick(char *text, size_t len, char *buf, size_t size);

/* ---- qemu_layout.c ---- */

/** Reads the attach library's lines {"host_addr","size","offset","uffd"?}. -EBADMSG if a line makes no sense, or if the
 *  regions overlap or are more than @mem_bytes; -E2BIG if more than @max. */
int qemu_layout_parse(const char *text, size_t len, uint64_t mem_bytes, struct vmm_region *ret, size_t max,
                      size_t *ret_n) attr_warn_unused;
/** The "uffd" of its first line. -ENOENT: there is none; -EBADMSG. */
int qemu_layout_uffd(const char *text, size_t len, int *ret) attr_warn_unused;
int qemu_ram_regions(struct vmm *v, struct vmm_region *ret, size_t max, size_t *ret_n, struct err *e);
int qemu_idle_uffd(struct vmm *v, int *ret_fd, struct err *e);

/* ---- qemu_host.c: what is installed here ---- */

/** The program: env FORKD_QEMU, else the usual places. -ENOENT. */
int qemu_find(char *buf, size_t size, struct err *e) attr_warn_unused;
int qemu_version(char *buf, size_t size, struct err *e) attr_warn_unused;
/** "QEMU emulator version 7.2.22 (Debian …)" → "7.2.22". -EBADMSG. */
int qemu_version_parse(const char *text, char *buf, size_t size) attr_warn_unused;
/** The small firmware (qboot) that belongs to program @qemu, into @buf; -ENOENT: QEMU's own choice will do. */
int qemu_find_firmware(const char *qemu, char *buf, size_t size) attr_warn_unused;
/** Frequency of this host's time stamp counter, 0 if it has none that is constant. The first call waits 20 ms
 *  (as a coroutine, or by blocking). */
unsigned qemu_tsc_khz(void);
