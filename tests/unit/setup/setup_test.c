/* SPDX-License-Identifier: MIT */
/* setup_run on a cache that already has a (pretended) kernel, so nothing is downloaded: idempotence, two at
 * once, an interrupted run, damage, what --check says. The agent is played by busybox, a static program. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "common/io.h"
#include "fake_kernel.h"
#include "fake_vmm.h"
#include "setup/run.h"
#include "setup/setup.h"
#include "skip.h"

static const char *const modules[] = { "virtio", "virtio_console", NULL };

struct fixture {
        char dir[64], cache[96], state[96], agent[256];
        struct setup_params params;
};

static int make(void **state) {
        struct fixture *f = calloc(1, sizeof(*f));

        (void) snprintf(f->dir, sizeof(f->dir), "/tmp/forkd-setup-XXXXXX");
        assert_non_null(mkdtemp(f->dir));
        (void) snprintf(f->cache, sizeof(f->cache), "%s/cache", f->dir);
        (void) snprintf(f->state, sizeof(f->state), "%s/state", f->dir);
        f->params = (struct setup_params){
                .cache_dir = f->cache,
                .state_dir = f->state,
                .store_bytes = STORE_MIN_BYTES,
                .agent_path = f->agent,
                .skip_kvm = true,
        };
        *state = f;
        if (run_find("busybox", f->agent, sizeof(f->agent)) == 0)
                fake_kernel(f->cache, "6.1.0-test", modules);
        return 0;
}

static int drop(void **state) {
        struct fixture *f = *state;
        int r = io_remove_tree(AT_FDCWD, f->dir);

        free(f);
        return r;
}

static void need_busybox(const struct fixture *f) {
        struct stat st;

        if (stat(f->agent, &st) < 0)
                skip_because("needs busybox-static");
}

/* 0, after which *ret is valid; else prints why. */
static int run(struct fixture *f, setup_progress_fn *fn, void *arg, struct setup_result *ret) {
        struct err e = { 0 };

        int r = setup_run(&f->params, fn, arg, ret, &e);
        if (r < 0)
                print_message("%s | %s\n", e.message, e.hint);
        return r;
}

static unsigned count_entries(const char *dir, const char *prefix) {
        DIR *d = opendir(dir);
        unsigned n = 0;

        if (!d)
                return 0;
        for (struct dirent *de; (de = readdir(d));)
                n += de->d_name[0] != '.' && strncmp(de->d_name, prefix, strlen(prefix)) == 0;
        (void) closedir(d);
        return n;
}

static void test_idempotent(void **state) {
        struct fixture *f = *state;
        struct setup_result a, b;
        struct assets found;
        struct stat st, st2;
        struct err e;

        need_busybox(f);
        assert_int_equal(assets_locate(f->cache, &found, &e), -ENOENT);
        assert_string_equal(e.message, "guest assets missing: run 'forkctl setup' first, or pass --setup");
        assert_string_equal(e.code, ERR_ASSETS);

        assert_int_equal(run(f, NULL, NULL, &a), 0);
        assert_true(a.assets_changed && a.store_created && !a.waited);
        assert_int_equal(assets_locate(f->cache, &found, &e), 0);
        assert_string_equal(found.id, a.assets.id);
        assert_string_equal(found.release, "6.1.0-test");
        assert_int_equal(stat(found.kernel, &st), 0);
        assert_int_equal(stat(found.initrd, &st), 0);
        assert_true(a.store.kind == STORE_LOOP || a.store.kind == STORE_NATIVE);

        uint64_t start = now_ns();
        assert_int_equal(run(f, NULL, NULL, &b), 0);
        assert_true(ms_since(start) < 1000);
        assert_true(!b.assets_changed && !b.store_created);
        assert_string_equal(a.assets.id, b.assets.id);
        assert_int_equal(stat(found.initrd, &st2), 0);
        assert_true(st.st_ino == st2.st_ino && st.st_mtim.tv_nsec == st2.st_mtim.tv_nsec);
        assert_int_equal(count_entries(f->cache, "tmp."), 0);
}

/* Another kernel is other assets; the old ones stay for those who have just located them. The same inputs
 * elsewhere have the same id. */
static void test_content_addressed(void **state) {
        struct fixture *f = *state;
        struct setup_result a, b, c;
        char path[PATH_MAX];
        struct stat st;

        need_busybox(f);
        assert_int_equal(run(f, NULL, NULL, &a), 0);
        (void) snprintf(path, sizeof(path), "%s/kernel", f->cache);
        assert_int_equal(io_remove_tree(AT_FDCWD, path), 0);
        fake_kernel(f->cache, "6.1.1-test", modules);
        assert_int_equal(run(f, NULL, NULL, &b), 0);
        assert_true(b.assets_changed && !b.store_created);
        assert_string_not_equal(a.assets.id, b.assets.id);
        assert_int_equal(stat(a.assets.kernel, &st), 0);
        assert_int_equal(run(f, NULL, NULL, &c), 0);
        assert_int_equal(stat(a.assets.kernel, &st), 0);

        /* An hour after it was replaced it goes. */
        const struct timespec old[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1000000000 } };
        assert_int_equal(utimensat(AT_FDCWD, a.assets.dir, old, 0), 0);
        assert_int_equal(utimensat(AT_FDCWD, b.assets.dir, old, 0), 0);
        assert_int_equal(run(f, NULL, NULL, &c), 0);
        assert_int_equal(stat(a.assets.dir, &st), -1);
        assert_int_equal(stat(b.assets.kernel, &st), 0); /* the current one stays, however old */

        (void) snprintf(f->cache, sizeof(f->cache), "%s/other", f->dir);
        fake_kernel(f->cache, "6.1.1-test", modules);
        assert_int_equal(run(f, NULL, NULL, &c), 0);
        assert_string_equal(c.assets.id, b.assets.id);
}

static void test_repairs(void **state) {
        struct fixture *f = *state;
        struct setup_result a, b;
        struct assets found;
        struct err e;

        need_busybox(f);
        assert_int_equal(run(f, NULL, NULL, &a), 0);
        assert_int_equal(truncate(a.assets.initrd, 100), 0);
        assert_int_equal(assets_locate(f->cache, &found, &e), -ENOENT);
        assert_int_equal(run(f, NULL, NULL, &b), 0);
        assert_true(b.assets_changed);
        assert_int_equal(assets_locate(f->cache, &found, &e), 0);

        assert_int_equal(unlink(a.assets.kernel), 0);
        assert_int_equal(assets_locate(f->cache, &found, &e), -ENOENT);
        assert_int_equal(run(f, NULL, NULL, &b), 0);
        assert_int_equal(assets_locate(f->cache, &found, &e), 0);
        assert_string_equal(found.id, a.assets.id);
}

/* ---- two at once ---- */

/* The second process is forked before the first one takes the lock, which it would inherit otherwise. */
struct together {
        struct fixture *f;
        int go[2];   /* pipe: the second one is to begin */
        int told[2]; /* pipe: it says that it waits */
        pid_t second;
};

static void say_when_waiting(const char *step, const char *text, int percent, void *arg) {
        struct together *t = arg;

        if (strcmp(step, "wait") == 0 && write(t->told[1], "w", 1) != 1)
                _exit(99);
}

static void second(struct together *t) {
        struct setup_result res;
        char c;

        if (read(t->go[0], &c, 1) != 1 || run(t->f, say_when_waiting, t, &res) < 0)
                _exit(1);
        _exit(res.waited && !res.assets_changed && !res.store_created ? 0 : 2);
}

/* In the middle of the first one's work the second begins, and the first goes on when that one waits. */
static void start_second(const char *step, const char *text, int percent, void *arg) {
        struct together *t = arg;
        char c;

        if (strcmp(step, "initramfs") != 0)
                return;
        assert_int_equal(write(t->go[1], "g", 1), 1);
        assert_int_equal(read(t->told[0], &c, 1), 1);
}

static void test_two_at_once(void **state) {
        struct fixture *f = *state;
        struct together t = { .f = f };
        struct setup_result res;
        int status;

        need_busybox(f);
        assert_int_equal(pipe2(t.go, O_CLOEXEC), 0);
        assert_int_equal(pipe2(t.told, O_CLOEXEC), 0);
        t.second = fork();
        if (t.second == 0)
                second(&t);
        assert_int_equal(run(f, start_second, &t, &res), 0);
        assert_true(res.assets_changed && !res.waited && t.second > 0);
        assert_int_equal(waitpid(t.second, &status, 0), t.second);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        for (int i = 0; i < 2; i++) {
                (void) close_fd(t.go[i]);
                (void) close_fd(t.told[i]);
        }
}

/* ---- interrupted ---- */

static void die(const char *step, const char *text, int percent, void *arg) {
        if (strcmp(step, arg) == 0)
                (void) raise(SIGKILL);
}

static void test_interrupted(void **state) {
        static const char *const steps[] = { "initramfs", "store" };
        struct fixture *f = *state;
        struct setup_result res;
        struct assets found;
        int status;

        need_busybox(f);
        for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
                pid_t pid = fork();
                if (pid == 0) {
                        (void) run(f, die, (void *) (uintptr_t) steps[i], &res);
                        _exit(0);
                }
                assert_int_equal(waitpid(pid, &status, 0), pid);
                assert_true(WIFSIGNALED(status));
                assert_int_equal(count_entries(f->cache, "tmp."), 1);
                assert_int_equal(assets_locate(f->cache, &found, NULL), i == 0 ? -ENOENT : 0);
        }
        assert_int_equal(run(f, NULL, NULL, &res), 0);
        assert_int_equal(count_entries(f->cache, "tmp."), 0);
        assert_int_equal(count_entries(f->state, "store.img.tmp"), 0);
        assert_true(res.store_created);
}

/* ---- check ---- */

static void test_check(void **state) {
        struct fixture *f = *state;
        struct setup_result res;
        struct stat st;
        char path[PATH_MAX];

        need_busybox(f);
        f->params.check_only = true;
        assert_int_equal(run(f, NULL, NULL, &res), 0);
        assert_int_equal(res.n_missing, 2);
        assert_string_equal(res.missing[0], "guest initramfs");
        assert_int_equal(stat(f->state, &st), -1); /* nothing was made */
        (void) snprintf(path, sizeof(path), "%s/.lock", f->cache);
        assert_int_equal(stat(path, &st), -1);

        f->params.check_only = false;
        assert_int_equal(run(f, NULL, NULL, &res), 0);
        f->params.check_only = true;
        assert_int_equal(run(f, NULL, NULL, &res), 0);
        assert_int_equal(res.n_missing, 0);
        assert_int_equal(strlen(res.assets.id), ASSETS_ID_LEN);

        (void) snprintf(path, sizeof(path), "%s/kernel", f->cache);
        assert_int_equal(io_remove_tree(AT_FDCWD, path), 0);
        fake_kernel(f->cache, "6.1.1-test", modules);
        assert_int_equal(run(f, NULL, NULL, &res), 0);
        assert_int_equal(res.n_missing, 1);
        assert_non_null(strstr(res.missing[0], "there are older ones"));
}

/* ---- refused ---- */

static void test_refuses(void **state) {
        struct fixture *f = *state;
        struct setup_result res = { .n_missing = 77 };
        struct err e = { 0 };

        need_busybox(f);
        f->params.store_bytes = STORE_MIN_BYTES - 1;
        assert_int_equal(setup_run(&f->params, NULL, NULL, &res, &e), -ERANGE);
        assert_int_equal(res.n_missing, 77);
        f->params.store_bytes = STORE_MIN_BYTES;

        char script[PATH_MAX];
        (void) snprintf(script, sizeof(script), "%s/agent", f->dir);
        put_file(script, "#!/bin/sh\n", 10);
        f->params.agent_path = script;
        assert_int_equal(setup_run(&f->params, NULL, NULL, &res, &e), -EBADMSG);
        assert_non_null(strstr(e.message, script));
        f->params.agent_path = "/proc/self/exe"; /* this test: dynamically linked */
        assert_int_equal(setup_run(&f->params, NULL, NULL, &res, &e), -ENOEXEC);
        f->params.agent_path = "/no/such/agent";
        assert_int_equal(setup_run(&f->params, NULL, NULL, &res, &e), -ENOENT);

        char longdir[ASSETS_MAX_PATH + 1];
        memset(longdir, 'x', sizeof(longdir) - 1);
        longdir[sizeof(longdir) - 1] = '\0';
        f->params.cache_dir = longdir;
        assert_int_equal(setup_run(&f->params, NULL, NULL, &res, &e), -ENAMETOOLONG);
}

static void test_no_space(void **state) {
        struct fixture *f = *state;
        struct setup_result res;
        struct store_info info;
        struct err e = { 0 };

        need_busybox(f);
        assert_int_equal(store_inspect(f->state, &info, &e), 0);
        if (info.reflink)
                skip_because("/tmp has reflink, so no store image is made");
        f->params.store_bytes = STORE_MAX_BYTES;
        assert_int_equal(setup_run(&f->params, NULL, NULL, &res, &e), -ENOSPC);
        assert_string_equal(e.code, ERR_NO_SPACE);
        assert_non_null(strstr(e.message, f->state));
        assert_non_null(strstr(e.hint, "--store-size"));
        /* before any work */
        assert_int_equal(count_entries(f->cache, "assets"), 0);
        assert_int_equal(count_entries(f->cache, "tmp."), 0);
        assert_int_equal(access(f->state, F_OK), -1);
}

#define WITH_FIXTURE(fn) cmocka_unit_test_setup_teardown(fn, make, drop)

int main(void) {
        const struct CMUnitTest tests[] = {
                WITH_FIXTURE(test_idempotent),  WITH_FIXTURE(test_content_addressed), WITH_FIXTURE(test_repairs),
                WITH_FIXTURE(test_two_at_once), WITH_FIXTURE(test_interrupted),       WITH_FIXTURE(test_check),
                WITH_FIXTURE(test_refuses),     WITH_FIXTURE(test_no_space),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
