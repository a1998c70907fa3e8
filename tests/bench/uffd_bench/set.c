/* SPDX-License-Identifier: MIT */
#include "tests/bench/uffd_bench/set.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "common/io.h"
#include "snapstore/workingset.h"

#define MAX_RUN 16u
#define RECORD_SECONDS 3600u /* what was recorded is asked for, not waited for */

void bench_set_clear(struct bench_set *s) {
        s->file_fd = close_fd(s->file_fd);
        s->list_fd = close_fd(s->list_fd);
}

static int write_list(const uint32_t *list, uint64_t n, int *ret_fd) {
        cleanup_fd int fd = memfd_create("uffd-bench-list", MFD_CLOEXEC);
        int r = fd < 0 ? -errno : io_pwrite_full(fd, list, n * sizeof(*list), 0);

        if (r == 0)
                *ret_fd = TAKE_FD(fd);
        return r;
}

int bench_make_list(uint64_t n_pages, uint64_t want, uint64_t seed, int *ret_fd, struct err *e) {
        cleanup_free uint32_t *list = malloc(want * sizeof(*list) + 1);
        cleanup_free bool *taken = calloc(n_pages, sizeof(*taken));
        uint64_t n = 0;
        int r;

        if (!list || !taken || want > n_pages / 2) /* beyond that, free pages would be hard to find */
                return err_errno(e, list && taken ? -EINVAL : -ENOMEM, "making a list of pages");
        for (uint64_t i = 0; n < want; i++) {
                uint64_t x = bench_mix(seed + i), page = (x >> 8) % n_pages, end = MIN_OF(page + 1 + x % MAX_RUN, n_pages);

                for (; page < end && n < want && !taken[page]; page++) {
                        taken[page] = true;
                        list[n++] = (uint32_t) page;
                }
        }
        r = write_list(list, n, ret_fd);
        return r < 0 ? err_errno(e, r, "writing a list of pages") : 0;
}

/** The runs of session.workingset's answer. */
static int read_runs(const msgpack_object *answer, struct snap_run **ret, size_t *ret_n) {
        const msgpack_object *runs = mp_get_array(answer, "runs");
        size_t n = runs ? runs->via.array.size : 0;
        cleanup_free struct snap_run *run = calloc(n + 1, sizeof(*run));

        if (!run)
                return -ENOMEM;
        if (!runs)
                return -EBADMSG;
        for (size_t i = 0; i < n; i++) {
                const msgpack_object *o = &runs->via.array.ptr[i];

                if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 2 ||
                    o->via.array.ptr[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
                    o->via.array.ptr[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER)
                        return -EBADMSG;
                run[i] = (struct snap_run){ o->via.array.ptr[0].via.u64, o->via.array.ptr[1].via.u64 };
        }
        *ret = TAKE_PTR(run);
        *ret_n = n;
        return 0;
}

static int write_file(const struct snap_workingset *w, const struct bench_image *img, const char *dir, int *ret_fd) {
        cleanup_snap_image struct snap_image *snap = NULL;
        cleanup_fd int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        cleanup_free void *data = NULL;
        size_t len;
        int r = fd < 0 ? -errno : snap_image_open(img->fd, &snap);

        if (r == 0)
                r = snap_workingset_encode(w, snap_image_info(snap)->uuid, img->n_pages, &data, &len);
        if (r == 0)
                r = io_pwrite_full(fd, data, len, 0);
        if (r == 0)
                *ret_fd = TAKE_FD(fd);
        return r;
}

static int make_set(const msgpack_object *answer, const struct bench_image *img, const char *dir, struct bench_set *ret) {
        cleanup_snap_workingset struct snap_workingset w = { 0 };
        cleanup_free struct snap_run *run = NULL;
        cleanup_free uint32_t *list = NULL;
        struct bench_set s = BENCH_SET_NONE;
        uint64_t at = 0;
        size_t n;
        int r = read_runs(answer, &run, &n);

        if (r == 0)
                r = snap_workingset_merge(NULL, run, n, img->n_pages, snap_workingset_max_pages(img->n_pages), &w, NULL);
        if (r < 0)
                return r;
        list = malloc(w.n_pages * sizeof(*list) + 1);
        if (!list)
                return -ENOMEM;
        for (size_t i = 0; i < w.n_runs; i++)
                for (uint64_t k = 0; k < w.run[i].n; k++)
                        list[at++] = (uint32_t) (w.run[i].first + k);
        s.n_pages = w.n_pages;
        s.n_runs = w.n_runs;
        r = write_list(list, at, &s.list_fd);
        if (r == 0)
                r = write_file(&w, img, dir, &s.file_fd);
        if (r < 0)
                bench_set_clear(&s);
        else
                *ret = s;
        return r;
}

/** The session's guest touches what it has to; *ret: what the pager recorded of it. */
static int touch_recorded(struct bench_pager *p, const struct bench_image *img, const struct bench_touch *touch, int list_fd,
                          struct bench_guest *guest, struct bench_answer *ret, struct err *e) {
        const struct bench_setup setup = { BENCH_MEM_MEMFD, 1, img->n_pages, img->content };
        const struct bench_watch watch = { bench_pager_check, p };
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct bench_session s = BENCH_SESSION_NONE;
        struct bench_result res;
        int r = bench_guest_start(&setup, guest, e);

        mp_buf_init(&b);
        if (r == 0)
                r = bench_guest_prepare(guest, touch, list_fd, e);
        if (r == 0)
                r = bench_session_open(p, img, -1, true, &s, e);
        if (r == 0)
                r = bench_guest_connect(guest, s.memfd, s.sock, e);
        bench_session_clear(&s);
        if (r == 0)
                r = bench_guest_go(guest, e);
        if (r == 0)
                r = bench_guest_result(guest, &watch, &res, e);
        if (r < 0)
                return r;
        mp_map(&b, 1);
        mp_kv_str(&b, "session", s.id);
        return bench_pager_call(p, "session.workingset", &b, NULL, 0, ret, e);
}

int bench_set_record(const char *pager, const char *dir, const struct bench_image *img, const struct bench_touch *touch,
                     int list_fd, struct bench_set *ret, struct err *e) {
        const struct bench_pager_options o = { .program = pager, .run_dir = dir, .record_seconds = RECORD_SECONDS };
        cleanup_bench_answer struct bench_answer a = { .fd = -1 };
        struct bench_guest guest = BENCH_GUEST_NONE;
        struct bench_pager p;
        int r = bench_pager_start(&o, &p, e);

        if (r < 0)
                return r;
        r = touch_recorded(&p, img, touch, list_fd, &guest, &a, e);
        bench_guest_end(&guest);
        bench_pager_stop(&p);
        if (r < 0)
                return r;
        r = make_set(&a.doc.root, img, dir, ret);
        return r < 0 ? err_errno(e, r, "making a working set of what was recorded") : 0;
}
