/* SPDX-License-Identifier: MIT */
/* Theory of operation. A rival's thread waits in poll, reads what there is, and answers each fault at once. The floor is
 * the design of the pager without all that makes it one: no codec, no checksum, no index, no knowledge of zero pages, one
 * guest, no statistics. Which chunks are filled is a flag each, for one thread alone fills them. */
#include "tests/bench/uffd_bench/rival.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "common/io.h"
#include "pager/limits.h"
#include "pager/uffd.h"
#include "tests/bench/uffd_bench/order.h"

#define CHUNK_BYTES (BENCH_CHUNK_PAGES * BENCH_PAGE)
#define EVENT_BATCH 32

/** A memfd that is filled by UFFDIO_COPY alone. */
static int make_shared(uint64_t bytes, int *ret_memfd, int *ret_uffd, uint8_t **ret_map) {
        cleanup_fd int memfd = memfd_create("uffd-bench-floor", MFD_CLOEXEC), uffd = -1;
        void *map;
        int r;

        if (memfd < 0 || ftruncate(memfd, (off_t) bytes) < 0)
                return -errno;
        r = uffd_open(UFFD_FEATURE_MISSING_SHMEM, &uffd);
        if (r < 0)
                return r;
        map = mmap(NULL, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, memfd, 0);
        if (map == MAP_FAILED)
                return -errno;
        r = uffd_register(uffd, (uintptr_t) map, bytes);
        if (r < 0) {
                (void) munmap(map, bytes);
                return r;
        }
        *ret_memfd = TAKE_FD(memfd);
        *ret_uffd = TAKE_FD(uffd);
        *ret_map = map;
        return 0;
}

/* ---- the thread ---- */

/** Puts [@at, @at + @len) into the memfd and the guest. */
static int fill_and_continue(struct bench_rival *v, uint64_t at, uint64_t len) {
        uint64_t done;
        int r = len > 0 ? uffd_copy(v->fill_uffd, (uintptr_t) v->map + at, v->raw->map + at, len, &done) : 0;

        if (r == 0 && len > 0)
                r = uffd_continue(v->guest_uffd, v->base + at, len, &done);
        if (r == -EEXIST) /* mapped by the kernel's fault-around, with what is there already */
                r = uffd_wake(v->guest_uffd, v->base + at, len);
        return r;
}

/** A chunk whose page @page is waited for. */
static int serve_lone(struct bench_rival *v, uint64_t page) {
        uint64_t bytes = v->raw->n_pages * BENCH_PAGE, at = page * BENCH_PAGE, start = at / CHUNK_BYTES * CHUNK_BYTES;
        uint64_t end = MIN_OF(bytes, start + CHUNK_BYTES);
        int r;

        if (v->filled[start / CHUNK_BYTES]) /* raised before the rest was there */
                return uffd_wake(v->guest_uffd, v->base + at, BENCH_PAGE);
        v->filled[start / CHUNK_BYTES] = true;
        r = fill_and_continue(v, at, BENCH_PAGE);
        if (r == 0)
                r = fill_and_continue(v, start, at - start);
        return r < 0 ? r : fill_and_continue(v, at + BENCH_PAGE, end - at - BENCH_PAGE);
}

static int serve_floor(struct bench_rival *v, uint64_t page) {
        uint64_t bytes = v->raw->n_pages * BENCH_PAGE, at = page / BENCH_CHUNK_PAGES * CHUNK_BYTES, done;
        uint64_t len = MIN_OF(bytes - at, (uint64_t) CHUNK_BYTES);
        int r;

        if (!v->filled[at / CHUNK_BYTES]) {
                r = uffd_copy(v->fill_uffd, (uintptr_t) v->map + at, v->raw->map + at, len, &done);
                if (r < 0)
                        return r;
                v->filled[at / CHUNK_BYTES] = true;
        }
        r = uffd_continue(v->guest_uffd, v->base + at, len, &done);
        if (r == -EEXIST) /* another thread's fault in this chunk, or the kernel's fault-around, was faster */
                r = uffd_wake(v->guest_uffd, v->base + at, len);
        return r;
}

static int serve_classic(struct bench_rival *v, uint64_t page) {
        uint64_t done;
        int r = uffd_copy(v->guest_uffd, v->base + page * BENCH_PAGE, v->raw->map + page * BENCH_PAGE, BENCH_PAGE, &done);

        if (r == -EEXIST)
                r = uffd_wake(v->guest_uffd, v->base + page * BENCH_PAGE, BENCH_PAGE);
        return r;
}

static int serve_all(struct bench_rival *v) {
        struct uffd_msg msgs[EVENT_BATCH];
        ssize_t n = read(v->guest_uffd, msgs, sizeof(msgs));

        if (n < 0)
                return errno == EAGAIN ? 0 : -errno;
        for (size_t i = 0; i < (size_t) n / sizeof(msgs[0]); i++) {
                uint64_t page;
                int r;

                if (msgs[i].event != UFFD_EVENT_PAGEFAULT)
                        continue;
                page = (msgs[i].arg.pagefault.address - v->base) / BENCH_PAGE;
                if (page >= v->raw->n_pages)
                        return -ERANGE;
                v->faults++;
                r = v->kind == BENCH_RIVAL_FLOOR  ? serve_floor(v, page)
                    : v->kind == BENCH_RIVAL_LONE ? serve_lone(v, page)
                                                  : serve_classic(v, page);
                if (r < 0)
                        return r;
        }
        return 0;
}

/** Our own guest's handshake: one array of one region. */
static int receive_guest(struct bench_rival *v) {
        static const char key[] = "\"base_host_virt_addr\":";
        char json[512];
        const char *at;
        size_t len = 0;

        while (len == 0 || json[len - 1] != ']') {
                int fd = -1;
                size_t n_fds = 1;
                ssize_t n = io_recv_fds(v->sock, json + len, sizeof(json) - 1 - len, &fd, &n_fds);

                if (n <= 0 || len + (size_t) n >= sizeof(json) - 1)
                        return n < 0 ? (int) n : -EBADMSG;
                if (n_fds > 0)
                        v->guest_uffd = fd;
                len += (size_t) n;
        }
        json[len] = '\0';
        at = strstr(json, key);
        if (!at || v->guest_uffd < 0)
                return -EBADMSG;
        v->base = strtoull(at + sizeof(key) - 1, NULL, 10);
        return io_write_full(v->sock, "ok\n", 3);
}

static int rival_serve(struct bench_rival *v) {
        struct pollfd p[2] = { { .fd = v->sock, .events = POLLIN }, { .fd = v->stop_fd, .events = POLLIN } };
        int r;

        if (poll(p, 2, -1) < 0)
                return -errno;
        if (p[1].revents)
                return 0;
        r = receive_guest(v);
        p[0].fd = v->guest_uffd;
        while (r == 0) {
                if (poll(p, 2, -1) < 0)
                        return -errno;
                if (p[1].revents)
                        return 0;
                r = serve_all(v);
        }
        return r;
}

static uint64_t thread_cpu_ns(void) {
        struct timespec t;

        (void) clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return (uint64_t) t.tv_sec * 1000000000u + (uint64_t) t.tv_nsec;
}

static void *rival_main(void *arg) {
        struct bench_rival *v = arg;

        /* The priority of the pager's workers: on a busy host it would be all that is compared. */
        (void) setpriority(PRIO_PROCESS, (id_t) gettid(), PAGER_WORKER_NICE);
        v->r = rival_serve(v);
        v->cpu_ns = thread_cpu_ns();
        return NULL;
}

/* ---- its life ---- */

int bench_rival_start(enum bench_rival_kind kind, const struct bench_raw *raw, struct bench_rival *ret, struct err *e) {
        uint64_t chunks = (raw->n_pages + BENCH_CHUNK_PAGES - 1) / BENCH_CHUNK_PAGES;
        int sv[2], r = 0;

        *ret = (struct bench_rival){ .kind = kind, .raw = raw, .memfd = -1, .fill_uffd = -1, .guest_uffd = -1 };
        ret->stop_fd = eventfd(0, EFD_CLOEXEC);
        if (ret->stop_fd < 0)
                return err_errno(e, -errno, "making an eventfd");
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0) {
                r = -errno;
                ret->stop_fd = close_fd(ret->stop_fd);
                return err_errno(e, r, "making a socket");
        }
        ret->sock = sv[0];
        ret->guest_sock = sv[1];
        ret->filled = calloc(chunks, sizeof(*ret->filled));
        if (!ret->filled)
                r = -ENOMEM;
        else if (kind != BENCH_RIVAL_CLASSIC)
                r = make_shared(raw->n_pages * BENCH_PAGE, &ret->memfd, &ret->fill_uffd, &ret->map);
        if (r == 0)
                r = -pthread_create(&ret->thread, NULL, rival_main, ret);
        if (r < 0) {
                best_effort(bench_rival_stop(ret, NULL));
                return err_errno(e, r, "starting a server of faults");
        }
        ret->started = true;
        return 0;
}

int bench_rival_stop(struct bench_rival *v, struct err *e) {
        if (v->started) {
                uint64_t one = 1;

                best_effort(io_write_full(v->stop_fd, &one, sizeof(one)));
                (void) pthread_join(v->thread, NULL);
        }
        v->started = false;
        if (v->map)
                (void) munmap(v->map, v->raw->n_pages * BENCH_PAGE);
        v->map = NULL;
        free(TAKE_PTR(v->filled));
        v->memfd = close_fd(v->memfd);
        v->fill_uffd = close_fd(v->fill_uffd);
        v->guest_uffd = close_fd(v->guest_uffd);
        v->sock = close_fd(v->sock);
        v->guest_sock = close_fd(v->guest_sock);
        v->stop_fd = close_fd(v->stop_fd);
        return v->r < 0 ? err_errno(e, v->r, "the server of faults that is compared with") : 0;
}

/* ---- decoding without a fault ---- */

struct frames {
        struct snap_loc *loc;
        size_t n;
};

static int list_frames(struct snap_image *img, struct frames *ret) {
        const struct snap_image_info *info = snap_image_info(img);
        cleanup_free struct snap_loc *all = malloc(info->live_frames * sizeof(*all) + 1);
        cleanup_free struct snap_loc *some = malloc(SNAP_REGION_PAGES * sizeof(*some));
        uint64_t region = 0;
        size_t n = 0;
        int r;

        if (!all || !some)
                return -ENOMEM;
        while ((r = snap_image_next_region(img, region, &region)) == 0) {
                unsigned k;

                r = snap_image_region_frames(img, region, some, &k);
                if (r < 0)
                        return r;
                if (k > info->live_frames - n)
                        return -EBADMSG;
                memcpy(all + n, some, k * sizeof(*some));
                n += k;
                region++;
        }
        if (r != -ENOENT)
                return r;
        *ret = (struct frames){ TAKE_PTR(all), n };
        return 0;
}

typedef int insert_fn(void *arg, uint64_t first, unsigned n, const uint8_t *data);

/** Decodes each frame in the order of @order (NULL: as they lie) and hands on the runs of its pages. */
static int decode_all(struct snap_image *img, const struct frames *f, const uint32_t *order, insert_fn *insert, void *arg) {
        cleanup_snap_decoder struct snap_decoder *d = NULL;
        cleanup_free uint8_t *buf = malloc(SNAP_FRAME_BYTES);
        int r = buf ? snap_decoder_new(&d) : -ENOMEM;

        for (size_t i = 0; r == 0 && i < f->n; i++) {
                struct snap_frame frame;

                r = snap_image_decode(img, d, &f->loc[order ? order[i] : i], buf, &frame);
                for (unsigned k = 0, n; r == 0 && k < frame.n_pages; k += n) {
                        for (n = 1; k + n < frame.n_pages && frame.page[k + n] == frame.page[k] + n;)
                                n++;
                        r = insert(arg, frame.page[k], n, buf + (size_t) k * BENCH_PAGE);
                }
        }
        return r;
}

struct shared {
        int memfd, uffd;
        uint8_t *map;
};

static int insert_by_uffd(void *arg, uint64_t first, unsigned n, const uint8_t *data) {
        const struct shared *s = arg;
        uint64_t done;

        return uffd_copy(s->uffd, (uintptr_t) s->map + first * BENCH_PAGE, data, n * BENCH_PAGE, &done);
}

int bench_decode_and_copy(const struct bench_image *img, uint64_t seed, double *ret_us_per_page, struct err *e) {
        cleanup_snap_image struct snap_image *snap = NULL;
        struct shared s = { .memfd = -1, .uffd = -1 };
        struct frames f = { 0 };
        cleanup_free uint32_t *order = NULL;
        uint64_t start;
        int r = snap_image_open(img->fd, &snap);

        if (r == 0)
                r = list_frames(snap, &f);
        if (r == 0)
                r = make_shared(img->n_pages * BENCH_PAGE, &s.memfd, &s.uffd, &s.map);
        order = malloc(f.n * sizeof(*order) + 1);
        if (r == 0 && !order)
                r = -ENOMEM;
        if (r == 0) {
                for (size_t i = 0; i < f.n; i++)
                        order[i] = (uint32_t) i;
                bench_shuffle(order, f.n, seed);
                start = thread_cpu_ns();
                r = decode_all(snap, &f, order, insert_by_uffd, &s);
                if (r == 0)
                        *ret_us_per_page = (double) (thread_cpu_ns() - start) / 1e3 / (double) MAX_OF(img->n_stored, 1ull);
        }
        if (s.map)
                (void) munmap(s.map, img->n_pages * BENCH_PAGE);
        (void) close_fd(s.uffd);
        (void) close_fd(s.memfd);
        free(f.loc);
        return r < 0 ? err_errno(e, r, "decoding an image") : 0;
}

static int insert_by_memcpy(void *arg, uint64_t first, unsigned n, const uint8_t *data) {
        memcpy((uint8_t *) arg + first * BENCH_PAGE, data, n * BENCH_PAGE);
        return 0;
}

int bench_populate(const struct bench_image *img, int *ret_memfd, struct err *e) {
        cleanup_snap_image struct snap_image *snap = NULL;
        cleanup_fd int fd = memfd_create("uffd-bench-eager", MFD_CLOEXEC);
        uint64_t bytes = img->n_pages * BENCH_PAGE;
        struct frames f = { 0 };
        void *map = MAP_FAILED;
        int r = fd < 0 || ftruncate(fd, (off_t) bytes) < 0 ? -errno : snap_image_open(img->fd, &snap);

        if (r == 0)
                r = list_frames(snap, &f);
        if (r == 0) {
                map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
                r = map == MAP_FAILED ? -errno : decode_all(snap, &f, NULL, insert_by_memcpy, map);
        }
        if (map != MAP_FAILED)
                (void) munmap(map, bytes);
        free(f.loc);
        if (r < 0)
                return err_errno(e, r, "decoding an image");
        *ret_memfd = TAKE_FD(fd);
        return 0;
}
