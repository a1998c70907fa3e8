/* SPDX-License-Identifier: MIT */
/* The user's terminal in raw mode, and back. */
#pragma once

#include <stdbool.h>
#include <termios.h>

#include "common/cleanup.h"

struct tty {
        int fd;
        bool raw;
        struct termios saved;
};

/** Makes the terminal @fd raw: every key goes to the guest, ^C too. 0 or -errno. */
int tty_raw(struct tty *t, int fd) attr_warn_unused;
/** Raw again, after somebody else (the shell, when we were stopped) changed it. */
void tty_again(struct tty *t);
/** As it was before. Nothing happens if it is not raw. */
void tty_restore(struct tty *t);
#define cleanup_tty attr_cleanup(tty_restore)

/** Size of the terminal that one of the standard streams is; -ENOTTY if none is, or it has none. */
int tty_size(unsigned *ret_rows, unsigned *ret_cols) attr_warn_unused;
