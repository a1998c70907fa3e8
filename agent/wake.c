/* SPDX-License-Identifier: MIT */
/* Waking up: the identity at once, then the hooks, then the acknowledgement. A WAKE of kind reconnect (forkd
 * started anew, the guest is who it was) changes nothing but the epoch; hooks that run go on. */
#include "agent/agent.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void ack_warn(struct wire_ack *ack, const char *fmt, ...) {
        char *w;
        va_list ap;

        if (ack->n_warnings == WIRE_MAX_WARNINGS)
                return;
        w = ack->warnings[ack->n_warnings++];
        va_start(ap, fmt);
        (void) vsnprintf(w, WIRE_WARNING_MAX + 1, fmt, ap);
        va_end(ap);
        wire_printable(w);
        (void) fprintf(stderr, "forkd-agent: waking up: %s\n", w);
}

static void wake_done(struct agent *a) {
        a->hooks = NULL;
        a->awake = true;
        channel_send(&a->ch, &(struct wire_msg){ .type = WIRE_ACK, .ack = a->ack });
}

static void wake_hooks_done(struct agent *a) {
        wake_done(a);
}

void wake_begin(struct agent *a, uint64_t epoch, const struct wire_wake *w) {
        int r;

        a->awake = false;
        if (w->kind == WIRE_WAKE_RECONNECT && a->hooks)
                return; /* acknowledged when they are done */

        hooks_abort(TAKE_PTR(a->hooks));
        a->ack = (struct wire_ack){ 0 };
        (void) snprintf(a->ack.version, sizeof(a->ack.version), "%s", FORKD_VERSION);
        memcpy(a->ack.boot_id, a->boot_id, sizeof(a->ack.boot_id));
        if (w->kind == WIRE_WAKE_RECONNECT) {
                wake_done(a);
                return;
        }
        identity_apply(w, &a->opt, &a->ack);
        r = hooks_start(a, w, epoch, wake_hooks_done, &a->hooks);
        if (r < 0) {
                ack_warn(&a->ack, "resume.d: %s", strerror(-r));
                wake_done(a);
        }
}

void wake_clear(struct agent *a) {
        hooks_abort(TAKE_PTR(a->hooks));
}
