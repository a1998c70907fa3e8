/* SPDX-License-Identifier: MIT */
/* The first signal waits for the call under way, so that it is known what that made. Whoever does not want to wait for it cuts the
 * connection: what forkd makes of the call then has to be found by its name. */
#include "forkctl/watch.h"

#include <errno.h>
#include <event2/event.h>
#include <signal.h>

#include "common/rpc.h"

static const int deadly[WATCH_N_SIGNALS] = { SIGINT, SIGTERM, SIGHUP };

static void end_by(int sig) {
        (void) signal(sig, SIG_DFL);
        (void) raise(sig);
}

static void on_signal(evutil_socket_t sig, short what, void *arg) {
        struct watch *w = arg;

        w->signal = (int) sig;
        w->impatience++;
        if (w->impatience == 2 && w->c->conn)
                rpc_conn_close(w->c->conn);
        if (w->impatience > 2) {
                (void) fprintf(stderr, "forkctl: ended; %s may be left behind\n", w->left);
                end_by(w->signal);
        }
}

int watch_begin(struct watch *w, struct ctl *c, const char *left) {
        int r = ctl_loop(c);

        *w = (struct watch){ .c = c, .left = left };
        for (size_t i = 0; r == 0 && i < WATCH_N_SIGNALS; i++) {
                w->ev[i] = evsignal_new(c->base, deadly[i], on_signal, w);
                if (!w->ev[i] || event_add(w->ev[i], NULL) < 0)
                        r = err_errno(&c->e, -ENOMEM, "watching signals");
        }
        return r;
}

void watch_end(struct watch *w) {
        for (size_t i = 0; i < WATCH_N_SIGNALS; i++) {
                if (w->ev[i])
                        event_free(w->ev[i]);
                w->ev[i] = NULL;
        }
}

void watch_obey(int sig) {
        if (!sig)
                return;
        (void) fflush(stdout);
        end_by(sig);
}
