/* SPDX-License-Identifier: MIT */
/* A full-screen terminal: shows canvases, tells keys, and is as it was before when closed. There is one at most. */
#pragma once

#include "common/cleanup.h"
#include "forkctl/canvas.h"

struct screen;

enum screen_key {
        KEY_NO_MORE = -1, /* for now */
        /* 1 … 126: the character; and */
        KEY_OTHER = 0x1000,
        KEY_UP_ONE,
        KEY_DOWN_ONE,
        KEY_PAGE_UP,
        KEY_PAGE_DOWN,
        KEY_FIRST,
        KEY_LAST,
        KEY_ERASE,
        KEY_ESC,
};

/** Can standard input and output carry one? Both are a terminal, and TERM is not "dumb" or missing. */
bool screen_is_possible(void);
/** Takes the terminal over. -ENOTTY: TERM names a terminal that nothing is known of. */
int screen_open(struct screen **ret) attr_warn_unused;
/** Gives it back. NULL is fine. */
void screen_close(struct screen *s);
DEFINE_CLEANUP(struct screen, screen_close)

/** The size as it is now, also after the window has changed. */
void screen_size(struct screen *s, unsigned *ret_rows, unsigned *ret_cols);
void screen_show(struct screen *s, const struct canvas *cv);
/** The next key that was pressed; KEY_NO_MORE when there is none. Does not wait. */
int screen_key(struct screen *s);
