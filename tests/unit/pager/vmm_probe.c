/* SPDX-License-Identifier: MIT */
/* A stand-in for a VMM, to be started with libuffd-attach preloaded: maps the guest-RAM file as QEMU does,
 * then does what it is told, one line of standard input at a time, and answers each with one line.
 *
 *   map                       maps guest RAM (FORKD_ATTACH_RAM_FD, read before main ever runs)
 *   seed FIRST N SEED         what these pages hold is of another seed
 *   verify SEED THREADS       every page once, random order: "ok" or "bad PAGE"
 *   time                      one byte of every page, random order: ns altogether
 *   write PAGE BYTE           fills a page
 *   filled PAGE BYTE          was it filled so before there was this process? "ok"
 *   zeros PAGE N              the same of pages that read zero
 *   advise PAGE N ADVICE      madvise: "ok" or the errno
 *   touch PAGE                reads a page in a thread of its own
 *   touched                   how many such reads have ended
 *   storm SEED ROUNDS         three readers, while pages of the upper half are discarded again and again
 *   hog                       uses up all mappings that the process may have
 *   churn FIRST N             a thread that writes 1 into pages [FIRST, FIRST + N), one behind the other, then 2, and so on
 *   pass                      which number it is at
 *   halt                      ends it in the middle: "ok NUMBER"
 *   instant FIRST N           are these pages as they were at one moment of that? "ok NUMBER", or "bad PAGE"
 *   unmap FIRST N, remap, again, maps, fork PAGE, env
 *
 * It is built without sanitizers: they would come into every process before the preloaded library. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "content.h"

#define MAX_THREADS 16

enum { FROM_IMAGE, ZERO, FILLED };

static uint8_t *ram;
static uint64_t n_pages;
static uint8_t *expect; /* a state a page */
static uint8_t *fill;
static uint64_t *seeds; /* 0: the one of the command */
static _Atomic unsigned touched;
static int ram_fd = -1;
static bool fresh;

/* The library removes its variables in its constructor, which runs first: the number comes as argument. */
static void map_ram(void) {
        struct stat st;
        char path[64];
        int fd;

        snprintf(path, sizeof(path), "/proc/self/fd/%d", ram_fd);
        fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &st) < 0) {
                printf("error open %d\n", errno);
                return;
        }
        n_pages = (uint64_t) st.st_size / TEST_PAGE;
        /* as QEMU does: reserve with a guard page, then map into it */
        uint8_t *at = mmap(NULL, (size_t) st.st_size + TEST_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ram = mmap(at, (size_t) st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
        if (ram == MAP_FAILED) {
                printf("error mmap %d\n", errno);
                return;
        }
        expect = calloc(n_pages, 1);
        fill = calloc(n_pages, 1);
        seeds = calloc(n_pages, sizeof(*seeds));
        if (fresh)
                memset(expect, ZERO, n_pages);
        printf("ok %llu\n", (unsigned long long) n_pages);
}

struct walk {
        pthread_t thread;
        uint64_t seed, order, bad; /* bad: page + 1 */
};

static bool page_is_good(uint64_t seed, uint64_t page) {
        uint8_t want[TEST_PAGE];

        if (expect[page] == FROM_IMAGE)
                content_fill(seeds[page] ? seeds[page] : seed, page, want);
        else
                memset(want, expect[page] == ZERO ? 0 : fill[page], sizeof(want));
        return memcmp(ram + page * TEST_PAGE, want, sizeof(want)) == 0;
}

static void *walk_main(void *arg) {
        struct walk *w = arg;
        uint64_t size = next_pow2(n_pages), mul = mix64(w->order) | 1, add = mix64(w->order + 1);

        for (uint64_t i = 0; i < size; i++) {
                uint64_t page = (i * mul + add) & (size - 1);

                if (page < n_pages && !page_is_good(w->seed, page)) {
                        w->bad = page + 1;
                        break;
                }
        }
        return NULL;
}

static void verify(uint64_t seed, unsigned threads) {
        struct walk w[MAX_THREADS] = { 0 };
        uint64_t bad = 0;

        threads = threads > MAX_THREADS ? MAX_THREADS : threads;
        for (unsigned i = 0; i < threads; i++) {
                w[i] = (struct walk){ .seed = seed, .order = mix64((uint64_t) getpid() + i) };
                pthread_create(&w[i].thread, NULL, walk_main, &w[i]);
        }
        for (unsigned i = 0; i < threads; i++) {
                pthread_join(w[i].thread, NULL);
                bad = w[i].bad ? w[i].bad : bad;
        }
        if (bad)
                printf("bad %llu\n", (unsigned long long) (bad - 1));
        else
                printf("ok\n");
}

static void verify_range(uint64_t seed, uint64_t first, unsigned n) {
        for (uint64_t page = first; page < first + n; page++)
                if (!page_is_good(seed, page)) {
                        printf("bad %llu\n", (unsigned long long) page);
                        return;
                }
        printf("ok\n");
}

static uint64_t ns(void) {
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

static void time_touches(void) {
        uint64_t size = next_pow2(n_pages), mul = mix64(7) | 1, start;

        start = ns();
        for (uint64_t i = 0; i < size; i++) {
                uint64_t page = (i * mul) & (size - 1);

                if (page < n_pages)
                        (void) *(volatile uint8_t *) (ram + page * TEST_PAGE);
        }
        printf("ok %llu\n", (unsigned long long) (ns() - start));
}

static void *touch_main(void *arg) {
        volatile uint8_t *p = arg;

        (void) *p;
        atomic_fetch_add(&touched, 1);
        return NULL;
}

static void touch(uint64_t page) {
        pthread_t t;

        pthread_create(&t, NULL, touch_main, ram + page * TEST_PAGE);
        pthread_detach(t);
        printf("ok\n");
}

static void advise(uint64_t page, uint64_t n, int advice) {
        int r = madvise(ram + page * TEST_PAGE, n * TEST_PAGE, advice);

        if (r < 0) {
                printf("errno %d\n", errno);
                return;
        }
        if (advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_REMOVE)
                memset(expect + page, ZERO, n);
        printf("ok\n");
}

static _Atomic bool storm_over;
static _Atomic uint64_t storm_bad;

/** Reads pages of the lower half, which must stay as they are, and of the upper half, which may turn to zero
 *  at any moment but never to anything else. */
static void *storm_reader(void *arg) {
        uint64_t seed = *(uint64_t *) arg, x = mix64((uintptr_t) pthread_self());
        uint8_t want[TEST_PAGE], got[TEST_PAGE];

        while (!storm_over) {
                uint64_t page = (x = mix64(x)) % n_pages;

                content_fill(seeds[page] ? seeds[page] : seed, page, want);
                memcpy(got, ram + page * TEST_PAGE, TEST_PAGE);
                for (unsigned i = 0; i < TEST_PAGE; i += 8) {
                        uint64_t g, w;

                        memcpy(&g, got + i, 8);
                        memcpy(&w, want + i, 8);
                        if (g != w && (g != 0 || page < n_pages / 2))
                                storm_bad = page + 1;
                }
        }
        return NULL;
}

static void storm(uint64_t seed, unsigned rounds) {
        pthread_t t[3];
        uint64_t x = 1;

        storm_over = false;
        for (unsigned i = 0; i < 3; i++)
                pthread_create(&t[i], NULL, storm_reader, &seed);
        for (unsigned i = 0; i < rounds && !storm_bad; i++) {
                uint64_t page = n_pages / 2 + (x = mix64(x)) % (n_pages / 2 - 8), n = 1 + x % 7;

                if (madvise(ram + page * TEST_PAGE, n * TEST_PAGE, MADV_DONTNEED) < 0)
                        storm_bad = page + 1;
                memset(expect + page, ZERO, n);
                for (uint64_t p = page; p < page + n; p++)
                        if (!page_is_good(seed, p))
                                storm_bad = p + 1;
        }
        storm_over = true;
        for (unsigned i = 0; i < 3; i++)
                pthread_join(t[i], NULL);
        if (storm_bad)
                printf("bad %llu\n", (unsigned long long) (storm_bad - 1));
        else
                printf("ok\n");
}

/* ---- one moment ---- */

static pthread_t churn_thread;
static _Atomic bool churn_over;
static _Atomic uint64_t churn_pass;
static uint64_t churn_first, churn_n;

static void *churn_main(void *arg) {
        for (uint64_t pass = 1; !churn_over; pass++)
                for (uint64_t p = churn_first; p < churn_first + churn_n && !churn_over; p++) {
                        *(volatile uint64_t *) (ram + p * TEST_PAGE) = pass;
                        *(volatile uint64_t *) (ram + (p + 1) * TEST_PAGE - 8) = pass;
                        expect[p] = FILLED;
                        churn_pass = pass;
                }
        return arg;
}

static void churn(uint64_t first, uint64_t n) {
        churn_first = first;
        churn_n = n;
        churn_over = false;
        churn_pass = 0;
        pthread_create(&churn_thread, NULL, churn_main, NULL);
        printf("ok\n");
}

static void halt(void) {
        churn_over = true;
        pthread_join(churn_thread, NULL);
        printf("ok %llu\n", (unsigned long long) churn_pass);
}

/** Pages of pass n, then pages of pass n - 1; in the page between the two its end may be behind. */
static void instant(uint64_t first, uint64_t n) {
        uint64_t pass = *(volatile uint64_t *) (ram + first * TEST_PAGE), now = pass;

        for (uint64_t p = first; p < first + n; p++) {
                uint64_t head = *(volatile uint64_t *) (ram + p * TEST_PAGE);
                uint64_t tail = *(volatile uint64_t *) (ram + (p + 1) * TEST_PAGE - 8);
                bool good = head == now && tail == now;

                if (!good && now == pass && (head == pass || head == pass - 1) && tail == pass - 1) {
                        now = pass - 1;
                        good = true;
                }
                if (!good) {
                        printf("bad %llu: %llu %llu in pass %llu\n", (unsigned long long) p, (unsigned long long) head,
                               (unsigned long long) tail, (unsigned long long) pass);
                        return;
                }
        }
        printf("ok %llu\n", (unsigned long long) pass);
}

/** A child must not have guest memory at all: reading it there would put zeros into the image. */
static void fork_and_read(uint64_t page) {
        int status;
        pid_t pid = fork();

        if (pid == 0)
                _exit(ram[page * TEST_PAGE] ? 1 : 2);
        waitpid(pid, &status, 0);
        printf("%s\n", WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV ? "ok" : "read");
}

static void count_mappings(void) {
        FILE *f = fopen("/proc/self/maps", "re");
        int lines = 0;

        for (int c; f && (c = fgetc(f)) != EOF;)
                lines += c == '\n';
        if (f)
                fclose(f);
        printf("ok %d\n", lines);
}

/** Splits a mapping until the kernel allows no more. */
static void hog_mappings(void) {
        size_t n = 1u << 18;
        uint8_t *p = mmap(NULL, n * TEST_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        for (size_t i = 1; i < n; i += 2)
                if (mprotect(p + i * TEST_PAGE, TEST_PAGE, PROT_READ) < 0) {
                        printf("%s\n", errno == ENOMEM ? "ok" : "errno");
                        return;
                }
        printf("no end\n");
}

int main(int argc, char **argv) {
        char line[128];

        setvbuf(stdout, NULL, _IOLBF, 0);
        if (argc < 2)
                return 2;
        ram_fd = atoi(argv[1]);
        fresh = argc > 2;
        while (fgets(line, sizeof(line), stdin)) {
                unsigned long long a = 0, b = 0;
                char cmd[16] = "";
                int c = 0;

                if (sscanf(line, "%15s %llu %llu %d", cmd, &a, &b, &c) < 1)
                        continue;
                if (!strcmp(cmd, "map"))
                        map_ram();
                else if (!strcmp(cmd, "verify"))
                        verify(a, (unsigned) b);
                else if (!strcmp(cmd, "seed")) {
                        for (unsigned long long p = a; p < a + b; p++)
                                seeds[p] = (uint64_t) c;
                        printf("ok\n");
                } else if (!strcmp(cmd, "range"))
                        verify_range(a, b, (unsigned) c);
                else if (!strcmp(cmd, "time"))
                        time_touches();
                else if (!strcmp(cmd, "write")) {
                        memset(ram + a * TEST_PAGE, (int) b, TEST_PAGE);
                        expect[a] = FILLED;
                        fill[a] = (uint8_t) b;
                        printf("ok\n");
                } else if (!strcmp(cmd, "filled")) {
                        /* written before we came; from here on it is known */
                        expect[a] = FILLED;
                        fill[a] = (uint8_t) b;
                        verify_range(0, a, 1);
                } else if (!strcmp(cmd, "zeros")) {
                        memset(expect + a, ZERO, b);
                        verify_range(0, a, (unsigned) b);
                } else if (!strcmp(cmd, "advise"))
                        advise(a, b, c);
                else if (!strcmp(cmd, "touch"))
                        touch(a);
                else if (!strcmp(cmd, "touched"))
                        printf("ok %u\n", touched);
                else if (!strcmp(cmd, "storm"))
                        storm(a, (unsigned) b);
                else if (!strcmp(cmd, "unmap"))
                        printf("%s\n", munmap(ram + a * TEST_PAGE, b * TEST_PAGE) < 0 ? "refused" : "ok");
                else if (!strcmp(cmd, "remap"))
                        printf("%s\n", mremap(ram, TEST_PAGE, 2 * TEST_PAGE, MREMAP_MAYMOVE) == MAP_FAILED ? "refused" : "ok");
                else if (!strcmp(cmd, "again"))
                        map_ram();
                else if (!strcmp(cmd, "churn"))
                        churn(a, b);
                else if (!strcmp(cmd, "pass"))
                        printf("ok %llu\n", (unsigned long long) churn_pass);
                else if (!strcmp(cmd, "halt"))
                        halt();
                else if (!strcmp(cmd, "instant"))
                        instant(a, b);
                else if (!strcmp(cmd, "hog"))
                        hog_mappings();
                else if (!strcmp(cmd, "maps"))
                        count_mappings();
                else if (!strcmp(cmd, "fork"))
                        fork_and_read(a);
                else if (!strcmp(cmd, "env"))
                        printf("%s\n", getenv("LD_PRELOAD") || getenv("FORKD_ATTACH_RAM_FD") ? "there" : "ok");
                else
                        printf("what?\n");
        }
        return 0;
}
