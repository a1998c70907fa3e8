/* SPDX-License-Identifier: MIT */
/* Logging to stderr, one line a message: with sd-daemon priorities ("<6>…") when systemd's journal reads
 * stderr (JOURNAL_STREAM), with time and level otherwise. The level is the process's only global. */
#pragma once

#include "common/cleanup.h"

enum log_level { LOG_LVL_ERROR = 3, LOG_LVL_WARNING = 4, LOG_LVL_INFO = 6, LOG_LVL_DEBUG = 7 };

void log_init(const char *program, enum log_level level);
int log_level_parse(const char *s, enum log_level *ret) attr_warn_unused; /* error|warning|info|debug */
const char *log_level_name(void);
void log_msg(enum log_level level, const char *fmt, ...) attr_printf(2, 3);

#define log_error(...) log_msg(LOG_LVL_ERROR, __VA_ARGS__)
#define log_warning(...) log_msg(LOG_LVL_WARNING, __VA_ARGS__)
#define log_info(...) log_msg(LOG_LVL_INFO, __VA_ARGS__)
#define log_debug(...) log_msg(LOG_LVL_DEBUG, __VA_ARGS__)
