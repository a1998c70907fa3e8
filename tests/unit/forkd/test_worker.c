/* SPDX-License-Identifier: MIT */
/* A worker by itself (its main function in a child of the test), then the pool with the real forkd. */
#include "common_test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "forkd/api/caller.h"
#include "forkd/daemon.h"
#include "forkd/worker/worker.h"
#include "snapstore/store.h"

#define PAGE SNAP_PAGE_SIZE
#define PAGES 600u
#define TIMEOUT_MS 20000

static struct event_base *base;
static char store[64];

/* Runs the loop until no coroutine is left; a failed assertion in one leaves it hanging, so only for a while. */
static void run_coroutines(void) {
        uint64_t end = now_ns() + 60000000000ull;

        while (co_alive() > 0 && now_ns() < end)
                assert_true(event_base_loop(base, EVLOOP_ONCE) >= 0);
        assert_int_equal(co_alive(), 0);
}

static void in_coroutine(void (*fn)(void *arg), void *arg) {
        assert_int_equal(co_alive(), 0);
        assert_ok(co_start(base, fn, arg));
        run_coroutines();
}

static unsigned count_in(const char *sub) {
        char path[128];
        unsigned n = 0;
        DIR *d;

        (void) snprintf(path, sizeof(path), "%s/%s", store, sub);
        d = opendir(path);
        assert_non_null(d);
        for (struct dirent *de; (de = readdir(d));)
                n += de->d_name[0] != '.';
        (void) closedir(d);
        return n;
}

static void put_file(const char *path, uint64_t size) {
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        assert_int_equal(ftruncate(fd, (off_t) size), 0);
        (void) close(fd);
}

/* ---- one worker ---- */

struct one {
        struct rpc_conn *c;
        pid_t pid;
};

static void refuse(struct rpc_msg *m, void *arg) {
        fail_msg("a worker asks for %s", m->method);
}

static void one_start(struct one *w) {
        static const struct rpc_handlers handlers = { .on_message = refuse };
        int sv[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        w->pid = fork();
        if (w->pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void) close(sv[0]);
                _exit(worker_main(sv[1]));
        }
        (void) close(sv[1]);
        assert_ok(rpc_conn_new(base, sv[0], &handlers, w, &w->c));
}

/* The worker ends with its connection, and well. */
static void one_end(struct one *w) {
        int status;

        rpc_conn_unref(w->c);
        assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
        assert_int_equal(status, 0);
}

static int call(struct one *w, const char *method, struct mp_buf *params, const int *fds, size_t n_fds, struct rpc_answer *ret) {
        struct err e = { 0 };
        int r = rpc_call_co(w->c, method, params, fds, n_fds, TIMEOUT_MS, ret, &e);

        assert_true(r == 0 || (e.code[0] && e.message[0]));
        return r;
}

static int prepare(struct one *w, const char *id, int parent_fd) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 6);
        mp_kv_str(&b, "store", store);
        mp_kv_str(&b, "id", id);
        mp_kv_u64(&b, "ram_bytes", PAGES * (uint64_t) PAGE);
        mp_kv_u64(&b, "codec", SNAP_CODEC_LZ4);
        mp_kv_u64(&b, "level", 0);
        mp_kv_u64(&b, "fds", parent_fd >= 0);
        return call(w, "snap.prepare", &b, &parent_fd, parent_fd >= 0, NULL);
}

/* The memory is our own: nobody writes to it while we wait. @ret_dirty may be NULL. */
static int look_at(struct one *w, const char *method, const void *mem, const char *disk, uint64_t removed, uint64_t n_removed,
                   uint64_t *ret_dirty) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r;

        mp_buf_init(&b);
        mp_map(&b, 4);
        mp_kv_u64(&b, "pid", (uint64_t) getpid());
        mp_key(&b, "regions");
        mp_array(&b, 1);
        mp_map(&b, 3);
        mp_kv_u64(&b, "addr", (uintptr_t) mem);
        mp_kv_u64(&b, "size", PAGES * (uint64_t) PAGE);
        mp_kv_u64(&b, "offset", 0);
        mp_key(&b, "disks");
        mp_array(&b, disk != NULL);
        if (disk)
                mp_str(&b, disk);
        mp_key(&b, "removed");
        mp_array(&b, n_removed > 0);
        if (n_removed) {
                mp_array(&b, 2);
                mp_u64(&b, removed);
                mp_u64(&b, n_removed);
        }
        r = call(w, method, &b, NULL, 0, &a);
        if (r == 0 && ret_dirty)
                assert_ok(mp_get_u64(&a.doc.root, "dirty_pages", ret_dirty));
        return r;
}

static int copy(struct one *w, const void *mem, const char *disk, uint64_t removed, uint64_t n_removed, uint64_t *ret_dirty) {
        return look_at(w, "snap.copy", mem, disk, removed, n_removed, ret_dirty);
}

static int pages_from(struct one *w, int memfd, uint64_t *ret) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "fds", 1);
        r = call(w, "snap.pages", &b, &memfd, 1, &a);
        if (r == 0)
                assert_ok(mp_get_u64(&a.doc.root, "dirty_pages", ret));
        return r;
}

static int open_disk(struct one *w, uint64_t n, int *ret_fd) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r;

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_u64(&b, "disk", n);
        r = call(w, "snap.disk", &b, NULL, 0, &a);
        if (r == 0) {
                assert_int_equal(a.n_fds, 1);
                *ret_fd = TAKE_FD(a.fds[0]);
        }
        return r;
}

static void put_run(struct mp_buf *b, uint64_t first, uint64_t n) {
        mp_array(b, 2);
        mp_u64(b, first);
        mp_u64(b, n);
}

/* A child has one run that was recorded since, page 9. */
static int publish(struct one *w, struct snap_manifest *m, bool sync) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_fd int vmstate = memfd_create("vmstate", MFD_CLOEXEC);
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_free void *encoded = NULL;
        const void *data;
        size_t len;
        int r;

        (void) strcpy(m->source, "web");
        (void) strcpy(m->vmm, "qemu");
        (void) strcpy(m->vmm_version, "7.2");
        (void) strcpy(m->accel, "tcg");
        (void) strcpy(m->net, "none");
        m->created_ns = 1700000000000000000ll;
        m->pages_zero = PAGES; /* until the worker has counted */
        m->vcpus = 1;
        m->mem_bytes = PAGES * (uint64_t) PAGE;
        assert_ok(io_write_full(vmstate, "device state", 12));
        assert_ok(snap_manifest_encode(m, &encoded, &len));
        mp_buf_init(&b);
        mp_map(&b, 5);
        mp_kv_bin(&b, "manifest", encoded, len);
        mp_kv_str(&b, "came_from", m->parent);
        mp_key(&b, "runs");
        mp_array(&b, m->parent[0] != 0);
        if (m->parent[0])
                put_run(&b, 9, 1);
        mp_kv_bool(&b, "sync", sync);
        mp_kv_u64(&b, "fds", 1);
        r = call(w, "snap.publish", &b, &vmstate, 1, &a);
        if (r == 0) {
                assert_ok(mp_get_bin(&a.doc.root, "manifest", &data, &len));
                assert_ok(snap_manifest_decode(data, len, m));
        }
        return r;
}

static int on_snapshot(struct one *w, const char *method, const char *id, int fd, struct rpc_answer *ret) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 4);
        mp_kv_str(&b, "store", store);
        mp_kv_str(&b, "id", id);
        mp_kv_u64(&b, "fds", fd >= 0);
        mp_key(&b, "caller");
        mp_nil(&b);
        return call(w, method, &b, &fd, fd >= 0, ret);
}

static void check_snapshot(struct one *w, const char *id, const uint8_t *want) {
        cleanup_rpc_answer struct rpc_answer a = { 0 }, b = { 0 };
        cleanup_fd int fd = memfd_create("dump", MFD_CLOEXEC);
        cleanup_free uint8_t *got = malloc(PAGES * (size_t) PAGE);
        bool ok = false;

        assert_ok(on_snapshot(w, "snap.verify", id, -1, &a));
        assert_ok(mp_get_bool(&a.doc.root, "ok", &ok));
        assert_true(ok);
        assert_ok(on_snapshot(w, "snap.memory", id, fd, &b));
        assert_ok(io_pread_full(fd, got, PAGES * (size_t) PAGE, 0));
        assert_memory_equal(got, want, PAGES * (size_t) PAGE);
}

static int learn(struct one *w, const char *id, uint64_t first, uint64_t n, uint64_t *ret_new) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r;

        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_str(&b, "store", store);
        mp_kv_str(&b, "id", id);
        mp_key(&b, "runs");
        mp_array(&b, 1);
        put_run(&b, first, n);
        r = call(w, "snap.learn", &b, NULL, 0, &a);
        if (r == 0)
                assert_ok(mp_get_u64(&a.doc.root, "new_pages", ret_new));
        return r;
}

static uint64_t workingset_pages(struct snap_store *s, const struct snap_manifest *m) {
        cleanup_snap_workingset struct snap_workingset w = { 0 };
        int r = snap_store_read_workingset(s, m, &w);

        assert_true(r == 0 || r == -ENODATA);
        return w.n_pages;
}

/* How many notes `snap.verify` has. */
static uint32_t notes(struct one *w, const char *id) {
        cleanup_rpc_answer struct rpc_answer a = { 0 };
        const msgpack_object *list;
        bool ok = false;

        assert_ok(on_snapshot(w, "snap.verify", id, -1, &a));
        assert_ok(mp_get_bool(&a.doc.root, "ok", &ok));
        assert_true(ok);
        list = mp_get_array(&a.doc.root, "notes");
        assert_non_null(list);
        return list->via.array.size;
}

static uint8_t *new_memory(void) {
        uint8_t *mem = mmap(NULL, PAGES * (size_t) PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        assert_true(mem != MAP_FAILED);
        (void) madvise(mem, PAGES * (size_t) PAGE, MADV_NOHUGEPAGE);
        return mem;
}

static void snapshot_and_child(void *arg) {
        cleanup_free struct snap_manifest *m = calloc(2, sizeof(*m));
        cleanup_snap_store struct snap_store *s = NULL;
        uint8_t *mem = new_memory(), *want = new_memory(), *first = new_memory();
        cleanup_fd int parent = -1;
        struct one *w = arg;
        char disk[128], path[256];
        uint64_t dirty, n_new;
        int fd;

        (void) snprintf(disk, sizeof(disk), "%s/the-disk", store);
        fd = open(disk, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        assert_ok(io_pwrite_full(fd, "disk", 4, 5000));
        (void) close(fd);
        for (unsigned p = 0; p < PAGES; p += 3)
                memset(mem + p * PAGE, (int) p | 1, PAGE);
        memcpy(want, mem, PAGES * (size_t) PAGE);
        m[0].n_disks = 1;
        id_new(m[0].id);
        assert_ok(prepare(w, m[0].id, -1));
        assert_ok(copy(w, mem, disk, 0, 0, &dirty));
        assert_in_range(dirty, PAGES / 3, PAGES); /* reading `mem` for `want` may have mapped zero pages */
        assert_ok(publish(w, &m[0], true));
        assert_int_equal(m[0].n_disks, 1);
        assert_int_equal(m[0].disk_bytes[0], 5004);
        memcpy(first, want, PAGES * (size_t) PAGE);
        check_snapshot(w, m[0].id, first);
        assert_ok(snap_store_open(store, &s));
        assert_int_equal(workingset_pages(s, &m[0]), 0);
        assert_ok(learn(w, m[0].id, 0, 3, &n_new));
        assert_int_equal(n_new, 3);
        assert_int_equal(workingset_pages(s, &m[0]), 3);
        assert_int_equal(learn(w, m[0].id, PAGES, 1, &n_new), -EREMOTEIO);
        assert_int_equal(learn(w, "0123456789abcdef", 0, 1, &n_new), -EREMOTEIO);
        assert_int_equal(notes(w, m[0].id), 0);

        /* The child: pages 0 to 3 were given back, then 3 and 4 written; all else is the parent's. */
        (void) munmap(mem, PAGES * (size_t) PAGE);
        mem = new_memory();
        memset(mem + 3 * PAGE, 33, PAGE);
        memset(mem + 4 * PAGE, 44, PAGE);
        memset(want, 0, 3 * PAGE);
        memset(want + 3 * PAGE, 33, PAGE);
        memset(want + 4 * PAGE, 44, PAGE);
        assert_ok(snap_store_open_file(s, m[0].id, SNAP_FILE_MEMORY, &parent));
        id_new(m[1].id);
        assert_ok(prepare(w, m[1].id, parent));
        assert_ok(copy(w, mem, NULL, 0, 4, &dirty));
        assert_int_equal(dirty, 2);
        snap_manifest_set_parent(&m[1], &m[0]);
        assert_ok(publish(w, &m[1], false));
        check_snapshot(w, m[1].id, want);
        check_snapshot(w, m[0].id, first); /* the parent is what it was */
        assert_int_equal(workingset_pages(s, &m[1]), 4);
        assert_int_equal(notes(w, m[1].id), 0);
        /* One that is of no use is mentioned, and the snapshot is sound. */
        assert_ok(snap_store_path(s, m[1].id, SNAP_FILE_WORKINGSET, path, sizeof(path)));
        assert_int_equal(truncate(path, 20), 0);
        assert_int_equal(notes(w, m[1].id), 1);
        (void) munmap(mem, PAGES * (size_t) PAGE);
        (void) munmap(want, PAGES * (size_t) PAGE);
        (void) munmap(first, PAGES * (size_t) PAGE);
}

static void test_snapshot_and_child(void **state) {
        struct one w;

        one_start(&w);
        in_coroutine(snapshot_and_child, &w);
        one_end(&w);
        assert_int_equal(count_in("snapshots"), 2);
        assert_int_equal(count_in("tmp"), 0);
}

/* The pages of a guest that runs on come from a memfd, later; its disk can be read before there is a snapshot. */
static void live(void *arg) {
        cleanup_fd int memfd = memfd_create("nascent", MFD_CLOEXEC), disk_fd = -1;
        cleanup_free struct snap_manifest *m = calloc(1, sizeof(*m));
        uint8_t *mem = new_memory(), *want = new_memory();
        struct one *w = arg;
        char disk[128], buf[4];
        uint64_t dirty;

        (void) snprintf(disk, sizeof(disk), "%s/the-disk", store);
        put_file(disk, 5000);
        memset(mem + 9 * PAGE, 9, PAGE); /* what the guest has by now: not what it had */
        memset(want + 5 * PAGE, 55, PAGE);
        assert_int_equal(ftruncate(memfd, PAGES * (off_t) PAGE), 0);
        assert_ok(io_pwrite_full(memfd, want + 5 * PAGE, PAGE, 5 * PAGE));
        id_new(m->id);
        assert_fails(look_at(w, "snap.still", mem, NULL, 0, 0, NULL), EREMOTEIO);
        assert_ok(prepare(w, m->id, -1));
        assert_fails(pages_from(w, memfd, &dirty), EREMOTEIO);
        assert_fails(open_disk(w, 0, &disk_fd), EREMOTEIO);
        assert_ok(look_at(w, "snap.still", mem, disk, 0, 4, NULL));
        assert_fails(look_at(w, "snap.still", mem, disk, 0, 4, NULL), EREMOTEIO);
        assert_fails(copy(w, mem, NULL, 0, 0, &dirty), EREMOTEIO);
        assert_fails(publish(w, m, false), EREMOTEIO);
        assert_fails(open_disk(w, 1, &disk_fd), EREMOTEIO);
        assert_ok(open_disk(w, 0, &disk_fd));
        assert_ok(pages_from(w, memfd, &dirty));
        assert_int_equal(dirty, 1);
        assert_fails(pages_from(w, memfd, &dirty), EREMOTEIO);
        m->n_disks = 1;
        assert_ok(publish(w, m, false));
        check_snapshot(w, m->id, want);
        assert_ok(io_pread_full(disk_fd, buf, 4, 4996));
        assert_true(write(disk_fd, "x", 1) < 0);
        (void) munmap(mem, PAGES * (size_t) PAGE);
        (void) munmap(want, PAGES * (size_t) PAGE);
}

static void test_live(void **state) {
        struct one w;

        one_start(&w);
        in_coroutine(live, &w);
        one_end(&w);
        assert_int_equal(count_in("snapshots"), 1);
        assert_int_equal(count_in("tmp"), 0);
}

static void wrong_order(void *arg) {
        cleanup_free struct snap_manifest *m = calloc(1, sizeof(*m));
        uint8_t *mem = new_memory();
        struct one *w = arg;
        uint64_t dirty;

        id_new(m->id);
        assert_fails(copy(w, mem, NULL, 0, 0, &dirty), EREMOTEIO);
        assert_fails(publish(w, m, false), EREMOTEIO);
        assert_fails(prepare(w, "../../etc", -1), EREMOTEIO);
        assert_ok(prepare(w, m->id, -1));
        assert_fails(publish(w, m, false), EREMOTEIO);
        assert_ok(prepare(w, m->id, -1)); /* begins anew */
        assert_int_equal(count_in("tmp"), 1);
        assert_ok(copy(w, mem, NULL, 0, 0, &dirty));
        assert_fails(copy(w, mem, NULL, 0, 0, &dirty), EREMOTEIO);
        assert_ok(publish(w, m, false));
        assert_fails(publish(w, m, false), EREMOTEIO);
        assert_fails(prepare(w, m->id, -1), EREMOTEIO); /* it is published */
        (void) munmap(mem, PAGES * (size_t) PAGE);
}

static void test_wrong_order(void **state) {
        struct one w;

        one_start(&w);
        in_coroutine(wrong_order, &w);
        one_end(&w);
        assert_int_equal(count_in("snapshots"), 1);
        assert_int_equal(count_in("tmp"), 0);
}

static void half_a_snapshot(void *arg) {
        uint8_t *mem = new_memory();
        uint64_t dirty;
        id_str id;

        id_new(id);
        memset(mem, 1, PAGE);
        assert_ok(prepare(arg, id, -1));
        assert_ok(copy(arg, mem, NULL, 0, 0, &dirty));
        assert_int_equal(count_in("tmp"), 1);
        (void) munmap(mem, PAGES * (size_t) PAGE);
}

/* forkd goes away in the middle: what was not published goes, too. */
static void test_connection_ends(void **state) {
        struct one w;

        one_start(&w);
        in_coroutine(half_a_snapshot, &w);
        one_end(&w);
        assert_int_equal(count_in("snapshots"), 0);
        assert_int_equal(count_in("tmp"), 0);
}

static void wrong_params(void *arg) {
        static const char *const methods[] = { "snap.prepare",  "snap.copy", "snap.publish", "snap.durable", "snap.verify",
                                               "snap.memory",   "disk.copy", "store.attach", "store.detach", "kvm.verdict",
                                               "store.recover", "no.such",   "snap",         "snap.learn",   "snap.still",
                                               "snap.disk",     "snap.pages" };
        struct one *w = arg;

        for (size_t i = 0; i < ARRAY_LEN(methods); i++) {
                cleanup_mp_buf struct mp_buf b = { 0 };

                assert_fails(call(w, methods[i], NULL, NULL, 0, NULL), EREMOTEIO);
                mp_buf_init(&b);
                mp_map(&b, 7);
                mp_kv_u64(&b, "store", 5);
                mp_kv_u64(&b, "id", 5);
                mp_kv_u64(&b, "from", 5);
                mp_kv_u64(&b, "to", 5);
                mp_kv_u64(&b, "state_dir", 5);
                mp_kv_u64(&b, "cache_dir", 5);
                mp_kv_str(&b, "regions", "none");
                assert_fails(call(w, methods[i], &b, NULL, 0, NULL), EREMOTEIO);
        }
}

static void test_wrong_params(void **state) {
        struct one w;

        one_start(&w);
        in_coroutine(wrong_params, &w);
        assert_ok(rpc_notify(w.c, "snap.prepare", NULL, NULL, 0)); /* no answer, no harm */
        in_coroutine(half_a_snapshot, &w);
        one_end(&w);
}

static int disk_copy_as(struct one *w, const struct caller *who, const char *from, const char *to) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 3);
        mp_kv_str(&b, "from", from);
        mp_kv_str(&b, "to", to);
        caller_encode(who, &b);
        return call(w, "disk.copy", &b, NULL, 0, NULL);
}

static int disk_copy(struct one *w, const char *from, const char *to) {
        static const struct caller root = { .uid = 0 };

        return disk_copy_as(w, &root, from, to);
}

static void disks(void *arg) {
        char from[128], to[128];
        struct stat st;

        (void) snprintf(from, sizeof(from), "%s/from", store);
        (void) snprintf(to, sizeof(to), "%s/to", store);
        assert_fails(disk_copy(arg, from, to), EREMOTEIO);
        assert_fails(disk_copy(arg, store, to), EREMOTEIO);
        assert_fails(disk_copy(arg, "/dev/null", to), EREMOTEIO);
        assert_int_equal(mkfifo(from, 0600), 0);
        assert_fails(disk_copy(arg, from, to), EREMOTEIO); /* and does not wait for a writer */
        assert_int_equal(unlink(from), 0);
        put_file(from, 0);
        assert_fails(disk_copy(arg, from, to), EREMOTEIO);
        put_file(from, 513);
        assert_fails(disk_copy(arg, from, to), EREMOTEIO);
        assert_int_equal(stat(to, &st), -1); /* none of them left anything */
        put_file(from, 1 << 20);
        assert_ok(disk_copy(arg, from, to));
        assert_int_equal(stat(to, &st), 0);
        assert_int_equal(st.st_size, 1 << 20);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_fails(disk_copy(arg, from, to), EREMOTEIO); /* never over a file */
}

static void test_disks(void **state) {
        struct one w;

        one_start(&w);
        in_coroutine(disks, &w);
        one_end(&w);
}

#define USER 54321
#define GROUP 54322

/* The caller of these tests: a user that is nobody here, and in one more group. */
static struct caller *new_user(void) {
        struct caller *c = calloc(1, sizeof(*c) + sizeof(gid_t));

        assert_non_null(c);
        c->refs = 1;
        c->uid = USER;
        c->gid = USER;
        c->n_groups = 1;
        c->groups[0] = GROUP;
        return c;
}

static void disks_of_a_user(void *arg) {
        cleanup_caller struct caller *who = new_user();
        char from[128], to[128], link[128], dir[128];
        struct stat st;

        (void) snprintf(dir, sizeof(dir), "%s/private", store);
        (void) snprintf(from, sizeof(from), "%s/private/disk", store);
        (void) snprintf(link, sizeof(link), "%s/link", store);
        (void) snprintf(to, sizeof(to), "%s/users", store);
        assert_int_equal(chmod(store, 0711), 0);
        assert_int_equal(mkdir(dir, 0700), 0);
        put_file(from, 4096);
        assert_int_equal(symlink(from, link), 0);
        /* root's directory, then root's file, by its name and by a link */
        assert_fails(disk_copy_as(arg, who, from, to), EREMOTEIO);
        assert_int_equal(chmod(dir, 0711), 0);
        assert_fails(disk_copy_as(arg, who, from, to), EREMOTEIO);
        assert_fails(disk_copy_as(arg, who, link, to), EREMOTEIO);
        assert_int_equal(stat(to, &st), -1);
        assert_ok(disk_copy(arg, from, to)); /* the worker is root again */
        assert_int_equal(unlink(to), 0);
        /* what the user may read by its supplementary group, then by its own */
        assert_int_equal(chown(from, 0, GROUP), 0);
        assert_int_equal(chmod(from, 0640), 0);
        assert_ok(disk_copy_as(arg, who, from, to));
        assert_int_equal(stat(to, &st), 0);
        assert_int_equal(st.st_uid, 0); /* the copy is forkd's */
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_int_equal(unlink(to), 0);
        assert_int_equal(chown(from, 0, USER), 0);
        assert_ok(disk_copy_as(arg, who, link, to));
        assert_int_equal(unlink(to), 0);
        assert_int_equal(chown(from, USER, 0), 0);
        assert_int_equal(chmod(from, 0200), 0);
        assert_fails(disk_copy_as(arg, who, from, to), EREMOTEIO); /* the owner, who may not read */
}

/* Nobody, root included, gets at the worker's own descriptors or at files that the kernel makes up. */
static void disks_of_the_kernel(void *arg) {
        static const char *const names[] = { "/proc/self/fd/0",   "/proc/self/exe",        "/proc/self/root/etc/passwd",
                                             "/dev/stdin",        "/proc/kcore",           "/proc/self/cmdline",
                                             "/sys/kernel/notes", "/sys/kernel/vmcoreinfo" };
        cleanup_caller struct caller *who = new_user();
        char to[128];
        struct stat st;

        (void) snprintf(to, sizeof(to), "%s/kernels", store);
        for (size_t i = 0; i < ARRAY_LEN(names); i++) {
                assert_fails(disk_copy(arg, names[i], to), EREMOTEIO);
                assert_fails(disk_copy_as(arg, who, names[i], to), EREMOTEIO);
        }
        assert_int_equal(stat(to, &st), -1);
}

/* An answer without "caller" must not be root's. */
static void nobody_asks(void *arg) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        char from[128], to[128];
        struct stat st;

        (void) snprintf(from, sizeof(from), "%s/from", store);
        (void) snprintf(to, sizeof(to), "%s/nobodys", store);
        put_file(from, 4096);
        mp_buf_init(&b);
        mp_map(&b, 2);
        mp_kv_str(&b, "from", from);
        mp_kv_str(&b, "to", to);
        assert_fails(call(arg, "disk.copy", &b, NULL, 0, NULL), EREMOTEIO);
        assert_int_equal(stat(to, &st), -1);
}

static void test_disks_are_read_as_who_names_them(void **state) {
        struct one w;

        skip_unless(geteuid() == 0, "not root");
        one_start(&w);
        in_coroutine(disks_of_a_user, &w);
        in_coroutine(disks_of_the_kernel, &w);
        in_coroutine(nobody_asks, &w);
        one_end(&w);
}

/* ---- the pool ---- */

static struct daemon d;

static struct worker_pool *new_pool(void) {
        struct worker_pool *p;

        d = (struct daemon){ .base = base };
        (void) snprintf(d.bin_dir, sizeof(d.bin_dir), "%s", FORKD_BIN_DIR);
        assert_ok(worker_pool_new(&d, &p));
        return p;
}

/* The pid of our only child; 0 if there is none. */
static pid_t only_child(void) {
        cleanup_free char *text = NULL;
        char path[64];

        (void) snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
        assert_ok(io_read_file(AT_FDCWD, path, 4096, &text, NULL));
        return (pid_t) strtol(text, NULL, 10);
}

static void use_pool(void *arg) {
        struct worker_pool *p = arg;
        struct worker *w;
        struct err e;
        pid_t first, second;

        assert_fails(worker_do(p, "no.such", NULL, NULL, 0, TIMEOUT_MS, NULL, &e), EREMOTEIO);
        first = only_child();
        assert_true(first > 0);
        assert_fails(worker_do(p, "no.such", NULL, NULL, 0, TIMEOUT_MS, NULL, &e), EREMOTEIO);
        assert_int_equal(only_child(), first); /* an answer, even an error, leaves the worker whole */

        assert_int_equal(kill(first, SIGKILL), 0); /* the idle one dies */
        siginfo_t si;
        assert_int_equal(waitid(P_PID, (id_t) first, &si, WEXITED | WNOWAIT), 0);
        co_sleep(1); /* one turn: the end of the connection is seen */
        assert_fails(worker_do(p, "no.such", NULL, NULL, 0, TIMEOUT_MS, NULL, &e), EREMOTEIO);
        second = only_child();
        assert_int_not_equal(second, first);

        assert_ok(worker_get(p, &w, &e)); /* it dies while it is in use */
        assert_int_equal(kill(second, SIGKILL), 0);
        assert_true(rpc_call_co(worker_conn(w), "no.such", NULL, NULL, 0, TIMEOUT_MS, NULL, &e) < 0);
        assert_string_equal(e.code, ERR_UNREACHABLE);
        worker_put(w, true);
        assert_int_equal(only_child(), 0);

        assert_ok(worker_get(p, &w, &e)); /* stopped, so it cannot answer; a broken one is killed all the same */
        assert_int_equal(kill(only_child(), SIGSTOP), 0);
        assert_fails(rpc_call_co(worker_conn(w), "no.such", NULL, NULL, 0, 50, NULL, &e), ETIMEDOUT);
        worker_put(w, true);
        assert_int_equal(only_child(), 0);
        worker_put(NULL, true);
}

static void test_pool(void **state) {
        struct worker_pool *p = new_pool();
        unsigned before = count_fds();

        in_coroutine(use_pool, p);
        worker_pool_free(p);
        assert_int_equal(only_child(), 0);
        assert_int_equal(count_fds(), before);
}

struct crowd {
        struct worker_pool *p;
        unsigned holding, most, ended;
};

static void hold_one(void *arg) {
        struct crowd *c = arg;
        struct worker *w;
        struct err e;

        assert_ok(worker_get(c->p, &w, &e));
        if (++c->holding > c->most)
                c->most = c->holding;
        assert_fails(rpc_call_co(worker_conn(w), "no.such", NULL, NULL, 0, TIMEOUT_MS, NULL, &e), EREMOTEIO);
        c->holding--;
        c->ended++;
        worker_put(w, false);
}

static void test_many_at_once(void **state) {
        struct crowd c = { .p = new_pool() };

        for (unsigned i = 0; i < WORKER_MAX + 3; i++)
                assert_ok(co_start(base, hold_one, &c));
        run_coroutines();
        assert_int_equal(c.ended, WORKER_MAX + 3);
        assert_true(c.most <= WORKER_MAX);
        assert_true(only_child() > 0); /* one is kept for the next */
        worker_pool_free(c.p);
        assert_int_equal(only_child(), 0);
}

static void no_binary(void *arg) {
        struct worker *w = NULL;
        struct err e;

        for (unsigned i = 0; i < WORKER_MAX + 1; i++) /* a slot is not lost either */
                assert_fails(worker_get(arg, &w, &e), ENOENT);
        assert_null(w);
        assert_non_null(strstr(e.message, "/nonexistent/forkd"));
}

static void test_no_binary(void **state) {
        struct worker_pool *p;

        d = (struct daemon){ .base = base, .bin_dir = "/nonexistent" };
        assert_ok(worker_pool_new(&d, &p));
        in_coroutine(no_binary, p);
        worker_pool_free(p);
        worker_pool_free(NULL);
}

static int setup(void **state) {
        struct snap_store *s;

        base = event_base_new();
        temp_dir(store, sizeof(store));
        if (!base || snap_store_open(store, &s) < 0)
                return -1;
        snap_store_close(s);
        return 0;
}

static int teardown(void **state) {
        event_base_free(base);
        temp_dir_remove(store);
        return 0;
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                T(test_snapshot_and_child),
                T(test_live),
                T(test_wrong_order),
                T(test_connection_ends),
                T(test_wrong_params),
                T(test_disks),
                T(test_disks_are_read_as_who_names_them),
                T(test_pool),
                T(test_many_at_once),
                T(test_no_binary),
        };
        (void) signal(SIGPIPE, SIG_IGN);
        return cmocka_run_group_tests(tests, NULL, NULL);
}
