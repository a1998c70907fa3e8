/* SPDX-License-Identifier: MIT */
/* A guest that knows whether its memory and its disk are of one instant.
 *
 * Theory of operation. `instant run MIB DISK` writes all of MIB of memory in order, page by page, pass after pass, as fast as it
 * can. What a page holds follows from its number and from the pass; before a page gets the next pass's content each word of it is
 * compared with that of the pass before. After each pass a *seal*, its number, is written to the disk and through to it; before that
 * the disk must have the seal of the pass before. So at any moment memory has a prefix of pages of one pass and a suffix of
 * the pass before, and the disk the seal of that one or this one; a copy in which a page, or the disk, is of another moment
 * than the rest is noticed by whoever goes on from it, within one pass.
 *
 * Beside that two threads count in turns, each in a page of its own, so that two vCPUs write at the same time: the second may
 * never be ahead of the first, nor behind it by more than one.
 *
 * `instant report N` prints, when N passes more are done, what has been noticed: the state is in a file that others map.
 *
 * `instant fill FILE MIB PASS` writes to a file what memory has after so many passes, `instant check` looks whether it is there. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define WORDS (PAGE / 8)
#define STATE_FILE "/run/instant.state"
#define MAX_MIB 65536u

struct state {
        _Atomic uint64_t passes, seals, turns;
        _Atomic uint64_t wrong_pages, wrong_seals, wrong_turns;
        _Atomic uint64_t page, found, wanted; /* of the first wrong page: which, and two words */
};

static struct state *state;
static uint64_t (*memory)[WORDS], n_pages;
static struct {
        _Alignas(PAGE) _Atomic uint64_t first;
        _Alignas(PAGE) _Atomic uint64_t second;
} turn;

static uint64_t word(uint64_t page, uint64_t pass, unsigned i) {
        return (page * 0x9e3779b97f4a7c15u ^ pass * 0xbf58476d1ce4e5b9u) + i * 0x94d049bb133111ebu;
}

static void check_page(uint64_t page, uint64_t pass) {
        const uint64_t *w = memory[page];

        for (unsigned i = 0; i < WORDS; i++)
                if (w[i] != (pass ? word(page, pass, i) : 0)) {
                        if (atomic_fetch_add(&state->wrong_pages, 1) == 0) {
                                atomic_store(&state->page, page);
                                atomic_store(&state->found, w[i]);
                                atomic_store(&state->wanted, pass);
                        }
                        return;
                }
}

static void *disk_page(void) {
        void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (p == MAP_FAILED)
                exit(1);
        return p;
}

/* Not through the page cache, which would be memory again. */
static void seal(int disk, uint64_t *buf, uint64_t pass) {
        if (pread(disk, buf, PAGE, 0) != PAGE || buf[0] != pass - 1)
                (void) atomic_fetch_add(&state->wrong_seals, 1);
        buf[0] = pass;
        if (pwrite(disk, buf, PAGE, 0) != PAGE)
                (void) atomic_fetch_add(&state->wrong_seals, 1);
        (void) atomic_fetch_add(&state->seals, 1);
}

static void *count_first(void *arg) {
        for (uint64_t n = 1;; n++) {
                uint64_t other;

                while ((other = atomic_load(&turn.second)) == n - 2)
                        (void) sched_yield();
                if (other != n - 1)
                        (void) atomic_fetch_add(&state->wrong_turns, 1);
                atomic_store(&turn.first, n);
                atomic_store_explicit(&state->turns, n, memory_order_relaxed);
        }
        return NULL;
}

static void *count_second(void *arg) {
        for (uint64_t n = 1;; n++) {
                uint64_t other;

                while ((other = atomic_load(&turn.first)) == n - 1)
                        (void) sched_yield();
                if (other != n)
                        (void) atomic_fetch_add(&state->wrong_turns, 1);
                atomic_store(&turn.second, n);
        }
        return NULL;
}

static void start(void *(*fn)(void *) ) {
        pthread_t t;

        if (pthread_create(&t, NULL, fn, NULL) != 0)
                exit(1);
}

static struct state *state_map(int flags) {
        int fd = open(STATE_FILE, O_RDWR | O_CLOEXEC | flags, 0600);
        struct state *s = MAP_FAILED;

        if (fd >= 0 && (flags == 0 || ftruncate(fd, sizeof(*s)) == 0))
                s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (s == MAP_FAILED) {
                (void) fprintf(stderr, "instant: %s: %s\n", STATE_FILE, strerror(errno));
                exit(1);
        }
        (void) close(fd);
        return s;
}

/* Returns at once; a child goes on. */
static int run(uint64_t mib, const char *path) {
        int disk = open(path, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC);
        uint64_t *buf = disk_page();

        if (disk < 0) {
                (void) fprintf(stderr, "instant: %s: %s\n", path, strerror(errno));
                return 1;
        }
        n_pages = (mib << 20) / PAGE;
        memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || pwrite(disk, buf, PAGE, 0) != PAGE) {
                perror("instant");
                return 1;
        }
        state = state_map(O_CREAT | O_TRUNC);
        if (daemon(0, 0) < 0)
                return 1;
        start(count_first);
        start(count_second);
        for (uint64_t pass = 1;; pass++) {
                for (uint64_t page = 0; page < n_pages; page++) {
                        check_page(page, pass - 1);
                        for (unsigned i = 0; i < WORDS; i++)
                                memory[page][i] = word(page, pass, i);
                }
                seal(disk, buf, pass);
                atomic_store(&state->passes, pass);
        }
}

/* When it has gone through so many passes more. */
static int report(uint64_t more) {
        struct state *s = state_map(0);
        uint64_t end = atomic_load(&s->passes) + more;
        struct timespec t = { .tv_nsec = 20000000 };

        while (atomic_load(&s->passes) < end) /* whoever asks has a deadline */
                (void) nanosleep(&t, NULL);
        return printf("{\"passes\":%" PRIu64 ",\"seals\":%" PRIu64 ",\"turns\":%" PRIu64 ",\"wrong_pages\":%" PRIu64
                      ",\"wrong_seals\":%" PRIu64 ",\"wrong_turns\":%" PRIu64 ",\"page\":%" PRIu64 ",\"found\":%" PRIu64
                      ",\"wanted\":%" PRIu64 "}\n",
                      atomic_load(&s->passes), atomic_load(&s->seals), atomic_load(&s->turns), atomic_load(&s->wrong_pages),
                      atomic_load(&s->wrong_seals), atomic_load(&s->wrong_turns), atomic_load(&s->page), atomic_load(&s->found),
                      atomic_load(&s->wanted)) < 0;
}

static int use_file(const char *path, uint64_t mib, uint64_t pass, bool check) {
        int fd = open(path, O_CLOEXEC | O_RDWR | (check ? 0 : O_CREAT | O_TRUNC), 0600);
        uint64_t buf[WORDS], want[WORDS];

        for (uint64_t page = 0; fd >= 0 && page < (mib << 20) / PAGE; page++) {
                for (unsigned i = 0; i < WORDS; i++)
                        want[i] = word(page, pass, i);
                if (check ? read(fd, buf, PAGE) != PAGE : write(fd, want, PAGE) != PAGE)
                        break;
                if (check && memcmp(buf, want, PAGE) != 0) {
                        (void) fprintf(stderr, "instant: page %" PRIu64 " of %s is wrong\n", page, path);
                        return 1;
                }
                if (page + 1 == (mib << 20) / PAGE)
                        return 0;
        }
        perror(path);
        return 1;
}

int main(int argc, char **argv) {
        if (argc == 4 && strcmp(argv[1], "run") == 0) {
                uint64_t mib = strtoull(argv[2], NULL, 10);

                if (mib >= 1 && mib <= MAX_MIB)
                        return run(mib, argv[3]);
        }
        if (argc == 3 && strcmp(argv[1], "report") == 0)
                return report(strtoull(argv[2], NULL, 10));
        if (argc == 5 && (strcmp(argv[1], "fill") == 0 || strcmp(argv[1], "check") == 0))
                return use_file(argv[2], strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), argv[1][0] == 'c');
        (void) fprintf(stderr, "usage: instant run MIB DISK | report PASSES | fill FILE MIB PASS | check FILE MIB PASS\n");
        return 2;
}
