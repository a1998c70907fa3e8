/* SPDX-License-Identifier: MIT */
/* Why did QEMU die? The answer is in the last lines of its log. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "forkd/vmm/qemu.h"

#define LOG_TAIL 8192u
#define LOG_LINES 3u
#define ATTACH_PREFIX "uffd-attach: "
#define QEMU_PREFIX "qemu-system-x86_64: "

uint64_t qemu_log_size(const char *path) {
        struct stat st;

        return stat(path, &st) == 0 && st.st_size > 0 ? (uint64_t) st.st_size : 0;
}

/* "2026-11-21T04:01:07.123456Z qemu-system-x86_64: text" → "text" */
static const char *strip(const char *line) {
        const char *p = strstr(line, QEMU_PREFIX);

        return p ? p + strlen(QEMU_PREFIX) : line;
}

char *qemu_log_pick(char *text, size_t len, char *buf, size_t size) {
        const char *last[LOG_LINES] = { NULL }, *attach = NULL;
        size_t n_last = 0, used = 0;
        char *save = NULL;

        buf[0] = '\0';
        for (size_t i = 0; i < len; i++)
                if (text[i] == '\0')
                        text[i] = '?';
        text[len] = '\0';
        for (char *line = strtok_r(text, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
                const char *a = strstr(line, ATTACH_PREFIX);

                if (a)
                        attach = a;
                if (n_last == LOG_LINES) {
                        memmove(last, last + 1, sizeof(last) - sizeof(last[0]));
                        n_last--;
                }
                last[n_last++] = strip(line);
        }
        if (attach)
                return qmp_printable(attach, strlen(attach), buf, size);
        for (size_t i = 0; i < n_last && used + 3 < size; i++) {
                if (i > 0) {
                        memcpy(buf + used, "; ", 3);
                        used += 2;
                }
                (void) qmp_printable(last[i], strlen(last[i]), buf + used, size - used);
                used += strlen(buf + used);
        }
        return buf;
}

char *qemu_log_reason(const char *path, uint64_t start, char *buf, size_t size) {
        cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        uint64_t end = qemu_log_size(path);
        char text[LOG_TAIL + 1];
        ssize_t n;

        buf[0] = '\0';
        if (end < start) /* it was cut meanwhile: all that is left is of this life, or was near it */
                start = 0;
        if (fd < 0 || end == start)
                return buf;
        if (end - start > LOG_TAIL)
                start = end - LOG_TAIL;
        n = pread(fd, text, LOG_TAIL, (off_t) start);
        return n > 0 ? qemu_log_pick(text, (size_t) n, buf, size) : buf;
}
