/* SPDX-License-Identifier: MIT */
#include "floor_clone.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/co.h"
#include "common/ids.h"
#include "common/io.h"

#define LINK_TIMEOUT_MS 10000
#define ACK_TIMEOUT_MS 30000
#define ECHO_TIMEOUT_MS 30000
#define EXEC_TIMEOUT_S 30
#define MAX_SCRIPT 64

static const struct vmm_events no_events = { 0 };

/* ---- its life ---- */

int clone_start(struct clone *c, struct floor *f, unsigned number, struct err *e) {
        const struct vmm_start s = {
                .machine = &f->machine,
                .run_dir = c->dir,
                .log_path = f->log_path,
                .console_fd = f->console_fd,
                .cgroup_fd = -1,
                .incoming = true,
                .pager_sock = f->ram_fd, /* libfloor-map finds the RAM file where another library has its socket */
                .attach_lib = f->lib,
        };

        *c = (struct clone){ .f = f };
        if ((size_t) snprintf(c->dir, sizeof(c->dir), "%s/%u", f->dir, number) >= sizeof(c->dir))
                return err_errno(e, -ENAMETOOLONG, "%s", f->dir);
        if (mkdir(c->dir, 0700) < 0 && errno != EEXIST)
                return err_errno(e, -errno, "making %s", c->dir);
        return vmm_qemu.start(f->base, &s, &no_events, NULL, &c->vmm, e);
}

int clone_load(struct clone *c, struct err *e) {
        if (lseek(c->f->vmstate_fd, 0, SEEK_SET) < 0)
                return err_errno(e, -errno, "rewinding the device state");
        return vmm_qemu.load_state(c->vmm, c->f->vmstate_fd, e);
}

int clone_link(struct clone *c, const char *path, struct err *e) {
        int r = guest_link_new(c->f->base, path ? path : vmm_qemu.agent_socket(c->vmm), &c->link);

        return r < 0 ? err_errno(e, r, "making the link") : guest_link_connect(c->link, LINK_TIMEOUT_MS, e);
}

int clone_wake(struct clone *c, struct guest_ack *ret_ack, struct err *e) {
        struct guest_identity id = { .kind = WIRE_WAKE_RESTORE, .hostname = "floor" };
        uint8_t machine_id[16];
        int r;

        guest_link_rewind(c->link); /* of one that has answered before */
        random_bytes(machine_id, sizeof(machine_id));
        hex_encode(machine_id, sizeof(machine_id), id.machine_id);
        random_bytes(id.entropy, sizeof(id.entropy));
        r = guest_link_queue_wake(c->link, &id);
        if (r < 0)
                return err_errno(e, r, "queueing the wake-up");
        r = c->vmm ? vmm_qemu.resume(c->vmm, e) : 0;
        return r < 0 ? r : guest_link_wait_ack(c->link, ACK_TIMEOUT_MS, ret_ack, e);
}

int clone_echo(struct clone *c, struct err *e) {
        double ms;

        return guest_link_ping(c->link, ECHO_TIMEOUT_MS, &ms, e);
}

int clone_resume_echo(struct clone *c, double *ret_resume_ms, struct err *e) {
        uint64_t start_ns = now_ns();
        int r = vmm_qemu.resume(c->vmm, e);

        if (r < 0)
                return r;
        *ret_resume_ms = ms_since(start_ns);
        return clone_echo(c, e);
}

int clone_pause(struct clone *c, struct err *e) {
        return vmm_qemu.pause(c->vmm, e);
}

void clone_end(struct clone *c) {
        struct err e;

        guest_link_free(c->link);
        if (c->vmm && vmm_qemu.kill(c->vmm, &e) < 0)
                (void) fprintf(stderr, "fork_floor: %s\n", e.message);
        if (c->vmm)
                vmm_qemu.free(c->vmm);
        *c = (struct clone){ 0 };
}

/* ---- what it does before it is saved ---- */

struct command {
        struct co_wait done;
        struct guest_result res;
};

static void on_data(unsigned stream, const void *data, size_t len, void *arg) {
}

static void on_eof(unsigned stream, void *arg) {
}

static void on_done(const struct guest_result *res, void *arg) {
        struct command *c = arg;

        c->res = *res;
        co_wake(&c->done, res->r);
}

int clone_dirty(struct clone *c, struct err *e) {
        static const struct guest_call_handlers handlers = { .on_data = on_data, .on_eof = on_eof, .on_done = on_done };
        struct command cmd = { .done = CO_WAIT_INIT };
        struct guest_call *call;
        char script[MAX_SCRIPT];
        int r;

        (void) snprintf(script, sizeof(script), "head -c %llu /dev/urandom > /run/dirt", (unsigned long long) c->f->dirty_bytes);
        const char *const argv[] = { "/bin/sh", "-c", script, NULL };
        const struct guest_exec_params p = { .argv = argv, .timeout_s = EXEC_TIMEOUT_S };

        r = guest_exec(c->link, &p, &handlers, &cmd, &call, e);
        if (r < 0)
                return r;
        r = co_wait(&cmd.done, -1); /* the guest's timeout ends it, or the link's loss does */
        if (r < 0) {
                *e = cmd.res.e;
                return r;
        }
        if (cmd.res.signaled || cmd.res.code != 0)
                return err_set(e, ERR_AGENT, -EIO, "the guest's '%s' failed with %d", script, cmd.res.code);
        return 0;
}

int clone_save(struct clone *c, struct err *e) {
        cleanup_fd int fd = memfd_create("floor-vmstate", MFD_CLOEXEC);

        if (fd < 0)
                return err_errno(e, -errno, "making room for the device state");
        return vmm_qemu.save_state(c->vmm, fd, e);
}
