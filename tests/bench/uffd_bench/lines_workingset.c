/* SPDX-License-Identifier: MIT */
/* The lines about recorded working sets. One clone is recorded (set.c); then new clones of the image, with nothing
 * decoded, touch the same pages in the same order, with the file and without, in turn. The clock starts when the guest
 * has attached. The session is opened right before that, so that the pager has no other lead than the one that is asked
 * for. */
#include <errno.h>

#include "common/ids.h"
#include "tests/bench/uffd_bench/lines.h"
#include "tests/bench/uffd_bench/proc.h"
#include "tests/bench/uffd_bench/set.h"

#define IMAGE_MIB 1024u
#define IMAGE_QUICK_MIB 256u
#define SET_PART 32u         /* of the image: 32 MiB of 1 GiB, about what a small guest needs to wake up */
#define DEFAULT_LEAD_MS 22.0 /* QEMU, from its start to a loaded state: docs/benchmarks.md */
#define N_LEADS 2u
#define REPEAT 3u /* times as many rounds: they are short */

struct subject {
        struct bench_image image;
        int list_fd; /* what the guest touches */
        uint64_t n;
        struct bench_set set; /* what was recorded of that */
};

static void subject_clear(struct subject *s) {
        bench_image_clear(&s->image);
        s->list_fd = close_fd(s->list_fd);
        bench_set_clear(&s->set);
}

/* ---- one clone ---- */

struct outcome {
        double from_attach_ms, touching_ms, faults;
};

/** Opens a session, with a working set or without (-1), and has its guest touch the list. The session and the guest are
 *  @ret_session's and @ret_guest's, to be ended by the caller also on failure. */
static int touch_list(struct bench_pager *p, const struct subject *s, int workingset_fd, double lead_ms,
                      struct bench_session *ret_session, struct bench_guest *ret_guest, struct outcome *ret, struct err *e) {
        const struct bench_setup setup = { BENCH_MEM_MEMFD, 1, s->image.n_pages, s->image.content };
        const struct bench_touch touch = { .order = { .pattern = BENCH_RECORDED }, .lead_ns = (uint64_t) (lead_ms * 1e6) };
        const struct bench_watch watch = { bench_pager_check, p };
        struct bench_result res;
        double missing, zero, present;
        int r;

        *ret_session = BENCH_SESSION_NONE;
        *ret_guest = BENCH_GUEST_NONE;
        r = bench_guest_start(&setup, ret_guest, e);
        if (r == 0)
                r = bench_guest_prepare(ret_guest, &touch, s->list_fd, e);
        if (r == 0)
                r = bench_session_open(p, &s->image, workingset_fd, false, ret_session, e);
        if (r == 0)
                r = bench_guest_connect(ret_guest, ret_session->memfd, ret_session->sock, e);
        bench_session_clear(ret_session);
        if (r == 0 && workingset_fd >= 0 && ret_session->workingset_pages == 0)
                r = err_set(e, ERR_PAGER, -EBADMSG, "the pager did not take the working set");
        if (r == 0)
                r = bench_guest_go(ret_guest, e);
        if (r == 0)
                r = bench_guest_result(ret_guest, &watch, &res, e);
        if (r == 0)
                r = bench_pager_number(p, "sessions", ret_session->id, "faults.missing", &missing, e);
        if (r == 0)
                r = bench_pager_number(p, "sessions", ret_session->id, "faults.zero", &zero, e);
        if (r == 0)
                r = bench_pager_number(p, "sessions", ret_session->id, "faults.present", &present, e);
        if (r < 0)
                return r;
        *ret = (struct outcome){
                .from_attach_ms = (double) (res.end_ns - res.attached_ns) / 1e6,
                .touching_ms = (double) (res.end_ns - res.start_ns) / 1e6,
                .faults = missing + zero + present,
        };
        return 0;
}

/** Every byte of all pages, also of those that the guest did not ask for. */
static int verify(struct bench_pager *p, struct bench_guest *guest, struct err *e) {
        const struct bench_touch touch = { .order = { .pattern = BENCH_SEQUENTIAL }, .verify = true };
        const struct bench_watch watch = { bench_pager_check, p };
        struct bench_result res;
        int r = bench_guest_prepare(guest, &touch, -1, e);

        if (r == 0)
                r = bench_guest_go(guest, e);
        return r < 0 ? r : bench_guest_result(guest, &watch, &res, e);
}

/** The same, and afterwards all of it gone, the decoded pages too. */
static int touch_and_end(struct bench_pager *p, const struct subject *s, int workingset_fd, double lead_ms, bool check,
                         struct outcome *ret, struct err *e) {
        struct bench_session session;
        struct bench_guest guest;
        int r = touch_list(p, s, workingset_fd, lead_ms, &session, &guest, ret, e);

        if (r == 0 && check)
                r = verify(p, &guest, e);
        bench_guest_end(&guest);
        return r < 0 ? r : bench_pager_wait(p, "session.gone", session.id, e);
}

/* ---- the lines ---- */

struct results {
        double lead_ms[N_LEADS];
        struct bench_samples with[N_LEADS], without[N_LEADS], touching[N_LEADS], faults_with[N_LEADS], faults_without[N_LEADS];
};

static int one_round(struct bench_pager *p, const struct subject *s, struct results *res, bool count, bool check, struct err *e) {
        for (unsigned i = 0; i < N_LEADS; i++) {
                struct outcome without, with;
                int r = touch_and_end(p, s, -1, res->lead_ms[i], check, &without, e);

                if (r == 0)
                        r = touch_and_end(p, s, s->set.file_fd, res->lead_ms[i], check, &with, e);
                if (r < 0)
                        return r;
                if (!count)
                        continue;
                bench_samples_add(&res->without[i], without.from_attach_ms);
                bench_samples_add(&res->with[i], with.from_attach_ms);
                bench_samples_add(&res->touching[i], with.touching_ms);
                bench_samples_add(&res->faults_without[i], without.faults);
                bench_samples_add(&res->faults_with[i], with.faults * 100 / (double) s->n);
        }
        return 0;
}

static void report_set(const struct subject *s, const struct results *res, struct bench_report *report) {
        char ram[32], part[32];

        for (unsigned i = 0; i < N_LEADS; i++) {
                struct bench_samples ratio = bench_ratios(&res->with[i], &res->without[i]);
                const char *lead = i == 0 ? "no lead" : "the lead of a VMM's start";
                struct bench_line *l =
                        bench_report_line(report, i == 0 ? "workingset" : "workingset-lead", &ratio, "x", 0.5, false,
                                          "recorded set, %s: attached to all touched, against without", lead);

                bench_line_part(l, &res->with[i], "ms", "with the working set");
                bench_line_part(l, &res->without[i], "ms", "without");
                bench_line_part(l, &res->touching[i], "ms", "with: from the first touch to the last");
                bench_line_part(l, &res->faults_without[i], "faults", "without: faults");
                bench_line_note(l, "lead %.0f ms; %llu pages of %s (%s) were touched, %llu in %zu runs were recorded",
                                res->lead_ms[i], (unsigned long long) s->n,
                                size_format(s->image.n_pages * BENCH_PAGE, ram, sizeof(ram)),
                                size_format(s->n * BENCH_PAGE, part, sizeof(part)), (unsigned long long) s->set.n_pages,
                                s->set.n_runs);
                (void) bench_report_line(report, i == 0 ? "workingset-faults" : "workingset-lead-faults", &res->faults_with[i],
                                         "%", 2, false, "recorded set, %s: faults, of the set's pages", lead);
        }
}

int bench_line_workingset(const struct bench_config *base, struct bench_report *report, struct err *e) {
        const struct bench_content content = { base->seed + 400, base->zero_percent };
        const struct bench_pager_options o = {
                .program = base->pager,
                .run_dir = base->dir,
                .workers = base->workers,
        };
        struct results res = { .lead_ms = { 0, base->lead_ms > 0 ? base->lead_ms : DEFAULT_LEAD_MS } };
        struct subject s = { .image.fd = -1, .list_fd = -1, .set = BENCH_SET_NONE };
        const struct bench_touch recording = { .order.pattern = BENCH_RECORDED };
        uint64_t pages = base->n_pages;
        struct bench_pager p = { .pidfd = -1 };
        int r;

        if (pages == 0)
                pages = (uint64_t) (base->quick ? IMAGE_QUICK_MIB : IMAGE_MIB) * BENCH_PAGES_PER_MIB;
        s.n = pages / SET_PART;
        r = bench_need_memory(2 * pages * BENCH_PAGE, "workingset", e);
        if (r == 0)
                r = bench_image_make(base->dir, pages, &content, base->codec, base->level, &s.image, e);
        if (r == 0)
                r = bench_make_list(pages, s.n, base->seed, &s.list_fd, e);
        if (r == 0)
                r = bench_set_record(base->pager, base->dir, &s.image, &recording, s.list_fd, &s.set, e);
        if (r == 0)
                r = bench_warm_memory(pages * BENCH_PAGE, e);
        if (r == 0)
                r = bench_pager_start(&o, &p, e);
        for (unsigned round = base->quick ? 1 : 0; r == 0 && round <= base->rounds * (base->quick ? 1 : REPEAT); round++)
                r = one_round(&p, &s, &res, round > 0, base->verify, e);
        bench_pager_stop(&p);
        if (r == 0)
                report_set(&s, &res, report);
        subject_clear(&s);
        return r;
}
