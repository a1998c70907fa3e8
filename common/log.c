/* SPDX-License-Identifier: MIT */
#include "common/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static struct {
        const char *program;
        enum log_level level;
        bool journal;
} log_state = { .program = "forkd", .level = LOG_LVL_INFO };

static const struct {
        enum log_level level;
        const char *name;
} log_names[] = {
        { LOG_LVL_ERROR, "error" },
        { LOG_LVL_WARNING, "warning" },
        { LOG_LVL_INFO, "info" },
        { LOG_LVL_DEBUG, "debug" },
};

/* The variable names the journal's socket. It is inherited also by programs whose stderr is another file. */
static bool stderr_is_journal(void) {
        const char *s = getenv("JOURNAL_STREAM");
        unsigned long long dev, ino;
        struct stat st;

        return s && sscanf(s, "%llu:%llu", &dev, &ino) == 2 && fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev &&
               st.st_ino == ino;
}

void log_init(const char *program, enum log_level level) {
        log_state.program = program;
        log_state.level = level;
        log_state.journal = stderr_is_journal();
}

int log_level_parse(const char *s, enum log_level *ret) {
        for (size_t i = 0; i < ARRAY_LEN(log_names); i++)
                if (strcmp(s, log_names[i].name) == 0) {
                        *ret = log_names[i].level;
                        return 0;
                }
        return -EINVAL;
}

static const char *level_name(enum log_level level) {
        for (size_t i = 0; i < ARRAY_LEN(log_names); i++)
                if (log_names[i].level == level)
                        return log_names[i].name;
        return "info";
}

const char *log_level_name(void) {
        return level_name(log_state.level);
}

void log_msg(enum log_level level, const char *fmt, ...) {
        char line[1200];
        struct timespec ts;
        struct tm tm;
        size_t n = 0;
        va_list ap;

        if (level > log_state.level)
                return;
        if (log_state.journal) {
                n = (size_t) snprintf(line, sizeof(line), "<%d>", level);
        } else {
                (void) clock_gettime(CLOCK_REALTIME, &ts);
                (void) gmtime_r(&ts.tv_sec, &tm);
                n = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &tm);
                n += (size_t) snprintf(line + n, sizeof(line) - n, ".%03ldZ %s %s: ", ts.tv_nsec / 1000000, log_state.program,
                                       level_name(level));
        }
        va_start(ap, fmt);
        (void) vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
        va_end(ap);
        n = strlen(line);
        /* Names and messages from guests and peers end up here: one message stays one line. */
        for (size_t i = 0; i < n; i++)
                if ((unsigned char) line[i] < 0x20 || line[i] == 0x7f)
                        line[i] = ' ';
        line[n++] = '\n';
        (void) !write(STDERR_FILENO, line, n);
}
