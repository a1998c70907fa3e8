/* SPDX-License-Identifier: MIT */
/* The living parts of a VM: how they come up and how they go. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/log.h"
#include "common/spawn.h"
#include "forkd/daemon.h"
#include "forkd/host/jail.h"
#include "forkd/host/shells.h"
#include "forkd/monitor/monitor.h"
#include "forkd/pager/link.h"
#include "forkd/pool/pool.h"
#include "forkd/vm/recording.h"
#include "forkd/api/streams.h"
#include "forkd/vm/vm.h"
#include "forkd/vmm/cgroup.h"
#include "setup/assets.h"

#define LOG_MAX_BYTES (4 << 20) /* a guest, or its VMM, may write for ever: beyond this only the newest stays */
#define LOG_KEEP_BYTES (1 << 20)

/* ---- the VMM's events ---- */

static void reap(void *arg) {
        vm_op_end(arg);
}

static void on_exit_event(int status, void *arg) {
        struct vm *vm = arg;

        log_info("%s (%s): the VMM has ended (wait status %d)", vm->name, vm->id, status);
        vm->vmm_exited = true;
        if (vm->busy)
                return; /* the operation under way notices, and vm_op_end cleans up */
        vm_chore(vm, "cleaning up", reap);
}

static void on_guest_event(const char *what, void *arg) {
        struct vm *vm = arg;

        log_info("%s (%s): guest %s", vm->name, vm->id, what);
        if (strcmp(what, "shutdown") == 0 || strcmp(what, "reset") == 0)
                vm->guest_shutdown = true;
        if (strcmp(what, "io-error") != 0)
                return;
        vm->io_error = true;
        if (vm->busy)
                return; /* vm_op_end looks */
        vm_chore(vm, "looking at its disks", reap);
}

/* A full disk under a guest's disk stops the guest where it stands, so that nothing is lost: when there is room again,
 * it can go on. An operation may have let it go on already. */
void vm_check_io_error(struct vm *vm) {
        bool running = true;
        struct err e;

        vm->io_error = false;
        if (vm->state != VM_RUNNING || !vm->vmm || vm->ops->is_running(vm->vmm, &running, &e) < 0 || running)
                return;
        vm->state = VM_PAUSED;
        (void) snprintf(vm->reason, sizeof(vm->reason), "one of its disks could not be written: make room, then resume it");
        log_warning("%s (%s): running -> paused: %s", vm->name, vm->id, vm->reason);
        if (vm_record_save(vm, &e) < 0)
                log_warning("%s", e.message);
}

const struct vmm_events vm_vmm_events = { .on_exit = on_exit_event, .on_guest_event = on_guest_event };

/* A guest without its memory is killed at once, whatever else goes on with it: an operation under way sees its
 * VMM die and ends; vm_op_end then does what is left. A VMM that is just being started has no handle yet, but a
 * cgroup, and vm_launch looks for the reason when it has. */
void vm_kill_lost(struct vm *vm, const char *reason) {
        cleanup_fd int pidfd = -1;
        struct err e;

        if (!vm->lost[0])
                times_killed(vm->d, reason);
        (void) snprintf(vm->lost, sizeof(vm->lost), "%s", reason);
        if (vm->vmm && !vm->busy)
                vm_fail(vm, "%s", reason);
        if (vm->vmm)
                best_effort(spawn_kill(vm->ops->pidfd(vm->vmm), SIGKILL));
        else if (cgroup_kill(vm->d->instance, vm_group(vm), &e) < 0)
                log_debug("%s", e.message);
        /* Where there are no cgroups. One that an earlier forkd started may not be taken back yet, and must not be. */
        if (!vm->vmm && vm->pid > 0 && vm->start_time != 0 && spawn_pidfd_open(vm->pid, vm->start_time, &pidfd) == 0)
                best_effort(spawn_kill(pidfd, SIGKILL));
}

/* ---- coming up ---- */

/* Appended by the VMM, so that a truncation never leaves a hole. */
static int open_console(struct vm *vm, int *ret_fd, struct err *e) {
        cleanup_fd int fd = -1;
        char path[PATH_MAX];
        int r;

        r = vm_state_path(vm, "console.log", path, sizeof(path));
        if (r < 0)
                return err_errno(e, r, "opening the console of '%s'", vm->name);
        fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
                return err_errno(e, -errno, "opening %s", path);
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* Its newest megabyte stays. What is written between the read and the cut is lost: somebody is flooding us. */
static void trim_log(const struct vm *vm, const char *file) {
        cleanup_free char *tail = NULL;
        cleanup_fd int fd = -1;
        char path[PATH_MAX];
        struct stat st;
        ssize_t n;

        if (vm_state_path(vm, file, path, sizeof(path)) < 0)
                return;
        fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 || fstat(fd, &st) < 0 || st.st_size <= LOG_MAX_BYTES)
                return;
        tail = malloc(LOG_KEEP_BYTES);
        if (!tail)
                return;
        n = pread(fd, tail, LOG_KEEP_BYTES, st.st_size - LOG_KEEP_BYTES);
        if (ftruncate(fd, 0) < 0 || (n > 0 && io_write_full(fd, tail, (size_t) n) < 0))
                log_warning("%s: cannot trim %s", vm->name, file);
}

void vm_trim_logs(const struct vm *vm) {
        trim_log(vm, "console.log");
        trim_log(vm, "vmm.log");
}

static int make_run_dir(struct vm *vm, char *path, size_t size, struct err *e) {
        int r = vm_run_path(vm, NULL, path, size);

        /* What an earlier life left is of no use. */
        if (r == 0)
                r = io_remove_tree(AT_FDCWD, path);
        if (r == 0 && mkdir(path, 0700) < 0)
                r = -errno;
        return r < 0 ? err_errno(e, r, "making the directory %s", path) : 0;
}

/* Known from its first moment on, so that it can be waited for should it neither come up nor end. */
static int on_spawn(int pidfd, void *arg, struct err *e) {
        struct vm *vm = arg;
        pid_t pid;
        int r;

        if (spawn_pidfd_pid(pidfd, &pid) == -ESRCH)
                return 0; /* of one that has ended already the driver knows more to tell */
        vm->pid = vm->claim.pid = pid;
        if (spawn_start_time(pid, &vm->start_time) < 0)
                vm->start_time = 0;
        pool_member_spawned(vm, pid);
        monitor_vm_born(vm->d->monitor, vm, pidfd, pid);
        r = vm->session ? pager_session_expect(vm->d->pager, vm, pidfd, e) : 0;
        return r < 0 && spawn_pidfd_pid(pidfd, &pid) == -ESRCH ? 0 : r;
}

/* A process of its own, in a directory, a cgroup and as a user that are made for it. */
static int start_vmm(struct vm *vm, struct vmm_start *s, struct err *e) {
        cleanup_fd int cgroup = -1;
        char run_dir[PATH_MAX];
        struct err ignored;
        int r;

        r = make_run_dir(vm, run_dir, sizeof(run_dir), e);
        if (r < 0)
                return r;
        if (cgroup_create(vm->d->instance, vm->id, &cgroup, &ignored) < 0)
                log_debug("%s runs without a cgroup of its own: %s", vm->name, ignored.message);
        r = forkd_jail(vm->d, &s->jail, e);
        if (r == 0)
                r = vm_take_user(vm, e);
        if (r < 0)
                return r;
        s->uid = vm->uid;
        s->cgroup_fd = cgroup;
        s->run_dir = run_dir;
        return vm->ops->start(vm->d->base, s, &vm_vmm_events, vm, &vm->vmm, e);
}

/* 1: it has a VMM. 0: it has none, and may be given one. */
static int take_shell(struct vm *vm, struct vmm_start *s, struct err *e) {
        char run_dir[PATH_MAX];
        int r = vm_run_path(vm, NULL, run_dir, sizeof(run_dir));

        if (r < 0)
                return err_errno(e, r, "finding its directory");
        s->run_dir = run_dir;
        r = shells_take(vm->d->shells, vm, s, e);
        s->run_dir = NULL;
        if (r >= 0 || vm->lost[0])
                return r;
        vm_drop_vmm(vm);
        return -ERESTART;
}

int vm_launch(struct vm *vm, const struct vm_launch *l, struct err *e) {
        char log_path[PATH_MAX], disks[VMM_MAX_DISKS][PATH_MAX];
        cleanup_fd int console = -1;
        struct vmm_start s = {
                .machine = &vm->machine,
                .log_path = log_path,
                .kernel = l->kernel,
                .initrd = l->initrd,
                .cmdline = l->cmdline,
                .incoming = l->pager_sock >= 0,
                .pager_sock = l->pager_sock,
                .attach_lib = vm->d->attach_lib,
                .instance = vm->d->instance,
                .cgroup_fd = -1,
                .on_spawn = on_spawn,
        };
        int r;

        r = open_console(vm, &console, e);
        if (r < 0)
                return r;
        s.console_fd = console;
        if (vm_state_path(vm, "vmm.log", log_path, sizeof(log_path)) < 0)
                return err_errno(e, -ENAMETOOLONG, "starting '%s'", vm->name);
        for (unsigned i = 0; i < vm->machine.n_disks; i++) {
                char file[32];

                (void) snprintf(file, sizeof(file), "disk-%u.img", i);
                if (vm_store_path(vm, file, disks[i], sizeof(disks[i])) < 0)
                        return err_errno(e, -ENAMETOOLONG, "starting '%s'", vm->name);
                s.disks[i] = disks[i];
        }
        vm->vmm_exited = vm->guest_shutdown = false;
        r = s.incoming && !l->no_shell ? take_shell(vm, &s, e) : 0;
        if (r == 0)
                r = start_vmm(vm, &s, e);
        if (vm->lost[0]) /* killed from outside while it started: the caller tears it down */
                return err_set(e, ERR_PAGER, -EPIPE, "starting '%s': its memory was lost", vm->name);
        if (r < 0) {
                (void) err_prefix(e, "starting '%s'", vm->name);
                return r;
        }
        vm->pid = vm->ops->pid(vm->vmm);
        r = spawn_start_time(vm->pid, &vm->start_time);
        if (r < 0)
                return err_errno(e, r, "starting '%s': the VMM is gone", vm->name);
        return vm_record_save(vm, e);
}

/* The last line of text in a file, printable, for a message. */
static void last_line(const char *path, char *buf, size_t size) {
        cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        char tail[400];
        size_t end, begin;
        struct stat st;
        ssize_t n;

        buf[0] = '\0';
        if (fd < 0 || fstat(fd, &st) < 0)
                return;
        n = pread(fd, tail, sizeof(tail), MAX_OF(st.st_size - (off_t) sizeof(tail), (off_t) 0));
        if (n <= 0)
                return;
        for (end = (size_t) n; end > 0 && (unsigned char) tail[end - 1] <= 0x20; end--)
                ;
        for (begin = end; begin > 0 && tail[begin - 1] != '\n' && tail[begin - 1] != '\r'; begin--)
                ;
        for (size_t i = begin; i < end; i++)
                if (tail[i] < 0x20 || tail[i] > 0x7e)
                        tail[i] = '?';
        (void) snprintf(buf, size, "%.*s", (int) (end - begin), tail + begin);
}

/* What the kernel and VMMs say of something that only one can have. */
static bool smells_of_conflict(const char *text) {
        static const char *const words[] = { "in use", "File exists", "resource busy", "another process" };

        for (size_t i = 0; i < ARRAY_LEN(words); i++)
                if (strcasestr(text, words[i]))
                        return true;
        return false;
}

/* Of this forkd's own it can only belong to a VM that lingers: all others hold what nobody else was given. */
static void name_conflict(const struct vm *vm, struct err *e) {
        const struct vm *o;
        char why[160];

        TAILQ_FOREACH (o, &vm->d->vms, entry)
                if (vm_lingers(o)) {
                        (void) err_hint(e, "what it needs may be held by '%s': %s", o->name,
                                        vm_describe_end(o, why, sizeof(why)));
                        return;
                }
        (void) err_hint(e, "what it needs is in use, by no VM of this forkd: see what else runs on this host");
}

void vm_explain(struct vm *vm, struct err *e) {
        char path[PATH_MAX], console[160] = "", log[160] = "";

        if (vm_state_path(vm, "console.log", path, sizeof(path)) == 0)
                last_line(path, console, sizeof(console));
        if (vm_state_path(vm, "vmm.log", path, sizeof(path)) == 0)
                last_line(path, log, sizeof(log));
        log_error("%s (%s): %s; console: '%s'; VMM's log: '%s'", vm->name, vm->id, e->message, console, log);
        if (!e->hint[0] && (smells_of_conflict(e->message) || smells_of_conflict(log)))
                name_conflict(vm, e);
        if (!e->hint[0] && (console[0] || log[0]))
                (void) err_hint(e, "last words: of the guest '%s', of its VMM '%s'", console, log);
}
