/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <signal.h>

#include "forkctl/chain/run.h"

static const int deadly[RUN_N_SIGNALS] = { SIGINT, SIGTERM, SIGHUP };

/* The first waits for the step under way, so that it is known what that made. Whoever does not want to wait for it cuts the
 * connection: what it made is found by its name. */
static void on_signal(evutil_socket_t sig, short what, void *arg) {
        struct run *x = arg;

        x->signal = (int) sig;
        x->impatience++;
        if (x->impatience == 2 && x->c->conn)
                rpc_conn_close(x->c->conn);
        if (x->impatience > 2) {
                (void) fprintf(stderr, "forkctl: ended; VMs and snapshots of %s-* may be left behind\n", x->prefix);
                (void) signal((int) sig, SIG_DFL);
                (void) raise((int) sig);
        }
}

int run_watch(struct run *x) {
        int r = ctl_loop(x->c);

        for (size_t i = 0; r == 0 && i < RUN_N_SIGNALS; i++) {
                x->signals[i] = evsignal_new(x->c->base, deadly[i], on_signal, x);
                if (!x->signals[i] || event_add(x->signals[i], NULL) < 0)
                        r = err_errno(&x->c->e, -ENOMEM, "watching signals");
        }
        return r;
}

void run_unwatch(struct run *x) {
        for (size_t i = 0; i < RUN_N_SIGNALS; i++) {
                if (x->signals[i])
                        event_free(x->signals[i]);
                x->signals[i] = NULL;
        }
}

bool run_over(const struct run *x) {
        return x->signal || x->c->closed;
}
