/* SPDX-License-Identifier: MIT */
/* Records of VMs: what is written is read back, and what cannot be read is left alone, whatever is wrong with it:
 * a VM's directory is removed only when there is no record in it at all. */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/mp.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"

static struct daemon d;

static int setup(void **state) {
        char path[600];

        d = (struct daemon){ .cfg = { .max_vms = 100 } };
        TAILQ_INIT(&d.vms);
        temp_dir(d.state_dir, sizeof(d.state_dir));
        (void) snprintf(path, sizeof(path), "%s/store", d.state_dir);
        if (snap_store_open(path, &d.store) < 0)
                return 1;
        (void) snprintf(path, sizeof(path), "%s/vms", d.state_dir);
        return mkdir(path, 0700) < 0 || identities_new(&d.identities) < 0 || catalog_new(&d, &d.catalog) < 0;
}

static int teardown(void **state) {
        vm_release_all(&d);
        identities_free(d.identities);
        catalog_free(d.catalog);
        snap_store_close(TAKE_PTR(d.store));
        temp_dir_remove(d.state_dir);
        return 0;
}

static struct vm *new_vm(const char *name) {
        struct vm *vm;
        struct err e;

        assert_ok(vm_new(&d, name, &vm, &e));
        vm->machine = (struct vmm_machine){ .mem_bytes = 256 << 20, .vcpus = 2, .n_disks = 1 };
        (void) strcpy(vm->driver, "qemu");
        (void) strcpy(vm->on_pager_loss, "kill");
        (void) strcpy(vm->net, "none");
        return vm;
}

/* All that were there are forgotten and read again. */
static void reload(void) {
        struct err e = { 0 };

        vm_release_all(&d);
        assert_int_equal(d.n_vms, 0);
        if (vm_records_load(&d, &e) < 0)
                fail_msg("%s", e.message);
}

static struct vm *find_vm(const char *name) {
        struct vm *vm = NULL;
        struct err e;

        (void) !vm_find(&d, name, &vm, &e);
        return vm;
}

static void test_roundtrip(void **state) {
        struct vm *vm = new_vm("web-1"), *got;
        struct vm was;
        struct err e;

        vm->state = VM_STANDBY;
        (void) strcpy(vm->reason, "because");
        (void) strcpy(vm->vmm_version, "7.2.22");
        vm->machine.accel = VMM_ACCEL_KVM;
        id_new(vm->snapshot);
        id_new(vm->parent);
        id_new(vm->pending_snapshot);
        vm->generation = 17;
        vm->has_base = vm->has_parent = vm->live = vm->needs_wake = vm->session = true;
        vm->created_ns = 1234567890123456789;
        assert_ok(vm_pool_mark(vm, "warm.pool-1", &e));
        vm->pid = 4194304;
        vm->start_time = UINT64_MAX;
        assert_ok(vm_record_save(vm, &e));
        was = *vm;
        (void) vm_record_save(new_vm("other"), &e);
        reload();
        assert_int_equal(d.n_vms, 2);
        got = find_vm("web-1");
        assert_non_null(got);
        assert_ptr_equal(find_vm(was.id), got);
        assert_int_equal(got->state, VM_STANDBY);
        assert_string_equal(got->reason, was.reason);
        assert_string_equal(got->driver, was.driver);
        assert_string_equal(got->vmm_version, was.vmm_version);
        assert_int_equal(got->machine.mem_bytes, was.machine.mem_bytes);
        assert_int_equal(got->machine.vcpus, 2);
        assert_int_equal(got->machine.n_disks, 1);
        assert_int_equal(got->machine.accel, VMM_ACCEL_KVM);
        assert_string_equal(got->on_pager_loss, "kill");
        assert_string_equal(got->net, "none");
        assert_string_equal(got->snapshot, was.snapshot);
        assert_string_equal(got->parent, was.parent);
        assert_string_equal(got->pending_snapshot, was.pending_snapshot);
        assert_int_equal(got->generation, 17);
        assert_string_equal(got->pool, "warm.pool-1");
        assert_string_equal(find_vm("other")->pool, "");
        assert_true(got->has_base && got->has_parent && got->live && got->needs_wake && got->session);
        assert_true(got->created_ns == was.created_ns);
        assert_int_equal(got->pid, was.pid);
        assert_true(got->start_time == UINT64_MAX);
        assert_int_equal(got->hold.uffd, -1);
        assert_null(got->vmm);
}

/* With a mark that says nothing nobody knows whose a VM is. */
static void test_a_mark_comes_and_goes(void **state) {
        char path[PATH_MAX];
        struct vm *vm = new_vm("member");
        struct err e;

        assert_ok(vm_record_save(vm, &e));
        assert_ok(vm_pool_mark(vm, "p", &e));
        (void) strcpy(vm->name, "taken"); /* and its record not written any more */
        assert_ok(vm_pool_unmark(vm, &e));
        assert_string_equal(vm->pool, "");
        assert_int_equal(vm_pool_unmark(vm, &e), -ENOENT);
        reload();
        assert_null(find_vm("member"));
        vm = find_vm("taken");
        assert_non_null(vm);
        assert_true(vm->state == VM_RUNNING && !vm->needs_wake && !vm->pool[0]);
        /* What it has become since is not undone. */
        vm->state = VM_PAUSED;
        assert_ok(vm_record_save(vm, &e));
        reload();
        vm = find_vm("taken");
        assert_non_null(vm);
        assert_int_equal(vm->state, VM_PAUSED);
        assert_ok(vm_pool_mark(vm, "p", &e));
        assert_ok(vm_state_path(vm, "pool", path, sizeof(path)));
        for (const char *const *bad = (const char *const[]){ "", "../p", "a b", "\n", NULL }; *bad; bad++) {
                assert_ok(io_write_file_atomic(AT_FDCWD, path, *bad, strlen(*bad), 0600, false));
                reload();
                assert_int_equal(d.n_vms, 0);
        }
}

static void test_all_states(void **state) {
        for (unsigned s = 0; s <= VM_FAILED; s++) {
                char name[16];
                struct vm *vm;
                struct err e;

                (void) snprintf(name, sizeof(name), "vm-%u", s);
                vm = new_vm(name);
                vm->state = s;
                assert_ok(vm_record_save(vm, &e));
        }
        reload();
        for (unsigned s = 0; s <= VM_FAILED; s++) {
                char name[16];

                (void) snprintf(name, sizeof(name), "vm-%u", s);
                assert_int_equal(find_vm(name)->state, s);
        }
}

/* ---- broken ones ---- */

struct edit {
        const char *key;
        const char *value; /* encoded; NULL: the key is left out */
        size_t len;
};

/* Writes the record of @vm with one entry changed. */
static void save_edited(struct vm *vm, const struct edit *edit) {
        cleanup_mp_doc struct mp_doc doc = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };
        cleanup_free char *data = NULL;
        char path[600];
        struct err e;
        size_t len;
        unsigned n;

        assert_ok(vm_record_save(vm, &e));
        (void) snprintf(path, sizeof(path), "%s/vms/%s/record", d.state_dir, vm->id);
        assert_ok(io_read_file(AT_FDCWD, path, 1 << 16, &data, &len));
        assert_ok(mp_parse(data, len, &doc));
        assert_non_null(mp_get(&doc.root, edit->key));
        n = doc.root.via.map.size;
        mp_buf_init(&b);
        mp_map(&b, edit->value ? n : n - 1);
        for (unsigned i = 0; i < n; i++) {
                const msgpack_object_kv *kv = &doc.root.via.map.ptr[i];

                if (!mp_is_str(&kv->key, edit->key)) {
                        mp_obj(&b, &kv->key);
                        mp_obj(&b, &kv->val);
                } else if (edit->value) {
                        mp_obj(&b, &kv->key);
                        mp_raw(&b, edit->value, edit->len);
                }
        }
        assert_ok(io_write_file_atomic(AT_FDCWD, path, b.sb.data, b.sb.size, 0600, false));
}

static bool dir_exists(const char *id) {
        char path[600];
        struct stat st;

        (void) snprintf(path, sizeof(path), "%s/vms/%s", d.state_dir, id);
        return stat(path, &st) == 0;
}

#define LIT(s) s, sizeof(s) - 1

static void test_wrong_fields(void **state) {
        static const struct edit edits[] = {
                /* missing: a record of another version of forkd, or a damaged one; never "no record" */
                { "version", NULL, 0 },
                { "id", NULL, 0 },
                { "name", NULL, 0 },
                { "state", NULL, 0 },
                { "vmm", NULL, 0 },
                { "mem_bytes", NULL, 0 },
                { "snapshot", NULL, 0 },
                { "parent", NULL, 0 },
                { "pending_snapshot", NULL, 0 },
                { "on_pager_loss", NULL, 0 },
                { "version", LIT("\x02") },
                { "id", LIT("\xb0"
                            "0123456789abcdef") }, /* another VM's */
                { "id", LIT("\xc0") },
                { "name", LIT("\xa3../") },
                { "name", LIT("\xa0") },
                { "name", LIT("\x05") },
                { "state", LIT("\xa6"
                               "dreamy") },
                { "vmm", LIT("\xa4none") },
                { "mem_bytes", LIT("\x01") },
                { "mem_bytes", LIT("\xcf\xff\xff\xff\xff\xff\xff\xff\xff") },
                { "vcpus", LIT("\x00") },
                { "vcpus", LIT("\xcd\x10\x00") },
                { "n_disks", LIT("\x40") },
                { "accel", LIT("\xa5magic") },
                { "snapshot", LIT("\xa8../../..") },
                { "snapshot", LIT("\xb0../../../../../..") },
                { "on_pager_loss", LIT("\xa3"
                                       "cry") },
        };

        for (size_t i = 0; i < ARRAY_LEN(edits); i++) {
                struct vm *vm = new_vm("victim");
                id_str id;

                memcpy(id, vm->id, sizeof(id));
                save_edited(vm, &edits[i]);
                reload();
                if (d.n_vms != 0 || !dir_exists(id))
                        fail_msg("edit %zu of %s: %u loaded, its directory is %s", i, edits[i].key, d.n_vms,
                                 dir_exists(id) ? "there" : "gone");
        }
}

static void write_record(const char *id, const char *data, size_t len) {
        char path[600];

        (void) snprintf(path, sizeof(path), "%s/vms/%s", d.state_dir, id);
        assert_ok(io_mkdir_p(path, 0700));
        (void) snprintf(path, sizeof(path), "%s/vms/%s/record", d.state_dir, id);
        assert_ok(io_write_file_atomic(AT_FDCWD, path, data, len, 0600, false));
}

static void test_wrong_bytes(void **state) {
        static const struct {
                const char *data;
                size_t len;
        } bad[] = { { "", 0 }, { "\x80", 1 }, { "\xc1", 1 }, { "\x81\xa1", 2 }, { "text", 4 }, { "\x80\x80", 2 }, { "\xc0", 1 } };
        cleanup_free char *large = calloc(1, 20000);
        struct vm *vm = new_vm("good");
        struct err e;
        id_str id;

        assert_ok(vm_record_save(vm, &e));
        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                id_new(id);
                write_record(id, bad[i].data, bad[i].len);
                reload();
                assert_int_equal(d.n_vms, 1);
                assert_true(dir_exists(id));
        }
        id_new(id);
        write_record(id, large, 20000);
        reload();
        assert_int_equal(d.n_vms, 1);
        assert_true(dir_exists(id));
}

/* Two records of one name: the second is left alone. */
static void test_same_name(void **state) {
        struct vm *a = new_vm("twin"), *b = new_vm("other");
        struct err e;
        id_str ids[2];

        (void) strcpy(b->name, "twin");
        memcpy(ids[0], a->id, sizeof(id_str));
        memcpy(ids[1], b->id, sizeof(id_str));
        assert_ok(vm_record_save(a, &e));
        assert_ok(vm_record_save(b, &e));
        reload();
        assert_int_equal(d.n_vms, 1);
        assert_true(dir_exists(ids[0]) && dir_exists(ids[1]));
}

/* A directory that has no record yet, or no more, is what a crash left; other things are none of forkd's. */
static void test_remains(void **state) {
        char path[600];
        struct stat st;
        id_str id;

        id_new(id);
        (void) snprintf(path, sizeof(path), "%s/vms/%s/sub", d.state_dir, id);
        assert_ok(io_mkdir_p(path, 0700));
        (void) snprintf(path, sizeof(path), "%s/vms/not-an-id", d.state_dir);
        assert_ok(io_mkdir_p(path, 0700));
        reload();
        assert_false(dir_exists(id));
        assert_int_equal(stat(path, &st), 0);
        (void) snprintf(d.state_dir + strlen(d.state_dir), 10, "/none");
        {
                struct err e;

                assert_fails(vm_records_load(&d, &e), ENOENT);
        }
        *strrchr(d.state_dir, '/') = '\0';
}

/* The directory cannot be written: told as an error, the old record stays. */
static void test_save_fails(void **state) {
        struct vm *vm = new_vm("web");
        char path[600];
        struct err e;

        assert_ok(vm_record_save(vm, &e));
        vm->state = VM_RUNNING;
        (void) snprintf(path, sizeof(path), "%s/vms/%s/record", d.state_dir, vm->id);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(mkdir(path, 0700), 0); /* in the way */
        assert_true(vm_record_save(vm, &e) < 0);
        assert_non_null(strstr(e.message, "web"));
}

static void test_table(void **state) {
        struct vm *vm = NULL, *other = NULL;
        char longest[NAME_MAX_LEN + 2];
        struct err e;

        memset(longest, 'x', sizeof(longest));
        longest[NAME_MAX_LEN + 1] = '\0';
        assert_fails(vm_new(&d, longest, &vm, &e), EINVAL);
        assert_fails(vm_new(&d, "../x", &vm, &e), EINVAL);
        assert_fails(vm_new(&d, "", &vm, &e), EINVAL);
        assert_ok(vm_new(&d, "a", &vm, &e));
        assert_fails(vm_new(&d, "a", &other, &e), EEXIST);
        assert_string_equal(e.code, ERR_EXISTS);
        assert_fails(vm_find(&d, "b", &other, &e), ENOENT);
        assert_fails(vm_find(&d, "/etc", &other, &e), EINVAL);
        assert_null(other);
        d.cfg.max_vms = 1;
        assert_fails(vm_new(&d, "b", &other, &e), EMFILE);
        assert_string_equal(e.code, ERR_LIMIT);
        assert_ok(vm_op_begin(vm, "standby", &e));
        assert_fails(vm_op_begin(vm, "stop", &e), EBUSY);
        assert_non_null(strstr(e.message, "standby"));
        vm_op_end(vm);
        assert_ok(vm_op_begin(vm, "stop", &e));
        vm_op_end(vm);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        const struct CMUnitTest tests[] = {
                T(test_roundtrip),    T(test_all_states),  T(test_a_mark_comes_and_goes),
                T(test_wrong_fields), T(test_wrong_bytes), T(test_same_name),
                T(test_remains),      T(test_save_fails),  T(test_table),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
