/* SPDX-License-Identifier: MIT */
/* The agent of a VM: how its connection is made, kept and made again.
 *
 * A connection that breaks while a guest wakes up says little about the guest. A snapshot cuts streams in the middle, the VMM
 * drops the connection of a forkd that is gone when it comes to it, and an agent that crashed is there again a moment
 * later. So whoever waits for an acknowledgement makes the connection anew and sends the wake-up again, until its deadline.
 * What is not tried again: a VMM that has ended, a guest that breaks the protocol for the second time, and anything after the
 * acknowledgement: a command may have begun. */
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "common/co.h"
#include "common/io.h"
#include "common/log.h"
#include "forkd/daemon.h"
#include "forkd/api/streams.h"
#include "forkd/vm/vm.h"

#define LINK_TIMEOUT_MS 10000
#define REGAIN_PAUSE_MS 10000
#define RETRY_MIN_MS 10
#define RETRY_MAX_MS 500
#define MAX_BROKEN 2 /* times that a guest may break the protocol while it wakes up */

static void regain(void *arg) {
        struct vm *vm = arg;
        struct err e;

        if (vm_agent_regain(vm, VM_REGAIN_TIMEOUT_MS, &e) < 0)
                log_warning("%s: the agent does not come back: %s", vm->name, e.message);
        vm->regained_ns = now_ns();
        vm_op_end(vm);
}

void vm_agent_regain_later(struct vm *vm) {
        if (!vm->agent_lost || vm->busy || vm->state != VM_RUNNING || !vm->vmm || vm->vmm_exited || vm->d->stopping)
                return;
        vm->agent_lost = false; /* one attempt a loss; the next request that needs the agent is another */
        /* A guest that breaks off again and again must not keep forkd busy with it. */
        if (vm->regained_ns != 0 && ms_since(vm->regained_ns) < REGAIN_PAUSE_MS)
                return;
        vm_chore(vm, "reconnecting to the agent", regain);
}

/* The agent crashed and was respawned, or lost its place in the stream. When it was the VMM that hung up (-EPIPE), it
 * is about to end. */
static void on_link_lost(int r, void *arg) {
        struct vm *vm = arg;

        log_info("%s (%s): the agent's connection was lost: %s", vm->name, vm->id, strerror(-r));
        streams_fail(vm, "the connection to the agent was lost");
        vm->agent_lost = r != -EPIPE;
        vm_agent_regain_later(vm);
}

static int open_link(struct vm *vm, int timeout_ms, struct err *e) {
        int r;

        guest_link_free(TAKE_PTR(vm->link));
        r = guest_link_new(vm->d->base, vm->ops->agent_socket(vm->vmm), &vm->link);
        if (r < 0)
                return err_errno(e, r, "connecting to the agent of '%s'", vm->name);
        r = guest_link_connect(vm->link, timeout_ms, e);
        if (r < 0)
                return err_prefix(e, "connecting to the agent of '%s'", vm->name);
        guest_link_set_on_lost(vm->link, on_link_lost, vm);
        return 0;
}

int vm_link_open(struct vm *vm, struct err *e) {
        return open_link(vm, LINK_TIMEOUT_MS, e);
}

static int queue_wake(struct vm *vm, const struct guest_identity *id, int timeout_ms, struct err *e) {
        int r = vm->link ? guest_link_queue_wake(vm->link, id) : -ENOTCONN;

        if (r == -ENOTCONN) {
                r = open_link(vm, timeout_ms, e);
                if (r < 0)
                        return r;
                r = guest_link_queue_wake(vm->link, id);
        }
        return r < 0 ? err_errno(e, r, "waking '%s'", vm->name) : 0;
}

static int wake_queue(struct vm *vm, enum wire_wake_kind kind, int timeout_ms, struct err *e) {
        struct guest_identity id = { .kind = kind };
        uint8_t machine_id[16];
        int r;

        if (kind != WIRE_WAKE_RECONNECT) {
                (void) snprintf(id.hostname, sizeof(id.hostname), "%s", vm->name);
                random_bytes(machine_id, sizeof(machine_id));
                hex_encode(machine_id, sizeof(machine_id), id.machine_id);
                random_bytes(id.entropy, sizeof(id.entropy));
        }
        vm->wake_kind = kind;
        r = queue_wake(vm, &id, timeout_ms, e);
        explicit_bzero(id.entropy, sizeof(id.entropy));
        return r;
}

int vm_wake_queue(struct vm *vm, enum wire_wake_kind kind, struct err *e) {
        return wake_queue(vm, kind, LINK_TIMEOUT_MS, e);
}

static int ack_once(struct vm *vm, int timeout_ms, struct err *e) {
        struct guest_ack ack;
        int r;

        r = guest_link_wait_ack(vm->link, timeout_ms, &ack, e);
        if (r < 0)
                return err_prefix(e, "waking '%s'", vm->name);
        for (unsigned i = 0; i < ack.n_warnings; i++)
                log_warning("%s: waking up: %s", vm->name, ack.warnings[i]);
        vm->agent_lost = false;
        return 0;
}

static bool is_transient(int r) {
        return r == -EPIPE || r == -ECONNRESET || r == -ENOTCONN || r == -EPROTO;
}

/* True: it ended, or will not go on, before @ms have passed. */
static bool vmm_ends_within(struct vm *vm, int ms) {
        return vm->vmm_exited || vm->lost[0] || co_wait_fd(vm->ops->pidfd(vm->vmm), EV_READ, ms) == 0;
}

/* For the acknowledgement of the wake-up that was queued last. */
static int wait_ack(struct vm *vm, int timeout_ms, struct err *e) {
        uint64_t begin = now_ns();
        int pause = RETRY_MIN_MS;
        unsigned broken = 0;

        for (;;) {
                int left = timeout_ms - (int) ms_since(begin), r;

                r = ack_once(vm, MAX_OF(left, 1), e);
                while (r < 0) {
                        broken += r == -EPROTO;
                        left = timeout_ms - (int) ms_since(begin);
                        if (!is_transient(r) || broken >= MAX_BROKEN || left <= pause || vm->d->stopping ||
                            vmm_ends_within(vm, pause))
                                return r;
                        log_info("%s (%s): %s: once more", vm->name, vm->id, e->message);
                        pause = MIN_OF(pause * 2, RETRY_MAX_MS);
                        r = wake_queue(vm, vm->wake_kind, left, e);
                        if (r == 0)
                                break;
                }
                if (r == 0 && guest_link_ready(vm->link))
                        return 0;
        }
}

int vm_wake_wait(struct vm *vm, struct err *e) {
        int r = wait_ack(vm, (int) vm->d->cfg.wake_timeout_s * 1000, e);

        if (r == 0)
                vm->needs_wake = false;
        return r;
}

int vm_agent_regain(struct vm *vm, int timeout_ms, struct err *e) {
        bool needs_wake = vm->needs_wake;
        int r;

        r = wake_queue(vm, needs_wake ? WIRE_WAKE_RESTORE : WIRE_WAKE_RECONNECT, MIN_OF(timeout_ms, LINK_TIMEOUT_MS), e);
        if (r < 0)
                return r;
        return needs_wake ? vm_wake_wait(vm, e) : wait_ack(vm, timeout_ms, e);
}
