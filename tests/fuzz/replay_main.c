/* SPDX-License-Identifier: MIT */
/* Runs a fuzz target without a fuzzer: over every file of its corpus, then over a fixed number of changed copies
 * of them, the same at every run. So each build, with any compiler and sanitizer, tests every parser.
 *
 *      <target> CORPUS-DIR [MUTATIONS [SEED]]      what ctest does
 *      <target> FILE                               one input, to look into a failure
 *
 * An input that makes the target fail, or takes longer than INPUT_SECONDS, is written to crash-<target> in the
 * current directory. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern void __sanitizer_set_death_callback(void (*fn)(void)) __attribute__((weak));

#define MAX_FILES 1000u
#define MAX_BYTES (1u << 20)
#define MAX_CHANGES 6u
#define INPUT_SECONDS 60u

static struct {
        char name[64]; /* crash-<target> */
        const uint8_t *data;
        size_t size;
} now;

struct corpus {
        size_t n;
        struct {
                uint8_t *data;
                size_t size;
        } file[MAX_FILES];
};

/* Async-signal-safe. */
static void save_input(void) {
        int fd = open(now.name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        if (fd < 0 || !now.data)
                return;
        best_effort(io_write_full(fd, now.data, now.size));
        (void) close_fd(fd);
        best_effort(write(STDERR_FILENO, "the input is in ", 16));
        best_effort(write(STDERR_FILENO, now.name, strlen(now.name)));
        best_effort(write(STDERR_FILENO, "\n", 1));
}

static void on_fatal(int sig) {
        save_input();
        (void) signal(sig, SIG_DFL);
        (void) raise(sig);
}

static void on_alarm(int sig) {
        abort(); /* whoever hangs is then seen in the core */
}

static void run(const uint8_t *data, size_t size) {
        /* Of exactly this size, so that a sanitizer sees a read behind it. */
        uint8_t *copy = malloc(size ? size : 1);

        if (!copy)
                abort();
        memcpy(copy, data, size);
        now.data = copy;
        now.size = size;
        (void) alarm(INPUT_SECONDS);
        (void) LLVMFuzzerTestOneInput(copy, size);
        (void) alarm(0);
        now.data = NULL;
        free(copy);
}

static void add_file(struct corpus *c, const char *path) {
        char *data;

        if (c->n == MAX_FILES)
                return;
        if (io_read_file(AT_FDCWD, path, MAX_BYTES, &data, &c->file[c->n].size) < 0) {
                (void) fprintf(stderr, "cannot read %s\n", path);
                exit(1);
        }
        c->file[c->n++].data = (uint8_t *) data;
}

static int visible(const struct dirent *de) {
        return de->d_name[0] != '.';
}

/* In the order of their names: the mutations depend on it. */
static void add_dir(struct corpus *c, const char *dir) {
        struct dirent **names;
        int n = scandir(dir, &names, visible, alphasort);

        for (int i = 0; i < n; i++) {
                char path[PATH_MAX];

                (void) snprintf(path, sizeof(path), "%s/%s", dir, names[i]->d_name);
                add_file(c, path);
                free(names[i]);
        }
        if (n >= 0)
                free(names);
}

/* xorshift64*: the same numbers everywhere. */
static uint64_t rng_next(uint64_t *s) {
        *s ^= *s >> 12;
        *s ^= *s << 25;
        *s ^= *s >> 27;
        return *s * 0x2545f4914f6cdd1du;
}

static size_t below(uint64_t *s, size_t n) {
        return n ? rng_next(s) % n : 0;
}

/* One change to @buf, which has room for MAX_BYTES bytes. Returns the new size. */
static size_t change(uint64_t *s, const struct corpus *c, uint8_t *buf, size_t size) {
        static const uint64_t edges[] = { 0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0xffffffff, UINT64_MAX };
        size_t at = below(s, size), other = below(s, c->n), from, n;
        uint64_t v;

        switch (rng_next(s) % 8) {
        case 0: /* a bit */
                if (size)
                        buf[at] ^= (uint8_t) (1u << below(s, 8));
                return size;
        case 1: /* a byte */
                if (size)
                        buf[at] = (uint8_t) rng_next(s);
                return size;
        case 2: /* a number at its limits, in either byte order */
                v = edges[below(s, ARRAY_LEN(edges))];
                n = below(s, 4);
                n = MIN_OF((size_t) 1 << n, size - at);
                if (rng_next(s) & 1)
                        v = __builtin_bswap64(v);
                memcpy(buf + at, &v, n);
                return size;
        case 3: /* the end is missing */
                return at;
        case 4: /* a piece is missing */
                n = below(s, size - at + 1);
                memmove(buf + at, buf + at + n, size - at - n);
                return size - n;
        case 5: /* a piece comes twice */
                n = below(s, size - at + 1);
                n = MIN_OF(n, (size_t) (MAX_BYTES - size));
                memmove(buf + at + n, buf + at, size - at);
                return size + n;
        case 6: /* random bytes come between */
                n = 1 + below(s, 16);
                n = MIN_OF(n, (size_t) (MAX_BYTES - size));
                memmove(buf + at + n, buf + at, size - at);
                for (size_t i = 0; i < n; i++)
                        buf[at + i] = (uint8_t) rng_next(s);
                return size + n;
        default: /* the rest is another file's */
                from = below(s, c->file[other].size);
                n = MIN_OF(c->file[other].size - from, (size_t) MAX_BYTES - at);
                memcpy(buf + at, c->file[other].data + from, n);
                return at + n;
        }
}

static void mutate(const struct corpus *c, unsigned long count, uint64_t seed) {
        uint8_t *buf = malloc(MAX_BYTES);
        uint64_t s = seed * 2 + 1;

        if (!buf)
                abort();
        for (unsigned long i = 0; i < count; i++) {
                size_t k = below(&s, c->n), size = c->file[k].size;

                memcpy(buf, c->file[k].data, size);
                for (size_t n = 1 + below(&s, MAX_CHANGES); n > 0; n--)
                        size = change(&s, c, buf, size);
                run(buf, size);
        }
        free(buf);
}

int main(int argc, char **argv) {
        static const int fatal[] = { SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE };
        static struct corpus c;
        const char *slash = strrchr(argv[0], '/');
        unsigned long mutations = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
        uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
        struct stat st;

        if (argc < 2 || argc > 4 || stat(argv[1], &st) < 0) {
                (void) fprintf(stderr, "Usage: %s CORPUS-DIR [MUTATIONS [SEED]] | FILE\n", argv[0]);
                return 2;
        }
        (void) snprintf(now.name, sizeof(now.name), "crash-%s", slash ? slash + 1 : argv[0]);
        for (size_t i = 0; i < ARRAY_LEN(fatal); i++)
                (void) signal(fatal[i], on_fatal);
        (void) signal(SIGALRM, on_alarm);
        if (__sanitizer_set_death_callback)
                __sanitizer_set_death_callback(save_input);
        if (S_ISDIR(st.st_mode))
                add_dir(&c, argv[1]);
        else
                add_file(&c, argv[1]);
        if (c.n == 0) {
                (void) fprintf(stderr, "%s is empty: there is nothing to test with\n", argv[1]);
                return 1;
        }
        run((const uint8_t *) "", 0);
        for (size_t i = 0; i < c.n; i++)
                run(c.file[i].data, c.file[i].size);
        mutate(&c, mutations, seed);
        (void) printf("%zu files, %lu mutations\n", c.n, mutations);
        for (size_t i = 0; i < c.n; i++)
                free(c.file[i].data);
        return 0;
}
