/* SPDX-License-Identifier: MIT */
/* Where an operation's time goes: one line in the debug log, "clone-1: restore: files 0.4 session 0.3 … ms". */
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "common/io.h"
#include "common/log.h"

struct stages {
        uint64_t last;
        char text[200];
        size_t len;
};

static inline void stages_begin(struct stages *s) {
        s->last = now_ns();
        s->len = 0;
        s->text[0] = '\0';
}

/** What was done since the last call was @name. */
static inline void stage_done(struct stages *s, const char *name) {
        uint64_t now = now_ns();
        int n = snprintf(s->text + s->len, sizeof(s->text) - s->len, " %s %.1f", name, (double) (now - s->last) / 1e6);

        s->last = now;
        if (n > 0 && (size_t) n < sizeof(s->text) - s->len)
                s->len += (size_t) n;
}

static inline void stages_log(const struct stages *s, const char *vm, const char *what) {
        log_debug("%s: %s:%s ms", vm, what, s->text);
}
