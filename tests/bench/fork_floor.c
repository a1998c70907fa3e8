/* SPDX-License-Identifier: MIT */
/* The floor: what a fork, a take, and the saving of device state, cost without forkd and without its pager.
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
 *      load    the same, but QEMU has been started, and its memory mapped, before the clock runs
 *      save    as `fork`, then the guest writes as many bytes as --dirty says; adds {"pause_ms", "device_ms"}:
 *              stopping the vCPUs, and the device state alone into a memfd
 *      warm N  N clones more are restored, woken, asked once, paused, and wait: {"warm"}: how many wait now
 *      take    the one that has waited longest runs, and ends: {"resume_ms", "total_ms"}: `cont` alone, and with one
 *              echo over the agent's channel
 *      name    the same with the wake-up that gives a clone its own identity in the place of the echo:
 *              {"total_ms", "agent_us"}
 *      wake PATH   only the link and the wake-up, with a guest that somebody else has restored and is about to
 *              resume: PATH is the socket of its agent's port. {"ack_ms", "agent_us"} */
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/co.h"
#include "common/io.h"
#include "floor_clone.h"
#include "snapstore/store.h"

#define MAX_CLONES 128u

enum command { CMD_FORK, CMD_LOAD, CMD_SAVE, CMD_WAKE, CMD_WARM, CMD_TAKE, CMD_NAME };

/** Clones that wait, by when they were made; each has a number of its own, of which it has its directory. */
struct waiting {
        struct clone clones[MAX_CLONES];
        unsigned first, n;
};

/** One command; the coroutine's argument. */
struct round {
        struct floor *f;
        struct waiting *waiting;
        enum command cmd;
        unsigned count;   /* warm */
        const char *path; /* wake: socket of a guest's agent that is not ours to start */
        struct clone c;
        double load_ms, ack_ms, total_ms, pause_ms, device_ms, resume_ms;
        struct guest_ack ack;
        struct err e;
        int r;
};

/* ---- the commands ---- */

/* fork, load, save, wake: up to the acknowledgement */
static int fork_one(struct round *k) {
        uint64_t start_ns = now_ns(), loaded;
        int r;

        r = k->cmd == CMD_WAKE ? 0 : clone_start(&k->c, k->f, MAX_CLONES, &k->e);
        if (k->cmd == CMD_LOAD)
                start_ns = now_ns();
        if (r == 0 && k->cmd != CMD_WAKE)
                r = clone_load(&k->c, &k->e);
        if (r == 0)
                r = clone_link(&k->c, k->path, &k->e);
        if (r < 0)
                return r;
        loaded = now_ns();
        k->load_ms = (double) (loaded - start_ns) / 1e6;
        r = clone_wake(&k->c, &k->ack, &k->e);
        k->ack_ms = ms_since(loaded);
        k->total_ms = ms_since(start_ns);
        return r;
}

static int save_one(struct round *k) {
        uint64_t start_ns;
        int r = clone_dirty(&k->c, &k->e);

        if (r < 0)
                return r;
        start_ns = now_ns();
        r = clone_pause(&k->c, &k->e);
        k->pause_ms = ms_since(start_ns);
        if (r < 0)
                return r;
        start_ns = now_ns();
        r = clone_save(&k->c, &k->e);
        k->device_ms = ms_since(start_ns);
        return r;
}

static int warm_one(struct round *k) {
        struct waiting *w = k->waiting;
        unsigned number = (w->first + w->n) % MAX_CLONES;
        struct clone *c = &w->clones[number];
        int r;

        r = clone_start(c, k->f, number, &k->e);
        if (r == 0)
                r = clone_load(c, &k->e);
        if (r == 0)
                r = clone_link(c, NULL, &k->e);
        if (r == 0)
                r = clone_wake(c, NULL, &k->e);
        if (r == 0)
                r = clone_echo(c, &k->e);
        if (r == 0)
                r = clone_pause(c, &k->e);
        if (r < 0) {
                clone_end(c);
                return r;
        }
        w->n++;
        return 0;
}

static int warm(struct round *k) {
        if (k->count > MAX_CLONES - k->waiting->n)
                return err_set(&k->e, ERR_INVALID, -ENOSPC, "more than %u clones at once", MAX_CLONES);
        for (unsigned i = 0; i < k->count; i++) {
                int r = warm_one(k);

                if (r < 0)
                        return r;
        }
        return 0;
}

static int take(struct round *k) {
        struct waiting *w = k->waiting;
        uint64_t start_ns;
        int r;

        if (w->n == 0)
                return err_set(&k->e, ERR_INVALID, -ENOENT, "no clone waits: 'warm' makes some");
        k->c = w->clones[w->first];
        w->clones[w->first] = (struct clone){ 0 };
        w->first = (w->first + 1) % MAX_CLONES;
        w->n--;

        start_ns = now_ns();
        if (k->cmd == CMD_NAME)
                r = clone_wake(&k->c, &k->ack, &k->e);
        else
                r = clone_resume_echo(&k->c, &k->resume_ms, &k->e);
        k->total_ms = ms_since(start_ns);
        return r;
}

static int run_command(struct round *k) {
        int r;

        if (k->cmd == CMD_WARM)
                return warm(k);
        if (k->cmd == CMD_TAKE || k->cmd == CMD_NAME)
                return take(k);
        k->c.f = k->f;
        r = fork_one(k);
        return r == 0 && k->cmd == CMD_SAVE ? save_one(k) : r;
}

static void round_main(void *arg) {
        struct round *k = arg;

        k->r = run_command(k);
        clone_end(&k->c);
        (void) event_base_loopbreak(k->f->base);
}

static void end_main(void *arg) {
        struct round *k = arg;

        for (unsigned i = 0; i < MAX_CLONES; i++)
                clone_end(&k->waiting->clones[i]);
        (void) event_base_loopbreak(k->f->base);
}

static int run(struct round *k, void (*fn)(void *arg)) {
        if (co_start(k->f->base, fn, k) < 0 || event_base_dispatch(k->f->base) < 0) {
                (void) fprintf(stderr, "fork_floor: out of memory\n");
                return -ENOMEM;
        }
        if (k->r < 0)
                (void) fprintf(stderr, "fork_floor: %s\n", k->e.message);
        return k->r;
}

static void answer(const struct round *k) {
        const struct guest_ack *a = &k->ack;

        if (k->cmd == CMD_WARM) {
                (void) printf("{\"warm\":%u}\n", k->waiting->n);
                (void) fflush(stdout);
                return;
        }
        (void) printf("{\"total_ms\":%.3f", k->total_ms);
        if (k->cmd == CMD_TAKE)
                (void) printf(",\"resume_ms\":%.3f", k->resume_ms);
        else if (k->cmd != CMD_NAME)
                (void) printf(",\"load_ms\":%.3f,\"ack_ms\":%.3f", k->load_ms, k->ack_ms);
        if (k->cmd == CMD_SAVE)
                (void) printf(",\"pause_ms\":%.3f,\"device_ms\":%.3f", k->pause_ms, k->device_ms);
        (void) printf(",\"agent_us\":[%ju,%ju,%ju,%ju,%ju]}\n", (uintmax_t) a->entropy_us, (uintmax_t) a->clock_us,
                      (uintmax_t) a->hostname_us, (uintmax_t) a->machine_id_us, (uintmax_t) a->hooks_us);
        (void) fflush(stdout);
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
        f->ram_fd = open(ram, O_RDONLY | O_CLOEXEC);
        if (f->console_fd < 0 || f->ram_fd < 0 || fstat(f->ram_fd, &st) < 0)
                return -errno;
        return (uint64_t) st.st_size == f->machine.mem_bytes ? 0 : -EINVAL;
}

/* A line of stdin: what it asks for into *k. The path is the line's own. */
static int parse(const char *line, struct round *k) {
        static const struct {
                const char *word;
                enum command cmd;
        } words[] = {
                { "fork", CMD_FORK }, { "load", CMD_LOAD }, { "save", CMD_SAVE }, { "take", CMD_TAKE }, { "name", CMD_NAME }
        };
        unsigned long count;
        char *end;

        for (size_t i = 0; i < ARRAY_LEN(words); i++) {
                if (strcmp(line, words[i].word) == 0) {
                        k->cmd = words[i].cmd;
                        return 0;
                }
        }
        if (strncmp(line, "wake ", 5) == 0) {
                k->cmd = CMD_WAKE;
                k->path = line + 5;
                return 0;
        }
        if (strncmp(line, "warm ", 5) != 0)
                return -EINVAL;
        count = strtoul(line + 5, &end, 10);
        if (end == line + 5 || *end || count > MAX_CLONES)
                return -EINVAL;
        k->cmd = CMD_WARM;
        k->count = (unsigned) count;
        return 0;
}

static int serve(struct floor *f, struct waiting *w) {
        struct round end = { .f = f, .waiting = w };
        char line[PATH_MAX + 16];
        int r = 0, r2;

        while (r == 0 && fgets(line, sizeof(line), stdin)) {
                struct round k = { .f = f, .waiting = w };

                line[strcspn(line, "\n")] = '\0';
                r = parse(line, &k);
                if (r < 0)
                        (void) fprintf(stderr, "fork_floor: '%s' is none of its commands\n", line);
                else
                        r = run(&k, round_main);
                if (r == 0)
                        answer(&k);
        }
        r2 = run(&end, end_main);
        return r < 0 ? r : r2;
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
        struct floor f = { .ram_fd = -1, .vmstate_fd = -1, .console_fd = -1 };
        cleanup_free struct waiting *waiting = calloc(1, sizeof(*waiting));
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
        if (!f.base || !waiting) {
                (void) fprintf(stderr, "fork_floor: out of memory\n");
                return 1;
        }
        r = serve(&f, waiting);
        event_base_free(f.base);
        (void) close_fd(f.ram_fd);
        (void) close_fd(f.vmstate_fd);
        (void) close_fd(f.console_fd);
        return r < 0;
}
