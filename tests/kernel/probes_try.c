/* SPDX-License-Identifier: MIT */
/* Does this kernel let us see what threads do, by a given method, and is what is seen true? One static program, so that it also
 * runs in a guest whose kernel can do more than the host's. What is compared lies between two bounds that are known for sure: a
 * wait is no shorter than the time for which its server held it, and no longer than what the thread itself measured. Nothing here
 * depends on the speed of the machine.
 *
 *   probes_try [fentry|kprobe|sched_switch|auto]
 *
 * Exits with 77 where the kernel does not have the method; the reason is printed. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>

#include "bpf/probes.h"
#include "common/io.h"
#include "tests/kernel/subject.h"

#define MS 1000000ull
#define TIMEOUT_MS 20000
#define HOLD_US 200 /* a fault: its thread has gone to sleep by then */

static inline void cleanup_probesp(struct probes **p) {
        probes_close(*p);
}
#define cleanup_probes attr_cleanup(cleanup_probesp)

static struct probes *open_probes(int method, unsigned max_processes, unsigned max_threads) {
        const struct probes_options opt = { .method = method, .max_processes = max_processes, .max_threads = max_threads };
        struct probes *p = NULL;
        struct err e = { 0 };
        int r = probes_open(&opt, &p, &e);

        if (r < 0) {
                (void) printf("SKIPPED: %s: %s (%s) [%d]\n",
                              method < 0 ? "auto" : probes_method_name((enum probes_method) method), e.message, e.hint, r);
                exit(77);
        }
        return p;
}

/* ---- what is seen ---- */

struct seen {
        struct probes_watch *w;
        struct probes_sample sum, ended;
        struct probes_thread thread[2 * SUBJECT_THREADS];
        unsigned n, others;
        bool told; /* @ended has come */
};

static void see(void *arg, struct probes_watch *w, const struct probes_thread *t, const struct probes_sample *ended) {
        struct seen *s = arg;

        if (w != s->w) {
                s->others++;
                return;
        }
        probes_add(&s->sum, t ? &t->sum : ended);
        if (ended) {
                CHECK(!s->told, "a watch was told twice");
                s->told = true;
                s->ended = *ended;
        } else {
                CHECK(s->n < ARRAY_LEN(s->thread), "more threads than there are");
                s->thread[s->n++] = *t;
        }
}

static struct seen look(struct probes *p, struct probes_watch *w) {
        struct seen s = { .w = w };

        CHECK(probes_read(p, see, &s) == 0, "probes_read");
        CHECK(s.told, "a watch was not told");
        return s;
}

static struct probes_watch *watch(struct probes *p, const struct subject *s) {
        struct probes_watch *w = NULL;
        int r = probes_watch(p, s->pidfd, s->pid, NULL, &w);

        CHECK(r == 0, "probes_watch: %s", strerror(-r));
        return w;
}

/** A thread's end is noted a moment after it can be joined. */
static struct seen look_until(struct probes *p, struct probes_watch *w, unsigned n_threads) {
        uint64_t begin = now_ns();
        struct seen s;

        while ((s = look(p, w)).n != n_threads) {
                CHECK(ms_since(begin) < TIMEOUT_MS, "%u threads are seen where there are %u", s.n, n_threads);
                (void) sched_yield();
        }
        return s;
}

/* ---- what is compared ---- */

static void check_between(const char *what, uint64_t low, uint64_t seen, uint64_t high) {
        CHECK(low <= seen && seen <= high, "%s: %" PRIu64 " seen, which is not between %" PRIu64 " and %" PRIu64, what, seen, low,
              high);
}

/** All waits of the life of @s, which was watched from its beginning. Now and then a switch is told to nobody, and a wait that it
 *  would have begun is not known: that is allowed for. */
static void check_waits(const struct subject *s, struct seen seen) {
        const struct probes_sample *sum = &seen.sum;
        uint64_t n = 0, low = 0, high = 0, low_max = 0, high_max = 0, all = 0, missing;

        for (unsigned i = 0; i < SUBJECT_PAGES; i++) {
                uint64_t took = subject_took_ns(s, i);

                n += took > 0;
                low += s->held[i];
                high += took;
                low_max = MAX_OF(low_max, s->held[i]);
                high_max = MAX_OF(high_max, took);
        }
        CHECK(sum->waits <= n, "%" PRIu64 " waits were seen of %" PRIu64, sum->waits, n);
        missing = n - sum->waits;
        CHECK(missing <= n / 50, "%" PRIu64 " waits were seen of %" PRIu64, sum->waits, n);
        low -= low / 10;
        check_between("their sum", low - MIN_OF(low, missing * MS), sum->wait_ns, high + high / 20);
        check_between("the longest", low_max / 2, sum->longest_ns, high_max + high_max / 10 + MS);
        /* Seen from each bound of the histogram: how many lasted longer. */
        for (unsigned b = 0; b < PROBES_BUCKETS; b++) {
                uint64_t end = probes_bucket_end_ns(b), at_least = 0, at_most = 0, above = 0;

                all += sum->wait[b];
                for (unsigned i = 0; i < SUBJECT_PAGES; i++) {
                        at_least += s->held[i] > end;
                        at_most += subject_took_ns(s, i) >= end;
                }
                for (unsigned k = b + 1; k < PROBES_BUCKETS; k++)
                        above += sum->wait[k];
                check_between("waits above a bound", at_least - MIN_OF(at_least, missing + n / 20 + 1), above,
                              at_most + n / 20 + 1);
        }
        CHECK(all == sum->waits, "%" PRIu64 " waits are in the histogram of %" PRIu64, all, sum->waits);
        check_between("time waiting for memory", 0, sum->ns[PROBES_MEMORY], sum->wait_ns);
}

static uint64_t total(const struct probes_sample *s) {
        uint64_t ns = 0;

        for (unsigned i = 0; i < PROBES_N_STATES; i++)
                ns += s->ns[i];
        return ns;
}

/** One or two of few may have been none, as in check_waits. */
static bool about(uint64_t seen, uint64_t n) {
        return seen <= n && seen + 1 + n / 5 >= n;
}

/* ---- the checks ---- */

static void check_faults(struct probes *p) {
        struct subject s;
        struct probes_watch *w;

        CHECK(subject_start(&s, 0), "starting a process");
        w = watch(p, &s);
        subject_begin(&s, SUBJECT_TOUCH, 200);
        subject_serve(&s, 200, HOLD_US);
        subject_finish(&s);
        subject_begin(&s, SUBJECT_TOUCH, 50);
        subject_serve(&s, 50, 2000);
        subject_finish(&s);
        subject_begin(&s, SUBJECT_TOUCH, 3);
        subject_serve(&s, 3, 40000);
        subject_finish(&s);
        check_waits(&s, look(p, w));
        /* Of threads that come and go, too. */
        for (unsigned i = 0; i < 5; i++) {
                subject_begin(&s, SUBJECT_THREAD, 8);
                subject_serve(&s, 32, HOLD_US);
                subject_finish(&s);
        }
        check_waits(&s, look_until(p, w, 1));
        probes_unwatch(w);
        subject_end(&s);
}

/** One that is under way, of a thread that waited already when it was met. */
static void check_present(struct probes *p) {
        uint64_t before, read_ns, now;
        struct probes_watch *w;
        struct subject s;
        unsigned page;
        struct seen a;

        CHECK(subject_start(&s, 0), "starting a process");
        w = watch(p, &s);
        before = now_ns();
        subject_begin(&s, SUBJECT_TOUCH, 2);
        read_ns = subject_leave(&s, &page);
        for (uint64_t begin = now_ns(); (a = look(p, w)).n != 1 || a.thread[0].state != PROBES_MEMORY;) {
                CHECK(ms_since(begin) < TIMEOUT_MS, "a thread that waits for memory is seen in state %d",
                      a.n ? (int) a.thread[0].state : -1);
                (void) sched_yield();
        }
        now = now_ns();
        check_between("since when it waits", before, a.thread[0].since_ns, now);
        CHECK(a.sum.waits == 0, "a wait is counted that has not ended");
        probes_unwatch(w);
        w = watch(p, &s);
        a = look(p, w);
        CHECK(a.n == 1 && a.thread[0].state == PROBES_MEMORY, "a thread that waited before it was watched is not seen to wait");
        subject_answer(&s, page, read_ns);
        subject_serve(&s, 1, 1000);
        subject_finish(&s);
        a = look(p, w);
        CHECK(about(a.sum.waits, 2), "%" PRIu64 " of two waits", a.sum.waits);
        probes_unwatch(w);
        subject_end(&s);
}

static void check_states(struct probes *p) {
        uint64_t begin, before, after, cpu;
        struct probes_watch *w;
        struct seen a, b;
        struct subject s;

        CHECK(subject_start(&s, 0), "starting a process");
        w = watch(p, &s);
        subject_begin(&s, SUBJECT_SPIN, 1); /* it is seen from now on */
        subject_finish(&s);
        cpu = subject_cpu_ns(&s);
        begin = now_ns();
        a = look(p, w);
        before = now_ns();
        subject_begin(&s, SUBJECT_SPIN, 150);
        subject_finish(&s);
        subject_begin(&s, SUBJECT_SLEEP, 60);
        subject_finish(&s);
        subject_begin(&s, SUBJECT_FUTEX, 80);
        subject_finish(&s);
        subject_begin(&s, SUBJECT_TOUCH, 1);
        subject_serve(&s, 1, 50000);
        subject_finish(&s);
        after = now_ns();
        b = look(p, w);
        cpu = subject_cpu_ns(&s) - cpu;
        for (unsigned i = 0; i < PROBES_N_STATES; i++) {
                CHECK(b.sum.ns[i] >= a.sum.ns[i], "state %u has gone back", i);
                b.sum.ns[i] -= a.sum.ns[i];
        }
        check_between("all states together", after - before, total(&b.sum), now_ns() - begin);
        /* What the kernel charges to the thread, but for what an interrupt or a switch took. */
        check_between("on the CPU", cpu - cpu / 5, b.sum.ns[PROBES_ONCPU], cpu + cpu / 2 + 50 * MS);
        /* Each begins a moment late, when the thread has come to sleep. */
        check_between("asleep", 50 * MS, b.sum.ns[PROBES_IDLE], after - before - 200 * MS);
        check_between("at a futex", 70 * MS, b.sum.ns[PROBES_LOCK], after - before - 180 * MS);
        check_between("waiting for memory", 40 * MS, b.sum.ns[PROBES_MEMORY], after - before - 200 * MS);
        CHECK(b.sum.slept - a.sum.slept >= 3, "%" PRIu64 " sleeps", b.sum.slept - a.sum.slept);
        CHECK(b.sum.ns[PROBES_DISK] == 0, "it has not touched a disk");
        probes_unwatch(w);
        subject_end(&s);
}

/* ---- the end of threads and processes, and what comes after ---- */

struct server {
        struct subject *s;
        _Atomic bool done;
};

static void *serve_threads(void *arg) {
        struct server *v = arg;

        for (unsigned i = 0; i < 25; i++) {
                subject_begin(v->s, SUBJECT_THREAD, SUBJECT_THREADS);
                subject_serve(v->s, 4 * SUBJECT_THREADS, HOLD_US);
                subject_finish(v->s);
        }
        atomic_store(&v->done, true);
        return NULL;
}

/** Whenever one reads: what is told twice, or is missing, is at most what just ends; and in the end nothing is. */
static void check_reader(struct probes *p) {
        uint64_t waits = 0, begin = now_ns();
        unsigned long reads = 0;
        struct probes_watch *w;
        struct subject s;
        struct server v = { .s = &s };
        pthread_t t;

        CHECK(subject_start(&s, 0), "starting a process");
        w = watch(p, &s);
        CHECK(pthread_create(&t, NULL, serve_threads, &v) == 0, "pthread_create");
        while (!atomic_load(&v.done)) {
                struct seen a = look(p, w);

                check_between("waits", waits - MIN_OF(waits, 4 * SUBJECT_THREADS), a.sum.waits,
                              subject_touched(&s) + 4 * SUBJECT_THREADS);
                waits = MAX_OF(waits, a.sum.waits);
                CHECK(total(&a.sum) <= (now_ns() - begin) * (SUBJECT_THREADS + 2), "more time than has passed");
                reads++;
        }
        (void) pthread_join(t, NULL);
        check_waits(&s, look_until(p, w, 1));
        (void) printf("  read %lu times below 400 threads that came and went\n", reads);
        probes_unwatch(w);
        subject_end(&s);
}

/** A process that has ended is told as it was, and another one with its number has no part in it. */
static void check_reuse(struct probes *p) {
        struct probes_watch *w, *w2;
        struct subject s, other;
        struct seen before, after;
        int pidfd, r;
        pid_t pid;

        CHECK(subject_start(&s, 0), "starting a process");
        pid = s.pid;
        w = watch(p, &s);
        subject_begin(&s, SUBJECT_TOUCH, 20);
        subject_serve(&s, 20, HOLD_US);
        subject_finish(&s);
        before = look(p, w);
        check_waits(&s, before);
        subject_end(&s);
        before = look_until(p, w, 0);
        CHECK(about(before.ended.waits, 20), "of a process that has ended %" PRIu64 " waits of 20 are told", before.ended.waits);
        if (!subject_start(&other, pid)) {
                (void) printf("  SKIPPED: a process with a chosen number: %s\n", strerror(errno));
                probes_unwatch(w);
                return;
        }
        subject_begin(&other, SUBJECT_TOUCH, 30);
        subject_serve(&other, 30, HOLD_US);
        subject_finish(&other);
        after = look(p, w);
        CHECK(after.n == 0 && after.sum.waits == before.sum.waits && total(&after.sum) == total(&before.sum),
              "what another process does is told under the number of one that has ended");
        r = probes_watch(p, other.pidfd, other.pid, NULL, &w2);
        CHECK(r == 0, "watching the other one: %s", strerror(-r));
        subject_begin(&other, SUBJECT_TOUCH, 5);
        subject_serve(&other, 5, HOLD_US);
        subject_finish(&other);
        after = look(p, w2);
        CHECK(about(after.sum.waits, 5), "%" PRIu64 " waits of 5", after.sum.waits);
        probes_unwatch(w);
        after = look(p, w2);
        CHECK(after.n == 1 && about(after.sum.waits, 5), "it is forgotten with the one before");
        subject_begin(&other, SUBJECT_TOUCH, 5);
        subject_serve(&other, 5, HOLD_US);
        subject_finish(&other);
        CHECK(about(look(p, w2).sum.waits, 10), "it is not seen any more");
        probes_unwatch(w2);
        pidfd = dup(other.pidfd);
        subject_end(&other);
        CHECK(probes_watch(p, pidfd, pid, NULL, &w) == -ESRCH, "a process that has ended is watched");
        (void) close_fd(pidfd);
}

/** More than there is room for is counted, and nothing else goes wrong. */
static void check_overflow(int method) {
        cleanup_probes struct probes *p = open_probes(method, 2, 4);
        struct probes_watch *w, *w2, *w3;
        struct probes_status st;
        struct subject s, s2;
        struct seen a;

        CHECK(subject_start(&s, 0) && subject_start(&s2, 0), "starting processes");
        w = watch(p, &s);
        w2 = watch(p, &s2);
        CHECK(probes_watch(p, s.pidfd, s.pid, NULL, &w3) == -ENOSPC, "more processes are watched than there is room for");
        subject_begin(&s, SUBJECT_STAND, 10);
        subject_serve(&s, 10, HOLD_US);
        subject_finish(&s);
        a = look(p, w);
        probes_get_status(p, &st);
        CHECK(st.overflows > 0, "nothing is told of threads that found no room: %u are there", a.n);
        CHECK(a.n <= 4 && a.sum.waits <= 4, "%u threads with %" PRIu64 " waits, where there is room for 4", a.n, a.sum.waits);
        for (unsigned i = 0; i < a.n; i++)
                CHECK(a.thread[i].sum.waits <= 1, "a thread is told another's waits");
        probes_unwatch(w);
        subject_end(&s);
        subject_begin(&s2, SUBJECT_TOUCH, 3);
        subject_serve(&s2, 3, HOLD_US);
        subject_finish(&s2);
        CHECK(about(look(p, w2).sum.waits, 3), "room that has become free is not used");
        probes_unwatch(w2);
        subject_end(&s2);
}

static int method_of(const char *name) {
        for (int m = PROBES_NONE; m < PROBES_N_METHODS; m++)
                if (!strcmp(name, probes_method_name((enum probes_method) m)))
                        return m;
        CHECK(!strcmp(name, "auto"), "no method %s", name);
        return -1;
}

int main(int argc, char **argv) {
        int method = method_of(argc > 1 ? argv[1] : "auto");
        struct probes_status st;
        uint64_t begin = now_ns();

        {
                cleanup_probes struct probes *p = open_probes(method, 0, 0);

                probes_get_status(p, &st);
                CHECK(method < 0 || st.method == (enum probes_method) method, "%s is used", probes_method_name(st.method));
                (void) printf("%s, KVM %s%s%s; opened in %.0f ms\n", probes_method_name(st.method), st.kvm ? "yes" : "no",
                              *st.why ? "; " : "", st.why, ms_since(begin));
                if (st.method == PROBES_NONE)
                        return 77;
                check_faults(p);
                check_present(p);
                check_states(p);
                check_reader(p);
                check_reuse(p);
                probes_get_status(p, &st);
                CHECK(st.processes == 0, "%u processes are watched at the end", st.processes);
                CHECK(st.overflows == 0 && st.missed == 0, "%" PRIu64 " overflows, %" PRIu64 " missed", st.overflows, st.missed);
        }
        check_overflow(method);
        (void) printf("%s: all is as it was, in %.1f s\n", probes_method_name(st.method), ms_since(begin) / 1000);
        return 0;
}
