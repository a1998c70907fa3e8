/* SPDX-License-Identifier: MIT */
/* Does what setup makes really boot? QEMU without KVM, until the agent says that it is ready. The kernel is the
 * one that the host's own cache holds; without one the test is skipped, for it would have to download it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "common/io.h"
#include "common/spawn.h"
#include "forkd/vmm/qemu.h"
#include "forkd/vmm/vmm.h"
#include "setup/kernel.h"
#include "setup/run.h"
#include "setup/setup.h"
#include "skip.h"

#define BOOT_TIMEOUT_MS 90000

/* Reads the console until @line is in it. */
static bool wait_for(int fd, const char *line, char *log, size_t size) {
        uint64_t start = now_ns();
        size_t n = 0;

        log[0] = '\0';
        while (!strstr(log, line)) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                double left = BOOT_TIMEOUT_MS - ms_since(start);
                if (left <= 0 || n == size - 1 || poll(&p, 1, (int) left) <= 0)
                        return false;
                ssize_t got = read(fd, log + n, size - 1 - n);
                if (got <= 0)
                        return false;
                n += (size_t) got;
                log[n] = '\0';
        }
        print_message("booted to \"%s\" in %.0f ms\n", line, ms_since(start));
        return true;
}

static int share_kernel(const char *cache) {
        char path[PATH_MAX], dir[PATH_MAX];
        struct kernel k;

        if (kernel_cached(assets_cache_dir(), &k) < 0)
                return -ENOENT;
        (void) snprintf(path, sizeof(path), "%s/kernel", cache);
        assert_int_equal(io_mkdir_p(path, 0755), 0);
        (void) snprintf(dir, sizeof(dir), "%s%s", path, strrchr(k.dir, '/'));
        return symlink(k.dir, dir) < 0 ? -errno : 0;
}

static void boot(const char *qemu, const struct assets *a) {
        char cmdline[256];
        const char *argv[] = {
                qemu,
                "-M",
                "microvm,acpi=on,rtc=on,x-option-roms=off",
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                "128",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-serial",
                "stdio",
                "-device",
                "virtio-serial-device",
                "-chardev",
                "null,id=agent",
                "-device",
                "virtserialport,chardev=agent,name=forkd.agent",
                "-device",
                "virtio-rng-device",
                "-kernel",
                a->kernel,
                "-initrd",
                a->initrd,
                "-append",
                cmdline,
                "-no-reboot",
                NULL,
        };
        static char log[256 << 10];
        int out[2];
        pid_t pid;

        /* As the driver does it: on a busy host a guest cannot find out the clock rate of TCG by itself. */
        (void) snprintf(cmdline, sizeof(cmdline), "%s tsc_early_khz=%u", vmm_qemu_cmdline(), qemu_tsc_khz());
        assert_int_equal(pipe2(out, O_CLOEXEC), 0);
        const struct spawn_fd fds[] = { { out[1], STDOUT_FILENO }, { out[1], STDERR_FILENO } };
        const struct spawn_params sp = {
                .argv = argv,
                .fds = fds,
                .n_fds = ARRAY_LEN(fds),
                .cgroup_fd = -1,
                .death_signal = SIGKILL,
        };
        cleanup_fd int pidfd = -1;
        assert_int_equal(spawn_process(&sp, &pid, &pidfd), 0);
        (void) close_fd(out[1]);
        bool up = wait_for(out[0], "forkd-agent: ready", log, sizeof(log));
        assert_int_equal(spawn_kill(pidfd, SIGKILL), 0);
        assert_int_equal(spawn_wait(pidfd, 10000, NULL), 0);
        (void) close_fd(out[0]);
        if (!up)
                print_message("%s\n", log);
        assert_true(up);
}

static char dir[] = "/tmp/forkd-boot-XXXXXX";

static int make(void **state) {
        return mkdtemp(dir) ? 0 : -1;
}

static int drop(void **state) {
        return io_remove_tree(AT_FDCWD, dir);
}

static void test_boot(void **state) {
        char cache[64], state_dir[64], qemu[64];
        struct setup_result res;
        struct err e = { 0 };

        (void) snprintf(cache, sizeof(cache), "%s/cache", dir);
        (void) snprintf(state_dir, sizeof(state_dir), "%s/state", dir);
        const struct setup_params params = {
                .cache_dir = cache,
                .state_dir = state_dir,
                .store_bytes = STORE_MIN_BYTES,
                .agent_path = FORKD_AGENT,
                .skip_kvm = true,
        };
        if (run_find("qemu-system-x86_64", qemu, sizeof(qemu)) < 0 || share_kernel(cache) < 0)
                skip_because("no QEMU, or no guest kernel in the cache (run forkctl setup)");
        int r = setup_run(&params, NULL, NULL, &res, &e);
        if (r < 0)
                print_message("%s | %s\n", e.message, e.hint);
        assert_int_equal(r, 0);
        boot(qemu, &res.assets);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_boot) };

        return cmocka_run_group_tests(tests, make, drop);
}
