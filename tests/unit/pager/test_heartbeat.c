/* SPDX-License-Identifier: MIT */
/* How forkd sees that a pager lives, and what it died on. */
#include "tests/unit/pager/gate.h"
#include "tests/unit/pager/takeover.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"
#include "pager/flight.h"

#define PAGES 1024ull
#define SEED 51
#define BEATS 400u

static struct image img;
static struct other pager;

static int setup(void **state) {
        image_make(&img, PAGES, SEED, SNAP_CODEC_LZ4);
        other_start(&pager, "64M");
        return 0;
}

static int teardown(void **state) {
        image_clear(&img);
        return 0;
}

/* ---- heartbeat ---- */

struct beat {
        unsigned n;
        struct {
                uint64_t age_ms, oldest_ms;
                bool reading;
        } w[2];
        uint64_t oldest_ms;
};

static void decode_beat(const msgpack_object *root, struct beat *ret) {
        const msgpack_object *a = mp_get_array(root, "workers");

        assert_non_null(a);
        assert_int_equal(a->via.array.size, 2); /* as many as other_start asks for */
        for (unsigned i = 0; i < 2; i++) {
                const msgpack_object *w = &a->via.array.ptr[i];

                assert_int_equal(mp_get_u64(w, "stamp_age_ms", &ret->w[i].age_ms), 0);
                assert_int_equal(mp_get_u64(w, "oldest_fault_ms", &ret->w[i].oldest_ms), 0);
                assert_int_equal(mp_get_bool(w, "reading", &ret->w[i].reading), 0);
        }
        assert_int_equal(mp_get_u64(root, "oldest_fault_ms", &ret->oldest_ms), 0);
}

static struct beat beat(void) {
        struct answer a = harness_call(&pager.h, "heartbeat", NULL, NULL, 0);
        struct beat b = { 0 };

        assert_int_equal(a.r, 0);
        decode_beat(&a.doc.root, &b);
        answer_clear(&a);
        return b;
}

/** CPU time of all threads of the pager, in ns. */
static uint64_t cpu_ns(void) {
        uint64_t sum = 0;
        char path[300];
        struct dirent *d;
        DIR *tasks;

        (void) snprintf(path, sizeof(path), "/proc/%d/task", (int) pager.pid);
        tasks = opendir(path);
        assert_non_null(tasks);
        while ((d = readdir(tasks))) {
                unsigned long long ns;
                FILE *f;

                (void) snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", (int) pager.pid, d->d_name);
                f = d->d_name[0] != '.' ? fopen(path, "re") : NULL;
                if (!f)
                        continue;
                if (fscanf(f, "%llu", &ns) == 1)
                        sum += ns;
                (void) fclose(f);
        }
        (void) closedir(tasks);
        return sum;
}

/** Workers that are fine have always read their last beat, or do so at once; and that costs next to nothing. */
static void test_idle(void **state) {
        uint64_t before = cpu_ns();
        double us;

        for (unsigned i = 0; i < BEATS; i++) {
                struct beat b = beat();

                assert_true(b.w[0].age_ms < 5000 && b.w[1].age_ms < 5000);
                assert_false(b.w[0].reading || b.w[1].reading);
                assert_int_equal(b.oldest_ms, 0);
        }
        us = (double) (cpu_ns() - before) / 1e3 / BEATS;
        print_message("a beat costs the pager %.0f us of CPU: four in a second are %.4f %% of one\n", us, us * 4 / 1e4);
        assert_true(us < 10000);
        other_stop(&pager);
}

static void on_beat(const struct rpc_result *res, void *arg) {
        bool *done = arg;

        assert_int_equal(res->r, 0);
        *done = true;
}

static void test_stopped(void **state) {
        struct timeval while_ = { .tv_usec = 300000 };
        bool done = false;

        other_freeze(&pager);
        assert_int_equal(rpc_call(pager.h.conn, "heartbeat", NULL, NULL, 0, on_beat, &done, NULL), 0);
        (void) event_base_loopexit(pager.h.base, &while_);
        (void) event_base_dispatch(pager.h.base);
        assert_false(done);
        assert_int_equal(spawn_kill(pager.pidfd, SIGCONT), 0);
        while (!done)
                (void) event_base_loop(pager.h.base, EVLOOP_ONCE);
        other_stop(&pager);
}

/** A worker that waits for the disk says so, and its age grows; the other one's does not. */
static void test_reading(void **state) {
        struct beat b, later;
        struct vmm v;
        unsigned hung;

        gate_open(&img);
        vmm_start(&pager.h, &v, &img);
        gate_set(HOLD);
        vmm_send(&v, "verify %d 2", SEED);
        for (uint64_t t = now_ns(); gate.waiting == 0;)
                assert_true(ms_since(t) < DEADLINE_MS);
        for (uint64_t t = now_ns();;) {
                b = beat();
                hung = b.w[1].age_ms > b.w[0].age_ms;
                if (b.w[hung].age_ms > 300)
                        break;
                assert_true(ms_since(t) < DEADLINE_MS);
        }
        assert_true(b.w[hung].reading);
        assert_false(b.w[!hung].reading);
        assert_true(b.w[hung].oldest_ms >= b.w[hung].age_ms && b.oldest_ms == b.w[hung].oldest_ms);
        assert_int_equal(b.w[!hung].oldest_ms, 0);
        while ((later = beat()).w[hung].age_ms < b.w[hung].age_ms + 100) {
        }
        for (uint64_t t = now_ns(); beat().w[!hung].age_ms > 0;)
                assert_true(ms_since(t) < DEADLINE_MS);
        gate_set(PASS);
        assert_string_equal(vmm_answer(&v), "ok");
        for (uint64_t t = now_ns();;) {
                b = beat();
                if (b.w[hung].age_ms == 0 && !b.w[hung].reading && b.oldest_ms == 0)
                        break;
                assert_true(ms_since(t) < DEADLINE_MS);
        }
        gate_close();
        vmm_end(&pager.h, &v);
        other_stop(&pager);
}

/** The thread of the first worker. */
static pid_t worker_thread(void) {
        char path[300], name[32];
        struct dirent *d;
        pid_t tid = 0;
        DIR *tasks;

        (void) snprintf(path, sizeof(path), "/proc/%d/task", (int) pager.pid);
        tasks = opendir(path);
        assert_non_null(tasks);
        while (tid == 0 && (d = readdir(tasks))) {
                FILE *f;

                (void) snprintf(path, sizeof(path), "/proc/%d/task/%s/comm", (int) pager.pid, d->d_name);
                f = d->d_name[0] != '.' ? fopen(path, "re") : NULL;
                if (!f)
                        continue;
                if (fgets(name, sizeof(name), f) && strcmp(name, "fault-0\n") == 0)
                        tid = atoi(d->d_name);
                (void) fclose(f);
        }
        (void) closedir(tasks);
        assert_true(tid > 0);
        return tid;
}

/** One thread stands still, whatever the reason; the control thread answers, and tells. */
static void test_one_thread_hangs(void **state) {
        pid_t tid = worker_thread();
        struct beat b;
        int status;

        assert_int_equal(ptrace(PTRACE_SEIZE, tid, NULL, NULL), 0);
        assert_int_equal(ptrace(PTRACE_INTERRUPT, tid, NULL, NULL), 0);
        assert_int_equal(waitpid(tid, &status, __WALL), tid);
        for (uint64_t t = now_ns(); (b = beat()).w[0].age_ms < 300;)
                assert_true(ms_since(t) < DEADLINE_MS);
        assert_false(b.w[0].reading);
        assert_int_equal(ptrace(PTRACE_DETACH, tid, NULL, NULL), 0);
        for (uint64_t t = now_ns(); beat().w[0].age_ms > 0;)
                assert_true(ms_since(t) < DEADLINE_MS);
        other_stop(&pager);
}

/* ---- flight recorder ---- */

static const void *flight_map(void) {
        struct answer a = harness_call(&pager.h, "flight", NULL, NULL, 0);
        struct stat st;
        void *map;

        assert_int_equal(a.r, 0);
        assert_int_equal(a.n_fds, 1);
        assert_int_equal(fstat(a.fds[0], &st), 0);
        assert_int_equal(st.st_size, PAGER_FLIGHT_BYTES);
        /* it is for reading */
        assert_ptr_equal(mmap(NULL, PAGER_FLIGHT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, a.fds[0], 0), MAP_FAILED);
        assert_int_equal(ftruncate(a.fds[0], 0), -1);
        map = mmap(NULL, PAGER_FLIGHT_BYTES, PROT_READ, MAP_SHARED, a.fds[0], 0);
        assert_ptr_not_equal(map, MAP_FAILED);
        answer_clear(&a);
        assert_int_equal(pager_flight_slots(map), 2);
        return map;
}

/** The only fault in hand, in any slot; 0: there is none. */
static int in_hand(const void *map, struct pager_flight_slot *ret) {
        int n = 0;

        for (unsigned i = 0; i < 2; i++) {
                int r = pager_flight_read(map, i, ret);

                assert_true(r >= 0); /* nobody writes: the workers wait */
                n += r;
        }
        assert_true(n <= 1);
        return n;
}

static void touch_held(struct vmm *v, uint64_t page) {
        gate_set(HOLD);
        assert_string_equal(vmm_cmd(v, "touch %llu", (unsigned long long) page), "ok");
        for (uint64_t t = now_ns(); gate.waiting == 0;)
                assert_true(ms_since(t) < DEADLINE_MS);
}

static void check_slot(const struct pager_flight_slot *slot, const struct vmm *v, uint64_t page) {
        struct stat st;

        assert_int_equal(fstat(img.fd, &st), 0);
        assert_string_equal(slot->session, v->session);
        assert_true(slot->image_dev == st.st_dev && slot->image_ino == st.st_ino);
        assert_int_equal(slot->page, page);
}

/** What a worker has in hand is told while it has, and not afterwards; and when it was killed over it, still. */
static void test_flight(void **state) {
        uint64_t page = image_stored_page(&img, 100), other = image_stored_page(&img, 700);
        struct pager_flight_slot slot = { 0 };
        const void *map = flight_map();
        struct vmm v;

        gate_open(&img);
        vmm_start(&pager.h, &v, &img);
        assert_int_equal(in_hand(map, &slot), 0);
        touch_held(&v, page);
        assert_int_equal(in_hand(map, &slot), 1);
        check_slot(&slot, &v, page);
        gate_set(PASS);
        for (uint64_t t = now_ns(); strcmp(vmm_cmd(&v, "touched"), "ok 1") != 0;)
                assert_true(ms_since(t) < DEADLINE_MS);
        for (uint64_t t = now_ns(); pager_flight_read(map, 0, &slot) != 0 || pager_flight_read(map, 1, &slot) != 0;)
                assert_true(ms_since(t) < DEADLINE_MS);
        touch_held(&v, other);
        other_kill(&pager);
        assert_int_equal(in_hand(map, &slot), 1);
        check_slot(&slot, &v, other);
        vmm_kill(&v);
        gate_set(PASS);
        gate_close();
        assert_int_equal(munmap((void *) map, PAGER_FLIGHT_BYTES), 0);
}

/** What a reader makes of something else. */
static void test_flight_untrusted(void **state) {
        static _Alignas(8) uint8_t map[PAGER_FLIGHT_BYTES];
        struct pager_flight_header *h = (void *) map;
        struct pager_flight_slot *s = (void *) (map + PAGER_FLIGHT_SLOT), got;

        assert_int_equal(pager_flight_slots(map), -EBADMSG);
        *h = (struct pager_flight_header){ PAGER_FLIGHT_MAGIC, PAGER_FLIGHT_VERSION, PAGER_FLIGHT_MAX_SLOTS + 1, { 0 } };
        assert_int_equal(pager_flight_slots(map), -EBADMSG);
        h->n_slots = PAGER_FLIGHT_MAX_SLOTS;
        assert_int_equal(pager_flight_slots(map), PAGER_FLIGHT_MAX_SLOTS);
        h->version = 2;
        assert_int_equal(pager_flight_slots(map), -EBADMSG);
        memset(s, 0xff, sizeof(*s));
        assert_int_equal(pager_flight_read(map, 0, &got), -EAGAIN); /* seq is odd */
        s->seq = 2;
        assert_int_equal(pager_flight_read(map, 0, &got), 1);
        assert_int_equal(strnlen(got.session, sizeof(got.session)), sizeof(got.session) - 1);
        other_stop(&pager);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_idle, setup, teardown),
                cmocka_unit_test_setup_teardown(test_stopped, setup, teardown),
                cmocka_unit_test_setup_teardown(test_reading, setup, teardown),
                cmocka_unit_test_setup_teardown(test_one_thread_hangs, setup, teardown),
                cmocka_unit_test_setup_teardown(test_flight, setup, teardown),
                cmocka_unit_test_setup_teardown(test_flight_untrusted, setup, teardown),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
