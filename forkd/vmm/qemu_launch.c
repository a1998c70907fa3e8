/* SPDX-License-Identifier: MIT */
/* Theory of operation. A VMM runs code that a guest may have taken over, so it gets what it needs and no more.
 *
 * As descriptors: sockets, logs, disks, kernel, firmware, the attach library. It needs no path of forkd's, and finds none.
 * What QEMU only takes as a path it opens anew as /proc/self/fd/<n>, which asks for the file's own permissions: for the
 * kernel and the libraries those of everybody; the image's memory and the disks cannot be opened a second time.
 *
 * As a jail (vmm_jail.h): a user that is nobody else's, no capability, an almost empty root directory, namespaces of its
 * own, limits. What is left to it is its CPU and its memory, which the cgroup is for. */
#include "forkd/vmm/qemu_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"
#include "forkd/vmm/vmm_jail.h"
#include "pager/uffd_compat.h"

/* A VMM has a dozen descriptors, some more for each disk; threads: one for each vCPU, 64 for the disks, a few of its own. */
#define MAX_FILES 1024u
#define MAX_THREADS 512u
/* A log or a console that no guest fills between two looks of forkd's at it, if there is no larger disk. */
#define MIN_FILE_SIZE (256ull << 20)

void qemu_launch_clear(struct qemu_launch *l) {
        int *const all[] = { &l->qmp, &l->agent,    &l->console, &l->ram,    &l->layout, &l->uffd_dev, &l->log,
                             &l->lib, &l->firmware, &l->kernel,  &l->initrd, &l->wait,   &l->conn };

        for (size_t i = 0; i < ARRAY_LEN(all); i++)
                *all[i] = close_fd(*all[i]);
        for (size_t i = 0; i < VMM_MAX_DISKS; i++)
                l->disks[i] = close_fd(l->disks[i]);
}

static int open_socket(const char *dir, const char *file, int *ret_fd, struct err *e) {
        cleanup_free char *path = NULL;
        int r = qemu_join(dir, file, &path);

        if (r == 0)
                r = io_listen_unix(path, 0600, ret_fd);
        return r < 0 ? err_errno(e, r, "making the socket %s/%s", dir, file) : 0;
}

static int open_sockets(const struct vmm_start *s, struct qemu_launch *l, struct err *e) {
        cleanup_free char *qmp_path = NULL;
        int r;

        r = open_socket(s->run_dir, QEMU_QMP_SOCKET, &l->qmp, e);
        if (r == 0)
                r = open_socket(s->run_dir, QEMU_AGENT_SOCKET, &l->agent, e);
        if (r < 0)
                return r;
        r = qemu_join(s->run_dir, QEMU_QMP_SOCKET, &qmp_path);
        if (r == 0)
                r = qemu_connect_now(qmp_path, &l->conn);
        return r < 0 ? err_errno(e, r, "connecting to QEMU's control socket") : 0;
}

int qemu_open_log(const struct vmm_start *s, int *ret_fd, struct err *e) {
        int fd = open(s->log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

        if (fd < 0)
                return err_errno(e, -errno, "opening %s", s->log_path);
        *ret_fd = fd;
        return 0;
}

int qemu_open_console(const struct vmm_start *s, int *ret_fd, struct err *e) {
        char console[32];
        int fd;

        /* QEMU takes a descriptor of an fdset only if it is open for exactly what it wants: writing. */
        (void) snprintf(console, sizeof(console), QEMU_OWN_FD, s->console_fd);
        fd = open(console, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY);
        if (fd < 0)
                return err_errno(e, -errno, "opening the console's file again");
        *ret_fd = fd;
        return 0;
}

static int open_logs(struct vmm *v, const struct vmm_start *s, struct qemu_launch *l, struct err *e) {
        int r = qemu_open_log(s, &l->log, e);

        if (r < 0)
                return r;
        v->log_start = qemu_log_size(s->log_path);
        return qemu_open_console(s, &l->console, e);
}

/* A file that QEMU, or the dynamic linker for it, opens again as another user. */
static int open_shared(const char *path, int *ret_fd, struct err *e) {
        cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct stat st;

        if (fd < 0 || fstat(fd, &st) < 0)
                return err_errno(e, -errno, "opening %s", path);
        if (!S_ISREG(st.st_mode) || !(st.st_mode & S_IROTH)) {
                (void) err_set(e, ERR_INVALID, -EACCES, "%s is no file that every user may read, as a VMM has to", path);
                return err_hint(e, "chmod a+r %s", path);
        }
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int qemu_open_disk(const struct vmm_start *s, unsigned i, int *ret_fd, uint64_t *ret_bytes, struct err *e) {
        cleanup_fd int fd = open(s->disks[i], O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        struct stat st;

        if (fd < 0 || fstat(fd, &st) < 0)
                return err_errno(e, -errno, "opening disk %u, %s", i, s->disks[i]);
        *ret_bytes = (uint64_t) st.st_size;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* Of a shell: as large as the disk that will be there, and empty. */
static int make_disk(const struct vmm_start *s, unsigned i, int *ret_fd, uint64_t *ret_bytes, struct err *e) {
        cleanup_fd int fd = memfd_create("forkd-disk", MFD_CLOEXEC);

        if (fd < 0 || ftruncate(fd, (off_t) s->disk_bytes[i]) < 0)
                return err_errno(e, -errno, "making what stands for disk %u", i);
        *ret_bytes = s->disk_bytes[i];
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static int open_disks(const struct vmm_start *s, struct qemu_launch *l, struct err *e) {
        for (unsigned i = 0; i < s->machine->n_disks; i++) {
                uint64_t bytes = 0;
                int r = s->shell ? make_disk(s, i, &l->disks[i], &bytes, e) : qemu_open_disk(s, i, &l->disks[i], &bytes, e);

                if (r < 0)
                        return r;
                l->largest_disk = MAX_OF(l->largest_disk, bytes);
        }
        return 0;
}

/* -1: there is none, or something else in its place. */
static int open_uffd_device(void) {
        cleanup_fd int dev = open(UFFD_DEVICE, O_RDWR | O_CLOEXEC), fd = -1;

        fd = dev >= 0 ? ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK) : -1;
        return fd >= 0 ? TAKE_FD(dev) : -1;
}

static int open_memory(struct vmm *v, const struct vmm_start *s, struct qemu_launch *l, struct err *e) {
        l->ram = memfd_create("forkd-ram", MFD_CLOEXEC);
        if (l->ram < 0 || ftruncate(l->ram, (off_t) s->machine->mem_bytes) < 0)
                return err_errno(e, -errno, "making the guest's memory file");
        if (s->attach_lib) {
                int r = open_shared(s->attach_lib, &l->lib, e);

                if (r < 0)
                        return err_prefix(e, "the attach library");
                l->layout = open(v->layout_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
                if (l->layout < 0)
                        return err_errno(e, -errno, "making %s", v->layout_path);
        }
        if (s->attach_lib) /* without the device the library uses the system call */
                l->uffd_dev = open_uffd_device();
        return 0;
}

static int open_all(struct vmm *v, const struct vmm_start *s, const char *firmware, struct qemu_launch *l, struct err *e) {
        int r = open_sockets(s, l, e);

        if (r == 0)
                r = open_logs(v, s, l, e);
        if (r == 0)
                r = open_memory(v, s, l, e);
        if (r == 0)
                r = open_disks(s, l, e);
        if (r == 0 && firmware)
                r = open_shared(firmware, &l->firmware, e);
        if (r == 0 && s->kernel)
                r = open_shared(s->kernel, &l->kernel, e);
        if (r == 0 && s->initrd)
                r = open_shared(s->initrd, &l->initrd, e);
        return r;
}

/* ---- what it inherits ---- */

#define ENV_MAX 12u
#define ENV_LEN (PATH_MAX + 32)

struct env {
        char text[ENV_MAX][ENV_LEN];
        const char *list[ENV_MAX + 1];
        size_t n;
};

static void attr_printf(2, 3) env_add(struct env *env, const char *fmt, ...) {
        va_list ap;

        if (env->n == ENV_MAX)
                abort(); /* the list is fixed below */
        va_start(ap, fmt);
        (void) vsnprintf(env->text[env->n], ENV_LEN, fmt, ap);
        va_end(ap);
        env->list[env->n] = env->text[env->n];
        env->list[++env->n] = NULL;
}

struct fd_list {
        struct spawn_fd fds[SPAWN_MAX_FDS];
        size_t n;
};

static void pass(struct fd_list *list, int fd, int number) {
        if (fd >= 0)
                list->fds[list->n++] = (struct spawn_fd){ .parent_fd = fd, .child_fd = number };
}

static void fill_env(struct env *env, const struct vmm_start *s, const struct qemu_launch *l) {
        env_add(env, "PATH=/usr/bin:/bin");
        env_add(env, "LC_ALL=C");
        /* What its allocator keeps for later is 0.8 MiB of each VMM; it has little to allocate once it runs. */
        env_add(env,
                "GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=131072");
        if (s->instance)
                env_add(env, "FORKD_INSTANCE=%s", s->instance);
        if (!s->attach_lib)
                return;
        env_add(env, "LD_PRELOAD=" QEMU_OWN_FD, QEMU_FD_LIB);
        env_add(env, "FORKD_ATTACH_RAM_FD=%d", QEMU_FD_RAM);
        env_add(env, "FORKD_ATTACH_LAYOUT_FD=%d", QEMU_FD_LAYOUT);
        if (l->uffd_dev >= 0)
                env_add(env, "FORKD_ATTACH_UFFD_DEV_FD=%d", QEMU_FD_UFFD_DEV);
        if (s->shell)
                env_add(env, "FORKD_ATTACH_WAIT_FD=%d", QEMU_FD_WAIT);
        else if (s->pager_sock >= 0)
                env_add(env, "FORKD_ATTACH_SOCK_FD=%d", QEMU_FD_PAGER);
}

static void fill_fds(struct fd_list *list, const struct vmm_start *s, const struct qemu_launch *l) {
        pass(list, l->log, 1);
        pass(list, l->log, 2);
        pass(list, l->qmp, QEMU_FD_QMP);
        pass(list, l->agent, QEMU_FD_AGENT);
        pass(list, l->console, QEMU_FD_CONSOLE);
        pass(list, l->ram, QEMU_FD_RAM);
        pass(list, l->layout, QEMU_FD_LAYOUT);
        pass(list, s->pager_sock, QEMU_FD_PAGER);
        pass(list, l->uffd_dev, QEMU_FD_UFFD_DEV);
        pass(list, l->lib, QEMU_FD_LIB);
        pass(list, l->firmware, QEMU_FD_FIRMWARE);
        pass(list, l->kernel, QEMU_FD_KERNEL);
        pass(list, l->initrd, QEMU_FD_INITRD);
        pass(list, l->wait, QEMU_FD_WAIT);
        for (unsigned i = 0; i < VMM_MAX_DISKS; i++)
                pass(list, l->disks[i], QEMU_FD_DISK + (int) i);
}

/* ---- the jail ---- */

/* May a process without capabilities call userfaultfd(2) for faults in the kernel, too? */
static bool uffd_is_free(void) {
        cleanup_free char *text = NULL;
        int r = io_read_file(AT_FDCWD, "/proc/sys/vm/unprivileged_userfaultfd", 16, &text, NULL);

        return r < 0 ? r == -ENOENT : text[0] == '1'; /* before Linux 5.2 everybody could */
}

static void fill_jail(struct jail *j, const struct vmm_start *s, const struct qemu_launch *l) {
        *j = (struct jail){
                .uid = s->uid,
                .mnt_ns = s->jail->mnt_ns,
                .net_ns = s->jail->net_ns,
                .root_fd = s->jail->root_fd,
                .own = true,
                .filter = s->jail->filter,
        };
        if (s->machine->accel == VMM_ACCEL_KVM)
                j->groups[j->n_groups++] = s->jail->kvm_group;
        /* Without the device it is this or no memory: `forkctl doctor` says so. */
        if ((s->pager_sock >= 0 || s->shell) && l->uffd_dev < 0 && !uffd_is_free())
                j->caps |= 1ull << CAP_SYS_PTRACE;
}

static int spawn_qemu(struct vmm *v, const struct vmm_start *s, const struct qemu_launch *l, const char *program,
                      const struct qemu_args *args, struct err *e) {
        const struct jail_limit limits[] = {
                { RLIMIT_CORE, 0 },
                { RLIMIT_NOFILE, MAX_FILES },
                { RLIMIT_NPROC, MAX_THREADS },
                { RLIMIT_FSIZE, MAX_OF(l->largest_disk, MIN_FILE_SIZE) },
                { RLIMIT_MSGQUEUE, 0 },
                { RLIMIT_RTPRIO, 0 },
                { RLIMIT_NICE, 0 },
        };
        cleanup_free struct env *env = calloc(1, sizeof(*env));
        struct fd_list list = { .n = 0 };
        char step[SPAWN_STEP_LEN];
        struct spawn_params p = {
                .argv = args->argv,
                .fds = list.fds,
                .cgroup_fd = s->cgroup_fd,
                .new_session = true,
                /* QEMU asks for them for its translated code, of which an idle clone uses a part of each: 2.5 MiB. */
                .no_huge_pages = true,
                .no_new_privs = true,
                .step = step,
        };
        struct jail jail;
        int r;

        if (!env)
                return err_errno(e, -ENOMEM, "starting QEMU");
        fill_env(env, s, l);
        fill_fds(&list, s, l);
        p.env = env->list;
        p.n_fds = list.n;
        if (s->jail) {
                fill_jail(&jail, s, l);
                jail.limits = limits;
                jail.n_limits = ARRAY_LEN(limits);
                p.jail = &jail;
        }
        r = spawn_process(&p, &v->pid, &v->pidfd);
        if (r == 0)
                return 0;
        (void) err_errno(e, r, "starting %s%s%s", program, step[0] ? ": " : "", step);
        return s->jail && (r == -EPERM || r == -ENOSYS || r == -EINVAL)
                       ? err_hint(e, "a host on which VMMs cannot be confined needs '[security] jail = off'")
                       : r;
}

/* ---- all of it ---- */

static int build_args(const struct vmm_start *s, const char *program, bool firmware, struct qemu_args *ret, struct err *e) {
        char extra[64] = "";
        int r;

        /* An emulated guest reads the host's counter. Measuring it against the emulated timer fails whenever the
         * host is busy for 50 ms, and then the kernel waits for ever for ticks that a microvm does not have: of
         * twelve boots beside two busy processes eight hung, and none since the guest is told the figure. */
        if (s->kernel && s->machine->accel == VMM_ACCEL_TCG && qemu_tsc_khz() > 0)
                /* reliable: the clock's watchdog compares with the same timer */
                (void) snprintf(extra, sizeof(extra), "tsc_early_khz=%u tsc=reliable", qemu_tsc_khz());
        r = qemu_args_build(program, firmware, s, extra[0] ? extra : NULL, ret);
        return r < 0 ? err_errno(e, r, "making QEMU's command line") : 0;
}

int qemu_launch(struct vmm *v, const struct vmm_start *s, struct qemu_launch *l, struct err *e) {
        struct qemu_args args cleanup_qemu_args = { .n = 0 };
        char found[PATH_MAX], program[PATH_MAX], firmware[PATH_MAX];
        bool has_firmware;
        int r;

        r = qemu_find(found, sizeof(found), e);
        if (r < 0)
                return r;
        /* In the jail the way to it may not be there, only the program itself. */
        if (!realpath(found, program))
                return err_errno(e, -errno, "%s", found);
        has_firmware = qemu_find_firmware(found, firmware, sizeof(firmware)) == 0;
        r = build_args(s, program, has_firmware, &args, e);
        if (r == 0)
                r = open_all(v, s, has_firmware ? firmware : NULL, l, e);
        if (r == 0 && s->shell)
                r = qemu_shell_new(v, s, l, program, has_firmware ? firmware : NULL, e);
        return r < 0 ? r : spawn_qemu(v, s, l, program, &args, e);
}

int qemu_launch_attached(const struct qemu_launch *l, struct err *e) {
        struct stat st;

        if (l->layout < 0)
                return 0;
        if (fstat(l->layout, &st) < 0)
                return err_errno(e, -errno, "looking at the guest's memory");
        return st.st_size > 0
                       ? 0
                       : err_set(e, ERR_VMM, -ENOEXEC, "starting QEMU: it runs without libuffd-attach.so, which it did not load");
}
