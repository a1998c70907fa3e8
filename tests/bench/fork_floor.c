/* SPDX-License-Identifier: MIT */
/* The floor: what a fork, and the saving of device state, cost without forkd and without its pager.
 *
 * Theory of operation. This program does by hand the least that makes a clone answer: it starts the same QEMU with
 * the same arguments and the same driver, on an uncompressed RAM file in tmpfs that libfloor-map maps private, loads
 * the same device state, connects to the agent, queues the same wake-up, resumes, and waits for the
 * acknowledgement. No page is missing, nothing is decompressed, verified, recorded or put into a cgroup.
 *
 * It stays alive between rounds, as forkd does, so that neither side pays for its own start. On stdin it takes one
 * command a line and answers each with one line of JSON:
 *
 *      fork    {"load_ms", "ack_ms", "total_ms", "agent_us"}: spawn to state loaded, from there to acknowledged,
 *              both; what the agent says of it: entropy, clock, hostname, machine-id, hooks
 *      save    the same, then the guest writes as many bytes as --dirty says; adds {"pause_ms", "device_ms"}:
 *              stopping the vCPUs, and the device state alone into a memfd
 *      wake PATH   only the link and the wake-up, with a guest that somebody else has restored and is about to
 *              resume: PATH is the socket of its agent's port. {"ack_ms", "agent_us"} */
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/co.h"
#include "common/ids.h"
#include "common/io.h"
#include "forkd/guest/guest_link.h"
#include "forkd/vmm/vmm.h"
#include "snapstore/store.h"

#define LINK_TIMEOUT_MS 10000
#define ACK_TIMEOUT_MS 30000
#define EXEC_TIMEOUT_S 30
#define MAX_SCRIPT 64

struct floor {
        struct event_base *base;
        struct vmm_machine machine;
        const char *lib, *dir;
        char log_path[PATH_MAX];
        uint64_t dirty_bytes;
        int ram_fd, vmstate_fd, console_fd, null_fd;
};

struct times {
        double load_ms, ack_ms, total_ms, pause_ms, device_ms;
        struct guest_ack ack;
};

/** One round; the coroutine's argument. */
struct round {
        struct floor *f;
        bool save;
        const char *foreign; /* socket of a guest's agent that is not ours to start; NULL */
        struct vmm *vmm;
        struct guest_link *link;
        struct times t;
        struct err e;
        int r;
};

static const struct vmm_events no_events = { 0 };

/* ---- a clone ---- */

static int open_link(struct round *c, const char *path) {
        int r = guest_link_new(c->f->base, path, &c->link);

        return r < 0 ? err_errno(&c->e, r, "making the link") : guest_link_connect(c->link, LINK_TIMEOUT_MS, &c->e);
}

static int start(struct round *c) {
        struct floor *f = c->f;
        const struct vmm_start s = {
                .machine = &f->machine,
                .run_dir = f->dir,
                .log_path = f->log_path,
                .console_fd = f->console_fd,
                .cgroup_fd = -1,
                .incoming = true,
                .image_fd = f->ram_fd,
                .pager_sock = f->null_fd, /* the driver wants one; libfloor-map does not look at it */
                .attach_lib = f->lib,
        };
        int r;

        r = vmm_qemu.start(f->base, &s, &no_events, NULL, &c->vmm, &c->e);
        if (r < 0)
                return r;
        if (lseek(f->vmstate_fd, 0, SEEK_SET) < 0)
                return err_errno(&c->e, -errno, "rewinding the device state");
        r = vmm_qemu.load_state(c->vmm, f->vmstate_fd, &c->e);
        if (r < 0)
                return r;
        return open_link(c, vmm_qemu.agent_socket(c->vmm));
}

static int wake(struct round *c) {
        struct guest_identity id = { .kind = WIRE_WAKE_RESTORE, .hostname = "floor" };
        uint8_t machine_id[16];
        int r;

        random_bytes(machine_id, sizeof(machine_id));
        hex_encode(machine_id, sizeof(machine_id), id.machine_id);
        random_bytes(id.entropy, sizeof(id.entropy));
        r = guest_link_queue_wake(c->link, &id);
        if (r < 0)
                return err_errno(&c->e, r, "queueing the wake-up");
        r = c->vmm ? vmm_qemu.resume(c->vmm, &c->e) : 0;
        return r < 0 ? r : guest_link_wait_ack(c->link, ACK_TIMEOUT_MS, &c->t.ack, &c->e);
}

/* ---- what the guest does before it is saved ---- */

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

static int dirty(struct round *c) {
        static const struct guest_call_handlers handlers = { .on_data = on_data, .on_eof = on_eof, .on_done = on_done };
        struct command cmd = { .done = CO_WAIT_INIT };
        struct guest_call *call;
        char script[MAX_SCRIPT];
        int r;

        (void) snprintf(script, sizeof(script), "head -c %llu /dev/urandom > /run/dirt", (unsigned long long) c->f->dirty_bytes);
        const char *const argv[] = { "/bin/sh", "-c", script, NULL };
        const struct guest_exec_params p = { .argv = argv, .timeout_s = EXEC_TIMEOUT_S };

        r = guest_exec(c->link, &p, &handlers, &cmd, &call, &c->e);
        if (r < 0)
                return r;
        r = co_wait(&cmd.done, -1); /* the guest's timeout ends it, or the link's loss does */
        if (r < 0) {
                c->e = cmd.res.e;
                return r;
        }
        if (cmd.res.signaled || cmd.res.code != 0)
                return err_set(&c->e, ERR_AGENT, -EIO, "the guest's '%s' failed with %d", script, cmd.res.code);
        return 0;
}

static int save(struct round *c) {
        cleanup_fd int fd = memfd_create("floor-vmstate", MFD_CLOEXEC);
        uint64_t start_ns;
        int r;

        if (fd < 0)
                return err_errno(&c->e, -errno, "making room for the device state");
        r = dirty(c);
        if (r < 0)
                return r;
        start_ns = now_ns();
        r = vmm_qemu.pause(c->vmm, &c->e);
        c->t.pause_ms = ms_since(start_ns);
        if (r < 0)
                return r;
        start_ns = now_ns();
        r = vmm_qemu.save_state(c->vmm, fd, &c->e);
        c->t.device_ms = ms_since(start_ns);
        return r;
}

/* ---- a round ---- */

static int run_round(struct round *c) {
        uint64_t start_ns = now_ns(), loaded;
        int r;

        r = c->foreign ? open_link(c, c->foreign) : start(c);
        if (r < 0)
                return r;
        loaded = now_ns();
        c->t.load_ms = (double) (loaded - start_ns) / 1e6;
        r = wake(c);
        c->t.ack_ms = ms_since(loaded);
        c->t.total_ms = ms_since(start_ns);
        return r == 0 && c->save ? save(c) : r;
}

static void round_main(void *arg) {
        struct round *c = arg;
        struct err e;

        c->r = run_round(c);
        guest_link_free(c->link);
        if (c->vmm && vmm_qemu.kill(c->vmm, &e) < 0)
                (void) fprintf(stderr, "fork_floor: %s\n", e.message);
        vmm_qemu.free(c->vmm);
        (void) event_base_loopbreak(c->f->base);
}

static int one_round(struct floor *f, bool with_save, const char *foreign) {
        struct round c = { .f = f, .save = with_save, .foreign = foreign };

        if (co_start(f->base, round_main, &c) < 0 || event_base_dispatch(f->base) < 0) {
                (void) fprintf(stderr, "fork_floor: out of memory\n");
                return -ENOMEM;
        }
        if (c.r < 0) {
                (void) fprintf(stderr, "fork_floor: %s\n", c.e.message);
                return c.r;
        }
        (void) printf("{\"load_ms\":%.3f,\"ack_ms\":%.3f,\"total_ms\":%.3f", c.t.load_ms, c.t.ack_ms, c.t.total_ms);
        (void) printf(",\"agent_us\":[%ju,%ju,%ju,%ju,%ju]", (uintmax_t) c.t.ack.entropy_us, (uintmax_t) c.t.ack.clock_us,
                      (uintmax_t) c.t.ack.hostname_us, (uintmax_t) c.t.ack.machine_id_us, (uintmax_t) c.t.ack.hooks_us);
        if (with_save)
                (void) printf(",\"pause_ms\":%.3f,\"device_ms\":%.3f", c.t.pause_ms, c.t.device_ms);
        (void) printf("}\n");
        (void) fflush(stdout);
        return 0;
}

/* ---- what all rounds share ---- */

static int read_snapshot(struct floor *f, const char *store, const char *id) {
        cleanup_snap_store struct snap_store *s = NULL;
        cleanup_free struct snap_manifest *m = calloc(1, sizeof(*m));
        int r;

        if (!m)
                return -ENOMEM;
        r = snap_store_open(store, &s);
        if (r == 0)
                r = snap_store_load(s, id, m, NULL);
        if (r < 0)
                return r;
        f->machine = (struct vmm_machine){
                .mem_bytes = m->mem_bytes,
                .vcpus = m->vcpus,
                .accel = strcmp(m->accel, "kvm") == 0 ? VMM_ACCEL_KVM : VMM_ACCEL_TCG,
        };
        f->vmstate_fd = memfd_create("floor-vmstate", MFD_CLOEXEC);
        return f->vmstate_fd < 0 ? -errno : snap_store_read_vmstate(s, id, f->vmstate_fd);
}

static int open_files(struct floor *f, const char *ram) {
        char path[PATH_MAX];
        struct stat st;

        if ((size_t) snprintf(f->log_path, sizeof(f->log_path), "%s/vmm.log", f->dir) >= sizeof(f->log_path) ||
            (size_t) snprintf(path, sizeof(path), "%s/console.log", f->dir) >= sizeof(path))
                return -ENAMETOOLONG;
        f->console_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        f->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
        f->ram_fd = open(ram, O_RDONLY | O_CLOEXEC);
        if (f->console_fd < 0 || f->null_fd < 0 || f->ram_fd < 0 || fstat(f->ram_fd, &st) < 0)
                return -errno;
        return (uint64_t) st.st_size == f->machine.mem_bytes ? 0 : -EINVAL;
}

static int serve(struct floor *f) {
        static const char wake_command[] = "wake ";
        char line[PATH_MAX + 16];
        int r = 0;

        while (r == 0 && fgets(line, sizeof(line), stdin)) {
                line[strcspn(line, "\n")] = '\0';
                if (strcmp(line, "fork") == 0 || strcmp(line, "save") == 0) {
                        r = one_round(f, strcmp(line, "save") == 0, NULL);
                } else if (strncmp(line, wake_command, sizeof(wake_command) - 1) == 0) {
                        r = one_round(f, false, line + sizeof(wake_command) - 1);
                } else {
                        (void) fprintf(stderr, "fork_floor: '%s' is neither 'fork' nor 'save' nor 'wake PATH'\n", line);
                        r = -EINVAL;
                }
        }
        return r;
}

static int usage(void) {
        (void) fprintf(stderr,
                       "usage: fork_floor --store DIR --snapshot ID --ram FILE --lib LIBFLOOR-MAP --dir DIR --dirty BYTES\n");
        return 2;
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                { "store", required_argument, NULL, 's' },
                { "snapshot", required_argument, NULL, 'i' },
                { "ram", required_argument, NULL, 'r' },
                { "lib", required_argument, NULL, 'l' },
                { "dir", required_argument, NULL, 'd' },
                { "dirty", required_argument, NULL, 'b' },
                { NULL, 0, NULL, 0 },
        };
        struct floor f = { .ram_fd = -1, .vmstate_fd = -1, .console_fd = -1, .null_fd = -1 };
        const char *store = NULL, *id = NULL, *ram = NULL;
        int opt, r;

        while ((opt = getopt_long(argc, argv, "", options, NULL)) >= 0) {
                if (opt == 's')
                        store = optarg;
                else if (opt == 'i')
                        id = optarg;
                else if (opt == 'r')
                        ram = optarg;
                else if (opt == 'l')
                        f.lib = optarg;
                else if (opt == 'd')
                        f.dir = optarg;
                else if (opt != 'b' || size_parse(optarg, &f.dirty_bytes) < 0)
                        return usage();
        }
        if (optind != argc || !store || !id || !ram || !f.lib || !f.dir)
                return usage();
        r = read_snapshot(&f, store, id);
        if (r == 0)
                r = open_files(&f, ram);
        if (r < 0) {
                (void) fprintf(stderr, "fork_floor: preparing snapshot %s with %s: %s\n", id, ram, strerror(-r));
                return 1;
        }
        f.base = event_base_new();
        if (!f.base) {
                (void) fprintf(stderr, "fork_floor: out of memory\n");
                return 1;
        }
        r = serve(&f);
        event_base_free(f.base);
        (void) close_fd(f.ram_fd);
        (void) close_fd(f.vmstate_fd);
        (void) close_fd(f.console_fd);
        (void) close_fd(f.null_fd);
        return r < 0;
}
