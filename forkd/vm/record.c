/* SPDX-License-Identifier: MIT */
/* VM records: one msgpack map per VM in <state>/vms/<id>/record, replaced atomically at every transition.
 *
 * A record of a VM that lives is not synced: a crash of the host ends its VMM too. Only VM_STANDBY is worth an
 * fsync, and only when its snapshot is durable: before that, a crash may take the snapshot as well.
 *
 * That a VM waits in a pool is not in its record but in a file beside it, <state>/vms/<id>/pool, which holds the pool's name. To
 * leave the pool is to rename that file to name.<the VM's new name>, which costs a hundredth of what it costs to replace a
 * record; that is done afterwards, and then the file goes.
 *
 * A process is named by pid, start time and boot: after a crash of the host the first two may be another's. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/mp.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"
#include "forkd/host/jail.h"
#include "forkd/vm/vm.h"

#define RECORD_VERSION 1
#define RECORD_MAX_BYTES 16384

static void record_encode(const struct vm *vm, struct mp_buf *b) {
        mp_map(b, 32);
        mp_kv_u64(b, "version", RECORD_VERSION);
        mp_kv_str(b, "id", vm->id);
        mp_kv_str(b, "name", vm->name);
        mp_kv_str(b, "state", vm_state_name(vm->state));
        mp_kv_str(b, "reason", vm->reason);
        mp_kv_str(b, "vmm", vm->driver);
        mp_kv_str(b, "vmm_version", vm->vmm_version);
        mp_kv_u64(b, "mem_bytes", vm->machine.mem_bytes);
        mp_kv_u64(b, "vcpus", vm->machine.vcpus);
        mp_kv_str(b, "accel", vm->machine.accel == VMM_ACCEL_KVM ? "kvm" : "tcg");
        mp_kv_u64(b, "n_disks", vm->machine.n_disks);
        mp_kv_str(b, "on_pager_loss", vm->on_pager_loss);
        mp_kv_str(b, "net", vm->net);
        mp_kv_str(b, "snapshot", vm->snapshot);
        mp_kv_str(b, "parent", vm->parent);
        mp_kv_u64(b, "generation", vm->generation);
        mp_kv_bool(b, "has_base", vm->has_base);
        mp_kv_str(b, "origin", vm->origin);
        mp_kv_bool(b, "has_origin", vm->has_origin);
        mp_kv_bool(b, "has_parent", vm->has_parent);
        mp_kv_bool(b, "live", vm->live);
        mp_kv_str(b, "pending_snapshot", vm->pending_snapshot);
        mp_kv_bool(b, "needs_wake", vm->needs_wake);
        mp_kv_bool(b, "removing", vm->removing);
        mp_kv_i64(b, "created_ns", vm->created_ns);
        mp_kv_u64(b, "pid", vm->pid > 0 ? (uint64_t) vm->pid : 0);
        mp_kv_u64(b, "start_time", vm->start_time);
        mp_kv_u64(b, "uid", vm->uid);
        mp_kv_str(b, "group", vm->group);
        mp_kv_str(b, "boot", vm->d->boot_id);
        mp_kv_bool(b, "session", vm->session);
        mp_kv_str(b, "busy", vm->busy);
}

int vm_record_save(struct vm *vm, struct err *e) {
        cleanup_mp_buf struct mp_buf b = { 0 };
        char path[PATH_MAX];
        const struct snap_entry *s = vm->state == VM_STANDBY ? catalog_by_id(vm->d->catalog, vm->snapshot) : NULL;
        int r;

        mp_buf_init(&b);
        record_encode(vm, &b);
        if (b.failed)
                return err_errno(e, -ENOMEM, "writing the record of '%s'", vm->name);
        r = vm_state_path(vm, NULL, path, sizeof(path));
        if (r == 0 && mkdir(path, 0700) < 0 && errno != EEXIST)
                r = -errno;
        if (r == 0)
                r = vm_state_path(vm, "record", path, sizeof(path));
        if (r == 0)
                r = io_write_file_atomic(AT_FDCWD, path, b.sb.data, b.sb.size, 0600, s && s->durable);
        return r < 0 ? err_errno(e, r, "writing the record of '%s'", vm->name) : 0;
}

static int pool_mark_path(const struct vm *vm, char *buf, size_t size) {
        return vm_state_path(vm, "pool", buf, size);
}

int vm_pool_mark(struct vm *vm, const char *pool, struct err *e) {
        char path[PATH_MAX];
        int r = vm_state_path(vm, NULL, path, sizeof(path));

        if (r == 0 && mkdir(path, 0700) < 0 && errno != EEXIST)
                r = -errno;
        if (r == 0)
                r = pool_mark_path(vm, path, sizeof(path));
        if (r == 0)
                r = io_write_file_atomic(AT_FDCWD, path, pool, strlen(pool), 0600, false);
        if (r < 0)
                return err_errno(e, r, "noting that '%s' waits in the pool '%s'", vm->name, pool);
        (void) snprintf(vm->pool, sizeof(vm->pool), "%s", pool);
        return 0;
}

#define NAME_MARK "name."

static int name_mark_path(const struct vm *vm, char *buf, size_t size) {
        char file[sizeof(NAME_MARK) + NAME_MAX_LEN];

        (void) snprintf(file, sizeof(file), NAME_MARK "%s", vm->name);
        return vm_state_path(vm, file, buf, size);
}

int vm_pool_unmark(struct vm *vm, struct err *e) {
        char from[PATH_MAX], to[PATH_MAX];
        int r = pool_mark_path(vm, from, sizeof(from));

        if (r == 0)
                r = name_mark_path(vm, to, sizeof(to));
        if (r == 0 && rename(from, to) < 0)
                r = -errno;
        if (r < 0)
                return err_errno(e, r, "noting that '%s' waits in the pool '%s' no longer", vm->name, vm->pool);
        vm->pool[0] = '\0';
        return 0;
}

void vm_pool_settle(const struct vm *vm) {
        char path[PATH_MAX];

        if (name_mark_path(vm, path, sizeof(path)) == 0)
                (void) unlink(path);
}

/* What it left its pool as. A record of that name is newer than the mark. */
static int read_name_mark(struct vm *vm) {
        char path[PATH_MAX], name[NAME_MAX_LEN + 1] = "";
        struct dirent *de;
        DIR *dir;
        int r = vm_state_path(vm, NULL, path, sizeof(path));

        if (r < 0)
                return r;
        dir = opendir(path);
        if (!dir)
                return -errno;
        while ((de = readdir(dir)))
                if (strncmp(de->d_name, NAME_MARK, strlen(NAME_MARK)) == 0 && name_valid(de->d_name + strlen(NAME_MARK)))
                        (void) snprintf(name, sizeof(name), "%s", de->d_name + strlen(NAME_MARK));
        (void) closedir(dir);
        if (!name[0] || strcmp(name, vm->name) == 0)
                return 0;
        memcpy(vm->name, name, sizeof(name));
        vm->state = VM_RUNNING;
        vm->needs_wake = false;
        return 0;
}

/* A mark that cannot be read means that nobody knows whose the VM is. */
static int read_pool_mark(struct vm *vm) {
        cleanup_free char *name = NULL;
        char path[PATH_MAX];
        size_t len;
        int r = pool_mark_path(vm, path, sizeof(path));

        if (r == 0)
                r = io_read_file(AT_FDCWD, path, NAME_MAX_LEN, &name, &len);
        if (r == -ENOENT)
                return 0;
        if (r == 0 && (strlen(name) != len || !name_valid(name)))
                r = -EBADMSG;
        if (r == 0)
                (void) snprintf(vm->pool, sizeof(vm->pool), "%s", name);
        return r;
}

static int get_id(const msgpack_object *m, const char *key, id_str ret) {
        id_str s;
        int r = mp_get_str(m, key, s, sizeof(s));

        if (r < 0)
                return r;
        if (s[0] && !id_valid(s))
                return -EBADMSG;
        memcpy(ret, s, sizeof(s));
        return 0;
}

static int get_state(const msgpack_object *m, enum vm_state *ret) {
        char s[16];
        int r = mp_get_str(m, "state", s, sizeof(s));

        if (r < 0)
                return r;
        for (unsigned i = 0; i <= VM_FAILED; i++)
                if (strcmp(s, vm_state_name(i)) == 0) {
                        *ret = i;
                        return 0;
                }
        return -EBADMSG;
}

static int get_machine(const msgpack_object *m, struct vmm_machine *ret) {
        uint64_t mem, vcpus, disks;
        char accel[8];
        int r = 0;

        if (mp_get_u64(m, "mem_bytes", &mem) < 0 || mp_get_u64(m, "vcpus", &vcpus) < 0 || mp_get_u64(m, "n_disks", &disks) < 0 ||
            mp_get_str(m, "accel", accel, sizeof(accel)) < 0)
                r = -EBADMSG;
        if (r == 0 && strcmp(accel, "kvm") != 0 && strcmp(accel, "tcg") != 0)
                r = -EBADMSG;
        if (r == 0 && (mem < VMM_MIN_MEM || mem > VMM_MAX_MEM || vcpus < 1 || vcpus > VMM_MAX_VCPUS || disks > VMM_MAX_DISKS))
                r = -EBADMSG;
        if (r == 0)
                *ret = (struct vmm_machine){
                        .mem_bytes = mem,
                        .vcpus = (unsigned) vcpus,
                        .n_disks = (unsigned) disks,
                        .accel = strcmp(accel, "kvm") == 0 ? VMM_ACCEL_KVM : VMM_ACCEL_TCG,
                };
        return r;
}

static int record_decode(const msgpack_object *m, struct vm *vm) {
        uint64_t version, pid = 0, generation = 0, uid = 0;
        char boot[sizeof(vm->d->boot_id)] = "";
        int r;

        if (mp_get_u64(m, "version", &version) < 0 || version != RECORD_VERSION)
                return -EPROTONOSUPPORT;
        r = get_id(m, "id", vm->id);
        if (r == 0)
                r = mp_get_str(m, "name", vm->name, sizeof(vm->name));
        if (r == 0 && !name_valid(vm->name))
                r = -EBADMSG;
        if (r == 0)
                r = get_state(m, &vm->state);
        if (r == 0)
                r = get_machine(m, &vm->machine);
        if (r == 0)
                r = mp_get_str(m, "vmm", vm->driver, sizeof(vm->driver));
        if (r == 0)
                r = get_id(m, "snapshot", vm->snapshot);
        if (r == 0)
                r = get_id(m, "parent", vm->parent);
        if (r == 0)
                r = get_id(m, "pending_snapshot", vm->pending_snapshot);
        if (r == 0)
                r = mp_get_str(m, "on_pager_loss", vm->on_pager_loss, sizeof(vm->on_pager_loss));
        if (r == 0 && strcmp(vm->on_pager_loss, "kill") != 0 && strcmp(vm->on_pager_loss, "recover") != 0)
                r = -EBADMSG;
        if (r < 0)
                return r == -ENOENT ? -EBADMSG : r; /* a field is missing, which must not look like no record */
        if (get_id(m, "group", vm->group) == -EBADMSG)
                return -EBADMSG;
        if (get_id(m, "origin", vm->origin) == -EBADMSG)
                return -EBADMSG;
        (void) mp_get_bool(m, "has_origin", &vm->has_origin);
        (void) mp_get_str(m, "reason", vm->reason, sizeof(vm->reason));
        (void) mp_get_str(m, "vmm_version", vm->vmm_version, sizeof(vm->vmm_version));
        (void) mp_get_str(m, "net", vm->net, sizeof(vm->net));
        (void) mp_get_bool(m, "has_base", &vm->has_base);
        (void) mp_get_bool(m, "has_parent", &vm->has_parent);
        (void) mp_get_bool(m, "live", &vm->live);
        (void) mp_get_bool(m, "needs_wake", &vm->needs_wake);
        (void) mp_get_bool(m, "removing", &vm->removing);
        (void) mp_get_bool(m, "session", &vm->session);
        (void) mp_get_i64(m, "created_ns", &vm->created_ns);
        (void) mp_get_u64(m, "generation", &generation);
        (void) mp_get_u64(m, "pid", &pid);
        (void) mp_get_u64(m, "start_time", &vm->start_time);
        (void) mp_get_u64(m, "uid", &uid);
        vm->uid = uid < UINT32_MAX ? (uint32_t) uid : 0;
        vm->generation = (uint32_t) MIN_OF(generation, (uint64_t) UINT32_MAX);
        vm->pid = pid <= 4194304 ? (pid_t) pid : 0; /* PID_MAX_LIMIT of 64-bit kernels */
        (void) mp_get_str(m, "boot", boot, sizeof(boot));
        if (strcmp(boot, vm->d->boot_id) != 0)
                vm->pid = 0;
        return 0;
}

/* One that left its pool without a record of that: from now on its record says so. */
static void settle_name(struct vm *vm) {
        char path[PATH_MAX];
        struct err e;

        if (vm->d->offline || name_mark_path(vm, path, sizeof(path)) < 0 || access(path, F_OK) < 0)
                return;
        if (vm_record_save(vm, &e) < 0)
                log_error("%s", e.message);
        else
                vm_pool_settle(vm);
}

static int record_load(struct daemon *d, const char *id) {
        cleanup_free char *data = NULL;
        cleanup_mp_doc struct mp_doc doc = { 0 };
        char path[PATH_MAX];
        struct err e;
        struct vm *vm;
        size_t len;
        int r;

        (void) snprintf(path, sizeof(path), "%s/vms/%s/record", d->state_dir, id);
        r = io_read_file(AT_FDCWD, path, RECORD_MAX_BYTES, &data, &len);
        if (r < 0)
                return r;
        r = mp_parse(data, len, &doc);
        if (r < 0)
                return r;
        vm = vm_alloc(d);
        if (!vm)
                return -ENOMEM;
        r = record_decode(&doc.root, vm);
        if (r == 0 && strcmp(vm->id, id) != 0)
                r = -EBADMSG;
        if (r == 0)
                r = read_pool_mark(vm);
        if (r == 0 && !vm->pool[0])
                r = read_name_mark(vm);
        if (r == 0 && !(vm->ops = vmm_driver(vm->driver)))
                r = -EOPNOTSUPP;
        if (r == 0)
                r = vm_enter(vm, &e);
        if (r == 0) {
                vm_keep_user(vm);
                settle_name(vm);
        }
        if (r < 0)
                vm_free(vm);
        return r;
}

int vm_records_load(struct daemon *d, struct err *e) {
        char path[PATH_MAX];
        struct dirent *de;
        DIR *dir;

        (void) snprintf(path, sizeof(path), "%s/vms", d->state_dir);
        dir = opendir(path);
        if (!dir)
                return err_errno(e, -errno, "reading the VM records in %s", path);
        while ((de = readdir(dir))) {
                int r;

                if (!id_valid(de->d_name))
                        continue;
                r = record_load(d, de->d_name);
                if (r == -ENOENT && !d->offline) {
                        /* A directory without a record: its VM was never begun, or its removal was cut off. */
                        best_effort(io_remove_tree(dirfd(dir), de->d_name));
                        log_info("removed the remains of VM %s", de->d_name);
                } else if (r < 0 && r != -ENOENT) {
                        log_error("the record of VM %s in %s cannot be used and is left alone: %s", de->d_name, path,
                                  strerror(-r));
                }
        }
        (void) closedir(dir);
        return 0;
}
