/* SPDX-License-Identifier: MIT */
#include "forkd/host/room.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "forkd/host/admission.h"
#include "forkd/api/api.h"
#include "forkd/host/host.h"
#include "forkd/host/shells.h"
#include "forkd/monitor/http.h"
#include "forkd/host/turns.h"

#define MAX_SCANS 2 /* whole snapshots that are read at once: each keeps a CPU and the disk busy */
/* A start waits a part of its time, so that one for each core leaves the cores idle; with all at once the last is there later,
 * and half of them twice as late (docs/benchmarks.md, "A burst"). */
#define STARTS_PER_CORE 2
#define VCPUS_PER_CORE 64
#define MIN_VCPUS 1024
/* Beside VMs: clients of both doors, workers, files and sockets of the starts and snapshots under way, logs, store, probes. */
#define OWN_DESCRIPTORS (FORKD_MAX_CLIENTS + HTTP_MAX_CONNS + 160u)
#define START_DESCRIPTORS 16u

static uint64_t memory(void *arg) {
        const struct daemon *d = arg;

        return host_memory(d->host);
}

static uint64_t pids(void *arg) {
        const struct daemon *d = arg;

        return host_pids(d->host);
}

static uint64_t disk(void *arg) {
        const struct daemon *d = arg;

        return host_disk(d->store_dir);
}

static uint64_t touched(pid_t pid, void *arg) {
        const struct daemon *d = arg;

        return host_private_bytes(d->host, pid);
}

static bool yield_shells(void *arg) {
        const struct daemon *d = arg;

        return d->shells && shells_yield(d->shells);
}

static bool client_gone(const void *client, void *arg) {
        const struct daemon *d = arg;

        return d->api && !api_has_client(d->api, client);
}

static struct admission_limits limits(const struct config *c, unsigned cores, unsigned starts) {
        uint64_t files = host_descriptors(), own = OWN_DESCRIPTORS + START_DESCRIPTORS * starts;

        return (struct admission_limits){
                .memory = c->limit_memory,
                .overcommit = c->memory_overcommit,
                .vcpus = c->limit_vcpus > 0 ? c->limit_vcpus : MAX_OF(cores * VCPUS_PER_CORE, (unsigned) MIN_VCPUS),
                .disk_reserve = c->disk_reserve,
                .descriptors = files == UINT64_MAX ? files
                               : files > own       ? files - own
                                                   : 0,
        };
}

int room_new(struct daemon *d) {
        const struct admission_host host = {
                .memory = memory, .pids = pids, .disk = disk, .touched = touched, .yield = yield_shells, .arg = d
        };
        unsigned cores = (unsigned) MAX_OF(sysconf(_SC_NPROCESSORS_ONLN), 1L);
        const unsigned places[HEAVY_KINDS] = {
                [HEAVY_START] = d->cfg.parallel_starts > 0 ? d->cfg.parallel_starts : STARTS_PER_CORE * cores,
                [HEAVY_SAVE] = d->cfg.parallel_saves > 0 ? d->cfg.parallel_saves : cores,
                [HEAVY_SCAN] = MAX_SCANS,
        };
        const struct admission_limits l = limits(&d->cfg, cores, places[HEAVY_START]);
        int r;

        r = host_new("", d->instance, &d->host);
        if (r == 0)
                r = admission_new(&l, &host, &d->admission);
        if (r == 0)
                r = turns_new(places, client_gone, d, &d->turns);
        return r;
}

void room_free(struct daemon *d) {
        turns_free(d->turns);
        admission_free(d->admission);
        host_free(d->host);
}

void room_hold(struct vm *vm) {
        const struct admission_need need = admission_vm_need(vm->machine.mem_bytes, vm->machine.vcpus, !vm->session);
        char who[80];

        (void) snprintf(who, sizeof(who), "'%s'", vm->name);
        admission_hold(vm->d->admission, &vm->claim, who, &need);
}

void room_encode(const struct daemon *d, struct mp_buf *b) {
        static const char *const kinds[HEAVY_KINDS] = {
                [HEAVY_START] = "starts", [HEAVY_SAVE] = "saves", [HEAVY_SCAN] = "scans"
        };

        mp_map(b, ADMISSION_KEYS + HEAVY_KINDS);
        admission_encode(d->admission, b);
        for (int i = 0; i < HEAVY_KINDS; i++) {
                struct turns_count n = turns_count(d->turns, (enum heavy) i);

                mp_key(b, kinds[i]);
                mp_map(b, 3);
                mp_kv_u64(b, "limit", n.limit);
                mp_kv_u64(b, "running", n.running);
                mp_kv_u64(b, "waiting", n.waiting);
        }
}
