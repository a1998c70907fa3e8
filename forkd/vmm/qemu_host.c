/* SPDX-License-Identifier: MIT */
/* What this host offers: the program, its version, its firmware, the time stamp counter. The two answers that
 * cost something are kept for the process's life; they describe the host and belong to no object. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"
#include "forkd/vmm/qemu.h"

#define VERSION_TIMEOUT_MS 10000
#define VERSION_MAX 32u
#define TSC_MEASURE_MS 20

int qemu_find(char *buf, size_t size, struct err *e) {
        static const char *const places[] = {
                "/usr/bin/qemu-system-x86_64",
                "/usr/local/bin/qemu-system-x86_64",
                "/usr/libexec/qemu-kvm",
        };
        const char *env = getenv("FORKD_QEMU");

        if (env) {
                if (env[0] != '/' || access(env, X_OK) < 0 || strlen(env) >= size)
                        return err_set(e, ERR_UNSUPPORTED, -ENOENT, "FORKD_QEMU is '%s', which is no path of a program", env);
                (void) snprintf(buf, size, "%s", env);
                return 0;
        }
        for (size_t i = 0; i < ARRAY_LEN(places); i++) {
                if (access(places[i], X_OK) == 0) {
                        (void) snprintf(buf, size, "%s", places[i]);
                        return 0;
                }
        }
        (void) err_set(e, ERR_UNSUPPORTED, -ENOENT, "QEMU is not installed (looked for %s)", places[0]);
        return err_hint(e, "apt-get install qemu-system-x86, or set FORKD_QEMU");
}

int qemu_find_firmware(const char *qemu, char *buf, size_t size) {
        const char *slash = strrchr(qemu, '/');
        int n;

        if (slash) {
                n = snprintf(buf, size, "%.*s/../share/qemu/qboot.rom", (int) (slash - qemu), qemu);
                if (n > 0 && (size_t) n < size && access(buf, R_OK) == 0)
                        return 0;
        }
        n = snprintf(buf, size, "/usr/share/qemu/qboot.rom");
        return n > 0 && (size_t) n < size && access(buf, R_OK) == 0 ? 0 : -ENOENT;
}

/* ---- version ---- */

int qemu_version_parse(const char *text, char *buf, size_t size) {
        static const char key[] = "version ";
        const char *p = strstr(text, key);
        size_t n;

        if (!p)
                return -EBADMSG;
        p += sizeof(key) - 1;
        n = strspn(p, "0123456789.");
        if (n == 0 || n >= size || !isdigit((unsigned char) p[0]))
                return -EBADMSG;
        memcpy(buf, p, n);
        buf[n] = '\0';
        return 0;
}

/* Runs "@qemu --version" and reads what it prints. */
static int ask_version(const char *qemu, char *text, size_t size) {
        const char *const argv[] = { qemu, "--version", NULL }, *const env[] = { "LC_ALL=C", NULL };
        cleanup_fd int rd = -1, wr = -1, pidfd = -1;
        uint64_t start = now_ns();
        struct spawn_fd out;
        size_t len = 0;
        int p[2], r = 0;
        pid_t pid;

        if (pipe2(p, O_CLOEXEC) < 0)
                return -errno;
        rd = p[0];
        wr = p[1];
        out = (struct spawn_fd){ .parent_fd = wr, .child_fd = 1 };
        r = spawn_process(&(struct spawn_params){ .argv = argv,
                                                  .env = env,
                                                  .fds = &out,
                                                  .n_fds = 1,
                                                  .cgroup_fd = -1,
                                                  .death_signal = SIGKILL },
                          &pid, &pidfd);
        if (r < 0)
                return r;
        wr = close_fd(wr);
        while (len < size - 1) {
                struct pollfd pfd = { .fd = rd, .events = POLLIN };
                double left = VERSION_TIMEOUT_MS - ms_since(start);
                ssize_t n;

                if (left <= 0 || poll(&pfd, 1, (int) left + 1) == 0) {
                        r = -ETIMEDOUT;
                        break;
                }
                n = read(rd, text + len, size - 1 - len);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        break;
                len += (size_t) n;
        }
        text[len] = '\0';
        (void) !spawn_kill(pidfd, SIGKILL);
        (void) !spawn_wait(pidfd, -1, NULL); /* it was killed */
        return r;
}

int qemu_version(char *buf, size_t size, struct err *e) {
        static struct {
                char path[PATH_MAX], version[VERSION_MAX];
                struct timespec mtime;
                dev_t dev;
                ino_t ino;
        } cache;
        char path[PATH_MAX], text[1024], version[VERSION_MAX];
        struct stat st;
        int r;

        r = qemu_find(path, sizeof(path), e);
        if (r < 0)
                return r;
        if (stat(path, &st) < 0)
                return err_errno(e, -errno, "%s", path);
        if (strcmp(cache.path, path) != 0 || cache.dev != st.st_dev || cache.ino != st.st_ino ||
            cache.mtime.tv_sec != st.st_mtim.tv_sec || cache.mtime.tv_nsec != st.st_mtim.tv_nsec) {
                r = ask_version(path, text, sizeof(text));
                if (r < 0)
                        return err_errno(e, r, "running %s --version", path);
                r = qemu_version_parse(text, version, sizeof(version));
                if (r < 0)
                        return err_set(e, ERR_VMM, r, "%s --version does not tell its version", path);
                memcpy(cache.path, path, sizeof(path));
                memcpy(cache.version, version, sizeof(version));
                cache.dev = st.st_dev;
                cache.ino = st.st_ino;
                cache.mtime = st.st_mtim;
        }
        if (strlen(cache.version) >= size)
                return err_set(e, ERR_INTERNAL, -ENOBUFS, "QEMU's version does not fit");
        (void) snprintf(buf, size, "%s", cache.version);
        return 0;
}

/* ---- the time stamp counter ---- */

#if defined(__x86_64__) || defined(__i386__)

static uint64_t clock_ns(void) {
        struct timespec ts;

        /* RAW: the counter is not steered by NTP either */
        (void) clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
        return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

/* Counter and clock at one moment. Of several readings the one that took the shortest was interrupted least. */
static void read_both(uint64_t *ret_tsc, uint64_t *ret_ns) {
        uint64_t best = UINT64_MAX;

        for (int i = 0; i < 8; i++) {
                uint64_t before = clock_ns(), tsc = __builtin_ia32_rdtsc(), after = clock_ns();

                if (after - before >= best)
                        continue;
                best = after - before;
                *ret_tsc = tsc;
                *ret_ns = before + best / 2;
        }
}

unsigned qemu_tsc_khz(void) {
        static unsigned khz;
        struct timespec pause = { .tv_nsec = TSC_MEASURE_MS * 1000000L };
        uint64_t tsc0 = 0, tsc1 = 0, ns0 = 0, ns1 = 0;

        if (khz)
                return khz;
        read_both(&tsc0, &ns0);
        /* How long it really takes does not matter: both ends are read. */
        if (co_self())
                co_sleep(TSC_MEASURE_MS);
        else
                (void) nanosleep(&pause, NULL);
        read_both(&tsc1, &ns1);
        if (tsc1 <= tsc0 || ns1 <= ns0)
                return 0;
        khz = (unsigned) ((double) (tsc1 - tsc0) * 1e6 / (double) (ns1 - ns0) + 0.5);
        return khz;
}

#else

unsigned qemu_tsc_khz(void) {
        return 0;
}

#endif
