/* SPDX-License-Identifier: MIT */
/* The report as a whole, and the KVM verdict with its cache. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "common/io.h"
#include "fake_kernel.h"
#include "fake_vmm.h"
#include "setup/doctor.h"
#include "setup/run.h"
#include "setup/setup.h"
#include "skip.h"

static char dir[] = "/tmp/forkd-doctor-XXXXXX";
static char cache[96], state_dir[96], socket_path[96], agent[256];

static int make(void **state) {
        assert_non_null(mkdtemp(dir));
        (void) snprintf(cache, sizeof(cache), "%s/cache", dir);
        (void) snprintf(state_dir, sizeof(state_dir), "%s/state", dir);
        (void) snprintf(socket_path, sizeof(socket_path), "%s/forkd.sock", dir);
        return 0;
}

static int drop(void **state) {
        return io_remove_tree(AT_FDCWD, dir);
}

static const struct doctor_check *check(const struct doctor_report *rep, const char *name) {
        const struct doctor_check *found = NULL;

        for (size_t i = 0; i < rep->n; i++)
                if (strcmp(rep->checks[i].name, name) == 0) {
                        assert_null(found); /* names are unique */
                        found = &rep->checks[i];
                }
        assert_non_null(found);
        return found;
}

static void examine(struct doctor_report *rep) {
        const struct doctor_params p = { .cache_dir = cache, .state_dir = state_dir, .socket = socket_path };
        bool failed = false;

        doctor_run(&p, rep);
        for (size_t i = 0; i < rep->n; i++) {
                const struct doctor_check *c = &rep->checks[i];

                assert_ptr_equal(check(rep, c->name), c);
                assert_true(c->detail[0] != '\0');
                assert_int_equal(c->status == DOCTOR_OK, c->hint[0] == '\0'); /* a hint exactly when there is something to do */
                failed = failed || c->status == DOCTOR_FAIL;
        }
        assert_int_equal(rep->ok, !failed);
}

static void test_report(void **state) {
        static const char *const expected[] = {
                "userfaultfd", "pagemap-scan", "memfd",          "qemu",          "kvm",
                "tcg",         "assets",       "busybox",        "reflink",       "loop",
                "space-store", "space-cache",  "memory",         "max_map_count", "open-files",
                "cgroup2",     "uffd-pager",   "libuffd-attach", "jail",          "probes",
                "netns-tap",   "nftables",     "vhost-vsock",    "forkd",         "bpf",
        };
        static struct doctor_report rep;
        struct stat st;

        examine(&rep);
        for (size_t i = 0; i < ARRAY_LEN(expected); i++)
                (void) check(&rep, expected[i]);
        assert_int_equal(check(&rep, "assets")->status, DOCTOR_FAIL); /* an empty cache */
        assert_non_null(strstr(check(&rep, "assets")->hint, "forkctl setup"));
        assert_int_equal(check(&rep, "qemu")->status, DOCTOR_OK);
        assert_non_null(strstr(check(&rep, "qemu")->detail, "7.2.22"));
        assert_int_equal(check(&rep, "forkd")->status, DOCTOR_WARN);
        assert_int_equal(check(&rep, "kvm")->status, DOCTOR_WARN); /* there are no assets to try it with */
        assert_int_equal(fake_vmm.probes, 0);
        assert_int_equal(stat(cache, &st), -1); /* looking makes nothing */
        assert_int_equal(stat(state_dir, &st), -1);
}

static void test_qemu(void **state) {
        static struct doctor_report rep;

        fake_vmm.version = NULL;
        examine(&rep);
        assert_int_equal(check(&rep, "qemu")->status, DOCTOR_FAIL);
        fake_vmm.version = "6.2.0";
        examine(&rep);
        assert_int_equal(check(&rep, "qemu")->status, DOCTOR_FAIL);
        fake_vmm.version = "10.1.0";
        examine(&rep);
        assert_int_equal(check(&rep, "qemu")->status, DOCTOR_OK);
        fake_vmm.version = "7.2.22";
}

static void test_forkd(void **state) {
        static struct doctor_report rep;
        cleanup_fd int fd = -1;

        assert_int_equal(io_listen_unix(socket_path, 0600, &fd), 0);
        examine(&rep);
        assert_int_equal(check(&rep, "forkd")->status, DOCTOR_OK);
        assert_int_equal(unlink(socket_path), 0);
}

static void test_kvm_verdict(void **state) {
        const struct setup_params params = {
                .cache_dir = cache,
                .state_dir = state_dir,
                .store_bytes = STORE_MIN_BYTES,
                .agent_path = agent,
                .skip_kvm = true,
        };
        static const char *const modules[] = { "virtio", NULL };
        static struct doctor_report rep;
        struct setup_result res;
        struct err e = { 0 };

        if (access("/dev/kvm", R_OK | W_OK) < 0 || run_find("busybox", agent, sizeof(agent)) < 0)
                skip_because("needs /dev/kvm and busybox-static");
        assert_int_equal(setup_kvm_verdict(cache, 1000, &e), -ENOENT); /* nothing to boot */
        fake_kernel(cache, "6.1.0-test", modules);
        assert_int_equal(setup_run(&params, NULL, NULL, &res, &e), 0);
        assert_int_equal(fake_vmm.probes, 0);
        assert_false(res.kvm);

        assert_int_equal(setup_kvm_verdict(cache, 0, &e), -ENODATA); /* 0: only looks */
        fake_vmm.probe_result = -ENOMEM;                             /* could not be tried: no verdict */
        assert_int_equal(setup_kvm_verdict(cache, 1000, &e), -ENOMEM);
        assert_int_equal(setup_kvm_verdict(cache, 0, &e), -ENODATA);

        fake_vmm.probe_result = 0;
        fake_vmm.probes = 0;
        for (int i = 0; i < 3; i++) {
                assert_int_equal(setup_kvm_verdict(cache, i < 2 ? 1000 : 0, &e), 0);
                assert_string_equal(e.message, "the guest hung"); /* the reason is remembered too */
                memset(&e, 0, sizeof(e));
        }
        assert_int_equal(fake_vmm.probes, 1);
        examine(&rep);
        assert_int_equal(check(&rep, "kvm")->status, DOCTOR_WARN);
        assert_int_equal(fake_vmm.probes, 1);

        fake_vmm.version = "8.0.0"; /* another QEMU may do better */
        fake_vmm.probe_result = 1;
        assert_int_equal(setup_kvm_verdict(cache, 1000, &e), 1);
        assert_int_equal(setup_kvm_verdict(cache, 0, &e), 1);
        assert_int_equal(fake_vmm.probes, 2);
        examine(&rep);
        assert_int_equal(check(&rep, "kvm")->status, DOCTOR_OK);
        assert_int_equal(check(&rep, "assets")->status, DOCTOR_OK);

        char path[PATH_MAX];
        (void) snprintf(path, sizeof(path), "%s/kvm.json", cache);
        put_file(path, "{\"key\": 7", 9); /* damaged: as if there were none */
        assert_int_equal(setup_kvm_verdict(cache, 0, &e), -ENODATA);
        assert_int_equal(setup_kvm_verdict(cache, 1000, &e), 1);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_report),
                cmocka_unit_test(test_qemu),
                cmocka_unit_test(test_forkd),
                cmocka_unit_test(test_kvm_verdict),
        };
        return cmocka_run_group_tests(tests, make, drop);
}
