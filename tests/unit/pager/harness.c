/* SPDX-License-Identifier: MIT */
#include "tests/unit/pager/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "common/io.h"
#include "common/spawn.h"
#include "pager/attach/segments.h"

/* ---- the pager ---- */

static void *pager_thread(void *arg) {
        struct harness *h = arg;

        (void) event_base_dispatch(h->pager_base);
        return NULL;
}

static void on_message(struct rpc_msg *msg, void *arg) {
        struct harness *h = arg;
        const msgpack_object *regions;
        struct note *n;

        assert_false(msg->is_request);
        assert_true(h->n_notes < MAX_NOTES);
        n = &h->notes[h->n_notes++];
        *n = (struct note){ 0 };
        (void) snprintf(n->method, sizeof(n->method), "%s", msg->method);
        (void) mp_get_str(msg->params, "session", n->session, sizeof(n->session));
        (void) mp_get_str(msg->params, "reason", n->text, sizeof(n->text));
        (void) mp_get_str(msg->params, "error", n->text, sizeof(n->text));
        regions = mp_get_array(msg->params, "regions");
        if (!regions)
                return;
        n->n_regions = regions->via.array.size;
        for (size_t i = 0; i < MIN_OF(n->n_regions, ARRAY_LEN(n->regions)); i++)
                for (unsigned k = 0; k < 3; k++)
                        n->regions[i][k] = regions->via.array.ptr[i].via.array.ptr[k].via.u64;
        n->good_uffd = msg->n_fds == 1 && uffd_check(msg->fds[0], n->regions[0][0]) == 0;
}

static void on_close(struct rpc_conn *c, int r, void *arg) {
        struct harness *h = arg;

        h->conn_closed = true;
}

static const struct rpc_handlers handlers = { .on_message = on_message, .on_close = on_close };

void harness_connect(struct harness *h) {
        int fd;

        rpc_conn_unref(h->conn);
        h->conn_closed = false;
        assert_int_equal(io_connect_unix(h->path, &fd), 0);
        assert_int_equal(rpc_conn_new(h->base, fd, &handlers, h, &h->conn), 0);
}

void harness_start(struct harness *h, const struct pager_config *cfg) {
        struct pager_config c = { .workers = 2, .idle_seconds = 300, .version = "test" };
        struct err e = { 0 };

        *h = (struct harness){ 0 };
        if (cfg)
                c = *cfg;
        c.version = "test";
        (void) snprintf(h->dir, sizeof(h->dir), "/tmp/pager-test-XXXXXX");
        assert_non_null(mkdtemp(h->dir));
        (void) snprintf(h->path, sizeof(h->path), "%s/pager.sock", h->dir);
        c.control_path = h->path;
        h->pager_base = event_base_new();
        h->base = event_base_new();
        assert_non_null(h->pager_base);
        assert_non_null(h->base);
        if (pager_new(h->pager_base, &c, &h->pager, &e) < 0)
                fail_msg("pager_new: %s", e.message);
        assert_int_equal(pthread_create(&h->thread, NULL, pager_thread, h), 0);
        harness_connect(h);
}

void harness_stop(struct harness *h) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_bool(&b, "force", true);
        struct answer a = harness_call(h, "shutdown", &b, NULL, 0);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
        assert_int_equal(pthread_join(h->thread, NULL), 0);
        rpc_conn_unref(h->conn);
        pager_free(h->pager);
        assert_int_equal(access(h->path, F_OK), -1);
        event_base_free(h->base);
        event_base_free(h->pager_base);
        assert_int_equal(rmdir(h->dir), 0);
}

/* ---- calls ---- */

static void on_result(const struct rpc_result *res, void *arg) {
        struct call *c = arg;
        struct answer *a = &c->answer;

        c->done = true;
        a->r = res->r;
        a->e = res->e;
        if (res->r < 0)
                return;
        a->raw = malloc(res->raw_len + 1);
        assert_non_null(a->raw);
        memcpy(a->raw, res->raw, res->raw_len);
        assert_int_equal(mp_parse(a->raw, res->raw_len, &a->doc), 0);
        for (size_t i = 0; i < res->n_fds && i < ARRAY_LEN(a->fds); i++)
                a->fds[a->n_fds++] = TAKE_FD(res->fds[i]);
}

/** Runs the loop for what comes next, within the deadline. */
static void turn(struct harness *h, uint64_t start) {
        struct timeval tick = { .tv_usec = 200000 };

        if (ms_since(start) > DEADLINE_MS)
                fail_msg("nothing came within %d ms", DEADLINE_MS);
        (void) event_base_loopexit(h->base, &tick); /* only so that the deadline is looked at */
        (void) event_base_loop(h->base, EVLOOP_ONCE);
}

void harness_begin(struct harness *h, struct call *c, const char *method, const struct mp_buf *params, const int *fds,
                   size_t n_fds) {
        *c = (struct call){ 0 };
        assert_int_equal(rpc_call(h->conn, method, params, fds, n_fds, on_result, c, NULL), 0);
}

struct answer harness_wait(struct harness *h, struct call *c) {
        for (uint64_t start = now_ns(); !c->done;)
                turn(h, start);
        return c->answer;
}

struct answer harness_call(struct harness *h, const char *method, const struct mp_buf *params, const int *fds, size_t n_fds) {
        struct call c;

        harness_begin(h, &c, method, params, fds, n_fds);
        return harness_wait(h, &c);
}

void answer_clear(struct answer *a) {
        if (a->raw)
                mp_doc_clear(&a->doc);
        free(a->raw);
        for (size_t i = 0; i < a->n_fds; i++)
                (void) close_fd(a->fds[i]);
        *a = (struct answer){ 0 };
}

static struct note *find_note(struct harness *h, const char *method, const char *session) {
        for (unsigned i = 0; i < h->n_notes; i++) {
                struct note *n = &h->notes[i];

                if (!n->taken && !strcmp(n->method, method) && (!session || !strcmp(n->session, session)))
                        return n;
        }
        return NULL;
}

const struct note *harness_note(struct harness *h, const char *method, const char *session) {
        uint64_t start = now_ns();
        struct note *n;

        while (!(n = find_note(h, method, session)))
                turn(h, start);
        n->taken = true;
        return n;
}

bool harness_has_note(struct harness *h, const char *method, const char *session) {
        (void) event_base_loop(h->base, EVLOOP_NONBLOCK);
        return find_note(h, method, session) != NULL;
}

static const msgpack_object *find_entry(const msgpack_object *root, const char *list, const char *which) {
        const msgpack_object *a = mp_get_array(root, list);
        char id[64];

        if (!a)
                return mp_get(root, list);
        for (uint32_t i = 0; i < a->via.array.size; i++) {
                const msgpack_object *o = &a->via.array.ptr[i];

                if (!which || (mp_get_str(o, "session", id, sizeof(id)) == 0 && !strcmp(id, which)))
                        return o;
        }
        return NULL;
}

double harness_status(struct harness *h, const char *list, const char *which, const char *key) {
        struct answer a = harness_call(h, "status", NULL, NULL, 0);
        const msgpack_object *o = find_entry(&a.doc.root, list, which);
        const char *dot = key ? strchr(key, '.') : NULL;
        double v = -1;
        bool b;

        assert_int_equal(a.r, 0);
        if (o && !key) { /* @list itself is the value */
                v = o->type == MSGPACK_OBJECT_BOOLEAN ? o->via.boolean : o->via.f64;
                answer_clear(&a);
                return v;
        }
        if (o && dot) {
                char outer[32];

                (void) snprintf(outer, sizeof(outer), "%.*s", (int) (dot - key), key);
                o = mp_get(o, outer);
                key = dot + 1;
        }
        if (o && mp_get_double(o, key, &v) < 0 && mp_get_bool(o, key, &b) == 0)
                v = b;
        answer_clear(&a);
        return v;
}

void harness_close(struct harness *h, const char *session) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", session);
        struct answer a = harness_call(h, "session.close", &b, NULL, 0);
        assert_int_equal(a.r, 0);
        answer_clear(&a);
}

void harness_trespass(int memfd, uint64_t page) {
        volatile uint8_t *map = mmap(NULL, TEST_PAGE, PROT_READ, MAP_PRIVATE, memfd, (off_t) (page * TEST_PAGE));

        assert_ptr_not_equal(map, MAP_FAILED);
        assert_int_equal(*map, 0);
        assert_int_equal(munmap((void *) map, TEST_PAGE), 0);
}

/* ---- images ---- */

void image_make(struct image *img, uint64_t n_pages, uint64_t seed, enum snap_codec codec) {
        struct snap_writer_params params = { .ram_bytes = n_pages * TEST_PAGE, .codec = codec };
        cleanup_snap_writer struct snap_writer *w = NULL;
        uint8_t page[TEST_PAGE];

        *img = (struct image){ .seed = seed, .n_pages = n_pages };
        id_new(img->id);
        img->fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        assert_true(img->fd >= 0);
        assert_int_equal(snap_writer_new(img->fd, -1, &params, &w), 0);
        for (uint64_t p = 0; p < n_pages; p++) {
                content_fill(seed, p, page);
                img->n_stored += !content_is_zero(seed, p);
                assert_int_equal(snap_writer_put(w, p, page, 1), 0);
        }
        assert_int_equal(snap_writer_finish(w, &img->stats), 0);
}

void image_make_child(struct image *ret, const struct image *parent, const struct image_change *change, size_t n) {
        struct snap_writer_params params = { .ram_bytes = parent->n_pages * TEST_PAGE, .codec = SNAP_CODEC_LZ4 };
        cleanup_snap_writer struct snap_writer *w = NULL;
        uint8_t page[TEST_PAGE];

        *ret = (struct image){ .seed = parent->seed, .n_pages = parent->n_pages, .n_stored = parent->n_stored };
        id_new(ret->id);
        ret->fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        assert_true(ret->fd >= 0);
        assert_int_equal(snap_writer_new(ret->fd, parent->fd, &params, &w), 0);
        for (size_t i = 0; i < n; i++)
                for (uint64_t p = change[i].first; p < change[i].first + change[i].n; p++) {
                        content_fill(change[i].seed, p, page);
                        assert_int_equal(snap_writer_put(w, p, page, 1), 0);
                }
        assert_int_equal(snap_writer_finish(w, &ret->stats), 0);
}

void image_clear(struct image *img) {
        img->fd = close_fd(img->fd);
}

void image_corrupt(const struct image *img, uint64_t page) {
        cleanup_snap_image struct snap_image *snap = NULL;
        struct snap_loc loc;
        uint8_t byte;

        assert_int_equal(snap_image_open(img->fd, &snap), 0);
        assert_int_equal(snap_image_lookup(snap, page, &loc), 0);
        assert_false(loc.zero);
        uint64_t at = loc.frame_off + loc.frame_len - loc.frame_len / 4;
        assert_int_equal(io_pread_full(img->fd, &byte, 1, at), 0);
        byte ^= 0x10;
        assert_int_equal(io_pwrite_full(img->fd, &byte, 1, at), 0);
}

uint64_t image_stored_page(const struct image *img, uint64_t page) {
        while (content_is_zero(img->seed, page))
                page++;
        assert_true(page < img->n_pages);
        return page;
}

uint64_t image_zero_page(const struct image *img, uint64_t page) {
        while (!content_is_zero(img->seed, page))
                page++;
        assert_true(page < img->n_pages);
        return page;
}

/* ---- VMMs ---- */

void vmm_open(struct harness *h, struct vmm *v, const struct image *img) {
        vmm_open_with(h, v, img, &(struct vmm_opening){ 0 });
}

void vmm_open_with(struct harness *h, struct vmm *v, const struct image *img, const struct vmm_opening *o) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        int pair[2], fds[3];
        size_t n_fds = 0;

        *v = (struct vmm){ .memfd = -1, .sock = -1, .pidfd = -1, .err_fd = -1, .layout_fd = -1, .ram_fd = -1, .uffd_dev = -1 };
        v->ram_bytes = img->n_pages * TEST_PAGE;
        id_new(v->session);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        if (!o->live)
                fds[n_fds++] = img->fd;
        fds[n_fds++] = pair[0];
        if (o->workingset_fd > 0)
                fds[n_fds++] = o->workingset_fd;
        mp_buf_init(&b);
        mp_map(&b, 4u + (o->vm_pid != 0) + o->expect + o->record + (o->chain ? 2 : 0) + (o->live != NULL));
        mp_kv_str(&b, "session", v->session);
        mp_kv_u64(&b, "ram_bytes", v->ram_bytes);
        mp_kv_bool(&b, "segments", !o->silent);
        if (o->chain) {
                mp_kv_str(&b, "id", img->id);
                mp_key(&b, "chain");
                mp_array(&b, o->n_chain);
                for (size_t i = 0; i < o->n_chain; i++)
                        mp_str(&b, o->chain[i]->id);
        }
        if (o->vm_pid != 0)
                mp_kv_i64(&b, "vm_pid", o->vm_pid);
        if (o->live)
                mp_kv_str(&b, "live", o->live);
        if (o->expect)
                mp_kv_bool(&b, "expect", true);
        if (o->record)
                mp_kv_bool(&b, "record", true);
        mp_kv_u64(&b, "fds", n_fds);
        struct answer a = harness_call(h, "session.open", &b, fds, n_fds);
        (void) close_fd(pair[0]);
        if (a.r < 0)
                fail_msg("session.open: %s", a.e.message);
        assert_int_equal(a.n_fds, 2);
        assert_int_equal(mp_get_u64(&a.doc.root, "workingset_pages", &v->workingset_pages), 0);
        v->memfd = TAKE_FD(a.fds[0]);
        v->sock = pair[1];
        answer_clear(&a);
}

enum probe { PROBE_IMAGE, PROBE_FRESH, PROBE_SHELL };

static void spawn(struct vmm *v, const char *const *argv, enum probe kind, int wait_fd) {
        static const char *env_image[] = { "LD_PRELOAD=" ATTACH_LIB,  "FORKD_ATTACH_RAM_FD=10",      "FORKD_ATTACH_LAYOUT_FD=13",
                                           "FORKD_ATTACH_SOCK_FD=12", "FORKD_ATTACH_UFFD_DEV_FD=14", NULL };
        static const char *env_no_dev[] = { "LD_PRELOAD=" ATTACH_LIB, "FORKD_ATTACH_RAM_FD=10", "FORKD_ATTACH_LAYOUT_FD=13",
                                            "FORKD_ATTACH_SOCK_FD=12", NULL };
        static const char *env_fresh[] = { "LD_PRELOAD=" ATTACH_LIB, "FORKD_ATTACH_RAM_FD=10", "FORKD_ATTACH_LAYOUT_FD=13",
                                           NULL };
        static const char *env_shell[] = { "LD_PRELOAD=" ATTACH_LIB, "FORKD_ATTACH_RAM_FD=10", "FORKD_ATTACH_LAYOUT_FD=13",
                                           "FORKD_ATTACH_WAIT_FD=12", NULL };
        int in[2], out[2], err[2];

        v->ram_fd = memfd_create("test-ram", MFD_CLOEXEC);
        v->layout_fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC | O_APPEND, 0600);
        assert_true(v->ram_fd >= 0 && v->layout_fd >= 0);
        assert_int_equal(ftruncate(v->ram_fd, (off_t) v->ram_bytes), 0);
        assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC), 0);
        struct spawn_fd fds[] = {
                { in[0], 0 },
                { out[1], 1 },
                { err[1], 2 },
                { v->ram_fd, PROBE_RAM_FD },
                { v->layout_fd, PROBE_LAYOUT_FD },
                { kind == PROBE_SHELL ? wait_fd : v->sock, PROBE_SOCK_FD },
                { v->uffd_dev, PROBE_UFFD_DEV_FD },
        };
        struct spawn_params sp = {
                .argv = argv,
                .env = kind == PROBE_FRESH   ? env_fresh
                       : kind == PROBE_SHELL ? env_shell
                       : v->uffd_dev >= 0    ? env_image
                                             : env_no_dev,
                .fds = fds,
                .n_fds = kind == PROBE_FRESH                       ? 5
                         : kind == PROBE_IMAGE && v->uffd_dev >= 0 ? ARRAY_LEN(fds)
                                                                   : ARRAY_LEN(fds) - 1,
                .cgroup_fd = -1,
                .death_signal = SIGKILL, /* a test that fails leaves none behind */
        };
        assert_int_equal(spawn_process(&sp, &v->pid, &v->pidfd), 0);
        (void) close_fd(in[0]);
        (void) close_fd(out[1]);
        (void) close_fd(err[1]);
        v->in = fdopen(in[1], "w");
        v->out = fdopen(out[0], "r");
        v->err_fd = err[0];
        v->memfd = close_fd(v->memfd);
        if (kind != PROBE_SHELL)
                v->sock = close_fd(v->sock);
}

void vmm_spawn_shell(struct vmm *v, int wait_fd) {
        spawn(v, (const char *[]){ VMM_PROBE, "10", NULL }, PROBE_SHELL, wait_fd);
}

void vmm_spawn_program(struct vmm *v, const char *const *argv) {
        spawn(v, argv, PROBE_IMAGE, -1);
}

void vmm_spawn(struct vmm *v) {
        spawn(v, (const char *[]){ VMM_PROBE, "10", NULL }, PROBE_IMAGE, -1);
}

void vmm_spawn_fresh(struct vmm *v, uint64_t ram_bytes) {
        *v = (struct vmm){ .memfd = -1,
                           .sock = -1,
                           .pidfd = -1,
                           .err_fd = -1,
                           .layout_fd = -1,
                           .ram_fd = -1,
                           .uffd_dev = -1,
                           .ram_bytes = ram_bytes };
        spawn(v, (const char *[]){ VMM_PROBE, "10", "fresh", NULL }, PROBE_FRESH, -1);
}

static attr_printf(2, 0) void send_va(struct vmm *v, const char *fmt, va_list ap) {
        (void) vfprintf(v->in, fmt, ap);
        (void) fputc('\n', v->in);
        assert_int_equal(fflush(v->in), 0);
}

void vmm_send(struct vmm *v, const char *fmt, ...) {
        va_list ap;

        va_start(ap, fmt);
        send_va(v, fmt, ap);
        va_end(ap);
}

const char *vmm_answer(struct vmm *v) {
        static char line[256];
        struct pollfd p = { .fd = fileno(v->out), .events = POLLIN };

        if (poll(&p, 1, DEADLINE_MS) <= 0)
                fail_msg("the test VMM did not answer");
        if (!fgets(line, sizeof(line), v->out))
                return "(ended)";
        line[strcspn(line, "\n")] = '\0';
        return line;
}

const char *vmm_cmd(struct vmm *v, const char *fmt, ...) {
        va_list ap;

        va_start(ap, fmt);
        send_va(v, fmt, ap);
        va_end(ap);
        return vmm_answer(v);
}

void vmm_start(struct harness *h, struct vmm *v, const struct image *img) {
        vmm_open(h, v, img);
        vmm_run(h, v, img);
}

void vmm_run(struct harness *h, struct vmm *v, const struct image *img) {
        char expected[32];

        vmm_spawn(v);
        (void) snprintf(expected, sizeof(expected), "ok %llu", (unsigned long long) img->n_pages);
        assert_string_equal(vmm_cmd(v, "map"), expected);
        assert_true(harness_note(h, "session.attached", v->session)->good_uffd);
}

static void forget_probe(struct vmm *v) {
        (void) fclose(v->in);
        (void) fclose(v->out);
        v->err_fd = close_fd(v->err_fd);
        v->pidfd = close_fd(v->pidfd);
        v->layout_fd = close_fd(v->layout_fd);
        v->ram_fd = close_fd(v->ram_fd);
        v->pid = 0;
}

int vmm_wait(struct vmm *v, char *err, size_t size) {
        int status;

        assert_int_equal(spawn_wait(v->pidfd, DEADLINE_MS, &status), 0);
        if (err) {
                ssize_t n = io_read_full(v->err_fd, err, size - 1);

                assert_true(n >= 0);
                err[n] = '\0';
        }
        forget_probe(v);
        return status;
}

void vmm_kill(struct vmm *v) {
        assert_int_equal(spawn_kill(v->pidfd, SIGKILL), 0);
        (void) vmm_wait(v, NULL, 0);
}

void vmm_end(struct harness *h, struct vmm *v) {
        vmm_kill(v);
        (void) harness_note(h, "session.gone", v->session);
}

/* ---- in this process ---- */

void raw_map(struct raw_vmm *r, int memfd, size_t len) {
        r->len = len;
        r->map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, memfd, 0);
        assert_ptr_not_equal(r->map, MAP_FAILED);
        assert_int_equal(uffd_open(UFFD_FEATURES_NEEDED, &r->uffd), 0);
        assert_int_equal(uffd_register(r->uffd, (uintptr_t) r->map, len), 0);
}

void raw_unmap(struct raw_vmm *r) {
        /* Events would wait for a reader that may be gone: a closed descriptor has none. */
        r->uffd = close_fd(r->uffd);
        assert_int_equal(munmap(r->map, r->len), 0);
}

void raw_send(int sock, const char *json, size_t len, int fd) {
        while (len > 0) {
                ssize_t n = io_send_fds(sock, json, len, &fd, fd >= 0);

                if (n == -EPIPE || n == -ECONNRESET)
                        return; /* refused already; its answer is there to read */
                assert_true(n > 0);
                json += n;
                len -= (size_t) n;
                fd = -1;
        }
}

/** What it is told of its memory, without the descriptors. */
static void pass_over_segments(int sock) {
        struct pollfd p = { .fd = sock, .events = POLLIN };
        struct segments_head head;
        uint8_t byte = 0;

        if (poll(&p, 1, DEADLINE_MS) <= 0)
                fail_msg("the pager says nothing");
        if (recv(sock, &byte, 1, MSG_PEEK) != 1 || byte != SEGMENTS_MAGIC[0])
                return;
        assert_int_equal(recv(sock, &head, sizeof(head), MSG_WAITALL), sizeof(head));
        for (size_t n = segments_length(&head) - sizeof(head); n > 0; n--)
                assert_int_equal(recv(sock, &byte, 1, MSG_WAITALL), 1);
}

const char *raw_answer(int sock) {
        static char line[512];
        size_t n = 0;

        pass_over_segments(sock);
        while (n < sizeof(line) - 1) {
                struct pollfd p = { .fd = sock, .events = POLLIN };

                if (poll(&p, 1, DEADLINE_MS) <= 0)
                        fail_msg("no answer to a handshake");
                ssize_t k = recv(sock, line + n, 1, 0);
                if (k <= 0)
                        break;
                if (line[n] == '\n')
                        break;
                n++;
        }
        line[n] = '\0';
        return line;
}

void raw_attach(const struct raw_vmm *r, int sock) {
        char json[256];
        int n = snprintf(json, sizeof(json),
                         "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":4096,"
                         "\"page_size_kib\":4096,\"forkd\":{\"mode\":\"memfd\",\"version\":1}}]",
                         (unsigned long long) (uintptr_t) r->map, r->len);

        raw_send(sock, json, (size_t) n, r->uffd);
        assert_string_equal(raw_answer(sock), "ok");
}

int count_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        int n = 0;

        assert_non_null(d);
        while (readdir(d))
                n++;
        closedir(d);
        return n;
}
