/* SPDX-License-Identifier: MIT */
#include "forkctl/tty.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void make_raw(struct tty *t) {
        struct termios raw = t->saved;

        cfmakeraw(&raw);
        (void) tcsetattr(t->fd, TCSADRAIN, &raw);
}

int tty_raw(struct tty *t, int fd) {
        if (tcgetattr(fd, &t->saved) < 0)
                return -errno;
        t->fd = fd;
        t->raw = true;
        make_raw(t);
        return 0;
}

void tty_again(struct tty *t) {
        if (t->raw)
                make_raw(t);
}

void tty_restore(struct tty *t) {
        if (t->raw)
                (void) tcsetattr(t->fd, TCSADRAIN, &t->saved);
        t->raw = false;
}

int tty_size(unsigned *ret_rows, unsigned *ret_cols) {
        struct winsize ws;

        for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
                if (ioctl(fd, TIOCGWINSZ, &ws) == 0 && ws.ws_row && ws.ws_col) {
                        *ret_rows = ws.ws_row;
                        *ret_cols = ws.ws_col;
                        return 0;
                }
        return -ENOTTY;
}
