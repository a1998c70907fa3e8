/* SPDX-License-Identifier: MIT */
/* What makes a copy of a guest a guest of its own. The order matters: until the kernel has fresh entropy, two
 * clones draw the same numbers, so that comes first and as close to the wake-up as can be. Everything else is
 * of use only to programs that ask, and each step is tried whatever became of the others. */
#include "agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"

#ifndef RNDRESEEDCRNG
#define RNDRESEEDCRNG _IO('R', 0x07) /* linux/random.h, since 4.14 */
#endif

/* Mixes in what forkd drew for this clone alone, and makes the generator use it for the very next number:
 * without the reseed it would go on with the key from the snapshot for up to a minute. */
static int apply_entropy(const uint8_t *entropy) {
        union {
                struct rand_pool_info info;
                char room[sizeof(struct rand_pool_info) + WIRE_ENTROPY_LEN];
        } pool = { .info = { .entropy_count = WIRE_ENTROPY_LEN * 8, .buf_size = WIRE_ENTROPY_LEN } };
        cleanup_fd int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
        int r = 0;

        if (fd < 0)
                return -errno;
        memcpy(pool.info.buf, entropy, WIRE_ENTROPY_LEN);
        if (ioctl(fd, RNDADDENTROPY, &pool) < 0) {
                r = -errno;
                /* without the privilege it can be mixed in at least */
                if (write(fd, entropy, WIRE_ENTROPY_LEN) < 0)
                        return -errno;
        }
        if (ioctl(fd, RNDRESEEDCRNG) < 0 && r == 0)
                r = -errno;
        explicit_bzero(&pool, sizeof(pool));
        return r;
}

static int apply_clock(uint64_t realtime_ns) {
        struct timespec ts = {
                .tv_sec = (time_t) (realtime_ns / 1000000000u),
                .tv_nsec = (long) (realtime_ns % 1000000000u),
        };

        return clock_settime(CLOCK_REALTIME, &ts) < 0 ? -errno : 0;
}

/* In place: it takes a third of what a new file and a rename take, while somebody waits for the guest; also where the file is a mount
 * of its own. One write of a line, so who reads it has the old one or the new. 0: done; -ENOENT: there is no such file. */
static int rewrite_line(const char *path, const char *line, size_t len) {
        cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);
        struct stat st;

        if (fd < 0)
                return -errno;
        if (fstat(fd, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode))
                return -EINVAL;
        if (pwrite(fd, line, len, 0) != (ssize_t) len)
                return -EIO;
        return st.st_size > (off_t) len && ftruncate(fd, (off_t) len) < 0 ? -errno : 0;
}

static int write_line(const char *root, const char *path, const char *text, mode_t mode) {
        char full[WIRE_PATH_MAX + 1], line[WIRE_HOSTNAME_MAX + 2];
        int n;

        n = snprintf(full, sizeof(full), "%s%s", root, path);
        if (n < 0 || (size_t) n >= sizeof(full))
                return -ENAMETOOLONG;
        n = snprintf(line, sizeof(line), "%s\n", text);
        if (rewrite_line(full, line, (size_t) n) == 0)
                return 0;
        return io_write_file_atomic(AT_FDCWD, full, line, (size_t) n, mode, false);
}

static uint64_t step_us(uint64_t *since) {
        uint64_t now = loop_now_ns(), us = (now - *since) / 1000;

        *since = now;
        return us;
}

void identity_apply(const struct wire_wake *w, const struct agent_options *opt, struct wire_ack *ack) {
        uint64_t t = loop_now_ns();
        int r;

        r = apply_entropy(w->entropy);
        if (r < 0)
                ack_warn(ack, "entropy: %s", strerror(-r));
        ack->us[WIRE_STEP_ENTROPY] = step_us(&t);

        r = opt->set_clock ? apply_clock(w->realtime_ns) : 0;
        if (r < 0)
                ack_warn(ack, "clock: %s", strerror(-r));
        ack->us[WIRE_STEP_CLOCK] = step_us(&t);

        if (w->hostname[0]) {
                if (sethostname(w->hostname, strlen(w->hostname)) < 0)
                        ack_warn(ack, "sethostname: %s", strerror(errno));
                r = write_line(opt->root, "/etc/hostname", w->hostname, 0644);
                if (r < 0)
                        ack_warn(ack, "/etc/hostname: %s", strerror(-r));
        }
        ack->us[WIRE_STEP_HOSTNAME] = step_us(&t);

        if (w->machine_id[0]) {
                r = write_line(opt->root, "/etc/machine-id", w->machine_id, 0444);
                if (r < 0)
                        ack_warn(ack, "/etc/machine-id: %s", strerror(-r));
        }
        ack->us[WIRE_STEP_MACHINE_ID] = step_us(&t);
}
