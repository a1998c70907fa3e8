/* SPDX-License-Identifier: MIT */
#include "tests/unit/pager/takeover.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/spawn.h"

static void start(struct other *o, const char *const *argv) {
        struct spawn_params sp = { .argv = argv, .cgroup_fd = -1, .death_signal = SIGKILL };
        int fd;

        assert_int_equal(spawn_process(&sp, &o->pid, &o->pidfd), 0);
        for (uint64_t begin = now_ns(); io_connect_unix(o->h.path, &fd) < 0;) { /* until it listens */
                assert_true(ms_since(begin) < DEADLINE_MS);
                (void) sched_yield();
        }
        (void) close_fd(fd);
        harness_connect(&o->h);
}

static void prepare(struct other *o) {
        *o = (struct other){ .pidfd = -1 };
        o->h.base = event_base_new();
        assert_non_null(o->h.base);
        (void) snprintf(o->h.dir, sizeof(o->h.dir), "/tmp/pager-test-XXXXXX");
        assert_non_null(mkdtemp(o->h.dir));
        (void) snprintf(o->h.path, sizeof(o->h.path), "%s/pager.sock", o->h.dir);
}

#define ARGS UFFD_PAGER, "--control", o->h.path, "--workers", "2", "--memory-budget", budget, "--log-level", "warning", NULL

void other_start(struct other *o, const char *budget) {
        prepare(o);
        start(o, (const char *[]){ ARGS });
}

void other_start_as_nobody(struct other *o, const char *budget) {
        prepare(o);
        assert_int_equal(chown(o->h.dir, 65534, 65534), 0);
        start(o, (const char *[]){ "/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                                   "--inh-caps=-all,+sys_ptrace", "--ambient-caps=-all,+sys_ptrace", ARGS });
}

static void forget(struct other *o) {
        rpc_conn_unref(o->h.conn);
        event_base_free(o->h.base);
        o->pidfd = close_fd(o->pidfd);
        (void) unlink(o->h.path);
        assert_int_equal(rmdir(o->h.dir), 0);
}

void other_freeze(struct other *o) {
        siginfo_t info;

        assert_int_equal(spawn_kill(o->pidfd, SIGSTOP), 0);
        assert_int_equal(waitid(P_PIDFD, (id_t) o->pidfd, &info, WSTOPPED), 0);
}

void other_kill(struct other *o) {
        int status;

        assert_int_equal(spawn_kill(o->pidfd, SIGKILL), 0);
        assert_int_equal(spawn_wait(o->pidfd, DEADLINE_MS, &status), 0);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        forget(o);
}

void other_stop(struct other *o) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int status;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_bool(&b, "force", true);
        struct answer a = harness_call(&o->h, "shutdown", &b, NULL, 0);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        assert_int_equal(spawn_wait(o->pidfd, DEADLINE_MS, &status), 0);
        assert_int_equal(status, 0);
        forget(o);
}

/* ---- what is kept ---- */

void begin_session(struct harness *h, struct call *c, const char *method, const char *session) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", session);
        harness_begin(h, c, method, &b, NULL, 0);
}

struct answer call_session(struct harness *h, const char *method, const char *session) {
        struct call c;

        begin_session(h, &c, method, session);
        return harness_wait(h, &c);
}

void call_ok(struct harness *h, const char *method, const char *session) {
        struct answer a = call_session(h, method, session);

        if (a.r < 0)
                fail_msg("%s: %s", method, a.e.message);
        answer_clear(&a);
}

void kept_get(struct harness *h, const struct vmm *v, struct kept *k) {
        struct answer a = call_session(h, "session.handles", v->session);
        const msgpack_object *regions;
        bool attached;

        if (a.r < 0)
                fail_msg("session.handles: %s", a.e.message);
        *k = (struct kept){ .ram_bytes = v->ram_bytes, .uffd = -1 };
        (void) snprintf(k->session, sizeof(k->session), "%s", v->session);
        regions = mp_get_array(&a.doc.root, "regions");
        assert_non_null(regions);
        assert_int_equal(mp_get_bool(&a.doc.root, "attached", &attached), 0);
        assert_int_equal(a.n_fds, attached ? 3 : 2);
        k->n_regions = regions->via.array.size;
        assert_true(k->n_regions <= ARRAY_LEN(k->region));
        for (size_t i = 0; i < k->n_regions; i++)
                for (unsigned j = 0; j < 3; j++)
                        k->region[i][j] = regions->via.array.ptr[i].via.array.ptr[j].via.u64;
        k->memfd = TAKE_FD(a.fds[0]);
        k->sock = TAKE_FD(a.fds[1]);
        if (attached)
                k->uffd = TAKE_FD(a.fds[2]);
        answer_clear(&a);
}

void kept_clear(struct kept *k) {
        (void) close_fd(k->memfd);
        (void) close_fd(k->sock);
        (void) close_fd(k->uffd);
}

static size_t add_pages(struct pages *ret, size_t n, size_t max, const uint64_t region[3], uint64_t start, uint64_t end) {
        if (start >= end)
                return n;
        assert_true(n < max);
        ret[n] = (struct pages){ (start - region[0] + region[2]) / TEST_PAGE, (end - start) / TEST_PAGE };
        return n + 1;
}

size_t discarded(pid_t pid, const struct kept *k, struct pages *ret, size_t max) {
        char path[64], line[512];
        struct stat st;
        size_t n = 0;

        assert_int_equal(fstat(k->memfd, &st), 0);
        (void) snprintf(path, sizeof(path), "/proc/%d/maps", (int) pid);
        for (size_t i = 0; i < k->n_regions; i++) {
                uint64_t at = k->region[i][0], stop = at + k->region[i][1];
                FILE *f = fopen(path, "re");

                assert_non_null(f);
                while (fgets(line, sizeof(line), f)) {
                        unsigned long long start, end, ino;

                        if (sscanf(line, "%llx-%llx %*s %*s %*s %llu", &start, &end, &ino) != 3 || ino != st.st_ino ||
                            end <= at || start >= stop)
                                continue;
                        n = add_pages(ret, n, max, k->region[i], at, start);
                        at = end;
                }
                n = add_pages(ret, n, max, k->region[i], at, stop);
                (void) fclose(f);
        }
        return n;
}

/* ---- adopting ---- */

static int other_fd(int fd, int instead) {
        return instead ? instead : fd;
}

void begin_adopt(struct harness *h, struct call *c, const struct kept *k, const struct image *img, const struct adopt_how *how) {
        const uint64_t(*region)[3] = how->region ? how->region : (const uint64_t(*)[3]) k->region;
        size_t n_regions = how->region ? how->n_regions : k->n_regions;
        int fds[] = { other_fd(img->fd, how->image_fd), other_fd(k->sock, how->sock), other_fd(k->memfd, how->memfd),
                      other_fd(k->uffd, how->uffd) };
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 7u + (how->vm_pid > 0));
        mp_kv_str(&b, "session", k->session);
        mp_kv_u64(&b, "ram_bytes", how->ram_bytes ? how->ram_bytes : k->ram_bytes);
        mp_key(&b, "regions");
        mp_array(&b, n_regions);
        for (size_t i = 0; i < n_regions; i++) {
                mp_array(&b, 3);
                for (unsigned j = 0; j < 3; j++)
                        mp_u64(&b, region[i][j]);
        }
        mp_key(&b, "removed");
        mp_array(&b, how->n_removed);
        for (size_t i = 0; i < how->n_removed; i++) {
                mp_array(&b, 2);
                mp_u64(&b, how->removed[i].first);
                mp_u64(&b, how->removed[i].n);
        }
        if (how->vm_pid > 0)
                mp_kv_i64(&b, "vm_pid", how->vm_pid);
        mp_kv_bool(&b, "record", false);
        mp_kv_bool(&b, "hold", how->hold);
        mp_kv_u64(&b, "fds", ARRAY_LEN(fds));
        harness_begin(h, c, "session.adopt", &b, fds, ARRAY_LEN(fds));
}

struct answer try_adopt(struct harness *h, const struct kept *k, const struct image *img, const struct adopt_how *how) {
        struct call c;

        begin_adopt(h, &c, k, img, how);
        return harness_wait(h, &c);
}

void adopt_after_death(struct harness *h, const struct vmm *v, const struct kept *k, const struct image *img) {
        struct pages *removed = calloc(65536, sizeof(*removed));
        struct adopt_how how = { .removed = removed, .vm_pid = v->pid };
        struct answer a;

        assert_non_null(removed);
        how.n_removed = discarded(v->pid, k, removed, 65536);
        a = try_adopt(h, k, img, &how);
        if (a.r < 0)
                fail_msg("session.adopt: %s", a.e.message);
        answer_clear(&a);
        free(removed);
}
