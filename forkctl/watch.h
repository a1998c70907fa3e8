/* SPDX-License-Identifier: MIT */
/* Signals for commands that make things and remove them again: none of them ends the program at once. */
#pragma once

#include "forkctl/client.h"

#define WATCH_N_SIGNALS 3

struct watch {
        struct ctl *c;
        const char *left; /* said when we go without cleaning up: what is left behind */
        int signal;       /* that asked us to end; 0: none */
        unsigned impatience;
        struct event *ev[WATCH_N_SIGNALS];
};

/** From now on SIGINT, SIGTERM and SIGHUP set w->signal; a second one cuts the connection, so that the call under way fails; a third
 *  one ends the program. @left stays the caller's. */
int watch_begin(struct watch *w, struct ctl *c, const char *left) attr_warn_unused;
void watch_end(struct watch *w);
/** Ends the program by signal @sig, as if there had been no handler. Returns when it is 0. */
void watch_obey(int sig);
