/* SPDX-License-Identifier: MIT */
/* The driver and the real QEMU, without a guest: the VM never runs an instruction that matters, but its life is
 * complete: start, pause, states, death in every phase, taking back. */
#include "vmm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"
#include "forkd/vmm/cgroup.h"
#include "pager/uffd_compat.h"

#define MEM VMM_MIN_MEM

static struct vmm_machine machine;
static char run_dir[96], console_path[96];

/* A start without attach library: guest memory is then the dummy itself, which does for a VM that never runs. */
static struct vmm_start prepare(struct vmm_test *t) {
        struct vmm_start s = {
                .machine = &machine, .run_dir = run_dir, .log_path = t->log, .console_fd = -1, .cgroup_fd = -1, .pager_sock = -1
        };

        machine = (struct vmm_machine){ .mem_bytes = MEM, .vcpus = 1, .accel = VMM_ACCEL_TCG };
        (void) snprintf(run_dir, sizeof(run_dir), "%s/run", t->dir);
        (void) snprintf(console_path, sizeof(console_path), "%s/console", t->dir);
        check(mkdir(run_dir, 0700) == 0 || errno == EEXIST);
        s.console_fd = open(console_path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        check(s.console_fd >= 0);
        return s;
}

static struct vmm *start_with(struct vmm_test *t, const struct vmm_start *s) {
        struct vmm *v = NULL;

        check_ok(vmm_qemu.start(t->base, s, &vmm_test_events, t, &v, &t->e));
        t->vmm = v;
        return v;
}

static struct vmm *start(struct vmm_test *t, bool incoming) {
        struct vmm_start s = prepare(t);
        struct vmm *v;

        s.incoming = incoming;
        v = start_with(t, &s);
        (void) close(s.console_fd);
        return v;
}

static void finish(struct vmm_test *t, struct vmm *v) {
        check_ok(vmm_qemu.kill(v, &t->e));
        t->vmm = NULL;
        vmm_qemu.free(v);
}

static int state_file(struct vmm_test *t) {
        char path[96];
        int fd;

        (void) snprintf(path, sizeof(path), "%s/vmstate", t->dir);
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        check(fd >= 0);
        return fd;
}

static off_t size_of(int fd) {
        struct stat st;

        check(fstat(fd, &st) == 0);
        return st.st_size;
}

#define TEST(name)                                   \
        static void name##_body(struct vmm_test *t); \
        static void name(void **state) {             \
                vmm_test_run(*state, name##_body);   \
        }                                            \
        static void name##_body(struct vmm_test *t)

/* ---- start and stop ---- */

TEST(start_kill) {
        struct vmm *v = start(t, false);
        bool running = true;

        check_ok(vmm_qemu.is_running(v, &running, &t->e));
        check(!running);
        check(vmm_qemu.pid(v) > 1);
        check(kill(vmm_qemu.pid(v), 0) == 0);
        check(vmm_qemu.pidfd(v) >= 0);
        check_str(vmm_qemu.agent_socket(v), "/run/agent.sock");
        finish(t, v);
        check(t->exits == 0); /* not told of what it asked for */
}

TEST(resume_pause) {
        struct vmm *v = start(t, false);
        bool running;

        for (int i = 0; i < 3; i++) {
                check_ok(vmm_qemu.resume(v, &t->e));
                check_ok(vmm_qemu.is_running(v, &running, &t->e));
                check(running);
                check_ok(vmm_qemu.pause(v, &t->e));
                check_ok(vmm_qemu.is_running(v, &running, &t->e));
                check(!running);
                check_ok(vmm_qemu.pause(v, &t->e)); /* again changes nothing */
        }
        finish(t, v);
}

/* Nobody but this user finds the VM by looking at processes or sockets. */
TEST(what_others_see) {
        struct vmm *v = start(t, false);
        char path[64], cmdline[8192];
        struct stat st;
        ssize_t n;
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/%d/cmdline", (int) vmm_qemu.pid(v));
        fd = open(path, O_RDONLY | O_CLOEXEC);
        n = read(fd, cmdline, sizeof(cmdline) - 1);
        (void) close(fd);
        check(n > 0);
        for (ssize_t i = 0; i < n; i++)
                if (cmdline[i] == '\0')
                        cmdline[i] = ' ';
        cmdline[n] = '\0';
        check_str(cmdline, "-sandbox on");
        check(!strstr(cmdline, t->dir));
        check(stat(vmm_qemu.agent_socket(v), &st) == 0 && (st.st_mode & 0777) == 0600);

        (void) snprintf(path, sizeof(path), "/proc/%d/environ", (int) vmm_qemu.pid(v));
        fd = open(path, O_RDONLY | O_CLOEXEC);
        n = read(fd, cmdline, sizeof(cmdline) - 1);
        (void) close(fd);
        check(n > 0 && n < 180); /* PATH, LC_ALL, and what its allocator is told */
        finish(t, v);
}

TEST(descriptors_are_not_leaked_into_it) {
        int extra = open("/dev/zero", O_RDONLY); /* without CLOEXEC, on purpose */
        struct vmm *v = start(t, false);
        char path[64], link[128] = "";

        (void) snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int) vmm_qemu.pid(v), extra);
        check(readlink(path, link, sizeof(link) - 1) < 0 || strcmp(link, "/dev/zero") != 0);
        (void) close(extra);
        finish(t, v);
}

/* ---- bad starts leave nothing ---- */

static void check_refused(struct vmm_test *t, const struct vmm_start *s, int want, const char *part) {
        struct vmm *v = (struct vmm *) t;
        char path[128];
        int r = vmm_qemu.start(t->base, s, &vmm_test_events, t, &v, &t->e);

        check(r < 0);
        check(want == 0 || r == want);
        check_str(t->e.message, part);
        check(v == (struct vmm *) t); /* untouched */
        check(t->exits == 0);
        (void) snprintf(path, sizeof(path), "%s/qmp.sock", run_dir);
        check(access(path, F_OK) < 0);
        (void) snprintf(path, sizeof(path), "%s/agent.sock", run_dir);
        check(access(path, F_OK) < 0);
}

TEST(refused_before_anything_starts) {
        struct vmm_start s = prepare(t), bad = s;

        machine.mem_bytes = 4096;
        check_refused(t, &bad, -EINVAL, "memory");
        machine.mem_bytes = MEM + 1;
        check_refused(t, &bad, -EINVAL, "memory");
        machine.mem_bytes = MEM;
        machine.vcpus = 0;
        check_refused(t, &bad, -EINVAL, "vCPUs");
        machine.vcpus = VMM_MAX_VCPUS + 1;
        check_refused(t, &bad, -EINVAL, "vCPUs");
        machine.vcpus = 1;
        machine.n_disks = VMM_MAX_DISKS + 1;
        check_refused(t, &bad, -EINVAL, "disks");
        machine.n_disks = 1;
        check_refused(t, &bad, -EINVAL, "disk 0");
        machine.n_disks = 0;
        bad.kernel = "/boot/none";
        bad.incoming = true;
        check_refused(t, &bad, -EINVAL, "not both");
        bad = s;
        bad.pager_sock = 0;
        check_refused(t, &bad, -EINVAL, "attach library");
        bad = s;
        bad.attach_lib = "/no/such/lib.so";
        check_refused(t, &bad, -ENOENT, "/no/such/lib.so");
        bad.attach_lib = "lib.so";
        check_refused(t, &bad, -EINVAL, "absolute");
        machine.n_disks = 1;
        bad = s;
        bad.disks[0] = "/no/such/disk";
        check_refused(t, &bad, -ENOENT, "disk 0");
        machine.n_disks = 0;
        bad = s;
        bad.kernel = "/no/such/kernel";
        check_refused(t, &bad, -ENOENT, "/no/such/kernel");
        bad = s;
        bad.run_dir = "/no/such/dir";
        check_refused(t, &bad, -ENOENT, "/no/such/dir");
        (void) close(s.console_fd);
}

TEST(refused_by_qemu) {
        struct vmm_start s = prepare(t);

        s.kernel = "/etc/passwd";
        check_refused(t, &s, -EPIPE, "kernel");
        check_str(t->e.message, "exited with status 1");
        (void) close(s.console_fd);
}

TEST(not_qemu_at_all) {
        struct vmm_start s = prepare(t);

        check(setenv("FORKD_QEMU", "/bin/true", 1) == 0);
        check_refused(t, &s, -EPIPE, "exited with status 0");
        check(setenv("FORKD_QEMU", "/no/such/qemu", 1) == 0);
        check_refused(t, &s, -ENOENT, "FORKD_QEMU");
        check(setenv("FORKD_QEMU", "bin/true", 1) == 0);
        check_refused(t, &s, -ENOENT, "FORKD_QEMU");
        check(unsetenv("FORKD_QEMU") == 0);
        (void) close(s.console_fd);
}

/* The dynamic linker only complains of a library that it cannot load; the guest's memory would be the dummy. */
TEST(a_library_that_is_not_loaded) {
        struct vmm_start s = prepare(t);

        s.attach_lib = "/etc/passwd";
        check_refused(t, &s, -ENOEXEC, "without libuffd-attach.so");
        s.attach_lib = "/etc/shadow";
        check_refused(t, &s, -EACCES, "every user may read");
        (void) close(s.console_fd);
}

/* ---- device state ---- */

TEST(save_resume_save_load) {
        struct vmm *v = start(t, false), *w;
        int fd = state_file(t);
        bool running;
        off_t size;

        check_ok(vmm_qemu.resume(v, &t->e));
        check(vmm_qemu.save_state(v, fd, &t->e) == -EINVAL); /* not while it runs */
        check_ok(vmm_qemu.pause(v, &t->e));
        for (int i = 0; i < 3; i++) {
                check(ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0);
                check_ok(vmm_qemu.save_state(v, fd, &t->e));
                size = size_of(fd);
                check(size > 1000 && size < (1 << 20)); /* no RAM in it */
                check_ok(vmm_qemu.is_running(v, &running, &t->e));
                check(!running);
                if (i == 1)
                        continue; /* twice without running in between */
                check_ok(vmm_qemu.resume(v, &t->e));
                check_ok(vmm_qemu.is_running(v, &running, &t->e));
                check(running);
                check_ok(vmm_qemu.pause(v, &t->e));
        }
        finish(t, v);

        for (int i = 0; i < 2; i++) {
                w = start(t, true);
                check(vmm_qemu.resume(w, &t->e) == -EINVAL); /* nothing to run yet */
                check(lseek(fd, 0, SEEK_SET) == 0);
                check_ok(vmm_qemu.load_state(w, fd, &t->e));
                check_ok(vmm_qemu.is_running(w, &running, &t->e));
                check(!running);
                check(vmm_qemu.load_state(w, fd, &t->e) == -EINVAL); /* once */
                if (i == 0)
                        check_ok(vmm_qemu.resume(w, &t->e));
                else
                        check_ok(vmm_qemu.save_state(w, fd, &t->e)); /* a clone that never ran can be saved again */
                finish(t, w);
        }
        (void) close(fd);
}

struct copier {
        int from;
        char *data;
        size_t len;
        struct co_wait end;
};

static void copy(void *arg) {
        struct copier *c = arg;
        ssize_t n;

        c->data = malloc(1 << 20);
        for (;;) {
                if (co_wait_fd(c->from, EV_READ, 10000) < 0)
                        break;
                n = read(c->from, c->data + c->len, (1 << 20) - c->len);
                if (n <= 0)
                        break;
                c->len += (size_t) n;
        }
        co_wake(&c->end, 0);
}

TEST(state_through_pipes) {
        struct vmm *v = start(t, false);
        struct copier c = { .end = CO_WAIT_INIT };
        int p[2];

        check(pipe2(p, O_CLOEXEC) == 0);
        c.from = p[0];
        check(co_start(t->base, copy, &c) == 0);
        check_ok(vmm_qemu.save_state(v, p[1], &t->e));
        (void) close(p[1]);
        check(co_wait(&c.end, 5000) == 0);
        (void) close(p[0]);
        check(c.len > 1000);
        finish(t, v);

        v = start(t, true);
        check(pipe2(p, O_CLOEXEC) == 0);
        check(fcntl(p[1], F_SETPIPE_SZ, 1 << 20) > 0);
        check(write(p[1], c.data, c.len) == (ssize_t) c.len);
        (void) close(p[1]);
        check_ok(vmm_qemu.load_state(v, p[0], &t->e));
        (void) close(p[0]);
        check_ok(vmm_qemu.resume(v, &t->e));
        finish(t, v);
        free(c.data);
}

TEST(no_space_for_the_state) {
        struct vmm *v = start(t, false);
        int full = open("/dev/full", O_WRONLY | O_CLOEXEC), fd = state_file(t);

        check(vmm_qemu.save_state(v, full, &t->e) == -ENOSPC);
        check_str(t->e.message, "saving the device state");
        /* the VM is unharmed */
        check_ok(vmm_qemu.resume(v, &t->e));
        check_ok(vmm_qemu.pause(v, &t->e));
        check_ok(vmm_qemu.save_state(v, fd, &t->e));
        (void) close(full);
        (void) close(fd);
        finish(t, v);
}

static void load_bad(struct vmm_test *t, const char *data, size_t len) {
        struct vmm *v = start(t, true);
        int fd = state_file(t);

        check(io_write_full(fd, data, len) == 0 && lseek(fd, 0, SEEK_SET) == 0);
        check(vmm_qemu.load_state(v, fd, &t->e) == -EPIPE);
        check_str(t->e.message, "loading the device state: QEMU ");
        (void) close(fd);
        check(vmm_test_wait_exit(t, 5000) == 0);
        check(t->exits == 1);
        t->exits = 0;
        finish(t, v);
}

TEST(states_that_are_none) {
        struct vmm *v = start(t, false);
        int fd = state_file(t);
        cleanup_free char *good = NULL;
        char zeros[4096] = { 0 };
        off_t size;

        check_ok(vmm_qemu.save_state(v, fd, &t->e));
        size = size_of(fd);
        good = malloc((size_t) size);
        check(io_pread_full(fd, good, (size_t) size, 0) == 0);
        (void) close(fd);
        finish(t, v);

        load_bad(t, zeros, sizeof(zeros));
        load_bad(t, "", 0);
        load_bad(t, good, (size_t) size / 2);
        good[8] ^= 0x40; /* the type of the first section */
        load_bad(t, good, (size_t) size);
}

TEST(another_machine) {
        struct vmm_start s = prepare(t);
        int fd = state_file(t);
        struct vmm *v;

        machine.vcpus = 2;
        v = start_with(t, &s);
        check_ok(vmm_qemu.save_state(v, fd, &t->e));
        finish(t, v);
        machine.vcpus = 1;
        s.incoming = true;
        v = start_with(t, &s);
        check(lseek(fd, 0, SEEK_SET) == 0);
        check(vmm_qemu.load_state(v, fd, &t->e) == -EPIPE);
        check_str(t->e.message, "exited with status 1: ");
        check_str(t->e.message, "cpu");
        (void) close(s.console_fd);
        (void) close(fd);
        finish(t, v);
}

/* ---- disks ---- */

TEST(disks) {
        struct vmm_start s = prepare(t);
        char paths[VMM_MAX_DISKS][128];
        int fd = state_file(t);
        struct vmm *v;
        bool running;

        machine.n_disks = VMM_MAX_DISKS;
        for (unsigned i = 0; i < VMM_MAX_DISKS; i++) {
                int d;

                (void) snprintf(paths[i], sizeof(paths[i]), "%s/disk,%u \"=.img", t->dir, i);
                d = open(paths[i], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
                check(d >= 0 && ftruncate(d, 1 << 20) == 0);
                (void) close(d);
                s.disks[i] = paths[i];
        }
        v = start_with(t, &s);
        check_ok(vmm_qemu.resume(v, &t->e));
        check_ok(vmm_qemu.pause(v, &t->e));
        check_ok(vmm_qemu.save_state(v, fd, &t->e));
        check(ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0);
        check_ok(vmm_qemu.save_state(v, fd, &t->e)); /* twice: the disks are still its own */
        check_ok(vmm_qemu.resume(v, &t->e));
        check_ok(vmm_qemu.is_running(v, &running, &t->e));
        check(running);
        finish(t, v);
        s.incoming = true;
        v = start_with(t, &s);
        check(lseek(fd, 0, SEEK_SET) == 0);
        check_ok(vmm_qemu.load_state(v, fd, &t->e));
        check_ok(vmm_qemu.resume(v, &t->e));
        finish(t, v);
        (void) close(fd);
        (void) close(s.console_fd);
}

/* ---- death ---- */

TEST(death_while_nothing_goes_on) {
        struct vmm *v = start(t, false);
        bool running;

        check(kill(vmm_qemu.pid(v), SIGKILL) == 0);
        check(vmm_test_wait_exit(t, 5000) == 0);
        check(t->exits == 1 && WIFSIGNALED(t->exit_status) && WTERMSIG(t->exit_status) == SIGKILL);
        check(waitpid(vmm_qemu.pid(v), NULL, WNOHANG) < 0 && errno == ECHILD); /* reaped */
        check(vmm_qemu.is_running(v, &running, &t->e) == -EPIPE);
        check_str(t->e.message, "was killed by signal 9");
        check(vmm_qemu.resume(v, &t->e) == -EPIPE);
        finish(t, v); /* killing the dead is no error */
        check(t->exits == 1);
}

static void kill_it(evutil_socket_t fd, short what, void *arg) {
        (void) !kill(((struct vmm *) arg)->pid, SIGKILL);
}

static void free_it(struct vmm_test *t) {
        vmm_qemu.free(TAKE_PTR(t->vmm));
}

TEST(freed_in_on_exit) {
        struct vmm *v = start(t, false);

        t->on_exit = free_it;
        check(kill(vmm_qemu.pid(v), SIGKILL) == 0);
        check(vmm_test_wait_exit(t, 5000) == 0);
        check(!t->vmm);
}

/* A stopped QEMU answers nothing: whatever step is under way then sees it die. */
static void die_during(struct vmm_test *t, bool incoming, int (*body)(struct vmm *v, struct vmm_test *t)) {
        struct timeval soon = { .tv_usec = 20000 };
        struct vmm *v = start(t, incoming);
        struct event *ev = event_new(t->base, -1, 0, kill_it, v);

        t->exits = 0;
        check(kill(vmm_qemu.pid(v), SIGSTOP) == 0);
        check(ev && event_add(ev, &soon) == 0);
        check(body(v, t) == -EPIPE);
        check_str(t->e.message, "was killed by signal 9");
        check(vmm_test_wait_exit(t, 5000) == 0);
        check(t->exits == 1);
        event_free(ev);
        finish(t, v);
}

static int do_resume(struct vmm *v, struct vmm_test *t) {
        return vmm_qemu.resume(v, &t->e);
}

static int do_pause(struct vmm *v, struct vmm_test *t) {
        return vmm_qemu.pause(v, &t->e);
}

static int do_ask(struct vmm *v, struct vmm_test *t) {
        bool running;

        return vmm_qemu.is_running(v, &running, &t->e);
}

static int do_save(struct vmm *v, struct vmm_test *t) {
        int fd = state_file(t), r = vmm_qemu.save_state(v, fd, &t->e);

        (void) close(fd);
        return r;
}

static int do_load(struct vmm *v, struct vmm_test *t) {
        int fd = state_file(t), r = vmm_qemu.load_state(v, fd, &t->e);

        (void) close(fd);
        return r;
}

TEST(death_in_every_step) {
        die_during(t, false, do_resume);
        die_during(t, false, do_pause);
        die_during(t, false, do_ask);
        die_during(t, false, do_save);
        die_during(t, true, do_load);
}

/* A load that never gets all its bytes. */
TEST(death_in_the_middle_of_a_load) {
        struct timeval soon = { .tv_usec = 50000 };
        struct vmm *v = start(t, true);
        struct event *ev = event_new(t->base, -1, 0, kill_it, v);
        int p[2];

        check(pipe2(p, O_CLOEXEC) == 0);
        check(event_add(ev, &soon) == 0);
        check(vmm_qemu.load_state(v, p[0], &t->e) == -EPIPE);
        check_str(t->e.message, "loading the device state: QEMU was killed");
        event_free(ev);
        (void) close(p[0]);
        (void) close(p[1]);
        finish(t, v);
}

/* ---- taking back ---- */

TEST(adopted) {
        struct vmm *v = start(t, false), *w = NULL;
        pid_t pid = vmm_qemu.pid(v);
        int fd = state_file(t), pidfd = -1;
        bool running;

        check_ok(vmm_qemu.resume(v, &t->e));
        vmm_qemu.free(v); /* forkd's end: QEMU lives on */
        t->vmm = NULL;
        check(kill(pid, 0) == 0);
        for (int i = 0; i < 2; i++) {
                check(spawn_pidfd_open(pid, 0, &pidfd) == 0);
                check_ok(vmm_qemu.adopt(t->base, run_dir, t->log, pid, pidfd, &machine, &vmm_test_events, t, &w, &t->e));
                t->vmm = w;
                check(vmm_qemu.pid(w) == pid);
                check_ok(vmm_qemu.is_running(w, &running, &t->e));
                check(running);
                check(vmm_qemu.save_state(w, fd, &t->e) == -EINVAL); /* it knows that it runs */
                if (i == 0)
                        vmm_qemu.free(TAKE_PTR(w));
        }
        check_ok(vmm_qemu.pause(w, &t->e));
        check_ok(vmm_qemu.save_state(w, fd, &t->e));
        check(size_of(fd) > 1000);
        check_ok(vmm_qemu.resume(w, &t->e));
        check(kill(pid, SIGKILL) == 0);
        check(vmm_test_wait_exit(t, 5000) == 0);
        vmm_qemu.free(w);
        t->vmm = NULL;
        (void) close(fd);
}

TEST(adopting_what_is_not_there) {
        struct vmm *v = start(t, false), *w = NULL;
        pid_t pid = vmm_qemu.pid(v);
        char empty[128];
        int pidfd = -1;

        check(spawn_pidfd_open(pid, 0, &pidfd) == 0);
        (void) snprintf(empty, sizeof(empty), "%s/none", t->dir);
        check(vmm_qemu.adopt(t->base, empty, t->log, pid, pidfd, &machine, &vmm_test_events, t, &w, &t->e) == -ENOENT);
        check(fcntl(pidfd, F_GETFD) >= 0); /* still ours */
        finish(t, v);
        check(vmm_qemu.adopt(t->base, run_dir, t->log, pid, pidfd, &machine, &vmm_test_events, t, &w, &t->e) < 0);
        check(!w);
        (void) close(pidfd);
}

/* An earlier forkd had started it for a state, and died. */
TEST(adopted_before_its_state) {
        struct vmm *v = start(t, true), *w = NULL;
        pid_t pid = vmm_qemu.pid(v);
        int pidfd = -1;

        vmm_qemu.free(v);
        t->vmm = NULL;
        check(spawn_pidfd_open(pid, 0, &pidfd) == 0);
        check_ok(vmm_qemu.adopt(t->base, run_dir, t->log, pid, pidfd, &machine, &vmm_test_events, t, &w, &t->e));
        t->vmm = w;
        check(vmm_qemu.resume(w, &t->e) == -EINVAL);
        finish(t, w);
}

/* An earlier forkd was killed between two of the commands that make up a save. */
TEST(adopted_in_the_middle_of_a_save) {
        struct vmm *v = start(t, false), *w = NULL;
        pid_t pid = vmm_qemu.pid(v);
        int pidfd = -1, old = open("/dev/full", O_WRONLY | O_CLOEXEC), fd = state_file(t);
        struct qmp_call add;

        check_ok(qmp_begin(v->qmp, &add, "add-fd", json_pack("{s:i}", "fdset-id", 2), old, &t->e));
        check_ok(qmp_finish(v->qmp, &add, 5000, NULL, &t->e));
        (void) close(old);
        vmm_qemu.free(v);
        t->vmm = NULL;
        check(spawn_pidfd_open(pid, 0, &pidfd) == 0);
        check_ok(vmm_qemu.adopt(t->base, run_dir, t->log, pid, pidfd, &machine, &vmm_test_events, t, &w, &t->e));
        t->vmm = w;
        check_ok(vmm_qemu.save_state(w, fd, &t->e));
        check(size_of(fd) > 1000);
        (void) close(fd);
        finish(t, w);
}

/* ---- the attach library ---- */

/* A skip jumps, so it must be decided before the coroutine runs. */
#define TEST_IF(name, reason)                        \
        static void name##_body(struct vmm_test *t); \
        static void name(void **state) {             \
                const char *why = reason;            \
                if (why)                             \
                        vmm_test_skip(why);          \
                vmm_test_run(*state, name##_body);   \
        }                                            \
        static void name##_body(struct vmm_test *t)

static const char *no_attach_lib(void) {
        return vmm_test_attach_lib() ? NULL : "libuffd-attach.so is not built";
}

static const char *no_cgroups(void) {
        static struct err e;
        int fd = -1;

        if (cgroup_create("vmmtest", "vm1", &fd, &e) < 0)
                return e.message;
        (void) close(fd);
        return cgroup_remove("vmmtest", "vm1", &e) < 0 ? e.message : NULL;
}

/* One whose features are agreed on, and that has nothing registered: a second agreement is refused, a registration works. */
static void check_idle_uffd(struct vmm_test *t, struct vmm *v) {
        struct uffdio_api api = { .api = UFFD_API };
        int fd = -1, r = vmm_qemu.idle_uffd(v, &fd, &t->e);

        if (r == -EOPNOTSUPP) /* no device, and no right to the system call */
                return;
        check_ok(r);
        check(ioctl(fd, UFFDIO_API, &api) < 0);
        check(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        (void) close(fd);
}

TEST_IF(regions_of_an_attached_vm, no_attach_lib()) {
        struct vmm_start s = prepare(t);
        struct vmm_region regions[4];
        struct vmm *v;
        size_t n = 0;

        s.attach_lib = vmm_test_attach_lib();
        v = start_with(t, &s);
        check_ok(vmm_qemu.ram_regions(v, regions, ARRAY_LEN(regions), &n, &t->e));
        check(n >= 1 && regions[0].size > 0);
        check(vmm_qemu.ram_regions(v, regions, 0, &n, &t->e) == -E2BIG);
        check_idle_uffd(t, v);
        finish(t, v);
        check(waitpid(-1, NULL, WNOHANG) < 0);
        (void) close(s.console_fd);
}

/* A pager that refuses: the library ends QEMU, and the library's own sentence is what the caller gets. */
TEST_IF(a_pager_that_refuses, no_attach_lib()) {
        struct vmm_start s = prepare(t);
        struct vmm *v = NULL;
        int sv[2];

        s.attach_lib = vmm_test_attach_lib();
        check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0);
        s.pager_sock = sv[0];
        s.incoming = true;
        check(write(sv[1], "error: no such session\n", 23) == 23);
        check(vmm_qemu.start(t->base, &s, &vmm_test_events, t, &v, &t->e) == -EPIPE);
        check_str(t->e.message, "exited with status 97");
        check_str(t->e.message, "uffd-attach: ");
        check_str(t->e.message, "no such session");
        (void) close(sv[0]);
        (void) close(sv[1]);
        (void) close(s.console_fd);
}

TEST(regions_without_a_layout) {
        struct vmm *v = start(t, false);
        struct vmm_region regions[4];
        size_t n = 77;

        check(vmm_qemu.ram_regions(v, regions, ARRAY_LEN(regions), &n, &t->e) == -ENOENT);
        check(n == 77);
        finish(t, v);
}

/* ---- many at once ---- */

struct many {
        struct vmm_test *t;
        struct vmm_start s;
        char dir[128], log[128];
        struct vmm *v;
        struct err e;
        int r;
        struct co_wait end;
};

static void start_one(void *arg) {
        struct many *m = arg;

        m->r = vmm_qemu.start(m->t->base, &m->s, NULL, NULL, &m->v, &m->e);
        co_wake(&m->end, 0);
}

TEST(several_at_once) {
        enum { N = 4 };
        struct vmm_start s = prepare(t);
        struct many *m = calloc(N, sizeof(*m));

        for (int i = 0; i < N; i++) {
                m[i] = (struct many){ .t = t, .s = s, .end = CO_WAIT_INIT };
                (void) snprintf(m[i].dir, sizeof(m[i].dir), "%s/vm%d", t->dir, i);
                (void) snprintf(m[i].log, sizeof(m[i].log), "%s/log%d", t->dir, i);
                check(mkdir(m[i].dir, 0700) == 0);
                m[i].s.run_dir = m[i].dir;
                m[i].s.log_path = m[i].log;
                check(co_start(t->base, start_one, &m[i]) == 0);
        }
        for (int i = 0; i < N; i++) {
                check(co_wait(&m[i].end, 30000) == 0);
                t->e = m[i].e;
                check_ok(m[i].r);
        }
        for (int i = 0; i < N; i++)
                finish(t, m[i].v);
        (void) close(s.console_fd);
        free(m);
}

TEST_IF(in_a_cgroup_of_its_own, no_cgroups()) {
        struct vmm_start s = prepare(t);
        char path[64], *text;
        struct vmm *v;

        check_ok(cgroup_create("vmmtest", "vm1", &s.cgroup_fd, &t->e));
        v = start_with(t, &s);
        (void) close(s.cgroup_fd);
        (void) close(s.console_fd);
        (void) snprintf(path, sizeof(path), "/proc/%d/cgroup", (int) vmm_qemu.pid(v));
        text = vmm_test_read(path);
        check_str(text, "/forkd-vmmtest/vm1\n");
        free(text);
        check_ok(cgroup_kill("vmmtest", "vm1", &t->e));
        check(vmm_test_wait_exit(t, 5000) == 0);
        check_ok(cgroup_remove("vmmtest", "vm1", &t->e));
        finish(t, v);
}

/* ---- what is installed ---- */

TEST(version) {
        char a[32], b[32], tiny[2];

        check_ok(vmm_qemu.version(a, sizeof(a), &t->e));
        check_ok(vmm_qemu.version(b, sizeof(b), &t->e)); /* from the cache */
        check(strcmp(a, b) == 0 && strchr(a, '.'));
        check(vmm_qemu.version(tiny, sizeof(tiny), &t->e) == -ENOBUFS);
        check(setenv("FORKD_QEMU", "/bin/echo", 1) == 0);
        check(vmm_qemu.version(a, sizeof(a), &t->e) == 0 || t->e.r == -EBADMSG);
        check(unsetenv("FORKD_QEMU") == 0);
        check(vmm_driver("qemu") == &vmm_qemu);
        check(!vmm_driver("bochs") && !vmm_driver(""));
}

#define T(f) cmocka_unit_test_setup_teardown(f, vmm_test_setup, vmm_test_teardown)

int main(void) {
        const struct CMUnitTest tests[] = {
                T(version),
                T(start_kill),
                T(resume_pause),
                T(what_others_see),
                T(descriptors_are_not_leaked_into_it),
                T(refused_before_anything_starts),
                T(refused_by_qemu),
                T(not_qemu_at_all),
                T(a_library_that_is_not_loaded),
                T(save_resume_save_load),
                T(state_through_pipes),
                T(no_space_for_the_state),
                T(states_that_are_none),
                T(another_machine),
                T(disks),
                T(death_while_nothing_goes_on),
                T(freed_in_on_exit),
                T(death_in_every_step),
                T(death_in_the_middle_of_a_load),
                T(adopted),
                T(adopting_what_is_not_there),
                T(adopted_before_its_state),
                T(adopted_in_the_middle_of_a_save),
                T(regions_of_an_attached_vm),
                T(a_pager_that_refuses),
                T(regions_without_a_layout),
                T(several_at_once),
                T(in_a_cgroup_of_its_own),
        };
        char path[256];
        struct err e;

        if (qemu_find(path, sizeof(path), &e) < 0)
                return vmm_test_skip_all(e.message);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
