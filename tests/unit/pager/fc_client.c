/* SPDX-License-Identifier: MIT */
/* A stand-in for Firecracker's snapshot load: maps guest memory of its own, registers a userfaultfd for it, and sends
 * the handshake as Firecracker does: one message, no answer expected, the socket kept. Then it does what it is told,
 * one line of standard input at a time, and answers each with one line.
 *
 *   layout PAGES REGIONS [huge|memfd]   maps guest memory: regions in an order and with gaps of their own
 *   features MASK                       of the userfaultfd; without it what Firecracker asks for
 *   attach HOW [PATH]                   connects to PATH, or takes descriptor 12. HOW: 0 as Firecracker 1.0 to 1.6,
 *                                       1 as 1.7, 2 as today; + 10: a byte at a time; + 20: half of it
 *   seed FIRST N SEED                   what these pages hold is of another seed
 *   verify SEED THREADS                 every page once, random order: "ok" or "bad PAGE"
 *   range SEED FIRST N                  these pages, in their order: "ok" or "bad PAGE"
 *   time                                one byte of every page, random order: ns altogether
 *   write PAGE BYTE                     fills a page
 *   discard PAGE N                      MADV_DONTNEED, as the balloon does
 *   unmap PAGE N                        and maps fresh registered memory there: reads zero
 *   move PAGE N HOW                     mremap to a new place; HOW: 0 plain, 1 MREMAP_DONTUNMAP, 2 onto an old place
 *   scatter                             moves every other page to a place of its own
 *   chase SEED ROUNDS                   moves untouched pages to where another thread reads all the time
 *   churn SEED ROUNDS                   readers, while pages of the upper half are discarded and moved all the time
 *   flood THREADS                       as many threads discard a page each, again and again, until the end
 *   touch PAGE                          reads a page in a thread of its own
 *   touched                             how many such reads have ended
 *   outside                             touches registered memory that the handshake did not tell of
 *   fork                                forks (with EVENT_FORK among the features)
 *   hangup                              closes the socket
 *   private                             KiB of anonymous memory
 *
 * It is built without sanitizers: they would watch every byte that it compares. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "content.h"

#define MAX_THREADS 64
#define MAX_REGIONS 1100
#define HUGE_PAGE (2u << 20)
#define SOCK_FD 12

enum { FROM_IMAGE, ZERO, FILLED };

struct range {
        uint8_t *at;
        uint64_t page, n;
};

static struct {
        uint64_t n_pages, page_size;
        uint8_t **at; /* where each guest page is */
        uint8_t *expect, *fill;
        uint64_t *seeds;                  /* 0: the one of the command */
        struct range region[MAX_REGIONS]; /* as told in the handshake */
        size_t n_regions;
        struct range ghost[64]; /* addresses that guest memory has left: they read zero */
        size_t n_ghosts;
        uint64_t features;
        int uffd, sock;
        uint8_t *outside;
} vm = { .features = UFFD_FEATURE_EVENT_REMOVE, .uffd = -1, .sock = -1 };

static _Atomic unsigned touched;

/* ---- memory ---- */

static uint8_t *map_at(uint8_t *at, uint64_t bytes, const char *kind) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0), fd = -1;

        if (!strcmp(kind, "huge"))
                flags |= MAP_HUGETLB;
        if (!strcmp(kind, "memfd")) {
                fd = memfd_create("fc-ram", MFD_CLOEXEC);
                if (fd < 0 || ftruncate(fd, (off_t) bytes) < 0)
                        return MAP_FAILED;
                flags = MAP_SHARED | MAP_NORESERVE | (at ? MAP_FIXED : 0);
        }
        at = mmap(at, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
        if (fd >= 0)
                close(fd);
        return at;
}

/** Regions of equal size, the last takes the rest. Neighbours in guest memory lie far apart: even ones ascend from
 *  the start, odd ones descend from the end, and there is a gap behind each. */
static void make_layout(uint64_t pages, size_t regions, const char *kind) {
        uint64_t unit = !strcmp(kind, "huge") ? HUGE_PAGE : TEST_PAGE, per_unit = unit / TEST_PAGE;
        uint64_t each = pages / per_unit / regions * per_unit, slot, page = 0;
        uint8_t *space;

        vm.page_size = unit;
        vm.n_pages = pages;
        if (regions == 0 || regions > MAX_REGIONS || each == 0) {
                printf("what?\n");
                return;
        }
        slot = (pages - each * (regions - 1) + 3 * per_unit) * TEST_PAGE; /* the last region is the largest */
        slot = (slot + unit - 1) / unit * unit;
        space = mmap(NULL, slot * regions + unit, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (space == MAP_FAILED) {
                printf("errno %d\n", errno);
                return;
        }
        space = (uint8_t *) (((uintptr_t) space + unit - 1) / unit * unit);
        vm.at = calloc(pages, sizeof(*vm.at));
        vm.expect = calloc(pages, 1);
        vm.fill = calloc(pages, 1);
        vm.seeds = calloc(pages, sizeof(*vm.seeds));
        for (size_t i = 0; i < regions; i++) {
                size_t place = i % 2 ? regions - 1 - i / 2 : i / 2;
                uint64_t n = i == regions - 1 ? pages - page : each;
                uint8_t *at = map_at(space + place * slot, n * TEST_PAGE, kind);

                if (at == MAP_FAILED) {
                        printf("errno %d\n", errno);
                        return;
                }
                vm.region[vm.n_regions++] = (struct range){ at, page, n };
                for (uint64_t k = 0; k < n; k++)
                        vm.at[page + k] = at + k * TEST_PAGE;
                page += n;
        }
        printf("ok %zu\n", vm.n_regions);
}

/* ---- the handshake ---- */

static int register_range(uint8_t *at, uint64_t bytes) {
        struct uffdio_register reg = { .range = { (uintptr_t) at, bytes }, .mode = UFFDIO_REGISTER_MODE_MISSING };

        return ioctl(vm.uffd, UFFDIO_REGISTER, &reg);
}

static int make_uffd(void) {
        struct uffdio_api api = { .api = UFFD_API, .features = vm.features };

        vm.uffd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        if (vm.uffd < 0 || ioctl(vm.uffd, UFFDIO_API, &api) < 0)
                return -1;
        for (size_t i = 0; i < vm.n_regions; i++)
                if (register_range(vm.region[i].at, vm.region[i].n * TEST_PAGE) < 0)
                        return -1;
        vm.outside = map_at(NULL, TEST_PAGE, "");
        return register_range(vm.outside, TEST_PAGE);
}

static int connect_to(const char *path) {
        struct sockaddr_un sa = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
        return fd < 0 || connect(fd, (struct sockaddr *) &sa, sizeof(sa)) < 0 ? -1 : fd;
}

static char *handshake(int how, size_t *ret_len) {
        size_t cap = vm.n_regions * 200 + 16, len = 0;
        char *json = malloc(cap);

        json[len++] = '[';
        for (size_t i = 0; i < vm.n_regions; i++) {
                const struct range *g = &vm.region[i];

                len += (size_t) snprintf(json + len, cap - len, "%s{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu",
                                         i ? "," : "", (unsigned long long) (uintptr_t) g->at,
                                         (unsigned long long) (g->n * TEST_PAGE), (unsigned long long) (g->page * TEST_PAGE));
                if (how == 2)
                        len += (size_t) snprintf(json + len, cap - len, ",\"page_size\":%llu", (unsigned long long) vm.page_size);
                if (how >= 1)
                        len += (size_t) snprintf(json + len, cap - len, ",\"page_size_kib\":%llu",
                                                 (unsigned long long) vm.page_size);
                json[len++] = '}';
        }
        json[len++] = ']';
        *ret_len = len;
        return json;
}

static ssize_t send_with_fd(const char *data, size_t len, int fd) {
        union {
                char buf[CMSG_SPACE(sizeof(int))];
                struct cmsghdr align;
        } control = { 0 };
        struct iovec iov = { .iov_base = (void *) data, .iov_len = len };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

        if (fd >= 0) {
                msg.msg_control = control.buf;
                msg.msg_controllen = sizeof(control.buf);
                struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(sizeof(int));
                memcpy(CMSG_DATA(c), &fd, sizeof(int));
        }
        return sendmsg(vm.sock, &msg, MSG_NOSIGNAL);
}

static void attach(int how, const char *path) {
        size_t len, done = 0;
        char *json = handshake(how % 10, &len);

        if (make_uffd() < 0) {
                printf("errno %d\n", errno);
                return;
        }
        vm.sock = path[0] ? connect_to(path) : SOCK_FD;
        if (vm.sock < 0) {
                printf("errno %d\n", errno);
                return;
        }
        if (how >= 20)
                len /= 2;
        while (done < len) {
                ssize_t n = send_with_fd(json + done, how / 10 == 1 ? 1 : len - done, done == 0 ? vm.uffd : -1);

                if (n <= 0) {
                        printf("errno %d\n", errno);
                        return;
                }
                done += (size_t) n;
        }
        free(json);
        printf("ok\n");
}

/* ---- checking ---- */

static bool page_is_good(uint64_t seed, uint64_t page) {
        uint8_t want[TEST_PAGE];

        if (vm.expect[page] == FROM_IMAGE)
                content_fill(vm.seeds[page] ? vm.seeds[page] : seed, page, want);
        else
                memset(want, vm.expect[page] == ZERO ? 0 : vm.fill[page], sizeof(want));
        return memcmp(vm.at[page], want, sizeof(want)) == 0;
}

struct walk {
        pthread_t thread;
        uint64_t seed, order, bad; /* bad: page + 1 */
};

static void *walk_main(void *arg) {
        struct walk *w = arg;
        uint64_t size = next_pow2(vm.n_pages), mul = mix64(w->order) | 1, add = mix64(w->order + 1);

        for (uint64_t i = 0; i < size; i++) {
                uint64_t page = (i * mul + add) & (size - 1);

                if (page < vm.n_pages && !page_is_good(w->seed, page)) {
                        w->bad = page + 1;
                        break;
                }
        }
        return NULL;
}

static bool ghosts_are_zero(void) {
        static const uint8_t zero[TEST_PAGE];

        for (size_t i = 0; i < vm.n_ghosts; i++)
                for (uint64_t k = 0; k < vm.ghost[i].n; k++)
                        if (memcmp(vm.ghost[i].at + k * TEST_PAGE, zero, TEST_PAGE) != 0)
                                return false;
        return true;
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
        else if (!ghosts_are_zero())
                printf("bad: an address that was left is not zero\n");
        else
                printf("ok\n");
}

static void range(uint64_t seed, uint64_t first, uint64_t n) {
        for (uint64_t page = first; page < first + n && page < vm.n_pages; page++)
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
        uint64_t size = next_pow2(vm.n_pages), mul = mix64(7) | 1, start = ns();

        for (uint64_t i = 0; i < size; i++) {
                uint64_t page = (i * mul) & (size - 1);

                if (page < vm.n_pages)
                        (void) *(volatile uint8_t *) vm.at[page];
        }
        printf("ok %llu\n", (unsigned long long) (ns() - start));
}

/* ---- what a VMM does to its memory ---- */

static bool contiguous(uint64_t page, uint64_t n) {
        for (uint64_t k = 1; k < n; k++)
                if (page + k >= vm.n_pages || vm.at[page + k] != vm.at[page] + k * TEST_PAGE)
                        return false;
        return n > 0 && page < vm.n_pages;
}

static int discard(uint64_t page, uint64_t n) {
        if (!contiguous(page, n) || madvise(vm.at[page], n * TEST_PAGE, MADV_DONTNEED) < 0)
                return -1;
        memset(vm.expect + page, ZERO, n);
        return 0;
}

static int unmap(uint64_t page, uint64_t n) {
        const char *kind = vm.page_size == HUGE_PAGE ? "huge" : "";

        if (!contiguous(page, n) || munmap(vm.at[page], n * TEST_PAGE) < 0 ||
            map_at(vm.at[page], n * TEST_PAGE, kind) == MAP_FAILED || register_range(vm.at[page], n * TEST_PAGE) < 0)
                return -1;
        memset(vm.expect + page, ZERO, n);
        return 0;
}

static int move(uint64_t page, uint64_t n, int how) {
        uint64_t bytes = n * TEST_PAGE;
        uint8_t *to = NULL, *from = contiguous(page, n) ? vm.at[page] : NULL, *now;

        if (!from)
                return -1;
        if (how == 2 && vm.n_ghosts > 0 && vm.ghost[vm.n_ghosts - 1].n == n) {
                to = vm.ghost[--vm.n_ghosts].at;
        } else {
                to = mmap(NULL, bytes + 2 * vm.page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
                if (to == MAP_FAILED)
                        return -1;
                to = (uint8_t *) (((uintptr_t) to + vm.page_size - 1) / vm.page_size * vm.page_size);
        }
        now = mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | (how == 1 ? MREMAP_DONTUNMAP : 0), to);
        if (now == MAP_FAILED)
                return -1;
        if (how == 1 && vm.n_ghosts < sizeof(vm.ghost) / sizeof(vm.ghost[0]))
                vm.ghost[vm.n_ghosts++] = (struct range){ from, 0, n };
        for (uint64_t k = 0; k < n; k++)
                vm.at[page + k] = now + k * TEST_PAGE;
        return 0;
}

static void scatter(void) {
        for (uint64_t page = 0; page + 1 < vm.n_pages; page += 2)
                if (move(page, 1, 0) < 0) {
                        printf("errno %d\n", errno);
                        return;
                }
        printf("ok\n");
}

#define CHASE_PAGES 4
#define CHASE_MARK 0xee

static uint8_t *_Atomic chased;
static _Atomic bool chase_over;
static _Atomic uint64_t chase_seen;

static void *chase_reader(void *arg) {
        while (!chase_over) {
                volatile uint8_t *at = chased;
                uint64_t sum = 0;

                for (unsigned i = 0; at && i < CHASE_PAGES; i++)
                        sum += at[i * TEST_PAGE];
                chase_seen = chase_seen + 1 + (sum == 0);
        }
        return NULL;
}

/** The reader knows the new address before mremap returns: it may fault there before the pager hears of the move. */
static void chase(uint64_t seed, unsigned rounds) {
        uint64_t bytes = CHASE_PAGES * TEST_PAGE, bad = 0;
        pthread_t t;

        pthread_create(&t, NULL, chase_reader, NULL);
        for (uint64_t page = 0; rounds > 0 && page + CHASE_PAGES < vm.n_pages && !bad; rounds--, page += CHASE_PAGES) {
                uint8_t *to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                uint64_t before;

                memset(to, CHASE_MARK, bytes);
                chased = to;
                for (before = chase_seen; chase_seen < before + 3;) {
                }
                if (mremap(vm.at[page], bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
                        bad = page + 1;
                for (unsigned i = 0; i < CHASE_PAGES; i++) {
                        vm.at[page + i] = to + i * TEST_PAGE;
                        if (!page_is_good(seed, page + i))
                                bad = page + i + 1;
                }
        }
        chase_over = true;
        pthread_join(t, NULL);
        if (bad)
                printf("bad %llu\n", (unsigned long long) (bad - 1));
        else
                printf("ok\n");
}

static _Atomic bool churn_over;
static _Atomic uint64_t churn_bad;

/** Reads pages of the lower half, which must stay as they are, and of the third quarter, which may turn to zero at any
 *  moment but never to anything else. The last quarter moves. */
static void *churn_reader(void *arg) {
        uint64_t seed = *(uint64_t *) arg, x = mix64((uintptr_t) pthread_self());
        uint8_t want[TEST_PAGE], got[TEST_PAGE];

        while (!churn_over) {
                uint64_t page = (x = mix64(x)) % (vm.n_pages / 4 * 3);

                content_fill(seed, page, want);
                memcpy(got, vm.at[page], TEST_PAGE);
                for (unsigned i = 0; i < TEST_PAGE; i += 8) {
                        uint64_t g, w;

                        memcpy(&g, got + i, 8);
                        memcpy(&w, want + i, 8);
                        if (g != w && (g != 0 || page < vm.n_pages / 2))
                                churn_bad = page + 1;
                }
        }
        return NULL;
}

/** Needs a layout of one region, and EVENT_REMAP. */
static void churn(uint64_t seed, unsigned rounds) {
        uint64_t half = vm.n_pages / 2, last = vm.n_pages / 4 * 3, x = 1;
        pthread_t t[3];

        churn_over = false;
        for (unsigned i = 0; i < 3; i++)
                pthread_create(&t[i], NULL, churn_reader, &seed);
        for (unsigned i = 0; i < rounds && !churn_bad; i++) {
                uint64_t n = 1 + (x = mix64(x)) % 7, page = half + (x = mix64(x)) % (last - half - n);

                if (discard(page, n) < 0)
                        churn_bad = page + 1;
                for (uint64_t p = page; p < page + n; p++)
                        if (!page_is_good(seed, p))
                                churn_bad = p + 1;
                n = 1 + (x = mix64(x)) % 7;
                page = last + (x = mix64(x)) % (vm.n_pages - last - n);
                if (i % 8 == 0 && contiguous(page, n) && move(page, n, 0) < 0)
                        churn_bad = page + 1;
                for (uint64_t p = page; p < page + n; p++)
                        if (!page_is_good(seed, p))
                                churn_bad = p + 1;
        }
        churn_over = true;
        for (unsigned i = 0; i < 3; i++)
                pthread_join(t[i], NULL);
        if (churn_bad)
                printf("bad %llu\n", (unsigned long long) (churn_bad - 1));
        else
                printf("ok\n");
}

static void *flood_main(void *arg) {
        for (;;)
                (void) madvise(arg, TEST_PAGE, MADV_DONTNEED);
        return NULL;
}

static void flood(uint64_t threads) {
        for (uint64_t i = 0; i < threads && i < vm.n_pages; i++) {
                pthread_t t;

                vm.expect[i] = ZERO;
                pthread_create(&t, NULL, flood_main, vm.at[i]);
                pthread_detach(t);
        }
        printf("ok\n");
}

static void *touch_main(void *arg) {
        (void) *(volatile uint8_t *) arg;
        atomic_fetch_add(&touched, 1);
        return NULL;
}

static void touch(uint8_t *at) {
        pthread_t t;

        pthread_create(&t, NULL, touch_main, at);
        pthread_detach(t);
        printf("ok\n");
}

static void print_private(void) {
        FILE *f = fopen("/proc/self/smaps_rollup", "re");
        unsigned long kib = 0, huge = 0;
        char line[128];

        while (f && fgets(line, sizeof(line), f)) {
                (void) sscanf(line, "Anonymous: %lu", &kib);
                (void) sscanf(line, "Private_Hugetlb: %lu", &huge);
        }
        if (f)
                fclose(f);
        printf("ok %lu\n", kib + huge);
}

static void *fork_main(void *arg) {
        pid_t pid = fork();

        if (pid == 0)
                _exit(0);
        waitpid(pid, NULL, 0);
        atomic_fetch_add(&touched, 1);
        return NULL;
}

static void do_line(const char *line) {
        unsigned long long a = 0, b = 0, c = 0;
        char cmd[16] = "", word[108] = "";

        if (sscanf(line, "%15s", cmd) < 1)
                return;
        (void) sscanf(line, "%*s %llu %llu %llu", &a, &b, &c);
        if (!strcmp(cmd, "layout")) {
                (void) sscanf(line, "%*s %*u %*u %15s", word);
                make_layout(a, b, word);
        } else if (!strcmp(cmd, "attach")) {
                (void) sscanf(line, "%*s %*u %107s", word);
                attach((int) a, word);
        } else if (!strcmp(cmd, "features")) {
                vm.features = a;
                printf("ok\n");
        } else if (!strcmp(cmd, "verify")) {
                verify(a, (unsigned) b);
        } else if (!strcmp(cmd, "seed")) {
                for (uint64_t p = a; p < a + b; p++)
                        vm.seeds[p] = (uint64_t) c;
                printf("ok\n");
        } else if (!strcmp(cmd, "range")) {
                range(a, b, c);
        } else if (!strcmp(cmd, "time")) {
                time_touches();
        } else if (!strcmp(cmd, "write")) {
                memset(vm.at[a], (int) b, TEST_PAGE);
                vm.expect[a] = FILLED;
                vm.fill[a] = (uint8_t) b;
                printf("ok\n");
        } else if (!strcmp(cmd, "discard")) {
                printf("%s\n", discard(a, b) < 0 ? "failed" : "ok");
        } else if (!strcmp(cmd, "unmap")) {
                printf("%s\n", unmap(a, b) < 0 ? "failed" : "ok");
        } else if (!strcmp(cmd, "move")) {
                printf("%s\n", move(a, b, (int) c) < 0 ? "failed" : "ok");
        } else if (!strcmp(cmd, "scatter")) {
                scatter();
        } else if (!strcmp(cmd, "chase")) {
                chase(a, (unsigned) b);
        } else if (!strcmp(cmd, "churn")) {
                churn(a, (unsigned) b);
        } else if (!strcmp(cmd, "flood")) {
                flood(a);
        } else if (!strcmp(cmd, "touch")) {
                touch(vm.at[a]);
        } else if (!strcmp(cmd, "touched")) {
                printf("ok %u\n", touched);
        } else if (!strcmp(cmd, "outside")) {
                touch(vm.outside);
        } else if (!strcmp(cmd, "fork")) {
                pthread_t t;

                pthread_create(&t, NULL, fork_main, NULL);
                pthread_detach(t);
                printf("ok\n");
        } else if (!strcmp(cmd, "hangup")) {
                close(vm.sock);
                printf("ok\n");
        } else if (!strcmp(cmd, "private")) {
                print_private();
        } else {
                printf("what?\n");
        }
}

int main(void) {
        char line[256];

        setvbuf(stdout, NULL, _IOLBF, 0);
        while (fgets(line, sizeof(line), stdin))
                do_line(line);
        return 0;
}
