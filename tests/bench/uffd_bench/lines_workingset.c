/* SPDX-License-Identifier: MIT */
/* The lines about recorded working sets. One session records which pages its guest needed; what was recorded becomes the
 * file `workingset`, as forkd would write it; then new clones of the image, with nothing decoded, touch the same pages in
 * the same order, with the file and without, in turn. The clock starts when the guest has attached. The session is
 * opened right before that, so that the pager has no other lead than the one that is asked for.
 *
 * The guest's list is made of runs of 1 to 16 pages from all over the image, zero pages included, as a kernel that wakes
 * up touches its memory. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "common/ids.h"
#include "common/io.h"
#include "snapstore/workingset.h"
#include "tests/bench/uffd_bench/lines.h"
#include "tests/bench/uffd_bench/proc.h"

#define IMAGE_MIB 1024u
#define IMAGE_QUICK_MIB 256u
#define SET_PART 32u /* of the image: 32 MiB of 1 GiB, about what a small guest needs to wake up */
#define MAX_RUN 16u
#define RECORD_SECONDS 3600u /* the recording is asked for, not waited for */
#define DEFAULT_LEAD_MS 22.0 /* QEMU, from its start to a loaded state: docs/benchmarks.md */
#define N_LEADS 2u
#define REPEAT 3u /* times as many rounds: they are short */

struct set {
        struct bench_image image;
        int list_fd; /* uint32_t page numbers, in the order of touching */
        uint64_t n;
        int file_fd; /* the working set as recorded */
        uint64_t recorded_pages;
        size_t recorded_runs;
};

static void set_clear(struct set *s) {
        bench_image_clear(&s->image);
        s->list_fd = close_fd(s->list_fd);
        s->file_fd = close_fd(s->file_fd);
}

/* ---- the list ---- */

static int make_list(struct set *s, uint64_t seed, struct err *e) {
        uint64_t pages = s->image.n_pages, want = pages / SET_PART;
        cleanup_free uint32_t *list = malloc(want * sizeof(*list) + 1);
        cleanup_free bool *taken = calloc(pages, sizeof(*taken));
        cleanup_fd int fd = memfd_create("uffd-bench-list", MFD_CLOEXEC);
        int r;

        if (!list || !taken)
                return err_errno(e, -ENOMEM, "making a list of pages");
        if (fd < 0)
                return err_errno(e, -errno, "making a memfd");
        s->n = 0;
        for (uint64_t i = 0; s->n < want; i++) {
                uint64_t x = bench_mix(seed + i), page = (x >> 8) % pages;

                for (uint64_t end = MIN_OF(page + 1 + x % MAX_RUN, pages); page < end && s->n < want && !taken[page]; page++) {
                        taken[page] = true;
                        list[s->n++] = (uint32_t) page;
                }
        }
        r = io_pwrite_full(fd, list, s->n * sizeof(*list), 0);
        if (r < 0)
                return err_errno(e, r, "writing a list of pages");
        s->list_fd = TAKE_FD(fd);
        return 0;
}

/* ---- one clone ---- */

struct outcome {
        double from_attach_ms, touching_ms, faults;
};

/** Opens a session as @record and @workingset_fd say and has its guest touch the list. The session and the guest are
 *  @ret_session's and @ret_guest's, to be ended by the caller also on failure. */
static int touch_list(struct bench_pager *p, const struct set *s, int workingset_fd, bool record, double lead_ms,
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
                r = bench_session_open(p, &s->image, workingset_fd, record, ret_session, e);
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

/** The same, and afterwards all of it gone, the decoded pages too. */
static int touch_and_end(struct bench_pager *p, const struct set *s, int workingset_fd, double lead_ms, struct outcome *ret,
                         struct err *e) {
        struct bench_session session;
        struct bench_guest guest;
        int r = touch_list(p, s, workingset_fd, false, lead_ms, &session, &guest, ret, e);

        bench_guest_end(&guest);
        return r < 0 ? r : bench_pager_wait(p, "session.gone", session.id, e);
}

/* ---- recording ---- */

/** The answer of session.workingset as a file. */
static int write_set(struct set *s, const msgpack_object *answer, const char *dir, struct err *e) {
        const msgpack_object *runs = mp_get_array(answer, "runs");
        cleanup_snap_workingset struct snap_workingset w = { 0 };
        cleanup_snap_image struct snap_image *img = NULL;
        cleanup_free struct snap_run *run = NULL;
        cleanup_free void *data = NULL;
        cleanup_fd int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        size_t len, n = runs ? runs->via.array.size : 0;
        int r;

        if (fd < 0)
                return err_errno(e, -errno, "making a file in %s", dir);
        run = calloc(n + 1, sizeof(*run));
        if (!run)
                return err_errno(e, -ENOMEM, "reading a working set");
        for (size_t i = 0; i < n; i++) {
                const msgpack_object *o = &runs->via.array.ptr[i];

                if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 2)
                        return err_set(e, ERR_PAGER, -EBADMSG, "the pager's working set has a run that is none");
                run[i] = (struct snap_run){ o->via.array.ptr[0].via.u64, o->via.array.ptr[1].via.u64 };
        }
        r = snap_image_open(s->image.fd, &img);
        if (r == 0)
                r = snap_workingset_merge(NULL, run, n, s->image.n_pages, snap_workingset_max_pages(s->image.n_pages), &w, NULL);
        if (r == 0)
                r = snap_workingset_encode(&w, snap_image_info(img)->uuid, s->image.n_pages, &data, &len);
        if (r == 0)
                r = io_pwrite_full(fd, data, len, 0);
        if (r < 0)
                return err_errno(e, r, "writing the working set");
        s->recorded_pages = w.n_pages;
        s->recorded_runs = w.n_runs;
        s->file_fd = TAKE_FD(fd);
        return 0;
}

static int record(struct bench_pager *p, struct set *s, const char *dir, struct err *e) {
        cleanup_bench_answer struct bench_answer a = { .fd = -1 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        struct bench_session session;
        struct bench_guest guest;
        struct outcome ignored;
        int r = touch_list(p, s, -1, true, 0, &session, &guest, &ignored, e);

        mp_buf_init(&b);
        mp_map(&b, 1);
        mp_kv_str(&b, "session", session.id);
        if (r == 0)
                r = bench_pager_call(p, "session.workingset", &b, NULL, 0, &a, e);
        bench_guest_end(&guest);
        if (r == 0)
                r = bench_pager_wait(p, "session.gone", session.id, e);
        return r < 0 ? r : write_set(s, &a.doc.root, dir, e);
}

/* ---- the lines ---- */

struct results {
        double lead_ms[N_LEADS];
        struct bench_samples with[N_LEADS], without[N_LEADS], touching[N_LEADS], faults_with[N_LEADS], faults_without[N_LEADS];
};

static int one_round(struct bench_pager *p, const struct set *s, struct results *res, bool count, struct err *e) {
        for (unsigned i = 0; i < N_LEADS; i++) {
                struct outcome without, with;
                int r = touch_and_end(p, s, -1, res->lead_ms[i], &without, e);

                if (r == 0)
                        r = touch_and_end(p, s, s->file_fd, res->lead_ms[i], &with, e);
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

static void report_set(const struct set *s, const struct results *res, struct bench_report *report) {
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
                                size_format(s->n * BENCH_PAGE, part, sizeof(part)), (unsigned long long) s->recorded_pages,
                                s->recorded_runs);
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
                .record_seconds = RECORD_SECONDS,
        };
        struct results res = { .lead_ms = { 0, base->lead_ms > 0 ? base->lead_ms : DEFAULT_LEAD_MS } };
        struct set s = { .image.fd = -1, .list_fd = -1, .file_fd = -1 };
        uint64_t pages = base->n_pages;
        struct bench_pager p = { .pidfd = -1 };
        int r;

        if (pages == 0)
                pages = (uint64_t) (base->quick ? IMAGE_QUICK_MIB : IMAGE_MIB) * BENCH_PAGES_PER_MIB;
        r = bench_need_memory(2 * pages * BENCH_PAGE, "workingset", e);
        if (r == 0)
                r = bench_image_make(base->dir, pages, &content, base->codec, base->level, &s.image, e);
        if (r == 0)
                r = make_list(&s, base->seed, e);
        if (r == 0)
                r = bench_warm_memory(pages * BENCH_PAGE, e);
        if (r == 0)
                r = bench_pager_start(&o, &p, e);
        if (r == 0)
                r = record(&p, &s, base->dir, e);
        for (unsigned round = base->quick ? 1 : 0; r == 0 && round <= base->rounds * (base->quick ? 1 : REPEAT); round++)
                r = one_round(&p, &s, &res, round > 0, e);
        bench_pager_stop(&p);
        if (r == 0)
                report_set(&s, &res, report);
        set_clear(&s);
        return r;
}
