/* SPDX-License-Identifier: MIT */
/* QEMU shells: started, with their machine built, before it is known which VM they will be.
 *
 * Theory of operation. Of the 23 ms that QEMU takes to answer, nine tenths pass before it maps guest RAM and the rest after;
 * none of it depends on the VM, but on the shape of its machine. A shell has come to the end of that: it stands at "inmigrate",
 * spoken to over QMP. In the place of a VM's files it has some of its own: a log, a console and disks in memory, a
 * reservation instead of guest RAM. To become a VM's it is given the real ones on a socket, by the attach library that QEMU
 * has loaded (pager/attach/wait.c). QEMU notices nothing: it has read no disk but for the first sector, where the disk's geometry
 * would be, written no line to the console, and takes the locks of its disks when the state has been loaded.
 *
 * A shell is a VMM like any other otherwise: its user, limits, cgroup, namespaces and filters are those it was started with.
 *
 * It is only good as long as what it was started from is still what would be started: QEMU, its firmware, the attach library.
 * The files are compared, and so is the program that runs with the one that is on disk, should a wrapper have started it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/vmm/qemu.h"
#include "forkd/vmm/qemu_launch.h"
#include "pager/attach/wait.h"

#define READ_TIMEOUT_MS 3000  /* on an idle host 0.1 ms */
#define TAKE_TIMEOUT_MS 12000 /* the pager's answer, for which the library waits 10 s, is in it */

_Static_assert(3 + VMM_MAX_DISKS <= ATTACH_WAIT_MAX && ATTACH_WAIT_MAX <= IO_MAX_FDS, "session, log, console, disks");

struct file_id {
        dev_t dev;
        ino_t ino;
        off_t size;
        struct timespec mtime;
};

/* What stands for one of the VM's files. */
struct stand_in {
        dev_t dev;
        ino_t ino;
};

struct qemu_shell {
        int sock;
        char program[PATH_MAX], firmware[PATH_MAX];
        struct file_id program_id, firmware_id, lib_id;
        struct stand_in log, console, disks[VMM_MAX_DISKS];
        uint64_t disk_bytes[VMM_MAX_DISKS];
};

void qemu_shell_free(struct qemu_shell *sh) {
        if (!sh)
                return;
        (void) close_fd(sh->sock);
        free(sh);
}
DEFINE_CLEANUP(struct qemu_shell, qemu_shell_free)

/* ---- what it was started from ---- */

static bool identify(const char *path, struct file_id *ret) {
        struct stat st;

        if (stat(path, &st) < 0)
                return false;
        *ret = (struct file_id){ .dev = st.st_dev, .ino = st.st_ino, .size = st.st_size, .mtime = st.st_mtim };
        return true;
}

static bool is_same(const char *path, const struct file_id *was) {
        struct file_id now;

        return identify(path, &now) && now.dev == was->dev && now.ino == was->ino && now.size == was->size &&
               now.mtime.tv_sec == was->mtime.tv_sec && now.mtime.tv_nsec == was->mtime.tv_nsec;
}

/* Packages are upgraded by renaming: the file that runs has no name any more. */
static bool program_is_gone(pid_t pid) {
        static const char mark[] = " (deleted)";
        char link[64], target[PATH_MAX];
        ssize_t n;

        (void) snprintf(link, sizeof(link), "/proc/%d/exe", (int) pid);
        n = readlink(link, target, sizeof(target));
        return n > (ssize_t) sizeof(mark) && memcmp(target + n - (sizeof(mark) - 1), mark, sizeof(mark) - 1) == 0;
}

bool qemu_is_current(const struct vmm *v, const char *attach_lib) {
        const struct qemu_shell *sh = v->shell;
        char found[PATH_MAX], program[PATH_MAX];
        struct err ignored;

        return sh && qemu_find(found, sizeof(found), &ignored) == 0 && realpath(found, program) &&
               strcmp(program, sh->program) == 0 && is_same(program, &sh->program_id) &&
               (!sh->firmware[0] || is_same(sh->firmware, &sh->firmware_id)) && is_same(attach_lib, &sh->lib_id) &&
               !program_is_gone(v->pid);
}

/* ---- making one ---- */

static int stand_in(int fd, struct stand_in *ret) {
        struct stat st;

        if (fstat(fd, &st) < 0)
                return -errno;
        *ret = (struct stand_in){ .dev = st.st_dev, .ino = st.st_ino };
        return 0;
}

int qemu_shell_new(struct vmm *v, const struct vmm_start *s, struct qemu_launch *l, const char *program, const char *firmware,
                   struct err *e) {
        attr_cleanup(qemu_shell_free_p) struct qemu_shell *sh = calloc(1, sizeof(*sh));
        int pair[2], r;

        if (!sh)
                return err_errno(e, -ENOMEM, "making a shell");
        sh->sock = -1;
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
                return err_errno(e, -errno, "making a shell");
        sh->sock = pair[0];
        l->wait = pair[1];
        (void) snprintf(sh->program, sizeof(sh->program), "%s", program);
        (void) snprintf(sh->firmware, sizeof(sh->firmware), "%s", firmware ? firmware : "");
        if (!identify(program, &sh->program_id) || (firmware && !identify(firmware, &sh->firmware_id)) ||
            !identify(s->attach_lib, &sh->lib_id))
                return err_errno(e, -errno, "looking at what a shell is started from");
        r = stand_in(l->log, &sh->log);
        if (r == 0)
                r = stand_in(l->console, &sh->console);
        for (unsigned i = 0; r == 0 && i < s->machine->n_disks; i++) {
                r = stand_in(l->disks[i], &sh->disks[i]);
                sh->disk_bytes[i] = s->disk_bytes[i];
        }
        if (r < 0)
                return err_errno(e, r, "looking at a shell's files");
        v->shell = TAKE_PTR(sh);
        return 0;
}

/* ---- its end as one ---- */

struct gift {
        struct attach_wait_msg msg;
        int fds[ATTACH_WAIT_MAX];
};

static void add(struct gift *g, enum attach_wait_kind kind, int fd, const struct stand_in *in_place_of) {
        struct attach_wait_entry *en = &g->msg.entries[g->msg.n];

        *en = (struct attach_wait_entry){ .kind = kind };
        if (in_place_of) {
                en->dev = in_place_of->dev;
                en->ino = in_place_of->ino;
        }
        g->fds[g->msg.n++] = fd;
}

static int open_files(const struct qemu_shell *sh, const struct vmm_start *s, struct qemu_launch *l, struct err *e) {
        int r = qemu_open_log(s, &l->log, e);

        if (r == 0)
                r = qemu_open_console(s, &l->console, e);
        for (unsigned i = 0; r == 0 && i < s->machine->n_disks; i++) {
                uint64_t bytes = 0;

                r = qemu_open_disk(s, i, &l->disks[i], &bytes, e);
                if (r == 0 && bytes != sh->disk_bytes[i])
                        r = err_set(e, ERR_INTERNAL, -EINVAL, "disk %u is not of the size that the shell was made for", i);
        }
        return r;
}

static int give(const struct vmm *v, const struct vmm_start *s, const struct qemu_launch *l, struct err *e) {
        const struct qemu_shell *sh = v->shell;
        struct gift g = { .msg.magic = ATTACH_WAIT_MAGIC };
        ssize_t n;

        add(&g, ATTACH_WAIT_SESSION, s->pager_sock, NULL);
        add(&g, ATTACH_WAIT_FILE, l->log, &sh->log);
        add(&g, ATTACH_WAIT_FILE, l->console, &sh->console);
        for (unsigned i = 0; i < s->machine->n_disks; i++)
                add(&g, ATTACH_WAIT_FILE, l->disks[i], &sh->disks[i]);
        n = io_send_fds(sh->sock, &g.msg, sizeof(g.msg), g.fds, g.msg.n);
        if (n < 0)
                return err_errno(e, (int) n, "handing it what it waits for");
        return n == sizeof(g.msg) ? 0 : err_set(e, ERR_INTERNAL, -EIO, "handing it what it waits for: cut short");
}

static int await_done(const struct qemu_shell *sh, struct err *e) {
        char answer = 0;
        ssize_t n;
        int r = co_wait_fd(sh->sock, EV_READ, READ_TIMEOUT_MS), unread = 0;

        /* One that has not even read what it was given is not just slow. */
        if (r == -ETIMEDOUT && ioctl(sh->sock, SIOCOUTQ, &unread) == 0 && unread == 0)
                r = co_wait_fd(sh->sock, EV_READ, TAKE_TIMEOUT_MS);
        if (r < 0)
                return err_set(e, ERR_TIMEOUT, r, "it does not take its memory");
        n = recv(sh->sock, &answer, 1, MSG_DONTWAIT);
        return n == 1 && answer == ATTACH_WAIT_DONE ? 0 : err_set(e, ERR_VMM, -EPIPE, "it ended before it had its memory");
}

static int take(struct vmm *v, const struct vmm_start *s, struct err *e) {
        struct qemu_launch l cleanup_qemu_launch = QEMU_LAUNCH_INIT;
        int r;

        r = qemu_set_paths(v, s->run_dir, s->log_path);
        if (r < 0)
                return err_errno(e, r, "taking a shell");
        v->log_start = qemu_log_size(s->log_path);
        r = open_files(v->shell, s, &l, e);
        if (r == 0 && s->on_spawn)
                r = s->on_spawn(v->pidfd, v->arg, e);
        if (r == 0)
                r = give(v, s, &l, e);
        return r < 0 ? r : await_done(v->shell, e);
}

int qemu_take(struct vmm *v, const struct vmm_start *s, const struct vmm_events *ev, void *arg, struct err *e) {
        int r;

        if (!v->shell || v->exited || !qemu_is_current(v, s->attach_lib))
                return err_set(e, ERR_VMM, -ESTALE, "what the shell was started from is not there any more");
        v->quiet = true;
        v->events = ev;
        v->arg = arg;
        r = take(v, s, e);
        if (r < 0)
                return qemu_step_failed(v, r, "making a shell a VM's", e);
        qemu_shell_free(TAKE_PTR(v->shell));
        v->quiet = false;
        return 0;
}
