/* SPDX-License-Identifier: MIT */
#include "tests/bench/uffd_bench/lab.h"

#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "tests/bench/uffd_bench/proc.h"
#include "tests/bench/uffd_bench/rival.h"

#define KEEP_SECONDS 86400u
#define RECORDED_PART 32u /* of the pages: what a recorded order is made of */

struct mode_info {
        const char *name, *explain;
        enum bench_memory memory;
        bool pager, warm, set, raw;
        enum bench_rival_kind rival;
};

static const struct mode_info modes[BENCH_N_MODES] = {
        [BENCH_FIRST] = { .name = "first",
                          .explain = "uffd-pager, first clone: nothing is decoded",
                          .memory = BENCH_MEM_MEMFD,
                          .pager = true },
        [BENCH_NEXT] = { .name = "next",
                         .explain = "uffd-pager, next clone: the image is resident",
                         .memory = BENCH_MEM_MEMFD,
                         .pager = true,
                         .warm = true },
        [BENCH_FIRST_SET] = { .name = "first-set",
                              .explain = "uffd-pager, first clone with a recorded working set",
                              .memory = BENCH_MEM_MEMFD,
                              .pager = true,
                              .set = true },
        [BENCH_NEXT_SET] = { .name = "next-set",
                             .explain = "uffd-pager, next clone with a recorded working set",
                             .memory = BENCH_MEM_MEMFD,
                             .pager = true,
                             .warm = true,
                             .set = true },
        [BENCH_COPY] = { .name = "copy",
                         .explain = "uffd-pager, copy mode: nothing is decoded",
                         .memory = BENCH_MEM_ANON,
                         .pager = true },
        [BENCH_COPY_NEXT] = { .name = "copy-next",
                              .explain = "uffd-pager, copy mode: the image is resident",
                              .memory = BENCH_MEM_ANON,
                              .pager = true,
                              .warm = true },
        [BENCH_FLOOR] = { .name = "floor",
                          .explain = "bare server: 64 KiB fill and continue, no codec",
                          .memory = BENCH_MEM_MEMFD,
                          .raw = true,
                          .rival = BENCH_RIVAL_FLOOR },
        [BENCH_FLOOR_LONE] = { .name = "floor-lone",
                               .explain = "bare server: the page that is waited for first",
                               .memory = BENCH_MEM_MEMFD,
                               .raw = true,
                               .rival = BENCH_RIVAL_LONE },
        [BENCH_CLASSIC] = { .name = "classic",
                            .explain = "bare server: 4 KiB copies, anonymous memory",
                            .memory = BENCH_MEM_ANON,
                            .raw = true,
                            .rival = BENCH_RIVAL_CLASSIC },
        [BENCH_PRIVATE] = { .name = "private",
                            .explain = "plain private mapping of a RAM file",
                            .memory = BENCH_MEM_FILE,
                            .raw = true },
        [BENCH_EAGER] = { .name = "eager", .explain = "all is decoded before the guest runs", .memory = BENCH_MEM_FILE },
};

const char *bench_mode_name(enum bench_mode m) {
        return modes[m].name;
}

const char *bench_mode_explain(enum bench_mode m) {
        return modes[m].explain;
}

int bench_mode_parse(const char *s, enum bench_mode *ret) {
        for (unsigned i = 0; i < BENCH_N_MODES; i++)
                if (!strcmp(s, modes[i].name)) {
                        *ret = i;
                        return 0;
                }
        return -EINVAL;
}

/* ---- the lab ---- */

int bench_lab_open(const struct bench_config *cfg, uint64_t n_pages, uint64_t seed, struct bench_lab *ret, struct err *e) {
        const struct bench_content content = { .seed = seed, .zero_percent = cfg->zero_percent };

        int r;

        *ret = (struct bench_lab){ .cfg = cfg,
                                   .image.fd = -1,
                                   .raw.memfd = -1,
                                   .list_fd = -1,
                                   .set = BENCH_SET_NONE,
                                   .cold.pidfd = -1,
                                   .warm.pidfd = -1 };
        r = bench_image_make(cfg->dir, n_pages, &content, cfg->codec, cfg->level, &ret->image, e);
        if (r == 0 && cfg->pattern == BENCH_RECORDED)
                r = bench_make_list(n_pages, MIN_OF(cfg->n_touches ? cfg->n_touches : n_pages / RECORDED_PART, n_pages / 2), seed,
                                    &ret->list_fd, e);
        return r;
}

void bench_lab_close(struct bench_lab *lab) {
        if (!lab->cfg) /* never opened */
                return;
        bench_pager_stop(&lab->cold);
        bench_pager_stop(&lab->warm);
        bench_raw_clear(&lab->raw);
        bench_set_clear(&lab->set);
        lab->list_fd = close_fd(lab->list_fd);
        bench_image_clear(&lab->image);
}

int bench_lab_pager(const struct bench_config *cfg, unsigned workers, unsigned idle_seconds, struct bench_pager *ret,
                    struct err *e) {
        const struct bench_pager_options o = {
                .program = cfg->pager,
                .run_dir = cfg->dir,
                .workers = workers,
                .idle_seconds = idle_seconds,
        };

        return bench_pager_start(&o, ret, e);
}

int bench_lab_fill(struct bench_pager *p, const struct bench_image *img, struct err *e) {
        struct bench_session s;
        cleanup_mp_buf struct mp_buf b = { 0 };
        int r = bench_session_open(p, img, -1, false, &s, e);

        if (r < 0)
                return r;
        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", s.id);
        r = bench_pager_call(p, "image.prefetch", &b, NULL, 0, NULL, e);
        if (r == 0)
                r = bench_pager_wait(p, "image.filled", NULL, e);
        if (r == 0)
                return bench_session_close(p, &s, e);
        bench_session_clear(&s);
        return r;
}

struct bench_touch bench_config_touch(const struct bench_config *cfg) {
        return (struct bench_touch){
                .order = { .pattern = cfg->pattern, .seed = cfg->seed + 7, .n = cfg->n_touches, .theta = cfg->theta },
                .lead_ns = (uint64_t) (cfg->lead_ms * 1e6),
        };
}

/** Pages that a run brings into memory at most. */
static uint64_t pages_needed(const struct bench_lab *lab, const struct bench_touch *t) {
        uint64_t n = lab->image.n_pages;

        return t->order.n > 0 ? MIN_OF(n, t->order.n * BENCH_CHUNK_PAGES) : n;
}

/** Makes what @mode needs and is not there yet. */
static int get_ready(struct bench_lab *lab, const struct mode_info *m, const struct bench_touch *t, struct err *e) {
        uint64_t ram = lab->image.n_pages * BENCH_PAGE, need = pages_needed(lab, t) * BENCH_PAGE;
        int r = 0;

        if (m->raw && !lab->raw.map)
                need += ram;
        if (m == &modes[BENCH_EAGER] || (m->warm && !lab->warm.conn))
                need = ram;
        if (m->memory == BENCH_MEM_ANON)
                need *= 1 + lab->cfg->clones;
        r = bench_need_memory(need, m->name, e);
        if (r < 0)
                return r;
        if (m->raw && !lab->raw.map)
                r = bench_raw_make(&lab->image, &lab->raw, e);
        if (r == 0 && m->set && lab->set.file_fd < 0)
                r = bench_set_record(lab->cfg->pager, lab->cfg->dir, &lab->image, t, lab->list_fd, &lab->set, e);
        if (r == 0 && m->pager && !m->warm && !lab->cold.conn)
                r = bench_lab_pager(lab->cfg, lab->cfg->workers, 0, &lab->cold, e);
        if (r == 0 && m->warm && !lab->warm.conn) {
                r = bench_lab_pager(lab->cfg, lab->cfg->workers, KEEP_SECONDS, &lab->warm, e);
                if (r == 0)
                        r = bench_lab_fill(&lab->warm, &lab->image, e);
        }
        return r;
}

/* ---- one run ---- */

/** A clone: its guest, and who serves it. */
struct clone {
        struct bench_guest guest;
        struct bench_session session;
        struct bench_rival rival;
        bool has_session, has_rival;
};

struct group {
        const struct mode_info *mode;
        struct bench_pager *pager; /* NULL: none */
        int eager_fd;
        unsigned n;
        struct clone clone[BENCH_MAX_CLONES];
};

/** A session, a server of ours, or just a file. */
static int connect_clone(struct bench_lab *lab, struct group *g, struct clone *c, struct err *e) {
        const struct mode_info *m = g->mode;
        int file = -1, sock = -1, r = 0;

        if (m->pager) {
                r = bench_session_open(g->pager, &lab->image, m->set ? lab->set.file_fd : -1, false, &c->session, e);
                c->has_session = r == 0;
                file = m->memory == BENCH_MEM_MEMFD ? c->session.memfd : -1;
                sock = c->session.sock;
        } else if (m == &modes[BENCH_EAGER]) {
                file = g->eager_fd;
        } else if (m->memory == BENCH_MEM_FILE) {
                file = lab->raw.memfd;
        } else {
                r = bench_rival_start(m->rival, &lab->raw, &c->rival, e);
                c->has_rival = r == 0;
                file = c->rival.memfd;
                sock = c->rival.guest_sock;
        }
        if (r == 0)
                r = bench_guest_connect(&c->guest, file, sock, e);
        /* The guest's are the only ones now: their end is its end. */
        if (c->has_session)
                bench_session_clear(&c->session);
        if (c->has_rival)
                c->rival.guest_sock = close_fd(c->rival.guest_sock);
        return r;
}

static int start_clone(struct bench_lab *lab, struct group *g, const struct bench_touch *touch, struct clone *c, struct err *e) {
        const struct bench_setup setup = { g->mode->memory, lab->cfg->threads, lab->image.n_pages, lab->image.content };
        int r = bench_guest_start(&setup, &c->guest, e);

        if (r == 0)
                r = bench_guest_prepare(&c->guest, touch, lab->list_fd, e);
        return r < 0 ? r : connect_clone(lab, g, c, e);
}

/** Ends guests and servers, also when something has gone wrong before (@failed): then as well as it can be done.
 *  *ret_cpu_ns: what the servers of this process took. */
static int end_group(struct group *g, bool failed, uint64_t *ret_cpu_ns, struct err *e) {
        int r = 0;

        for (unsigned i = 0; i < g->n; i++) {
                struct clone *c = &g->clone[i];
                struct err ignored = { 0 };

                bench_guest_end(&c->guest);
                /* A session that has failed is not told of when its VMM hangs up. */
                if (c->has_session && failed)
                        best_effort(bench_session_close(g->pager, &c->session, &ignored));
                else if (c->has_session && r == 0)
                        r = bench_pager_wait(g->pager, "session.gone", c->session.id, e);
                bench_session_clear(&c->session);
                if (c->has_rival) {
                        int q = bench_rival_stop(&c->rival, failed || r < 0 ? &ignored : e);

                        r = r < 0 ? r : q;
                        *ret_cpu_ns += c->rival.cpu_ns;
                }
        }
        g->eager_fd = close_fd(g->eager_fd);
        return failed ? 0 : r;
}

/** All guests at once; they are prepared. */
static int touch_all(struct group *g, struct bench_run *ret, struct err *e) {
        const struct bench_watch watch = { bench_pager_check, g->pager };
        uint64_t first = UINT64_MAX, last = 0;
        int r = 0;

        for (unsigned i = 0; r == 0 && i < g->n; i++)
                r = bench_guest_go(&g->clone[i].guest, e);
        for (unsigned i = 0; r == 0 && i < g->n; i++) {
                struct bench_result res;

                r = bench_guest_result(&g->clone[i].guest, g->pager ? &watch : NULL, &res, e);
                if (r < 0)
                        break;
                first = MIN_OF(first, res.start_ns);
                last = MAX_OF(last, res.end_ns);
                ret->touched += res.touched;
        }
        if (r == 0)
                ret->wall_ms = (double) (last - first) / 1e6;
        return r;
}

/** Each compares every byte of what it touched. */
static int verify_all(struct bench_lab *lab, struct group *g, const struct bench_touch *touch, struct err *e) {
        struct bench_touch t = *touch;
        struct bench_run ignored = { 0 };
        int r = 0;

        t.verify = true;
        t.lead_ns = 0;
        for (unsigned i = 0; r == 0 && i < g->n; i++, t.order.seed++)
                r = bench_guest_prepare(&g->clone[i].guest, &t, lab->list_fd, e);
        return r < 0 ? r : touch_all(g, &ignored, e);
}

static int observe(const struct bench_lab *lab, struct group *g, bool over, struct err *e) {
        const struct bench_observer *o = lab->observer;
        int r = 0;

        for (unsigned i = 0; o && r == 0 && i < g->n; i++)
                r = (over ? o->end : o->begin)(o->arg, &g->clone[i].guest, g->clone[i].session.id, e);
        return r;
}

static int measure(struct group *g, struct bench_lab *lab, const struct bench_touch *touch, struct bench_run *run,
                   struct err *e) {
        uint64_t cpu_before = 0, cpu_after = 0, start = now_ns();
        struct bench_touch t = *touch;
        double populate_ms = 0;
        int r = 0;

        if (g->mode == &modes[BENCH_EAGER]) {
                r = bench_populate(&lab->image, &g->eager_fd, e);
                populate_ms = ms_since(start);
        }
        for (; r == 0 && g->n < lab->cfg->clones; t.order.seed++) /* each clone has an order of its own */
                r = start_clone(lab, g, &t, &g->clone[g->n++], e);
        if (r == 0 && g->pager)
                r = bench_cpu_ns(g->pager->pid, &cpu_before, e);
        if (r == 0)
                r = observe(lab, g, false, e);
        if (r == 0)
                r = touch_all(g, run, e);
        if (r == 0 && g->pager)
                r = bench_cpu_ns(g->pager->pid, &cpu_after, e);
        if (r == 0)
                r = observe(lab, g, true, e);
        if (r == 0 && lab->cfg->verify)
                r = verify_all(lab, g, touch, e);
        run->wall_ms += populate_ms;
        run->server_cpu_us = (double) (cpu_after - cpu_before) / 1e3;
        return r;
}

int bench_lab_run(struct bench_lab *lab, enum bench_mode mode, const struct bench_touch *touch, struct bench_run *ret,
                  struct err *e) {
        const struct mode_info *m = &modes[mode];
        struct bench_run run = { 0 };
        uint64_t rival_ns = 0;
        cleanup_free struct group *g = calloc(1, sizeof(*g));
        int r, q;

        if (!g)
                return err_errno(e, -ENOMEM, "starting clones");
        r = get_ready(lab, m, touch, e);
        if (r < 0)
                return r;
        g->mode = m;
        g->pager = !m->pager ? NULL : m->warm ? &lab->warm : &lab->cold;
        g->eager_fd = -1;
        for (unsigned i = 0; i < BENCH_MAX_CLONES; i++)
                g->clone[i] = (struct clone){ .guest = BENCH_GUEST_NONE, .session = BENCH_SESSION_NONE };
        r = measure(g, lab, touch, &run, e);
        q = end_group(g, r < 0, &rival_ns, e);
        if (r < 0 || q < 0)
                return r < 0 ? r : q;
        run.us_per_page = run.wall_ms * 1e3 / (double) MAX_OF(run.touched, 1ull);
        run.server_cpu_us = (run.server_cpu_us + (double) rival_ns / 1e3) / (double) MAX_OF(run.touched, 1ull);
        *ret = run;
        return 0;
}
