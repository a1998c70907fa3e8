/* SPDX-License-Identifier: MIT */
/* Verdicts: what the judge is told of each vCPU, when they begin and end, and how a guest's agent is asked.
 *
 * An agent is asked when one of its vCPUs has been busy for a whole window in which nothing was heard of it: at most once a window for a
 * guest that computes. It has ANSWER_TURNS to answer, and the guest must have been on a CPU for a good part of it: on a host with more
 * to do than it can, a guest that gets little of a CPU is slow and not lost. With the window before it, and the turns that end both,
 * that is less than two windows. */
#include "forkd/monitor/internal.h"

#include <stdarg.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/events.h"
#include "forkd/monitor/judge.h"

#define ANSWER_TURNS 2

/* ---- the agent ---- */

static uint64_t oncpu(const struct monitor_vm *mv) {
        uint64_t ns = 0;

        for (unsigned i = 0; i < mv->n_vcpus; i++)
                ns += mv->vcpu[i].sum.ns[PROBES_ONCPU];
        return ns;
}

static enum judge_agent agent_of(const struct monitor_vm *mv, uint64_t now, uint64_t window_ns) {
        const struct guest_link *l = mv->vm->link;
        uint64_t heard = l ? guest_link_heard_ns(l) : 0, turn = monitor_turn_ns(mv->m);

        if (heard != 0 && heard + window_ns >= now)
                return JUDGE_MOVES;
        if (mv->asked_ns == 0)
                return JUDGE_NOT_ASKED;
        /* A turn that comes a little early counts. */
        if (now - mv->asked_ns < ANSWER_TURNS * turn - turn / 4 || oncpu(mv) - mv->asked_oncpu_ns < turn / 2)
                return JUDGE_ASKED;
        return JUDGE_SILENT;
}

/* One that is not connected does not answer either. */
static void ask(struct monitor_vm *mv, uint64_t now) {
        if (mv->vm->link)
                guest_link_poke(mv->vm->link);
        mv->asked_ns = now;
        mv->asked_oncpu_ns = oncpu(mv);
}

/* ---- the facts ---- */

static bool is_running(const struct vm *vm) {
        return vm->state == VM_RUNNING && !vm->vmm_exited && !vm->lost[0] && !vm_lingers(vm);
}

/* What its VM got since the turn that was @span_ns ago. */
static uint64_t served(const struct monitor_vm *mv, uint64_t span_ns) {
        uint64_t turn = monitor_turn_ns(mv->m);
        unsigned turns = (unsigned) MIN_OF((span_ns + turn / 2) / turn, (uint64_t) MONITOR_TICKS);

        return mv->served[0] - mv->served[turns];
}

static void facts_of(const struct monitor_vm *mv, const struct monitor_vcpu *c, uint64_t now, struct judge_facts *ret) {
        struct monitor_mark span;

        *ret = (struct judge_facts){
                .window_ns = monitor_turn_ns(mv->m) * MONITOR_TICKS,
                .running = is_running(mv->vm),
                .orphan = mv->orphan_ns != 0,
                .spinning = c->spinning,
                .waiting_ns = c->waiting_ns,
        };
        ret->agent = agent_of(mv, now, ret->window_ns);
        /* While somebody does something with it, it may stand still for a moment, or its agent be connected anew: what was said of it
         * stays, and nothing new is. */
        if (mv->vm->busy || !monitor_ring_span(&c->ring, mv->orphan_ns, &span))
                return;
        ret->span_ns = span.at_ns;
        ret->oncpu_ns = span.ns[PROBES_ONCPU];
        ret->runqueue_ns = span.ns[PROBES_RUNQUEUE];
        ret->halts = span.halts;
        ret->served = served(mv, span.at_ns);
}

/* ---- beginnings and ends ---- */

static void tell(struct monitor_vm *mv, const char *kind, const char *fmt, ...) attr_printf(3, 4);
static void tell(struct monitor_vm *mv, const char *kind, const char *fmt, ...) {
        char text[240];
        va_list ap;

        va_start(ap, fmt);
        (void) vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        log_warning("%s (%s): %s: %s", mv->name, mv->id, kind, text);
        events_add(mv->m->d->events, kind, mv->vm, "%s", text);
}

static void acquit(struct monitor_vm *mv, struct monitor_vcpu *c, const char *why) {
        if (!c->spinning && !c->stuck)
                return;
        tell(mv, "vcpu.ok", "vCPU %u is no longer %s: %s", c->vcpu, c->stuck ? "stuck" : "spinning", why);
        c->spinning = c->stuck = false;
        c->why[0] = '\0';
}

static const char *reason_of(const struct monitor_vm *mv, const struct judge_facts *f) {
        if (f->orphan)
                return "its pager session is gone";
        return mv->vm->link && guest_link_ready(mv->vm->link) ? "its agent does not answer" : "its agent is not connected";
}

static void find_spinning(struct monitor_vm *mv, struct monitor_vcpu *c, const struct judge_facts *f) {
        bool begins = !c->spinning;

        if (c->stuck)
                acquit(mv, c, "it got its page");
        c->spinning = true;
        if (f->span_ns == 0)
                return;
        (void) snprintf(c->why, sizeof(c->why), "%s", reason_of(mv, f));
        if (begins)
                tell(mv, "vcpu.spinning",
                     "vCPU %u used or wanted a CPU for %.0f %% of the last %.1f s, had one for %.0f %%, and nothing moves: %s",
                     c->vcpu, 100.0 * (double) (f->oncpu_ns + f->runqueue_ns) / (double) f->span_ns, (double) f->span_ns / 1e9,
                     100.0 * (double) f->oncpu_ns / (double) f->span_ns, c->why);
}

static void find_stuck(struct monitor_vm *mv, struct monitor_vcpu *c, const struct judge_facts *f) {
        bool begins = !c->stuck;

        if (c->spinning)
                acquit(mv, c, "it waits for its memory");
        c->stuck = true;
        (void) snprintf(c->why, sizeof(c->why), "it has waited for a page of its memory for %.1f s%s",
                        (double) f->waiting_ns / 1e9, f->orphan ? ": its pager session is gone" : "");
        if (begins)
                tell(mv, "vcpu.stuck", "vCPU %u: %s", c->vcpu, c->why);
}

static const char *why_ok(const struct judge_facts *f) {
        if (!f->running)
                return "its guest was stopped";
        if (f->agent == JUDGE_MOVES)
                return "its agent answers";
        return f->served > 0 ? "it gets pages of its memory" : "it is not busy";
}

/* ---- a turn ---- */

static void judge_one(struct monitor_vm *mv, struct monitor_vcpu *c, uint64_t now, bool *ret_ask, bool *ret_busy) {
        struct judge_facts f;

        facts_of(mv, c, now, &f);
        switch (judge_vcpu(&f)) {
        case JUDGE_STUCK:
                find_stuck(mv, c, &f);
                break;
        case JUDGE_SPINNING:
                find_spinning(mv, c, &f);
                *ret_ask |= f.agent == JUDGE_NOT_ASKED && !f.orphan; /* an orphan that has got a pager may well be healthy */
                *ret_busy = true;
                break;
        case JUDGE_ASK:
                *ret_ask |= f.agent == JUDGE_NOT_ASKED;
                *ret_busy = true;
                break;
        case JUDGE_OK:
                acquit(mv, c, c->stuck ? "it got its page" : why_ok(&f));
                break;
        }
}

static void note_loss(struct monitor_vm *mv, uint64_t now) {
        if (monitor_vm_session(mv->vm) != MONITOR_LOST)
                mv->orphan_ns = 0;
        else if (mv->orphan_ns == 0)
                mv->orphan_ns = now;
}

void monitor_judge(struct monitor *m, uint64_t now) {
        struct monitor_vm *mv;

        TAILQ_FOREACH (mv, &m->vms, entry) {
                bool wants = false, busy = false;

                if (!mv->watch || !mv->vm)
                        continue;
                note_loss(mv, now);
                for (unsigned i = 0; i < mv->n_vcpus; i++)
                        judge_one(mv, &mv->vcpu[i], now, &wants, &busy);
                if (!busy)
                        mv->asked_ns = 0;
                else if (wants)
                        ask(mv, now);
        }
}

void monitor_acquit(struct monitor_vm *mv, const char *why) {
        for (unsigned i = 0; i < mv->n_vcpus; i++)
                acquit(mv, &mv->vcpu[i], why);
        mv->asked_ns = 0;
        mv->orphan_ns = 0;
}
