/* SPDX-License-Identifier: MIT */
/* A busy guest that would notice.
 *
 * Theory of operation. `churn run` fills memory with pages that tell where they belong: each word follows from a
 * seed, the page's number and how often the page was written. Then, without end, it takes a page at random, compares
 * every byte with what must be there, and rewrites some pages. A page of another place, of another time, of zeros
 * or with one wrong bit is seen at the next look, and told at once on the console, together with what it seems to be.
 *
 * Only one page in WRITTEN is ever rewritten: the others stay clean, so that they can be taken away below the guest
 * and faulted in again, as often as the pager's budget wants.
 *
 * What it sees stands in a file that other processes map: `churn report` prints it, with --reset the longest stall begins
 * anew. A stall is the time from one page to the next, of which there are thousands a second. `churn sweep` has every
 * page looked at once, in order. `churn spoil` makes a page of the running one zero, for who doubts that it would notice. The
 * counters have one writer and are read one by one: they need not fit together. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
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
#define WRITTEN 8            /* one page in so many is rewritten now and then */
#define TELL_NS 250000000ull /* the console hears of the state so often */
#define STATE_FILE "/run/churn.state"
#define MAX_MIB 65536u

struct state {
        _Atomic uint64_t pid, pages, address, reads, writes;
        _Atomic uint64_t wrong;      /* pages that were not as they must be */
        _Atomic uint64_t zero;       /* of these: all zeros */
        _Atomic uint64_t longest_ns; /* between two pages since it was reset */
        _Atomic uint64_t sweeps_wanted, sweeps_done;
};

struct churn {
        struct state *state;
        uint64_t seed, n_pages, random;
        uint64_t (*memory)[WORDS];
        uint32_t *version; /* of each page */
        FILE *console;
        uint64_t last_ns, told_ns;
};

static uint64_t now_ns(void) {
        struct timespec t;

        (void) clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t) t.tv_sec * 1000000000u + (uint64_t) t.tv_nsec;
}

/* splitmix64's finisher: every bit of @x counts in every bit of the result. */
static uint64_t mix(uint64_t x) {
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        return x ^ (x >> 31);
}

/* A page's first two words tell what it is, the others follow from them. */
static uint64_t tag(uint64_t page, uint32_t version) {
        return page << 32 | version;
}

static uint64_t word(uint64_t base, unsigned i) {
        return base + i * 0x9e3779b97f4a7c15u;
}

static void fill(struct churn *c, uint64_t page) {
        uint64_t *w = c->memory[page], base;

        w[0] = c->seed;
        w[1] = tag(page, c->version[page]);
        base = mix(w[0] ^ mix(w[1]));
        for (unsigned i = 2; i < WORDS; i++)
                w[i] = word(base, i);
}

static void tell_wrong(struct churn *c, uint64_t page, unsigned i) {
        const uint64_t *w = c->memory[page];
        bool zero = true;

        for (unsigned k = 0; zero && k < WORDS; k++)
                zero = w[k] == 0;
        (void) atomic_fetch_add(&c->state->wrong, 1);
        if (zero)
                (void) atomic_fetch_add(&c->state->zero, 1);
        (void) fprintf(c->console,
                       "churn: WRONG page %" PRIu64 " version %" PRIu32 " word %u is %016" PRIx64
                       "; all zero: %d; it says seed %016" PRIx64 " page %" PRIu64 " version %" PRIu64 "\n",
                       page, c->version[page], i, w[i], zero, w[0], w[1] >> 32, w[1] & UINT32_MAX);
        (void) fflush(c->console);
}

static void check(struct churn *c, uint64_t page) {
        const uint64_t *w = c->memory[page];
        uint64_t t = tag(page, c->version[page]), base = mix(c->seed ^ mix(t));

        (void) atomic_fetch_add_explicit(&c->state->reads, 1, memory_order_relaxed);
        if (w[0] != c->seed || w[1] != t) {
                tell_wrong(c, page, w[0] != c->seed ? 0 : 1);
                return;
        }
        for (unsigned i = 2; i < WORDS; i++)
                if (w[i] != word(base, i)) {
                        tell_wrong(c, page, i);
                        return;
                }
}

/* The end of one step: how long was it? */
static void stamp(struct churn *c) {
        uint64_t now = now_ns(), gap = now - c->last_ns;

        c->last_ns = now;
        if (gap > atomic_load_explicit(&c->state->longest_ns, memory_order_relaxed))
                atomic_store(&c->state->longest_ns, gap);
        if (now - c->told_ns < TELL_NS)
                return;
        c->told_ns = now;
        (void) fprintf(c->console, "churn: reads %" PRIu64 " wrong %" PRIu64 " longest_ms %" PRIu64 "\n",
                       atomic_load(&c->state->reads), atomic_load(&c->state->wrong),
                       atomic_load(&c->state->longest_ns) / 1000000);
        (void) fflush(c->console);
}

static void sweep(struct churn *c) {
        uint64_t wanted = atomic_load(&c->state->sweeps_wanted);

        for (uint64_t page = 0; page < c->n_pages; page++) {
                check(c, page);
                stamp(c);
        }
        atomic_store(&c->state->sweeps_done, wanted);
}

static void step(struct churn *c) {
        uint64_t page;

        c->random = mix(c->random + 0x9e3779b97f4a7c15u);
        page = (uint64_t) (((unsigned __int128) c->random * c->n_pages) >> 64);
        check(c, page);
        if (page % WRITTEN == 0 && c->random >> 63) {
                c->version[page]++;
                fill(c, page);
                (void) atomic_fetch_add_explicit(&c->state->writes, 1, memory_order_relaxed);
        }
        stamp(c);
        if (atomic_load_explicit(&c->state->sweeps_wanted, memory_order_relaxed) !=
            atomic_load_explicit(&c->state->sweeps_done, memory_order_relaxed))
                sweep(c);
}

/* ---- the file that others read ---- */

static struct state *state_map(int flags) {
        int fd = open(STATE_FILE, O_RDWR | O_CLOEXEC | flags, 0600);
        struct state *s = MAP_FAILED;

        if (fd >= 0 && (flags == 0 || ftruncate(fd, sizeof(*s)) == 0))
                s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (s == MAP_FAILED) {
                (void) fprintf(stderr, "churn: %s: %s\n", STATE_FILE, strerror(errno));
                exit(1);
        }
        (void) close(fd);
        return s;
}

static void *get_memory(size_t size) {
        void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (p == MAP_FAILED) {
                (void) fprintf(stderr, "churn: %zu bytes: %s\n", size, strerror(errno));
                exit(1);
        }
        return p;
}

/* Returns when memory is full of the pattern and a child goes on with it. */
static int run(uint64_t mib, uint64_t seed) {
        struct churn c = { .seed = seed, .random = seed, .n_pages = (mib << 20) / PAGE };

        c.memory = get_memory(mib << 20);
        c.version = get_memory(c.n_pages * sizeof(*c.version));
        for (uint64_t page = 0; page < c.n_pages; page++)
                fill(&c, page);
        c.console = fopen("/dev/console", "we");
        if (!c.console) {
                perror("churn: /dev/console");
                return 1;
        }
        c.state = state_map(O_CREAT | O_TRUNC);
        if (daemon(0, 0) < 0) {
                perror("churn: daemon");
                return 1;
        }
        c.last_ns = now_ns();
        atomic_store(&c.state->pages, c.n_pages);
        atomic_store(&c.state->address, (uint64_t) (uintptr_t) c.memory);
        atomic_store(&c.state->pid, (uint64_t) getpid());
        for (;;)
                step(&c);
}

static int report(bool reset) {
        struct state *s = state_map(0);
        uint64_t longest = reset ? atomic_exchange(&s->longest_ns, 0) : atomic_load(&s->longest_ns);

        return printf("{\"pid\":%" PRIu64 ",\"pages\":%" PRIu64 ",\"reads\":%" PRIu64 ",\"writes\":%" PRIu64 ",\"wrong\":%" PRIu64
                      ",\"zero\":%" PRIu64 ",\"longest_ms\":%.3f}\n",
                      atomic_load(&s->pid), atomic_load(&s->pages), atomic_load(&s->reads), atomic_load(&s->writes),
                      atomic_load(&s->wrong), atomic_load(&s->zero), (double) longest / 1e6) < 0;
}

static int sweep_and_wait(void) {
        struct state *s = state_map(0);
        uint64_t n = atomic_fetch_add(&s->sweeps_wanted, 1) + 1;
        struct timespec t = { .tv_nsec = 20000000 };

        while (atomic_load(&s->sweeps_done) < n) /* whoever asks has a deadline */
                (void) nanosleep(&t, NULL);
        return report(false);
}

static int spoil(uint64_t page) {
        static const char zeros[PAGE];
        struct state *s = state_map(0);
        char path[64];
        int fd;

        (void) snprintf(path, sizeof(path), "/proc/%" PRIu64 "/mem", atomic_load(&s->pid));
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || page >= atomic_load(&s->pages) ||
            pwrite(fd, zeros, PAGE, (off_t) (atomic_load(&s->address) + page * PAGE)) != PAGE) {
                perror("churn: spoil");
                return 1;
        }
        return close(fd);
}

int main(int argc, char **argv) {
        if (argc == 4 && strcmp(argv[1], "run") == 0) {
                uint64_t mib = strtoull(argv[2], NULL, 10);

                if (mib >= 1 && mib <= MAX_MIB)
                        return run(mib, strtoull(argv[3], NULL, 10));
        }
        if (argc >= 2 && strcmp(argv[1], "report") == 0)
                return report(argc == 3 && strcmp(argv[2], "--reset") == 0);
        if (argc == 2 && strcmp(argv[1], "sweep") == 0)
                return sweep_and_wait();
        if (argc == 3 && strcmp(argv[1], "spoil") == 0)
                return spoil(strtoull(argv[2], NULL, 10));
        (void) fprintf(stderr, "usage: churn run MIB SEED | report [--reset] | sweep | spoil PAGE\n");
        return 2;
}
