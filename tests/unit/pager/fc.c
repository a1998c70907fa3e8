/* SPDX-License-Identifier: MIT */
#include "tests/unit/pager/fc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/spawn.h"

#define SOCK_FD 12
#define HUGE_PAGES "/proc/sys/vm/nr_hugepages"

void fc_skip(const char *why) {
        if (getenv("FORKD_TEST_NO_SKIP"))
                fail_msg("%s", why);
        print_message("skipped: %s\n", why);
        skip();
}

void fc_spawn(struct vmm *v, int sock) {
        int in[2], out[2], err[2];

        v->ram_fd = v->layout_fd = -1;
        assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC), 0);
        struct spawn_fd fds[] = { { in[0], 0 }, { out[1], 1 }, { err[1], 2 }, { sock, SOCK_FD } };
        struct spawn_params sp = {
                .argv = (const char *[]){ FC_CLIENT, NULL },
                .fds = fds,
                .n_fds = sock >= 0 ? 4 : 3,
                .cgroup_fd = -1,
                .death_signal = SIGKILL,
        };
        assert_int_equal(spawn_process(&sp, &v->pid, &v->pidfd), 0);
        (void) close_fd(in[0]);
        (void) close_fd(out[1]);
        (void) close_fd(err[1]);
        v->in = fdopen(in[1], "w");
        v->out = fdopen(out[0], "r");
        v->err_fd = err[0];
        assert_non_null(v->in);
        assert_non_null(v->out);
}

static void lay_out(struct vmm *v, const struct image *img, size_t regions, const char *kind, uint64_t features) {
        char expected[32];

        (void) snprintf(expected, sizeof(expected), "ok %zu", regions);
        assert_string_equal(vmm_cmd(v, "layout %llu %zu %s", (unsigned long long) img->n_pages, regions, kind), expected);
        if (features)
                assert_string_equal(vmm_cmd(v, "features %llu", (unsigned long long) features), "ok");
}

static void attach(struct harness *h, struct vmm *v, const struct image *img, size_t regions, const char *kind, uint64_t features,
                   int how) {
        v->memfd = close_fd(v->memfd);
        fc_spawn(v, v->sock);
        v->sock = close_fd(v->sock);
        lay_out(v, img, regions, kind, features);
        assert_string_equal(vmm_cmd(v, "attach %d", how), "ok");
        assert_true(harness_note(h, "session.attached", v->session)->good_uffd);
}

void fc_start(struct harness *h, struct vmm *v, const struct image *img, size_t regions, const char *kind, uint64_t features,
              int how) {
        vmm_open_with(h, v, img, &(struct vmm_opening){ .silent = true });
        attach(h, v, img, regions, kind, features, how);
}

void fc_start_with(struct harness *h, struct vmm *v, const struct image *img, size_t regions, const char *kind,
                   const struct vmm_opening *o) {
        struct vmm_opening silent = *o;

        silent.silent = true;
        vmm_open_with(h, v, img, &silent);
        attach(h, v, img, regions, kind, 0, FC_TODAY);
}

/* ---- huge pages ---- */

#define HUGE_DIR "/sys/kernel/mm/hugepages"

static long huge_before = -1;
static int huge_lock = -1; /* one test program at a time: the number is the whole host's */

static long read_number(const char *path) {
        cleanup_free char *text = NULL;
        size_t len;

        return io_read_file(AT_FDCWD, path, 64, &text, &len) < 0 ? -1 : atol(text);
}

static void set_huge(long n) {
        char text[32];
        cleanup_fd int fd = open(HUGE_PAGES, O_WRONLY | O_CLOEXEC);
        int len = snprintf(text, sizeof(text), "%ld", n);

        if (fd >= 0)
                best_effort(io_write_full(fd, text, (size_t) len));
}

static long free_pages(void) {
        return read_number(HUGE_DIR "/hugepages-2048kB/free_hugepages");
}

static bool lock(void) {
        if (huge_lock < 0)
                huge_lock = open(HUGE_DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return huge_lock >= 0 && flock(huge_lock, LOCK_EX) == 0;
}

bool fc_huge_pages(unsigned n) {
        long total;

        if (!lock())
                return false;
        total = read_number(HUGE_PAGES);
        if (total < 0)
                return false;
        if (free_pages() >= (long) n)
                return true;
        huge_before = huge_before >= 0 ? huge_before : total;
        set_huge(total + (long) n);
        if (free_pages() >= (long) n)
                return true;
        fc_restore_huge_pages();
        return false;
}

bool fc_one_huge_page(void) {
        return lock() && free_pages() == 0 && fc_huge_pages(1) && free_pages() == 1;
}

void fc_restore_huge_pages(void) {
        if (huge_before >= 0)
                set_huge(huge_before);
        huge_before = -1;
        huge_lock = close_fd(huge_lock);
}

/* ---- the server ---- */

void fc_snapshot(struct fc_server *s, const struct image *img) {
        cleanup_fd int fd = -1;
        char path[128];

        *s = (struct fc_server){ .pidfd = -1 };
        (void) snprintf(s->dir, sizeof(s->dir), "/tmp/pager-test-XXXXXX");
        assert_non_null(mkdtemp(s->dir));
        (void) snprintf(s->path, sizeof(s->path), "%s/vmm.sock", s->dir);
        (void) snprintf(s->control, sizeof(s->control), "%s/control.sock", s->dir);
        (void) snprintf(path, sizeof(path), "%s/memory.img", s->dir);
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(io_clone_file(img->fd, fd, NULL), 0);
}

void fc_server_start(struct fc_server *s, const char *const *more, bool own_pids) {
        const char *argv[32] = { "/usr/bin/unshare", "--pid", "--fork",   "--kill-child", UFFD_PAGER,  "serve",
                                 "--snapshot",       s->dir,  "--socket", s->path,        "--control", s->control,
                                 "--workers",        "2" };
        size_t n = 14;
        int err[2];

        while (more && *more)
                argv[n++] = *more++;
        assert_int_equal(pipe2(err, O_CLOEXEC), 0);
        struct spawn_fd fds[] = { { err[1], 2 } };
        struct spawn_params sp = {
                .argv = own_pids ? argv : argv + 4, .fds = fds, .n_fds = 1, .cgroup_fd = -1, .death_signal = SIGKILL
        };
        assert_int_equal(spawn_process(&sp, &s->pid, &s->pidfd), 0);
        (void) close_fd(err[1]);
        assert_int_equal(io_set_nonblock(err[0], true), 0);
        s->log = fdopen(err[0], "r");
        s->seen[0] = '\0';
        fc_server_says(s, "serves ");
        s->h = (struct harness){ 0 };
        s->h.base = event_base_new();
        assert_non_null(s->h.base);
        (void) snprintf(s->h.path, sizeof(s->h.path), "%s", s->control);
        harness_connect(&s->h);
}

void fc_server_says(struct fc_server *s, const char *what) {
        uint64_t start = now_ns();

        while (!strstr(s->seen, what)) {
                struct pollfd p = { .fd = fileno(s->log), .events = POLLIN };
                size_t len = strlen(s->seen);
                ssize_t n;

                if (ms_since(start) > DEADLINE_MS || len + 1 >= sizeof(s->seen))
                        fail_msg("the log does not say \"%s\", but:\n%s", what, s->seen);
                if (poll(&p, 1, 1000) <= 0)
                        continue;
                n = read(p.fd, s->seen + len, sizeof(s->seen) - 1 - len);
                if (n == 0)
                        fail_msg("the server has ended and did not say \"%s\", but:\n%s", what, s->seen);
                s->seen[len + (n > 0 ? (size_t) n : 0)] = '\0';
        }
}

int fc_server_wait(struct fc_server *s) {
        int status = -1;

        assert_int_equal(spawn_wait(s->pidfd, DEADLINE_MS, &status), 0);
        s->pidfd = close_fd(s->pidfd);
        (void) fclose(s->log);
        rpc_conn_unref(s->h.conn);
        event_base_free(s->h.base);
        return status;
}

void fc_server_stop(struct fc_server *s) {
        int status;

        assert_int_equal(spawn_kill(s->pidfd, SIGTERM), 0);
        status = fc_server_wait(s);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_int_equal(access(s->path, F_OK), -1);
        assert_int_equal(access(s->control, F_OK), -1);
}

void fc_snapshot_remove(struct fc_server *s) {
        assert_int_equal(io_remove_tree(AT_FDCWD, s->dir), 0);
}

void fc_attach(struct fc_server *s, struct vmm *v, const struct image *img) {
        *v = (struct vmm){ .memfd = -1, .sock = -1, .uffd_dev = -1, .ram_bytes = img->n_pages * TEST_PAGE };
        fc_spawn(v, -1);
        lay_out(v, img, 1, "", 0);
        assert_string_equal(vmm_cmd(v, "attach %d %s", FC_TODAY, s->path), "ok");
}
