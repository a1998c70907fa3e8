/* SPDX-License-Identifier: MIT */
#include "forkd/host/admission.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/ids.h"

/* Seen with QEMU 7.2 under TCG: a clone has 17 MiB of its own when it has answered, of which 1 is the guest's; with use the
 * translation buffer grows. It has three threads and one for each vCPU; its disks may have it start a few more. */
#define VMM_MEMORY (32ull << 20)
#define CLONE_PART 32 /* of a clone's RAM: what is expected to be its own soon */
#define VMM_THREADS 5
/* Control, agent, pidfd, userfaultfd; what it takes to hand it to another pager; some to spare. */
#define VM_DESCRIPTORS 8
#define MAX_NAMED 3 /* in a message */

struct admission {
        struct admission_limits limits;
        struct admission_host host;
        TAILQ_HEAD(, admission_claim) claims;
};

struct sums {
        uint64_t memory, promised, disk, vcpus, pids, descriptors;
};

int admission_new(const struct admission_limits *l, const struct admission_host *h, struct admission **ret) {
        struct admission *a = calloc(1, sizeof(*a));

        if (!a)
                return -ENOMEM;
        a->limits = *l;
        a->host = *h;
        TAILQ_INIT(&a->claims);
        *ret = a;
        return 0;
}

void admission_free(struct admission *a) {
        free(a);
}

struct admission_need admission_vm_need(uint64_t mem_bytes, unsigned vcpus, bool boots) {
        return (struct admission_need){
                .memory = VMM_MEMORY + (boots ? mem_bytes : mem_bytes / CLONE_PART),
                .promised = VMM_MEMORY + mem_bytes,
                .vcpus = vcpus,
                .pids = vcpus + VMM_THREADS,
                .descriptors = VM_DESCRIPTORS,
        };
}

struct admission_need admission_shell_need(unsigned vcpus) {
        return (struct admission_need){ .memory = VMM_MEMORY, .pids = vcpus + VMM_THREADS, .descriptors = VM_DESCRIPTORS };
}

/* ---- sums ---- */

static uint64_t times(uint64_t n, uint64_t each) {
        return each > 0 && n > UINT64_MAX / each ? UINT64_MAX : n * each;
}

static uint64_t plus(uint64_t a, uint64_t b) {
        return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/* What was reserved and is not in the host's figures yet. */
static uint64_t untouched(const struct admission *a, const struct admission_claim *c) {
        uint64_t all = times(c->count, c->need.memory), touched = c->pid > 0 ? a->host.touched(c->pid, a->host.arg) : 0;

        return all > touched ? all - touched : 0;
}

static struct sums sum(const struct admission *a, bool held) {
        const struct admission_claim *c;
        struct sums s = { 0 };

        TAILQ_FOREACH (c, &a->claims, entry) {
                if (c->held != held)
                        continue;
                s.memory = plus(s.memory, held ? times(c->count, c->need.memory) : untouched(a, c));
                s.promised = plus(s.promised, times(c->count, c->need.promised));
                s.disk = plus(s.disk, times(c->count, c->need.disk));
                s.vcpus += (uint64_t) c->count * c->need.vcpus;
                s.pids += (uint64_t) c->count * c->need.pids;
                s.descriptors += (uint64_t) c->count * c->need.descriptors;
        }
        return s;
}

/* ---- refusals ---- */

/* Snapshots claim disk, VMs all the rest. */
static bool competes(const struct admission_claim *c, bool for_disk) {
        return (c->need.disk > 0) == for_disk;
}

static uint64_t weight(const struct admission_claim *c) {
        return times(c->count, c->need.disk > 0 ? c->need.disk : c->need.promised);
}

/* The next smaller one than @before; of those of the same size the next in the list. */
static const struct admission_claim *next_largest(const struct admission *a, bool for_disk,
                                                  const struct admission_claim *before) {
        const struct admission_claim *c, *best = NULL;
        bool passed = false;

        TAILQ_FOREACH (c, &a->claims, entry) {
                bool after = !before || weight(c) < weight(before) || (weight(c) == weight(before) && passed);

                passed |= c == before;
                if (c != before && after && competes(c, for_disk) && (!best || weight(c) > weight(best)))
                        best = c;
        }
        return best;
}

/* "; it is held by 'a', 'b', 'c' and 12 others", the largest first. */
static void name_holders(const struct admission *a, bool for_disk, char *buf, size_t size) {
        const struct admission_claim *c = NULL;
        unsigned n = 0, others;
        size_t len = 0;

        buf[0] = '\0';
        TAILQ_FOREACH (c, &a->claims, entry)
                n += competes(c, for_disk);
        others = n > MAX_NAMED ? n - MAX_NAMED : 0;
        for (unsigned i = 0; i < MIN_OF(n, (unsigned) MAX_NAMED) && len < size; i++) {
                c = next_largest(a, for_disk, c);
                if (c)
                        len += (size_t) snprintf(buf + len, size - len, "%s%s", i == 0 ? "; it is held by " : ", ", c->who);
        }
        if (others > 0 && len < size)
                (void) snprintf(buf + len, size - len, " and %u other%s", others, others > 1 ? "s" : "");
}

#define TEXT_LEN 200

static int refuse_bytes(const struct admission *a, int r, const char *who, const char *what, uint64_t need, uint64_t have,
                        const char *of, struct err *e) {
        char n[32], h[32], holders[TEXT_LEN];

        name_holders(a, r == -ENOSPC, holders, sizeof(holders));
        return err_set(e, ERR_NO_SPACE, r, "not enough %s for %s: %s needed, %s %s%s", what, who, size_format(need, n, sizeof(n)),
                       size_format(have, h, sizeof(h)), of, holders);
}

static int refuse_number(const struct admission *a, const char *who, const char *what, uint64_t need, uint64_t have,
                         uint64_t limit, struct err *e) {
        char holders[TEXT_LEN], of[48] = "";

        name_holders(a, false, holders, sizeof(holders));
        if (limit > 0)
                (void) snprintf(of, sizeof(of), " of %" PRIu64, limit);
        return err_set(e, ERR_LIMIT, -EMFILE, "not enough %s for %s: %" PRIu64 " needed, %" PRIu64 "%s left%s", what, who, need,
                       have, of, holders);
}

static uint64_t left(uint64_t limit, uint64_t used) {
        return limit > used ? limit - used : 0;
}

static int check_memory(const struct admission *a, const char *who, const struct admission_need *need, unsigned count,
                        const struct sums *reserved, const struct sums *held, struct err *e) {
        uint64_t want = times(count, need->memory), promise = times(count, need->promised), there, have;
        uint64_t limit = a->limits.memory > 0 ? (uint64_t) ((double) a->limits.memory * a->limits.overcommit) : UINT64_MAX;
        char of[80], r[32];

        if (want == 0)
                return 0;
        have = left(limit, plus(reserved->promised, held->promised));
        if (promise > have) {
                (void) snprintf(of, sizeof(of), "of %s are not promised", size_format(limit, r, sizeof(r)));
                (void) refuse_bytes(a, -ENOMEM, who, "memory", promise, have, of, e);
                return err_hint(e, "stop VMs or put them on standby, ask for less (--mem, --count), or raise memory or "
                                   "memory_overcommit in [limits]");
        }
        there = a->host.memory(a->host.arg);
        have = there == UINT64_MAX ? there : left(there, reserved->memory);
        if (want <= have)
                return 0;
        if (reserved->memory > 0)
                (void) snprintf(of, sizeof(of), "available (%s are reserved for what starts)",
                                size_format(reserved->memory, r, sizeof(r)));
        else
                (void) snprintf(of, sizeof(of), "available");
        (void) refuse_bytes(a, -ENOMEM, who, "memory", want, have, of, e);
        return err_hint(e, "put VMs on standby or stop some, or ask for less (--mem, --count)");
}

static int check_disk(const struct admission *a, const char *who, const struct admission_need *need, unsigned count,
                      const struct sums *reserved, struct err *e) {
        uint64_t want = times(count, need->disk), there, have;
        char of[120], r[32], k[32];

        if (want == 0)
                return 0;
        there = a->host.disk(a->host.arg);
        have = there == UINT64_MAX ? there : left(there, plus(reserved->disk, a->limits.disk_reserve));
        if (want <= have)
                return 0;
        (void) snprintf(of, sizeof(of), "free in the store (beside a reserve of %s, and %s for snapshots under way)",
                        size_format(a->limits.disk_reserve, k, sizeof(k)), size_format(reserved->disk, r, sizeof(r)));
        (void) refuse_bytes(a, -ENOSPC, who, "disk space", want, have, of, e);
        return err_hint(e, "remove snapshots ('forkctl snapshot ls' tells what each would free) or give the store more room");
}

static int check_numbers(const struct admission *a, const char *who, const struct admission_need *need, unsigned count,
                         const struct sums *reserved, const struct sums *held, struct err *e) {
        uint64_t vcpus = (uint64_t) count * need->vcpus, pids = (uint64_t) count * need->pids,
                 fds = (uint64_t) count * need->descriptors, have;

        have = left(a->limits.vcpus, reserved->vcpus + held->vcpus);
        if (vcpus > have) {
                (void) refuse_number(a, who, "vCPUs", vcpus, have, a->limits.vcpus, e);
                return err_hint(e, "stop VMs or put them on standby, or raise vcpus in [limits]");
        }
        have = left(a->limits.descriptors, reserved->descriptors + held->descriptors);
        if (fds > have) {
                (void) refuse_number(a, who, "descriptors", fds, have, a->limits.descriptors, e);
                return err_hint(e, "raise LimitNOFILE= of forkd's unit, or 'ulimit -Hn' of the shell that starts it");
        }
        if (pids == 0)
                return 0;
        have = a->host.pids(a->host.arg);
        have = have == UINT64_MAX ? have : left(have, reserved->pids);
        if (pids > have) {
                (void) refuse_number(a, who, "processes and threads", pids, have, 0, e);
                return err_hint(e, "see TasksMax= of the unit, pids.max of the cgroup, kernel.pid_max and kernel.threads-max");
        }
        return 0;
}

/* ---- claims ---- */

static void begin(struct admission *a, struct admission_claim *c, const char *who, const struct admission_need *need,
                  unsigned count) {
        c->count = count;
        c->need = *need;
        c->held = false;
        c->pid = 0;
        (void) snprintf(c->who, sizeof(c->who), "%s", who);
        TAILQ_INSERT_TAIL(&a->claims, c, entry);
}

static int check(const struct admission *a, const char *who, const struct admission_need *need, unsigned count, struct err *e) {
        struct sums reserved = sum(a, false), held = sum(a, true);
        int r = check_numbers(a, who, need, count, &reserved, &held, e);

        if (r == 0)
                r = check_memory(a, who, need, count, &reserved, &held, e);
        if (r == 0)
                r = check_disk(a, who, need, count, &reserved, e);
        return r;
}

int admission_reserve(struct admission *a, struct admission_claim *c, const char *who, const struct admission_need *need,
                      unsigned count, struct err *e) {
        int r;

        admission_release(a, c);
        r = check(a, who, need, count, e);
        if (r < 0 && r != -ENOSPC && need->promised > 0 && a->host.yield && a->host.yield(a->host.arg))
                r = check(a, who, need, count, e);
        if (r == 0)
                begin(a, c, who, need, count);
        return r;
}

void admission_share(struct admission *a, struct admission_claim *from, struct admission_claim *to, const char *who) {
        if (from->count == 0)
                return;
        admission_release(a, to);
        begin(a, to, who, &from->need, 1);
        if (from->count == 1)
                admission_release(a, from);
        else
                from->count--;
}

void admission_hold(struct admission *a, struct admission_claim *c, const char *who, const struct admission_need *need) {
        if (c->count == 0)
                begin(a, c, who, need, 1);
        c->held = true;
}

void admission_release(struct admission *a, struct admission_claim *c) {
        if (c->count == 0)
                return;
        TAILQ_REMOVE(&a->claims, c, entry);
        *c = (struct admission_claim){ 0 };
}

/* ---- telling ---- */

/* nil: no limit, or unknown. */
static void put_limit(struct mp_buf *b, const char *key, uint64_t v) {
        mp_key(b, key);
        if (v == UINT64_MAX)
                mp_nil(b);
        else
                mp_u64(b, v);
}

void admission_encode(const struct admission *a, struct mp_buf *b) {
        struct sums reserved = sum(a, false), held = sum(a, true);

        mp_key(b, "memory");
        mp_map(b, 5);
        put_limit(b, "limit", a->limits.memory > 0 ? (uint64_t) ((double) a->limits.memory * a->limits.overcommit) : UINT64_MAX);
        put_limit(b, "available", a->host.memory(a->host.arg));
        mp_kv_u64(b, "held", held.memory);
        mp_kv_u64(b, "reserved", reserved.memory);
        mp_kv_u64(b, "promised", plus(held.promised, reserved.promised));
        mp_key(b, "vcpus");
        mp_map(b, 3);
        put_limit(b, "limit", a->limits.vcpus);
        mp_kv_u64(b, "held", held.vcpus);
        mp_kv_u64(b, "reserved", reserved.vcpus);
        mp_key(b, "disk");
        mp_map(b, 3);
        put_limit(b, "available", a->host.disk(a->host.arg));
        mp_kv_u64(b, "kept", a->limits.disk_reserve);
        mp_kv_u64(b, "reserved", reserved.disk);
        mp_key(b, "pids");
        mp_map(b, 3);
        put_limit(b, "available", a->host.pids(a->host.arg));
        mp_kv_u64(b, "held", held.pids);
        mp_kv_u64(b, "reserved", reserved.pids);
        mp_key(b, "descriptors");
        mp_map(b, 3);
        put_limit(b, "limit", a->limits.descriptors);
        mp_kv_u64(b, "held", held.descriptors);
        mp_kv_u64(b, "reserved", reserved.descriptors);
}
