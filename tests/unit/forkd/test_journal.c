/* SPDX-License-Identifier: MIT */
/* The journal: what is written is read back; what cannot be read stays and is told; what an entry names goes, and only
 * that. */
#include "common_test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/mp.h"
#include "forkd/catalog.h"
#include "forkd/daemon.h"
#include "forkd/vm/identity.h"
#include "forkd/vm/journal.h"

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
        if (mkdir(path, 0700) < 0)
                return 1;
        (void) snprintf(path, sizeof(path), "%s/journal", d.state_dir);
        return mkdir(path, 0700) < 0 || identities_new(&d.identities) < 0 || catalog_new(&d, &d.catalog) < 0;
}

static int teardown(void **state) {
        vm_release_all(&d);
        journal_free(&d);
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
        return vm;
}

static void entry_path(const char *id, char *buf, size_t size) {
        (void) snprintf(buf, size, "%s/journal/%s", d.state_dir, id);
}

static bool entry_exists(const struct journal_entry *j) {
        char path[600];

        entry_path(j->id, path, sizeof(path));
        return access(path, F_OK) == 0;
}

/* A snapshot in the catalog, with a directory in the store. */
static void new_snapshot(id_str ret) {
        struct snap_manifest *m = calloc(1, sizeof(*m));
        char path[PATH_MAX];

        assert_non_null(m);
        id_new(m->id);
        assert_ok(catalog_add(d.catalog, m, true, NULL));
        assert_ok(snap_store_path(d.store, m->id, NULL, path, sizeof(path)));
        assert_ok(mkdir(path, 0700));
        memcpy(ret, m->id, sizeof(id_str));
        free(m);
}

static void test_roundtrip(void **state) {
        cleanup_journal struct journal_entry j = { 0 }, got = { 0 };
        cleanup_free void *data = NULL;
        size_t len;
        id_str id;

        journal_init(&j, JOURNAL_SNAPSHOT_RM);
        j.force = true;
        for (int i = 0; i < 1000; i++) {
                id_new(id);
                assert_ok(journal_add_vm(&j, id));
        }
        id_new(id);
        assert_ok(journal_add_snapshot(&j, id));
        assert_ok(journal_encode(&j, &data, &len));
        assert_ok(journal_decode(data, len, &got));
        assert_int_equal(got.op, JOURNAL_SNAPSHOT_RM);
        assert_true(got.force);
        assert_int_equal(got.vms.n, 1000);
        assert_memory_equal(got.vms.ids, j.vms.ids, 1000 * sizeof(id_str));
        assert_string_equal(got.snapshots.ids[0], id);
        assert_false(got.written);
        assert_int_equal(got.id[0], 0);
}

static void put_entry(struct mp_buf *b, uint64_t version, const char *op, const char *vm) {
        mp_buf_init(b);
        mp_map(b, 5);
        mp_kv_u64(b, "version", version);
        mp_kv_str(b, "op", op);
        mp_kv_bool(b, "force", false);
        mp_key(b, "vms");
        mp_array(b, 1);
        mp_str(b, vm);
        mp_key(b, "snapshots");
        mp_array(b, 0);
}

static int decode_of(uint64_t version, const char *op, const char *vm) {
        cleanup_journal struct journal_entry j = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };

        put_entry(&b, version, op, vm);
        return journal_decode(b.sb.data, b.sb.size, &j);
}

static void test_what_is_no_entry(void **state) {
        static const char *const vms[] = {
                "", "0123456789abcde", "0123456789abcdef0", "../../../../etc", "0123456789ABCDEF", "0123456789abcde/"
        };
        cleanup_journal struct journal_entry j = { 0 };
        cleanup_mp_buf struct mp_buf b = { 0 };

        assert_ok(decode_of(1, "fork", "0123456789abcdef"));
        assert_int_equal(decode_of(2, "fork", "0123456789abcdef"), -EPROTONOSUPPORT);
        assert_int_equal(decode_of(1, "forks", "0123456789abcdef"), -EBADMSG);
        assert_int_equal(decode_of(1, "a name that is far too long for an operation", "0123456789abcdef"), -EBADMSG);
        for (size_t i = 0; i < ARRAY_LEN(vms); i++)
                assert_int_equal(decode_of(1, "rm", vms[i]), -EBADMSG);
        put_entry(&b, 1, "fork", "0123456789abcdef");
        for (size_t cut = 0; cut < b.sb.size; cut++)
                assert_int_equal(journal_decode(b.sb.data, cut, &j), -EBADMSG);
        assert_int_equal(journal_decode("\xc0", 1, &j), -EBADMSG);
        assert_int_equal(j.vms.n, 0);
}

static void test_what_an_entry_names_goes_and_nothing_else(void **state) {
        cleanup_journal struct journal_entry j = { 0 };
        struct vm *gone = new_vm("gone"), *stays = new_vm("stays");
        id_str snap_gone, snap_stays, absent;
        struct err e;

        new_snapshot(snap_gone);
        new_snapshot(snap_stays);
        id_new(absent);
        journal_init(&j, JOURNAL_FORK);
        assert_ok(journal_add_vm(&j, gone->id));
        assert_ok(journal_add_vm(&j, absent));
        assert_ok(journal_add_snapshot(&j, snap_gone));
        assert_ok(journal_add_snapshot(&j, absent));
        assert_ok(journal_write(&d, &j, &e));
        assert_true(entry_exists(&j));

        assert_ok(journal_load(&d, &e));
        assert_true(gone->removing);
        assert_false(stays->removing);
        /* as long as the VM is there the entry is needed */
        journal_settle(&d);
        assert_true(entry_exists(&j));
        assert_null(catalog_by_id(d.catalog, snap_gone));
        vm_delete(gone, true);
        assert_ok(journal_load(&d, &e));
        journal_settle(&d);
        assert_false(entry_exists(&j));
        assert_non_null(catalog_by_id(d.catalog, snap_stays));
        assert_ptr_equal(vm_by_id(&d, stays->id), stays);
}

static void test_an_end_and_no_end(void **state) {
        cleanup_journal struct journal_entry j = { 0 };
        struct vm *vm = new_vm("clone");
        struct err e;

        journal_init(&j, JOURNAL_FORK);
        assert_ok(journal_end(&d, &j, &e)); /* never written */
        journal_undone(&d, &j);
        assert_ok(journal_add_vm(&j, vm->id));
        assert_ok(journal_write(&d, &j, &e));
        /* it was to be undone, but the clone is still there */
        journal_undone(&d, &j);
        assert_true(entry_exists(&j));
        vm_delete(vm, true);
        journal_undone(&d, &j);
        assert_false(entry_exists(&j));
        assert_ok(journal_write(&d, &j, &e));
        assert_ok(journal_end(&d, &j, &e));
        assert_false(entry_exists(&j));
        assert_ok(journal_end(&d, &j, &e));
}

static void count_bad(const char *path, const char *why, void *arg) {
        assert_int_equal(access(path, F_OK), 0);
        assert_true(why[0] != '\0');
        ++*(unsigned *) arg;
}

static void test_what_cannot_be_read_stays(void **state) {
        static const char *const bad[] = { "", "\xc0", "no msgpack at all", "\x81\xa7version\x02" };
        char path[600], name[32];
        unsigned n = 0;
        struct err e;

        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
                (void) snprintf(name, sizeof(name), "%016zx", i);
                entry_path(name, path, sizeof(path));
                assert_ok(io_write_file_atomic(AT_FDCWD, path, bad[i], strlen(bad[i]), 0600, false));
        }
        /* larger than any entry: not even read */
        entry_path("00000000000000ff", path, sizeof(path));
        assert_ok(io_write_file_atomic(AT_FDCWD, path, "", 0, 0600, false));
        assert_ok(truncate(path, JOURNAL_MAX_BYTES + 1));
        /* no entry, and none of our business */
        entry_path("README", path, sizeof(path));
        assert_ok(io_write_file_atomic(AT_FDCWD, path, "x", 1, 0600, false));
        assert_ok(journal_load(&d, &e));
        journal_settle(&d);
        journal_each_bad(&d, count_bad, &n);
        assert_int_equal(n, ARRAY_LEN(bad) + 1);
        assert_int_equal(access(path, F_OK), 0);
}

/* A disk that takes nothing any more: what was written before holds, and no half entry is there. */
static void test_a_write_that_fails(void **state) {
        cleanup_journal struct journal_entry j = { 0 }, first = { 0 };
        struct rlimit none = { 0 }, old;
        struct vm *vm = new_vm("clone");
        struct err e = { 0 };
        unsigned n = 0;
        id_str other;
        int r;

        journal_init(&j, JOURNAL_FORK);
        journal_init(&first, JOURNAL_FORK);
        assert_ok(journal_add_vm(&j, vm->id));
        assert_ok(journal_write(&d, &j, &e));
        id_new(other);
        assert_ok(journal_add_vm(&j, other));
        assert_ok(getrlimit(RLIMIT_FSIZE, &old));
        none.rlim_max = old.rlim_max;
        (void) signal(SIGXFSZ, SIG_IGN);
        assert_ok(setrlimit(RLIMIT_FSIZE, &none));
        r = journal_write(&d, &j, &e);
        assert_int_equal(journal_write(&d, &first, &e), -EFBIG);
        assert_ok(setrlimit(RLIMIT_FSIZE, &old));
        assert_int_equal(r, -EFBIG);
        assert_false(first.written);
        assert_ok(journal_load(&d, &e));
        assert_true(vm->removing);
        journal_each_bad(&d, count_bad, &n);
        assert_int_equal(n, 0);
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
        const struct CMUnitTest tests[] = {
                T(test_roundtrip),         T(test_what_is_no_entry),          T(test_what_an_entry_names_goes_and_nothing_else),
                T(test_an_end_and_no_end), T(test_what_cannot_be_read_stays), T(test_a_write_that_fails),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
