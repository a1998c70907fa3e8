/* SPDX-License-Identifier: MIT */
#include "vmm_test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"

static int count_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        int n = 0;

        assert_non_null(d);
        while (readdir(d))
                n++;
        closedir(d);
        return n;
}

int vmm_test_setup(void **state) {
        struct vmm_test *t = calloc(1, sizeof(*t));

        if (!t)
                return -1;
        t->n_fds = count_fds();
        t->base = event_base_new();
        (void) snprintf(t->dir, sizeof(t->dir), "/tmp/forkd-vmm-XXXXXX");
        if (!t->base || !mkdtemp(t->dir))
                return -1;
        (void) snprintf(t->log, sizeof(t->log), "%s/vmm.log", t->dir);
        t->exit_status = -2;
        *state = t;
        return 0;
}

int vmm_test_teardown(void **state) {
        struct vmm_test *t = *state;
        int left;

        event_base_free(t->base);
        assert_int_equal(io_remove_tree(AT_FDCWD, t->dir), 0);
        assert_int_equal(co_alive(), 0);
        left = waitpid(-1, NULL, WNOHANG);
        if (left >= 0)
                fail_msg("a child is left (%d)", left);
        assert_int_equal(count_fds(), t->n_fds);
        free(t);
        return 0;
}

int vmm_test_skip_all(const char *why) {
        print_message("[  SKIPPED ] %s\n", why);
        return getenv("FORKD_TEST_NO_SKIP") ? 1 : 77;
}

void vmm_test_skip(const char *why) {
        if (getenv("FORKD_TEST_NO_SKIP"))
                fail_msg("not possible here: %s", why);
        print_message("[  SKIPPED ] %s\n", why);
        skip();
}

/* ---- the coroutine ---- */

/* A check that fails must not longjmp from one stack to another: the sentence is kept, and the coroutine waits
 * for ever on a stack that is never resumed. The process ends soon after. */
static char failure[1024];
static bool done;

static struct event_base *current_base;

static void failed(const char *text, const char *file, int line) {
        struct co_wait w = CO_WAIT_INIT;

        (void) snprintf(failure, sizeof(failure), "%s:%d: %s", file, line, text);
        if (!co_self())
                fail_msg("%s", failure);
        (void) event_base_loopbreak(current_base);
        (void) co_wait(&w, -1);
        abort();
}

void vmm_test_check(bool ok, const char *what, const char *file, int line) {
        if (!ok)
                failed(what, file, line);
}

void vmm_test_check_ok(int r, const struct err *e, const char *what, const char *file, int line) {
        char text[800];

        if (r == 0)
                return;
        (void) snprintf(text, sizeof(text), "%s: %d: %s", what, r, e->message);
        failed(text, file, line);
}

void vmm_test_check_str(const char *text, const char *part, const char *file, int line) {
        char msg[800];

        if (strstr(text, part))
                return;
        (void) snprintf(msg, sizeof(msg), "'%.400s' does not contain '%s'", text, part);
        failed(msg, file, line);
}

struct run {
        struct vmm_test *t;
        void (*body)(struct vmm_test *t);
};

static void run_body(void *arg) {
        struct run *r = arg;

        r->body(r->t);
        done = true;
        (void) event_base_loopbreak(r->t->base);
}

static void on_timeout(evutil_socket_t fd, short what, void *arg) {
        (void) snprintf(failure, sizeof(failure), "the test does not end");
        (void) event_base_loopbreak(arg);
}

void vmm_test_run(struct vmm_test *t, void (*body)(struct vmm_test *t)) {
        struct timeval tv = { .tv_sec = TEST_TIMEOUT_S };
        struct event *timer = event_new(t->base, -1, 0, on_timeout, t->base);
        struct run r = { .t = t, .body = body };

        assert_non_null(timer);
        failure[0] = '\0';
        done = false;
        current_base = t->base;
        assert_int_equal(event_add(timer, &tv), 0);
        assert_int_equal(co_start(t->base, run_body, &r), 0);
        /* the coroutines of fake servers end when their sockets do */
        while ((!done || co_alive() > 0) && !failure[0])
                (void) event_base_loop(t->base, EVLOOP_ONCE);
        event_free(timer);
        if (failure[0]) {
                if (t->vmm) /* do not leave it to the next test */
                        (void) !kill(t->vmm->pid, SIGKILL);
                fail_msg("%s", failure);
        }
}

/* ---- callbacks ---- */

static void on_exit_event(int status, void *arg) {
        struct vmm_test *t = arg;

        t->exits++;
        t->exit_status = status;
        if (t->exit_wait)
                co_wake(t->exit_wait, 0);
        if (t->on_exit)
                t->on_exit(t);
}

static void on_guest_event(const char *what, void *arg) {
        struct vmm_test *t = arg;
        size_t n = strlen(t->guest_events);

        (void) snprintf(t->guest_events + n, sizeof(t->guest_events) - n, "%s ", what);
}

const struct vmm_events vmm_test_events = { .on_exit = on_exit_event, .on_guest_event = on_guest_event };

int vmm_test_wait_exit(struct vmm_test *t, int timeout_ms) {
        struct co_wait w = CO_WAIT_INIT;
        int r;

        if (t->exits > 0)
                return 0;
        t->exit_wait = &w;
        r = co_wait(&w, timeout_ms);
        t->exit_wait = NULL;
        return r;
}

/* ---- files ---- */

char *vmm_test_read(const char *path) {
        char *text = NULL;

        return io_read_file(AT_FDCWD, path, 4u << 20, &text, NULL) < 0 ? strdup("") : text;
}

int vmm_test_wait_text(const char *path, const char *text, int timeout_ms) {
        cleanup_fd int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
        uint64_t start = now_ns();
        char buf[4096];

        if (watch < 0 || inotify_add_watch(watch, path, IN_MODIFY) < 0)
                return -errno;
        for (;;) {
                cleanup_free char *all = vmm_test_read(path);
                double left = timeout_ms - ms_since(start);

                if (strstr(all, text))
                        return 0;
                if (left <= 0)
                        return -ETIMEDOUT;
                (void) !co_wait_fd(watch, EV_READ, (int) left + 1);
                while (read(watch, buf, sizeof(buf)) > 0)
                        ;
        }
}

/* ---- what a host may have ---- */

static const char *asset(const char *env, const char *file, char *buf, size_t size) {
        const char *cache = getenv("FORKD_CACHE_DIR"), *path = getenv(env);

        if (!path) {
                (void) snprintf(buf, size, "%s/current/%s", cache ? cache : "/var/cache/forkd", file);
                path = buf;
        }
        if (access(path, R_OK) == 0)
                return path;
        print_message("no guest: %s is not there (run forkctl setup, or set %s)\n", path, env);
        return NULL;
}

const char *vmm_test_kernel(void) {
        static char buf[PATH_MAX];

        return asset("FORKD_TEST_KERNEL", "vmlinux", buf, sizeof(buf));
}

const char *vmm_test_initrd(void) {
        static char buf[PATH_MAX];

        return asset("FORKD_TEST_INITRD", "initrd", buf, sizeof(buf));
}

const char *vmm_test_attach_lib(void) {
        const char *env = getenv("FORKD_TEST_ATTACH");
        const char *path = env ? env : VMM_ATTACH_LIB;

        return path[0] && access(path, R_OK) == 0 ? path : NULL;
}
