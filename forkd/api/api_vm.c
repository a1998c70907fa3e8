/* SPDX-License-Identifier: MIT */
/* Requests about VMs: parameters in, an operation, a map out. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "forkd/catalog.h"
#include "forkd/vm/fork.h"
#include "forkd/vm/journal.h"
#include "forkd/pool/pool.h"
#include "forkd/api/request.h"
#include "forkd/vm/memory.h"
#include "snapstore/image.h"

#define PING_TIMEOUT_MS 5000
#define LOG_CHUNK (256u << 10)
#define MAX_DISK_PATH 1000 /* fits the worker's MAX_PATH */

/* @more pairs follow. */
static void put_vm(struct mp_buf *b, const struct vm *vm, unsigned more) {
        char dir[PATH_MAX] = "";

        best_effort(vm_state_path(vm, NULL, dir, sizeof(dir)));
        mp_map(b, 21 + more);
        mp_kv_str(b, "name", vm->name);
        mp_kv_str(b, "id", vm->id);
        mp_kv_str(b, "state", vm_state_name(vm->state));
        mp_kv_str(b, "reason", vm->reason[0] ? vm->reason : NULL);
        mp_kv_str(b, "vmm", vm->driver);
        mp_kv_str(b, "accel", vm->machine.accel == VMM_ACCEL_KVM ? "kvm" : "tcg");
        mp_key(b, "pid");
        if (vm->pid > 0)
                mp_u64(b, (uint64_t) vm->pid);
        else
                mp_nil(b);
        mp_kv_u64(b, "mem_bytes", vm->machine.mem_bytes);
        mp_kv_u64(b, "vcpus", vm->machine.vcpus);
        mp_kv_str(b, "snapshot", vm->snapshot[0] ? vm->snapshot : NULL);
        mp_kv_str(b, "parent", vm->parent[0] ? vm->parent : NULL);
        mp_kv_u64(b, "generation", vm->generation);
        mp_kv_str(b, "guest_ip", NULL);
        mp_kv_str(b, "host_ip", NULL);
        mp_kv_str(b, "on_pager_loss", vm->on_pager_loss);
        mp_kv_double(b, "created", (double) vm->created_ns / 1e9);
        mp_kv_bool(b, "agent", vm->link && guest_link_ready(vm->link));
        mp_kv_str(b, "busy", vm->busy);
        mp_kv_str(b, "dir", dir);
        mp_kv_str(b, "pool", vm->pool[0] ? vm->pool : NULL);
        mp_kv_str(b, "cgroup", vm->pid > 0 ? vm_group(vm) : NULL);
}

static int put_state(struct vm *vm, int r, struct mp_buf *out) {
        char name[NAME_MAX_LEN + 1];
        const char *state = vm_state_name(vm->state);

        (void) strcpy(name, vm->name);
        vm_op_end(vm);
        mp_map(out, 2);
        mp_kv_str(out, "name", name);
        mp_kv_str(out, "state", state);
        return r;
}

/* ---- run ---- */

static int get_disks(struct request *rq, struct vm_run_params *p, char (*paths)[PATH_MAX], struct err *e) {
        const msgpack_object *a;
        int r = rq_opt_array(rq, "disks", &a, e);

        if (r < 0)
                return r;
        for (uint32_t i = 0; a && i < a->via.array.size; i++) {
                if (i >= VMM_MAX_DISKS)
                        return err_set(e, ERR_LIMIT, -E2BIG, "a VM cannot have more than %d disks", VMM_MAX_DISKS);
                if (rq_obj_str(&a->via.array.ptr[i], paths[i], MAX_DISK_PATH) < 0 || paths[i][0] != '/')
                        return err_set(e, ERR_INVALID, -EINVAL, "disk %u is not named by an absolute path", i);
                p->disks[i] = paths[i];
                p->n_disks = i + 1;
        }
        return 0;
}

int api_vm_run(struct request *rq, struct mp_buf *out, struct err *e) {
        char name[256], vmm[32], accel[32], net[32], policy[32];
        cleanup_free char(*disks)[PATH_MAX] = malloc(VMM_MAX_DISKS * PATH_MAX);
        struct vm_run_params p = {
                .caller = rq->caller, .name = name, .vmm = vmm, .accel = accel, .net = net, .on_pager_loss = policy
        };
        uint64_t vcpus;
        double boot_ms;
        struct vm *vm;
        int r;

        if (!disks)
                return err_errno(e, -ENOMEM, "reading the request");
        r = rq_str(rq, "name", name, sizeof(name), e);
        if (r == 0)
                r = rq_opt_u64(rq, "mem_bytes", 256u << 20, &p.mem_bytes, e);
        if (r == 0)
                r = rq_opt_u64(rq, "vcpus", 1, &vcpus, e);
        if (r == 0)
                r = rq_opt_str(rq, "vmm", "qemu", vmm, sizeof(vmm), e);
        if (r == 0)
                r = rq_opt_str(rq, "accel", "auto", accel, sizeof(accel), e);
        if (r == 0)
                r = rq_opt_str(rq, "net", "none", net, sizeof(net), e);
        if (r == 0)
                r = rq_opt_str(rq, "on_pager_loss", "kill", policy, sizeof(policy), e);
        if (r == 0)
                r = get_disks(rq, &p, disks, e);
        if (r < 0)
                return r;
        p.vcpus = (unsigned) MIN_OF(vcpus, (uint64_t) UINT32_MAX);
        r = vm_op_run(rq->d, &p, &vm, &boot_ms, e);
        if (r < 0)
                return r;
        mp_map(out, 6);
        mp_kv_str(out, "name", vm->name);
        mp_kv_str(out, "id", vm->id);
        mp_kv_str(out, "state", vm_state_name(vm->state));
        mp_kv_u64(out, "pid", (uint64_t) vm->pid);
        mp_kv_double(out, "boot_ms", boot_ms);
        mp_kv_str(out, "accel", vm->machine.accel == VMM_ACCEL_KVM ? "kvm" : "tcg");
        return 0;
}

/* ---- looking ---- */

int api_vm_list(struct request *rq, struct mp_buf *out, struct err *e) {
        unsigned n = 0;
        struct vm *vm;
        bool all;
        int r = rq_opt_bool(rq, "all", false, &all, e);

        if (r < 0)
                return r;
        TAILQ_FOREACH (vm, &rq->d->vms, entry)
                n += all || !vm->pool[0];
        mp_map(out, 1);
        mp_key(out, "vms");
        mp_array(out, n);
        TAILQ_FOREACH (vm, &rq->d->vms, entry)
                if (all || !vm->pool[0])
                        put_vm(out, vm, 0);
        return 0;
}

static void put_known(struct mp_buf *b, const char *key, bool known, uint64_t v) {
        mp_key(b, key);
        if (known)
                mp_u64(b, v);
        else
                mp_nil(b);
}

int api_vm_inspect(struct request *rq, struct mp_buf *out, struct err *e) {
        struct vm_memory m = { 0 };
        struct vm *vm;
        bool known;
        int r = rq_any_vm(rq, &vm, e);

        if (r < 0)
                return r;
        put_vm(out, vm, 2);
        known = vm_memory(vm, &m) == 0;
        put_known(out, "guest_private_bytes", known, m.guest);
        put_known(out, "vmm_bytes", known, m.vmm);
        return 0;
}

int api_vm_logs(struct request *rq, struct mp_buf *out, struct err *e) {
        cleanup_free char *buf = NULL;
        cleanup_fd int fd = -1;
        uint64_t offset, max, size = 0;
        char path[PATH_MAX];
        struct vm *vm;
        struct stat st;
        ssize_t n = 0;
        int r;

        r = rq_any_vm(rq, &vm, e);
        if (r == 0)
                r = rq_opt_u64(rq, "offset", 0, &offset, e);
        if (r == 0)
                r = rq_opt_u64(rq, "max", LOG_CHUNK, &max, e);
        if (r < 0)
                return r;
        r = vm_state_path(vm, "console.log", path, sizeof(path));
        if (r < 0)
                return err_errno(e, r, "reading the console of '%s'", vm->name);
        max = MIN_OF(max, (uint64_t) LOG_CHUNK);
        buf = malloc(max + 1);
        if (!buf)
                return err_errno(e, -ENOMEM, "reading the console of '%s'", vm->name);
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd >= 0 && fstat(fd, &st) == 0) {
                size = (uint64_t) st.st_size;
                /* It was cut meanwhile: go on from its new beginning. */
                if (offset > size)
                        offset = 0;
                n = pread(fd, buf, max, (off_t) offset);
        }
        if (n < 0)
                return err_errno(e, -errno, "reading %s", path);
        mp_map(out, 4);
        mp_kv_bin(out, "data", buf, (size_t) n);
        mp_kv_u64(out, "offset", offset);
        mp_kv_u64(out, "next_offset", offset + (uint64_t) n);
        mp_kv_u64(out, "size", size);
        return 0;
}

int api_vm_ping(struct request *rq, struct mp_buf *out, struct err *e) {
        struct vm *vm;
        double ms;
        int r = rq_vm(rq, &vm, e);

        if (r < 0)
                return r;
        /* Taken for the moment, so that the link stays while we wait for the answer. */
        r = vm_op_begin(vm, "ping", e);
        if (r < 0)
                return r;
        if (vm->state != VM_RUNNING || !vm->link || !guest_link_ready(vm->link))
                r = err_set(e, ERR_STATE, -EINVAL, "'%s' is %s, its agent cannot answer", vm->name, vm_state_name(vm->state));
        else
                r = guest_link_ping(vm->link, PING_TIMEOUT_MS, &ms, e);
        vm_op_end(vm);
        if (r < 0)
                return r;
        mp_map(out, 1);
        mp_kv_double(out, "rtt_ms", ms);
        return 0;
}

/* ---- changing ---- */

static int get_snap_params(struct request *rq, struct vm_snap_params *p, char *tag, size_t size, struct err *e) {
        enum snap_codec codec;
        uint64_t level;
        char name[16];
        int r, parsed;

        r = rq_opt_str(rq, "tag", "", tag, size, e);
        if (r == 0)
                r = rq_opt_str(rq, "compression", "lz4", name, sizeof(name), e);
        if (r == 0)
                r = rq_opt_u64(rq, "level", 0, &level, e);
        if (r == 0)
                r = rq_opt_bool(rq, "sync", true, &p->sync, e);
        if (r < 0)
                return r;
        if (snap_codec_parse(name, &codec, &parsed) < 0 || level > 19 || (level > 0 && codec != SNAP_CODEC_ZSTD)) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "there is no compression '%s' with level %u", name,
                               (unsigned) MIN_OF(level, 9999u));
                return err_hint(e, "use lz4, none, zstd, or zstd:1 … zstd:19");
        }
        p->tag = tag;
        p->codec = (int) codec;
        p->level = level > 0 ? (int) level : parsed;
        return 0;
}

static void put_snap_result(struct mp_buf *out, const struct vm_snap_result *s) {
        mp_map(out, 8);
        mp_kv_str(out, "snapshot", s->snapshot);
        mp_kv_double(out, "pause_ms", s->pause_ms);
        mp_kv_double(out, "total_ms", s->total_ms);
        mp_kv_u64(out, "dirty_bytes", s->dirty_bytes);
        mp_kv_u64(out, "stored_bytes", s->stored_bytes);
        mp_kv_bool(out, "durable", s->durable);
        mp_kv_double(out, "device_ms", s->device_ms);
        mp_kv_double(out, "memory_ms", s->memory_ms);
}

static int snapshot_request(struct request *rq, bool keep_running, struct mp_buf *out, struct err *e) {
        struct vm_snap_params p = { 0 };
        struct vm_snap_result s;
        char tag[256];
        struct vm *vm;
        int r;

        r = rq_vm(rq, &vm, e);
        if (r == 0)
                r = get_snap_params(rq, &p, tag, sizeof(tag), e);
        if (r == 0)
                r = vm_op_begin(vm, keep_running ? "snapshot" : "standby", e);
        if (r < 0)
                return r;
        r = keep_running ? vm_op_snapshot_create(vm, &p, &s, e) : vm_op_snapshot(vm, &p, false, &s, e);
        vm_op_end(vm);
        if (r == 0)
                put_snap_result(out, &s);
        return r;
}

int api_vm_standby(struct request *rq, struct mp_buf *out, struct err *e) {
        return snapshot_request(rq, false, out, e);
}

int api_snapshot_create(struct request *rq, struct mp_buf *out, struct err *e) {
        return snapshot_request(rq, true, out, e);
}

static void put_clone(struct mp_buf *out, const struct vm *vm, const struct vm_clone_result *c) {
        mp_map(out, 6);
        mp_kv_str(out, "name", vm->name);
        mp_kv_str(out, "id", vm->id);
        mp_kv_u64(out, "pid", (uint64_t) vm->pid);
        mp_kv_double(out, "total_ms", c->total_ms);
        mp_kv_double(out, "load_ms", c->load_ms);
        mp_kv_double(out, "ack_ms", c->ack_ms);
}

int api_vm_restore(struct request *rq, struct mp_buf *out, struct err *e) {
        struct vm_clone_result c = { 0 };
        bool force;
        struct vm *vm;
        int r;

        r = rq_vm(rq, &vm, e);
        if (r == 0)
                r = rq_opt_bool(rq, "force", false, &force, e);
        if (r == 0)
                r = vm_op_begin(vm, "restore", e);
        if (r < 0)
                return r;
        if (vm->vmm || !vm_comes_back_from(vm)[0]) {
                (void) err_set(e, ERR_STATE, -EINVAL, "'%s' is %s, not on standby", vm->name, vm_state_name(vm->state));
                r = err_hint(e, vm->vmm ? "to make a copy of a running VM use: forkctl fork %s" : "'%s' was never saved",
                             vm->name);
        } else {
                id_str snapshot;

                (void) snprintf(snapshot, sizeof(snapshot), "%s", vm_comes_back_from(vm));
                r = vm_op_restore(vm, snapshot, false, force, &c, e);
        }
        if (r == 0)
                put_clone(out, vm, &c);
        vm_op_end(vm);
        return r;
}

int api_vm_fork(struct request *rq, struct mp_buf *out, struct err *e) {
        struct fork_params p = { 0 };
        cleanup_free struct fork_result *res = calloc(1, sizeof(*res));
        char source[256], name[256], policy[32];
        uint64_t count;
        int r;

        if (!res)
                return err_errno(e, -ENOMEM, "forking");
        r = rq_str(rq, "source", source, sizeof(source), e);
        if (r == 0)
                r = rq_opt_str(rq, "name", "", name, sizeof(name), e);
        if (r == 0)
                r = rq_opt_u64(rq, "count", 1, &count, e);
        if (r == 0)
                r = rq_opt_bool(rq, "paused", false, &p.paused, e);
        if (r == 0)
                r = rq_opt_bool(rq, "force", false, &p.force, e);
        if (r == 0)
                r = rq_opt_str(rq, "on_pager_loss", "", policy, sizeof(policy), e);
        if (r < 0)
                return r;
        if (count < 1 || count > FORK_MAX_CLONES) {
                (void) err_set(e, ERR_INVALID, -EINVAL, "cannot make %llu clones at once", (unsigned long long) count);
                return err_hint(e, "--count is from 1 to %d", FORK_MAX_CLONES);
        }
        p.source = source;
        p.name = name;
        p.on_pager_loss = policy;
        p.count = (unsigned) count;
        r = fork_run(rq->d, &p, res, e);
        if (r < 0)
                return r;
        mp_map(out, res->source_paused ? 3 : 2);
        mp_key(out, "clones");
        mp_array(out, p.count);
        for (unsigned i = 0; i < p.count; i++) {
                mp_map(out, 6);
                mp_kv_str(out, "name", res->clones[i].name);
                mp_kv_str(out, "id", res->clones[i].id);
                mp_kv_u64(out, "pid", (uint64_t) res->clones[i].pid);
                mp_kv_double(out, "total_ms", res->clones[i].times.total_ms);
                mp_kv_double(out, "load_ms", res->clones[i].times.load_ms);
                mp_kv_double(out, "ack_ms", res->clones[i].times.ack_ms);
        }
        mp_kv_double(out, "wall_ms", res->wall_ms);
        if (res->source_paused)
                mp_kv_double(out, "source_pause_ms", res->source_pause_ms);
        return 0;
}

static int simple_op(struct request *rq, const char *what, int (*op)(struct vm *vm, struct err *e), struct mp_buf *out,
                     struct err *e) {
        struct vm *vm;
        int r = rq_vm(rq, &vm, e);

        if (r == 0)
                r = vm_op_begin(vm, what, e);
        return r < 0 ? r : put_state(vm, op(vm, e), out);
}

int api_vm_pause(struct request *rq, struct mp_buf *out, struct err *e) {
        return simple_op(rq, "pause", vm_op_pause, out, e);
}

int api_vm_resume(struct request *rq, struct mp_buf *out, struct err *e) {
        return simple_op(rq, "resume", vm_op_resume, out, e);
}

int api_vm_stop(struct request *rq, struct mp_buf *out, struct err *e) {
        return simple_op(rq, "stop", vm_op_stop, out, e);
}

/* ---- rm ---- */

static int rm_one(struct vm *vm, struct mp_buf *names, unsigned *n, struct err *e) {
        char name[NAME_MAX_LEN + 1];
        int r;

        r = vm_op_begin(vm, "rm", e);
        if (r < 0)
                return r;
        (void) strcpy(name, vm->name);
        r = vm_op_rm(vm, e);
        if (r == 0) {
                mp_str(names, name);
                (*n)++;
        }
        return r;
}

/* Of those that `rm --all` removes. Those that wait in a pool are the pool's. */
static struct vm *first_vm(const struct daemon *d) {
        struct vm *vm;

        TAILQ_FOREACH (vm, &d->vms, entry)
                if (!vm->pool[0])
                        return vm;
        return NULL;
}

/* Takes VMs by name again and again: while one is removed, the list may change. Busy ones are left for last
 * and told about. */
static int rm_all(struct request *rq, struct mp_buf *names, unsigned *n, struct err *e) {
        struct vm *left;

        for (;;) {
                struct vm *vm;
                int r;

                TAILQ_FOREACH (vm, &rq->d->vms, entry)
                        if ((!vm->busy || vm->chore) && !(vm->removing && vm_lingers(vm)) && !vm->pool[0])
                                break;
                if (!vm)
                        break;
                r = rm_one(vm, names, n, e);
                if (r < 0 && r != -ENOENT && !vm_lingers(vm))
                        return r;
        }
        left = first_vm(rq->d);
        if (left) {
                if (vm_check_ended(left, e) < 0)
                        return err_prefix(e, "%u VM(s) were removed", *n);
                (void) err_set(e, ERR_BUSY, -EBUSY, "%u VM(s) were removed, but '%s' is busy (%s)", *n, left->name,
                               left->busy ? left->busy : "just now");
                return err_hint(e, "try again when it is done");
        }
        return 0;
}

/* All names are looked up before the first is removed: a slip of the pen removes nothing. */
static int rm_named(struct request *rq, const msgpack_object *a, bool look, struct journal_entry *j, struct mp_buf *names,
                    unsigned *n, struct err *e) {
        int r = 0;

        for (uint32_t i = 0; r == 0 && i < a->via.array.size; i++) {
                char name[256];
                struct vm *vm;

                if (rq_obj_str(&a->via.array.ptr[i], name, sizeof(name)) < 0)
                        return err_set(e, ERR_INVALID, -EINVAL, "a name is a string of at most %d characters", NAME_MAX_LEN);
                r = vm_find(rq->d, name, &vm, e);
                if (r == 0)
                        r = pool_check_free(vm, e);
                if (r == 0 && look)
                        r = journal_add_vm(j, vm->id);
                else if (r == 0)
                        r = rm_one(vm, names, n, e);
                if (r == -ENOENT && !look)
                        r = 0; /* named twice, or somebody else was faster: gone is what it should be */
        }
        return r;
}

/* Removals that were begun together end together, also when forkd does not live to see it. A full disk must not keep
 * anybody from removing things. */
static void rm_announce(struct daemon *d, struct journal_entry *j) {
        struct err e;

        if (j->vms.n > 1 && journal_write(d, j, &e) < 0)
                log_warning("%s", e.message);
}

int api_vm_rm(struct request *rq, struct mp_buf *out, struct err *e) {
        const msgpack_object *a;
        cleanup_journal struct journal_entry j = { 0 };
        cleanup_mp_buf struct mp_buf names = { 0 };
        struct err ignored;
        unsigned n = 0;
        struct vm *vm;
        bool all;
        int r;

        mp_buf_init(&names);
        journal_init(&j, JOURNAL_RM);
        r = rq_opt_bool(rq, "all", false, &all, e);
        if (r == 0)
                r = rq_opt_array(rq, "names", &a, e);
        if (r < 0)
                return r;
        if (!all && (!a || a->via.array.size == 0))
                return err_set(e, ERR_INVALID, -EINVAL, "name at least one VM, or say all");
        if (all)
                TAILQ_FOREACH (vm, &rq->d->vms, entry)
                        best_effort(vm->pool[0] ? 0 : journal_add_vm(&j, vm->id));
        else
                r = rm_named(rq, a, true, &j, &names, &n, e);
        if (r < 0)
                return r;
        rm_announce(rq->d, &j);
        r = all ? rm_all(rq, &names, &n, e) : rm_named(rq, a, false, &j, &names, &n, e);
        /* Those that were refused stay. */
        if (journal_end(rq->d, &j, &ignored) < 0)
                log_warning("%s", ignored.message);
        if (r < 0)
                return r;
        mp_map(out, 1);
        mp_kv_list(out, "removed", &names, n);
        return 0;
}
