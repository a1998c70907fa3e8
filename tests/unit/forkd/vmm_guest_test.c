/* SPDX-License-Identifier: MIT */
/* The driver with a Linux guest inside: boot, console, device state,
 * panic. Restores with their memory are tested end to end, where there is a pager. */
#include "vmm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"

#define BOOT_TIMEOUT_MS 50000 /* 2 s on an idle host, under TCG */

static struct vmm_machine machine;
static char run_dir[96], console_path[96];

static struct vmm_start prepare(struct vmm_test *t, const char *cmdline) {
        struct vmm_start s = { .machine = &machine,
                               .run_dir = run_dir,
                               .log_path = t->log,
                               .console_fd = -1,
                               .cgroup_fd = -1,
                               .pager_sock = -1,
                               .cmdline = cmdline,
                               .kernel = vmm_test_kernel(),
                               .initrd = vmm_test_initrd(),
                               .attach_lib = vmm_test_attach_lib() };

        machine = (struct vmm_machine){ .mem_bytes = 256ull << 20, .vcpus = 1, .accel = VMM_ACCEL_TCG };
        (void) snprintf(run_dir, sizeof(run_dir), "%s/run", t->dir);
        (void) snprintf(console_path, sizeof(console_path), "%s/console", t->dir);
        check(mkdir(run_dir, 0700) == 0);
        s.console_fd = open(console_path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        check(s.console_fd >= 0);
        return s;
}

static struct vmm *boot(struct vmm_test *t, const char *cmdline) {
        struct vmm_start s = prepare(t, cmdline);
        struct vmm *v = NULL;

        check_ok(vmm_qemu.start(t->base, &s, &vmm_test_events, t, &v, &t->e));
        t->vmm = v;
        (void) close(s.console_fd);
        check_ok(vmm_qemu.resume(v, &t->e));
        return v;
}

static void finish(struct vmm_test *t, struct vmm *v) {
        check_ok(vmm_qemu.kill(v, &t->e));
        t->vmm = NULL;
        vmm_qemu.free(v);
}

#define TEST(name)                                   \
        static void name##_body(struct vmm_test *t); \
        static void name(void **state) {             \
                vmm_test_run(*state, name##_body);   \
        }                                            \
        static void name##_body(struct vmm_test *t)

TEST(boots_pauses_and_runs_on) {
        struct vmm *v = boot(t, vmm_qemu_cmdline());
        char path[96];
        int fd;

        check_ok(vmm_test_wait_text(console_path, "forkd-agent: ready", BOOT_TIMEOUT_MS));
        (void) snprintf(path, sizeof(path), "%s/vmstate", t->dir);
        for (int i = 0; i < 3; i++) {
                struct stat st;

                check_ok(vmm_qemu.pause(v, &t->e));
                fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
                check_ok(vmm_qemu.save_state(v, fd, &t->e));
                check(fstat(fd, &st) == 0 && st.st_size > 1000 && st.st_size < (256 << 10));
                (void) close(fd);
                check_ok(vmm_qemu.resume(v, &t->e));
        }
        check(t->guest_events[0] == '\0');
        finish(t, v);
}

/* A guest whose first process ends has panicked; with panic=-1 that is a reset, and a reset ends the VM. */
TEST(a_panic_ends_it) {
        struct vmm *v = boot(t, "console=ttyS0 reboot=t panic=-1 no_timer_check rdinit=/nothing init=/nothing root=none");

        check(vmm_test_wait_exit(t, BOOT_TIMEOUT_MS) == 0);
        check(WIFEXITED(t->exit_status) && WEXITSTATUS(t->exit_status) == 0);
        check_str(t->guest_events, "reset"); /* known before the end */
        vmm_qemu.free(v);
        t->vmm = NULL;
}

/* ---- does KVM run a guest? (blocking: no coroutine) ---- */

static void use_fake(struct vmm_test *t, const char *script) {
        char path[96];
        int fd;

        (void) snprintf(path, sizeof(path), "%s/qemu", t->dir);
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
        assert_true(fd >= 0);
        assert_int_equal(io_write_full(fd, script, strlen(script)), 0);
        (void) close(fd);
        assert_int_equal(setenv("FORKD_QEMU", path, 1), 0);
}

static void kvm_probe_verdicts(void **state) {
        struct vmm_test *t = *state;
        const char *k = vmm_test_kernel(), *i = vmm_test_initrd();
        struct err e = { 0 };
        uint64_t start;

        if (access("/dev/kvm", R_OK | W_OK) < 0) {
                assert_int_equal(vmm_kvm_probe(k, i, 1000, &e), 0);
                assert_non_null(strstr(e.message, "/dev/kvm"));
                vmm_test_skip("/dev/kvm cannot be opened");
        }
        assert_int_equal(vmm_kvm_probe("/no/such/kernel", i, 1000, &e), -ENOENT);

        use_fake(t, "#!/bin/sh\necho booting; echo 'forkd-agent: ready'; exec sleep 600\n");
        assert_int_equal(vmm_kvm_probe(k, i, 20000, &e), 1);

        use_fake(t, "#!/bin/sh\necho 'KVM internal error' >&2\nexit 1\n");
        assert_int_equal(vmm_kvm_probe(k, i, 20000, &e), 0);
        assert_non_null(strstr(e.message, "ended early: KVM internal error"));

        use_fake(t, "#!/bin/sh\necho 'forkd-agent: not re'; exec sleep 600\n");
        start = now_ns();
        assert_int_equal(vmm_kvm_probe(k, i, 300, &e), 0);
        assert_true(ms_since(start) >= 300);
        assert_non_null(strstr(e.message, "forkd-agent: not re"));

        use_fake(t, "#!/bin/sh\nexec yes\n"); /* more than is kept, without end */
        assert_int_equal(vmm_kvm_probe(k, i, 300, &e), 0);

        /* the real thing, whatever it says: the verdict comes in time, a refusal with its reason */
        assert_int_equal(unsetenv("FORKD_QEMU"), 0);
        e.message[0] = '\0';
        start = now_ns();
        if (vmm_kvm_probe(k, i, 5000, &e) != 1)
                assert_string_not_equal(e.message, "");
        assert_true(ms_since(start) < 20000);
        print_message("KVM here: %s\n", e.message[0] ? e.message : "yes");
}

#define T(f) cmocka_unit_test_setup_teardown(f, vmm_test_setup, vmm_test_teardown)

int main(void) {
        const struct CMUnitTest tests[] = {
                T(boots_pauses_and_runs_on),
                T(a_panic_ends_it),
                T(kvm_probe_verdicts),
        };

        if (!vmm_test_kernel() || !vmm_test_initrd())
                return vmm_test_skip_all("no guest to boot");
        return cmocka_run_group_tests(tests, NULL, NULL);
}
