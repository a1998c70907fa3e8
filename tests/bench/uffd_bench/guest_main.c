/* SPDX-License-Identifier: MIT */
/* Theory of operation. The main thread takes commands and answers each once. For a run the touching threads are
 * started first, with their part of the order in memory that they have touched, and wait at a barrier; the main
 * thread attaches if it has not yet, waits for the lead, and opens the barrier: so between being attached and the
 * first touch there is nothing but that. Thread t of T has every T-th page, as the vCPUs of one guest would share its
 * work; in sequential order each has a stretch of its own. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "common/io.h"
#include "pager/uffd.h"
#include "tests/bench/uffd_bench/guest.h"

#define STACK_BYTES (256u << 10)
#define ANSWER_MAX 256

struct guest;

struct toucher {
        struct guest *g;
        pthread_t thread;
        unsigned index;
        uint64_t end_ns, touched, bad_page;
        struct hist latency;
};

struct guest {
        int ctl, file_fd, sock;
        int uffd; /* our own copy: without it, the kernel would answer faults with zeros once the pager is gone */
        struct bench_setup setup;
        struct bench_touch touch;
        uint32_t *order;
        size_t n_order;
        const uint8_t *ram;
        uint64_t attached_ns;
        struct toucher *touchers;
        unsigned n_touchers; /* that run */
        pthread_barrier_t barrier;
        atomic_bool cancelled;
};

static int refuse(struct bench_result *res, int r, const char *what) {
        res->r = r;
        (void) snprintf(res->why, sizeof(res->why), "synthetic guest: %s: %s", what, strerrordesc_np(-r));
        return r;
}

/* ---- memory ---- */

static int hand_over(struct guest *g, struct bench_result *res) {
        const char *extension = g->setup.memory == BENCH_MEM_MEMFD ? ",\"forkd\":{\"mode\":\"memfd\",\"version\":1}" : "";
        char json[256], answer[ANSWER_MAX + 1];
        size_t n = 0;
        int len = snprintf(json, sizeof(json),
                           "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096%"
                           "s}]",
                           (unsigned long long) (uintptr_t) g->ram, (unsigned long long) (g->setup.n_pages * BENCH_PAGE),
                           extension);
        ssize_t sent = io_send_fds(g->sock, json, (size_t) len, &g->uffd, 1);

        if (sent != len)
                return refuse(res, sent < 0 ? (int) sent : -EIO, "sending the handshake");
        if (g->setup.memory == BENCH_MEM_ANON)
                return 0; /* Firecracker waits for no answer, so neither do we; a refusal shows as a failed session */
        while (n < ANSWER_MAX && (n == 0 || answer[n - 1] != '\n')) {
                struct pollfd p = { .fd = g->sock, .events = POLLIN };

                if (poll(&p, 1, BENCH_DEADLINE_MS) <= 0)
                        return refuse(res, -ETIMEDOUT, "waiting for the pager's answer");
                ssize_t k = recv(g->sock, answer + n, 1, 0);
                if (k <= 0)
                        return refuse(res, -ECONNRESET, "the pager hung up");
                n++;
        }
        answer[n - 1] = '\0';
        if (strcmp(answer, "ok") == 0)
                return 0;
        res->r = -EOPNOTSUPP;
        (void) snprintf(res->why, sizeof(res->why), "the pager refused: %.160s", answer);
        return res->r;
}

static int attach(struct guest *g, struct bench_result *res) {
        uint64_t bytes = g->setup.n_pages * BENCH_PAGE, features;
        bool anon = g->setup.memory == BENCH_MEM_ANON;
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | (anon ? MAP_ANONYMOUS : 0),
                       anon ? -1 : g->file_fd, 0);
        int r;

        if (p == MAP_FAILED)
                return refuse(res, -errno, "mapping guest RAM");
        g->ram = p;
        if (madvise(p, bytes, MADV_DONTFORK) < 0 || madvise(p, bytes, MADV_NOHUGEPAGE) < 0)
                return refuse(res, -errno, "advising about guest RAM");
        if (g->setup.memory == BENCH_MEM_FILE) {
                g->attached_ns = now_ns();
                return 0;
        }
        features = anon ? UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP : UFFD_FEATURES_NEEDED;
        r = uffd_open(features, &g->uffd);
        if (r < 0)
                return refuse(res, r, "userfaultfd");
        r = uffd_register(g->uffd, (uintptr_t) p, bytes);
        if (r < 0)
                return refuse(res, r, "registering guest RAM");
        r = hand_over(g, res);
        if (r < 0)
                return r;
        g->attached_ns = now_ns();
        return 0;
}

/* ---- touching ---- */

static void pause_for(uint64_t ns) {
        const struct timespec t = { .tv_sec = (time_t) (ns / 1000000000), .tv_nsec = (long) (ns % 1000000000) };

        (void) clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}

/** Which places of the order are this thread's: from *ret_i, in steps, below *ret_end. */
static void part_of(const struct toucher *t, size_t *ret_i, size_t *ret_end, size_t *ret_step) {
        size_t n = t->g->n_order, threads = t->g->setup.threads;

        if (t->g->touch.order.pattern == BENCH_SEQUENTIAL) {
                *ret_i = n * t->index / threads;
                *ret_end = n * (t->index + 1) / threads;
                *ret_step = 1;
        } else {
                *ret_i = t->index;
                *ret_end = n;
                *ret_step = threads;
        }
}

static void touch_fast(struct toucher *t, size_t i, size_t end, size_t step) {
        const volatile uint8_t *ram = t->g->ram;
        const uint32_t *order = t->g->order;

        for (; i < end; i += step) {
                (void) ram[order[i] * BENCH_PAGE];
                t->touched++;
        }
}

static void touch_slow(struct toucher *t, size_t i, size_t end, size_t step) {
        const struct bench_touch *how = &t->g->touch;

        for (; i < end; i += step) {
                uint64_t page = t->g->order[i], start = now_ns();

                (void) *(const volatile uint8_t *) (t->g->ram + page * BENCH_PAGE);
                if (how->latency)
                        hist_add(&t->latency, now_ns() - start);
                t->touched++;
                if (how->verify && !bench_page_check(&t->g->setup.content, page, t->g->ram + page * BENCH_PAGE) &&
                    t->bad_page == UINT64_MAX)
                        t->bad_page = page;
                if (how->pause_ns)
                        pause_for(how->pause_ns);
        }
}

static void *toucher_main(void *arg) {
        struct toucher *t = arg;
        const struct bench_touch *how = &t->g->touch;
        size_t i, end, step;

        part_of(t, &i, &end, &step);
        (void) prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
        (void) pthread_barrier_wait(&t->g->barrier);
        if (atomic_load(&t->g->cancelled))
                return NULL;
        if (how->verify || how->latency || how->pause_ns)
                touch_slow(t, i, end, step);
        else
                touch_fast(t, i, end, step);
        t->end_ns = now_ns();
        return NULL;
}

static int start_threads(struct guest *g, struct bench_result *res) {
        pthread_attr_t attr;
        int r = 0;

        free(g->touchers);
        g->touchers = calloc(g->setup.threads, sizeof(*g->touchers));
        if (!g->touchers)
                return refuse(res, -ENOMEM, "starting threads");
        (void) pthread_barrier_init(&g->barrier, NULL, g->setup.threads + 1);
        (void) pthread_attr_init(&attr);
        (void) pthread_attr_setstacksize(&attr, STACK_BYTES);
        for (g->n_touchers = 0; r == 0 && g->n_touchers < g->setup.threads;) {
                struct toucher *t = &g->touchers[g->n_touchers];

                t->g = g;
                t->index = g->n_touchers;
                t->bad_page = UINT64_MAX;
                r = -pthread_create(&t->thread, &attr, toucher_main, t);
                g->n_touchers += r == 0;
        }
        (void) pthread_attr_destroy(&attr);
        /* Those that were started wait at the barrier; the parent ends this process. */
        return r < 0 ? refuse(res, r, "starting threads") : 0;
}

/* ---- commands ---- */

static int read_list(int fd, uint32_t **ret, size_t *ret_n, uint64_t n_pages) {
        cleanup_free uint32_t *v = NULL;
        struct stat st;
        int r;

        if (fstat(fd, &st) < 0)
                return -errno;
        v = malloc((size_t) st.st_size + 1);
        if (!v)
                return -ENOMEM;
        r = io_pread_full(fd, v, (size_t) st.st_size, 0);
        if (r < 0)
                return r;
        *ret_n = (size_t) st.st_size / sizeof(*v);
        for (size_t i = 0; i < *ret_n; i++)
                if (v[i] >= n_pages)
                        return -ERANGE;
        *ret = TAKE_PTR(v);
        return 0;
}

static int prepare(struct guest *g, int list_fd, struct bench_result *res) {
        int r;

        free(TAKE_PTR(g->order));
        if (g->touch.order.pattern == BENCH_RECORDED)
                r = list_fd < 0 ? -EINVAL : read_list(list_fd, &g->order, &g->n_order, g->setup.n_pages);
        else
                r = bench_order_make(&g->touch.order, &g->setup.content, g->setup.n_pages, &g->order, &g->n_order);
        if (r < 0)
                return refuse(res, r, "making the order of touches");
        return start_threads(g, res);
}

static void run(struct guest *g, struct bench_result *res) {
        if (!g->ram && attach(g, res) < 0)
                atomic_store(&g->cancelled, true);
        else if (g->touch.lead_ns)
                pause_for(g->touch.lead_ns);
        res->start_ns = now_ns();
        (void) pthread_barrier_wait(&g->barrier);
        res->bad_page = UINT64_MAX;
        for (unsigned i = 0; i < g->n_touchers; i++) {
                const struct toucher *t = &g->touchers[i];

                (void) pthread_join(t->thread, NULL);
                res->end_ns = MAX_OF(res->end_ns, t->end_ns);
                res->touched += t->touched;
                res->bad_page = MIN_OF(res->bad_page, t->bad_page);
                hist_collect(&t->latency, &res->latency);
        }
        (void) pthread_barrier_destroy(&g->barrier);
        res->attached_ns = g->attached_ns;
        res->base = (uintptr_t) g->ram;
}

static void obey(struct guest *g, const struct bench_command *c, int *fds, struct bench_result *res) {
        size_t next = 0;

        switch (c->op) {
        case BENCH_OP_SETUP:
                g->setup = c->setup;
                break;
        case BENCH_OP_CONNECT:
                if (c->has_file)
                        g->file_fd = TAKE_FD(fds[next++]);
                if (c->has_sock)
                        g->sock = TAKE_FD(fds[next]);
                break;
        case BENCH_OP_PREPARE:
                g->touch = c->touch;
                (void) prepare(g, c->has_file ? fds[0] : -1, res);
                break;
        case BENCH_OP_GO:
                run(g, res);
                break;
        }
}

int bench_guest_main(void) {
        struct guest g = { .ctl = BENCH_GUEST_FD, .file_fd = -1, .sock = -1, .uffd = -1 };

        for (;;) {
                struct bench_result res = { 0 };
                struct bench_command c;
                int fds[2] = { -1, -1 };
                size_t n_fds = ARRAY_LEN(fds);
                ssize_t n = io_recv_fds(g.ctl, &c, sizeof(c), fds, &n_fds);

                if (n == 0)
                        return 0; /* whoever started us has gone */
                if (n != sizeof(c))
                        return 1;
                obey(&g, &c, fds, &res);
                (void) close_fd(fds[0]);
                (void) close_fd(fds[1]);
                if (send(g.ctl, &res, sizeof(res), MSG_NOSIGNAL) != sizeof(res))
                        return 1;
        }
}
