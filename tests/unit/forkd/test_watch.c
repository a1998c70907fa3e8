/* SPDX-License-Identifier: MIT */
/* forkd's side of a pager in trouble, with a pager that we play: whose heart is taken for stopped, which fault is suspected of a death,
 * and what of a guest's memory is found to be discarded. */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"
#include "forkd/pager/internal.h"
#include "pager/flight.h"

#define DEADLINE_MS 400
#define MIB (1ull << 20)

/* ---- a process whose heart we play: `cat`, which does nothing and can be killed ---- */

static struct {
        bool mute, garbage, reading;
        uint64_t age_ms, oldest_ms;
        unsigned beats;
} heart;

static struct daemon d;
static struct pager pager;
static struct pager_process *process;
static struct vm vm;
static struct rpc_conn *far;

static void on_call(struct rpc_msg *m, void *arg) {
        cleanup_mp_buf struct mp_buf b = { 0 };

        assert_string_equal(m->method, "heartbeat");
        heart.beats++;
        if (heart.mute)
                return;
        mp_buf_init(&b);
        mp_map(&b, heart.garbage ? 1 : 2);
        mp_kv_u64(&b, "oldest_fault_ms", heart.oldest_ms);
        if (!heart.garbage) {
                mp_key(&b, "workers");
                mp_array(&b, 2);
                for (unsigned i = 0; i < 2; i++) {
                        mp_map(&b, 2);
                        mp_kv_u64(&b, "stamp_age_ms", i == 1 ? heart.age_ms : 0);
                        mp_kv_bool(&b, "reading", i == 1 && heart.reading);
                }
        }
        assert_ok(rpc_reply(m->conn, m->msgid, &b, NULL, 0));
}

static int setup(void **state) {
        static const struct rpc_handlers theirs = { .on_message = on_call }, ours = { .on_message = pager_on_message };
        static const char *const argv[] = { "/bin/cat", NULL };
        int sv[2], in[2];

        memset(&heart, 0, sizeof(heart));
        d = (struct daemon){ .base = event_base_new(), .cfg = { .heartbeat_ms = DEADLINE_MS, .recover_ms = 500 } };
        TAILQ_INIT(&d.vms);
        pager = (struct pager){ .d = &d };
        co_sem_init(&pager.turn, 1);
        d.pager = &pager;
        process = calloc(1, sizeof(*process));
        assert_non_null(process);
        *process = (struct pager_process){ .refs = 1, .p = &pager, .pidfd = -1 };
        assert_int_equal(pipe2(in, O_CLOEXEC), 0);
        struct spawn_fd fd = { in[0], 0 };
        assert_ok(spawn_process(&(struct spawn_params){ .argv = argv,
                                                        .fds = &fd,
                                                        .n_fds = 1,
                                                        .cgroup_fd = -1,
                                                        .death_signal = SIGKILL },
                                &process->pid, &process->pidfd));
        (void) close(in[0]);
        *state = (void *) (intptr_t) in[1];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
        assert_ok(rpc_conn_new(d.base, sv[0], &ours, process, &process->conn));
        assert_ok(rpc_conn_new(d.base, sv[1], &theirs, NULL, &far));
        vm = (struct vm){ .d = &d, .session = true, .machine.mem_bytes = 64 * MIB };
        pager_hold_init(&vm.hold);
        vm.hold.process = pager_process_ref(process);
        TAILQ_INSERT_TAIL(&d.vms, &vm, entry);
        return 0;
}

static int teardown(void **state) {
        best_effort(spawn_kill(process->pidfd, SIGKILL));
        best_effort(spawn_wait(process->pidfd, -1, NULL));
        pager_hold_clear(&vm.hold);
        rpc_conn_unref(far);
        rpc_conn_close(process->conn);
        for (unsigned i = 0; i < 100 && process->refs > 1; i++)
                (void) event_base_loop(d.base, EVLOOP_ONCE); /* its watch ends */
        assert_int_equal(process->refs, 1);
        pager_process_unref(process);
        event_base_free(d.base);
        (void) close((int) (intptr_t) *state);
        return 0;
}

/* Runs the loop until @n beats have been asked for, or the process was killed; true if it was. */
static bool beats_or_death(unsigned n) {
        uint64_t start = now_ns();

        pager_watch(process);
        while (heart.beats < n && pager.counts.hangs == 0) {
                (void) event_base_loop(d.base, EVLOOP_ONCE);
                assert_true(ms_since(start) < 60000);
        }
        return pager.counts.hangs > 0;
}

static bool was_killed(void) {
        int status;

        assert_ok(spawn_wait(process->pidfd, 10000, &status));
        return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static void test_healthy(void **state) {
        heart.age_ms = DEADLINE_MS; /* busy, but within its deadline */
        assert_false(beats_or_death(20));
        assert_true(process->at_work_ns == 0);
        heart.age_ms = 10 * DEADLINE_MS; /* the disk is slow: not the watchdog's business yet */
        heart.reading = true;
        assert_false(beats_or_death(40));
        assert_true(process->at_work_ns != 0);
}

static void test_mute(void **state) {
        uint64_t start = now_ns();

        heart.mute = true;
        assert_true(beats_or_death(UINT32_MAX));
        assert_true(ms_since(start) >= DEADLINE_MS * 0.8);
        assert_true(was_killed());
        assert_true(process->hung);
}

/* Stopped from outside: it goes, but what it had in hand is not to blame. */
static void test_stopped(void **state) {
        siginfo_t info;

        assert_ok(spawn_kill(process->pidfd, SIGSTOP));
        assert_int_equal(waitid(P_PIDFD, (id_t) process->pidfd, &info, WSTOPPED | WNOWAIT), 0);
        heart.mute = true;
        assert_true(beats_or_death(UINT32_MAX));
        assert_true(was_killed());
        assert_false(process->hung);
}

static void test_hung_worker(void **state) {
        heart.age_ms = DEADLINE_MS + 1;
        assert_true(beats_or_death(UINT32_MAX));
        assert_true(was_killed());
}

static void test_stuck_in_a_read(void **state) {
        heart.age_ms = 3600000;
        heart.reading = true;
        assert_true(beats_or_death(UINT32_MAX));
        assert_true(was_killed());
}

static void test_serves_nobody(void **state) {
        heart.oldest_ms = 3600000;
        assert_true(beats_or_death(UINT32_MAX));
        assert_true(was_killed());
}

static void test_garbage(void **state) {
        heart.garbage = true;
        assert_true(beats_or_death(UINT32_MAX));
        assert_true(was_killed());
}

static void test_idle(void **state) {
        vm.session = false; /* nobody depends on it: it is left alone */
        heart.mute = true;
        pager_watch(process);
        for (unsigned i = 0; i < 20; i++)
                (void) event_base_loop(d.base, EVLOOP_ONCE);
        assert_int_equal(heart.beats, 0);
        assert_int_equal(pager.counts.hangs, 0);
}

/* ---- suspects ---- */

static void note_death(const struct pager_flight_slot *slots, unsigned n, unsigned told) {
        union {
                struct pager_flight_header h;
                uint64_t words[PAGER_FLIGHT_BYTES / sizeof(uint64_t)];
                uint8_t bytes[PAGER_FLIGHT_BYTES];
        } map = { .h = { .magic = PAGER_FLIGHT_MAGIC, .version = PAGER_FLIGHT_VERSION, .n_slots = (uint16_t) told } };
        struct pager_process dead = { .flight = &map };

        memcpy(map.bytes + PAGER_FLIGHT_SLOT, slots, n * sizeof(*slots));
        pager_suspects_note(&pager, &dead);
}

static void test_suspects(void **state) {
        struct pager_flight_slot two[2] = { { .session = "a", .image_dev = 1, .image_ino = 2, .page = 3 },
                                            { .session = "b", .image_dev = 1, .image_ino = 2, .page = 3 } };
        uint64_t page = 0;

        vm.hold.image_dev = 1;
        vm.hold.image_ino = 2;
        note_death(two, 2, 2); /* two workers at one page: one death */
        assert_false(pager_condemned(&pager, 1, 2, NULL));
        two[0].page = two[1].page = 4;
        note_death(two, 2, 2);
        assert_false(pager_condemned(&pager, 1, 2, NULL));
        two[1].page = 3;
        note_death(two, 2, 2);
        assert_true(pager_condemned(&pager, 1, 2, &page));
        assert_true(page == 3 || page == 4);
        assert_false(pager_condemned(&pager, 1, 3, NULL));
        pager_suspects_forget(&pager);
        assert_false(pager_condemned(&pager, 1, 2, NULL));
}

/* What a process that went mad has left: no image that nobody has, no page beyond its end, nothing torn. */
static void test_mad_recorder(void **state) {
        struct pager_flight_slot bad[3] = { { .session = "a", .image_dev = 9, .image_ino = 9, .page = 0 },
                                            { .session = "a", .image_dev = 1, .image_ino = 2, .page = UINT64_MAX },
                                            { .seq = 1, .session = "a", .image_dev = 1, .image_ino = 2, .page = 1 } };
        struct rng rng = { 1 };

        vm.hold.image_dev = 1;
        vm.hold.image_ino = 2;
        for (unsigned i = 0; i < 3; i++)
                note_death(bad, 3, 3);
        note_death(bad, 3, UINT16_MAX);
        for (unsigned i = 0; i < 1000; i++) {
                for (size_t k = 0; k < sizeof(bad); k += sizeof(uint64_t)) {
                        uint64_t v = rng_next(&rng);

                        memcpy((uint8_t *) bad + k, &v, sizeof(v));
                }
                note_death(bad, 3, (unsigned) rng_below(&rng, UINT16_MAX));
        }
        assert_int_equal(pager.n_suspects, 0);
        assert_int_equal(pager.n_condemned, 0);
}

/* ---- what was discarded ---- */

static struct stat memfd_stat;

static void line(FILE *f, uint64_t start, uint64_t end, uint64_t offset, bool image) {
        fprintf(f, "%llx-%llx rw-p %08llx %02x:%02x %llu  /memfd:x (deleted)\n", (unsigned long long) start,
                (unsigned long long) end, (unsigned long long) offset, image ? major(memfd_stat.st_dev) : 0,
                image ? minor(memfd_stat.st_dev) : 0, image ? (unsigned long long) memfd_stat.st_ino : 0);
}

/* Parses @f and compares with pairs first, n. */
static void expect(FILE *f, const uint64_t *want, uint64_t n) {
        cleanup_mp_buf struct mp_buf b = { 0 }, all = { 0 };
        cleanup_mp_doc struct mp_doc doc = { 0 };
        uint64_t found = 0;

        mp_buf_init(&b);
        mp_buf_init(&all);
        rewind(f);
        assert_ok(pager_unmapped_parse(f, &vm.hold, 65530, &b, &found));
        (void) fclose(f);
        assert_int_equal(found, n);
        mp_array(&all, found);
        mp_raw(&all, b.sb.data, b.sb.size);
        assert_ok(mp_parse(all.sb.data, all.sb.size, &doc));
        for (uint64_t i = 0; i < n; i++) {
                const msgpack_object *pair = &doc.root.via.array.ptr[i];

                assert_int_equal(pair->via.array.ptr[0].via.u64, want[2 * i]);
                assert_int_equal(pair->via.array.ptr[1].via.u64, want[2 * i + 1]);
        }
}

static void test_unmapped(void **state) {
        const uint64_t base = 0x7f0000000000, far_base = 0x7f8000000000;
        FILE *f;

        vm.hold.memfd = memfd_create("x", MFD_CLOEXEC);
        assert_int_equal(fstat(vm.hold.memfd, &memfd_stat), 0);
        vm.hold.n_regions = 2;
        vm.hold.region[0] = (struct pager_hold_region){ base, 16 * MIB, 0 };
        vm.hold.region[1] = (struct pager_hold_region){ far_base, 16 * MIB, 16 * MIB };

        f = tmpfile(); /* whole, beside others */
        line(f, 0x1000, 0x2000, 0, false);
        line(f, base, base + 16 * MIB, 0, true);
        line(f, far_base, far_base + 16 * MIB, 16 * MIB, true);
        expect(f, NULL, 0);

        f = tmpfile(); /* a hole at the begin, one overlaid in the middle, the second region from elsewhere in the file */
        line(f, base + 0x1000, base + 0x3000, 0x1000, true);
        line(f, base + 0x3000, base + 0x4000, 0, false);
        line(f, base + 0x4000, base + 16 * MIB, 0x4000, true);
        line(f, far_base, far_base + 16 * MIB, 0, true);
        expect(f, (const uint64_t[]){ 0, 1, 3, 1, 4096, 4096 }, 3);

        f = tmpfile(); /* nothing of it is left */
        line(f, 0x1000, 0x2000, 0, false);
        expect(f, (const uint64_t[]){ 0, 4096, 4096, 4096 }, 2);
}

static void test_unmapped_refuses(void **state) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        FILE *f = tmpfile();
        uint64_t n;

        mp_buf_init(&b);
        vm.hold.memfd = memfd_create("x", MFD_CLOEXEC);
        assert_int_equal(fstat(vm.hold.memfd, &memfd_stat), 0);
        assert_fails(pager_unmapped_parse(f, &vm.hold, 65530, &b, &n), ESRCH); /* a zombie has no mappings */
        for (unsigned i = 0; i < 100; i++)
                line(f, 0x1000 * (i + 1), 0x1000 * (i + 2), 0, false);
        rewind(f);
        assert_fails(pager_unmapped_parse(f, &vm.hold, 1100, &b, &n), E2BIG);
        (void) fclose(f);
        /* a file in guest memory that is none of those that it was told of: no discarded memory */
        f = tmpfile();
        vm.hold.n_regions = 1;
        vm.hold.region[0] = (struct pager_hold_region){ 0x10000, 0x10000, 0 };
        line(f, 0x10000, 0x14000, 0, true);
        fprintf(f, "14000-18000 rw-p 00004000 00:01 987654321  /memfd:y (deleted)\n");
        rewind(f);
        assert_fails(pager_unmapped_parse(f, &vm.hold, 65530, &b, &n), ESTALE);
        (void) fclose(f);
        f = tmpfile();
        fputs("what is this\n", f);
        rewind(f);
        assert_fails(pager_unmapped_parse(f, &vm.hold, 65530, &b, &n), EBADMSG);
        (void) fclose(f);
}

/* The kernel's own text. */
static void test_unmapped_real(void **state) {
        cleanup_fd int memfd = memfd_create("guest", MFD_CLOEXEC);
        cleanup_mp_buf struct mp_buf b = { 0 };
        uint64_t n = 0;
        uint8_t *map;

        mp_buf_init(&b);
        assert_int_equal(ftruncate(memfd, (off_t) MIB), 0);
        map = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, memfd, 0);
        assert_ptr_not_equal(map, MAP_FAILED);
        vm.hold.memfd = TAKE_FD(memfd);
        vm.hold.n_regions = 1;
        vm.hold.region[0] = (struct pager_hold_region){ (uintptr_t) map, MIB, 0 };
        vm.hold.pid = getpid();
        assert_ok(pager_unmapped(&vm, &b, &n));
        assert_int_equal(n, 0);
        assert_ptr_equal(mmap(map + 0x4000, 0x2000, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), map + 0x4000);
        assert_ok(pager_unmapped(&vm, &b, &n));
        assert_int_equal(n, 1);
        (void) munmap(map, MIB);
}

int main(void) {
        const struct CMUnitTest tests[] = {
#define T(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
                T(test_healthy),         T(test_mute),          T(test_stopped),  T(test_hung_worker),
                T(test_stuck_in_a_read), T(test_serves_nobody), T(test_garbage),  T(test_idle),
                T(test_suspects),        T(test_mad_recorder),  T(test_unmapped), T(test_unmapped_refuses),
                T(test_unmapped_real),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
