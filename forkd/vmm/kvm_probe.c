/* SPDX-License-Identifier: MIT */
/* Does KVM run Linux here? The device node proves nothing: under some nested hosts it opens, small tests run,
 * and a kernel still hangs in its first second. So a guest is booted, as forkd would boot it but without disks
 * and network, until its agent says on the console that it is there. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/io.h"
#include "common/spawn.h"
#include "forkd/vmm/qemu.h"
#include "forkd/vmm/qemu_args.h"

#define READY_LINE "forkd-agent: ready"
#define PROBE_MEM (256ull << 20)
#define CONSOLE_KEEP 16384u /* the end of what the guest has said */

/* Cheap reasons first. 0: worth a try. */
static int check_device(struct err *e) {
        cleanup_fd int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        int version;

        if (fd < 0)
                return err_set(e, ERR_UNSUPPORTED, -errno, "/dev/kvm cannot be opened: %s", strerror(errno));
        version = ioctl(fd, KVM_GET_API_VERSION, 0);
        if (version != KVM_API_VERSION)
                return err_set(e, ERR_UNSUPPORTED, -ENOTSUP, "/dev/kvm speaks version %d, not %d", version, KVM_API_VERSION);
        return 0;
}

static int build(const char *qemu, const char *firmware, const char *kernel, const char *initrd, struct qemu_args *a) {
        const struct vmm_machine m = { .mem_bytes = PROBE_MEM, .vcpus = 1, .accel = VMM_ACCEL_KVM };

        qemu_args_add(a, qemu, NULL);
        qemu_args_add(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        qemu_args_machine(a, &m, firmware, NULL);
        qemu_args_add(a, "-chardev", "stdio,id=console,signal=off");
        qemu_args_add(a, "-serial", "chardev:console");
        qemu_args_add(a, "-device", "virtio-serial-device,max_ports=2");
        qemu_args_add(a, "-chardev", "null,id=agent");
        qemu_args_add(a, "-device", "virtserialport,chardev=agent,name=forkd.agent,nr=1");
        qemu_args_add(a, "-object", "rng-random,id=rng,filename=/dev/urandom");
        qemu_args_add(a, "-device", "virtio-rng-device,rng=rng");
        qemu_args_add(a, "-kernel", kernel);
        qemu_args_add(a, "-initrd", initrd);
        qemu_args_add(a, "-append", vmm_qemu_cmdline());
        return a->r;
}

/* Reads the console until the ready line (1), QEMU's end or the deadline (0, reason in @e). */
static int watch_console(int fd, int timeout_ms, struct err *e) {
        char text[CONSOLE_KEEP + 1], reason[200];
        uint64_t start = now_ns();
        bool ended = false;
        size_t len = 0;

        while (!ended) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                double left = timeout_ms - ms_since(start);
                ssize_t n;

                if (left <= 0)
                        break;
                if (poll(&p, 1, (int) left + 1) <= 0)
                        continue;
                if (len == CONSOLE_KEEP) {
                        memmove(text, text + CONSOLE_KEEP / 2, CONSOLE_KEEP / 2);
                        len = CONSOLE_KEEP / 2;
                }
                n = read(fd, text + len, CONSOLE_KEEP - len);
                if (n < 0 && errno == EINTR)
                        continue;
                ended = n <= 0;
                if (n > 0)
                        len += (size_t) n;
                if (memmem(text, len, READY_LINE, sizeof(READY_LINE) - 1))
                        return 1;
        }
        (void) qemu_log_pick(text, len, reason, sizeof(reason));
        if (ended)
                (void) err_set(e, ERR_UNSUPPORTED, -ENOTSUP, "a test guest under KVM ended early%s%s", reason[0] ? ": " : "",
                               reason);
        else
                (void) err_set(e, ERR_UNSUPPORTED, -ENOTSUP, "a test guest under KVM did not come up within %d ms%s%s",
                               timeout_ms, reason[0] ? "; its console ends with: " : ", its console is empty", reason);
        return 0;
}

int vmm_kvm_probe(const char *kernel, const char *initrd, int timeout_ms, struct err *e) {
        static const char *const env[] = { "PATH=/usr/bin:/bin", "LC_ALL=C", NULL };
        struct qemu_args args cleanup_qemu_args = { .n = 0 };
        cleanup_fd int rd = -1, wr = -1, pidfd = -1;
        char qemu[PATH_MAX], firmware[PATH_MAX];
        struct spawn_fd out[2];
        bool has_firmware;
        int p[2], r;
        pid_t pid;

        if (check_device(e) < 0)
                return 0;
        if (access(kernel, R_OK) < 0 || access(initrd, R_OK) < 0)
                return err_errno(e, -errno, "reading %s and %s", kernel, initrd);
        r = qemu_find(qemu, sizeof(qemu), e);
        if (r < 0)
                return r;
        has_firmware = qemu_find_firmware(qemu, firmware, sizeof(firmware)) == 0;
        r = build(qemu, has_firmware ? firmware : NULL, kernel, initrd, &args);
        if (r == 0 && pipe2(p, O_CLOEXEC) < 0)
                r = -errno;
        if (r < 0)
                return err_errno(e, r, "trying KVM");
        rd = p[0];
        wr = p[1];
        out[0] = (struct spawn_fd){ .parent_fd = wr, .child_fd = 1 };
        out[1] = (struct spawn_fd){ .parent_fd = wr, .child_fd = 2 };
        r = spawn_process(&(struct spawn_params){ .argv = args.argv,
                                                  .env = env,
                                                  .fds = out,
                                                  .n_fds = 2,
                                                  .cgroup_fd = -1,
                                                  .death_signal = SIGKILL,
                                                  .new_session = true },
                          &pid, &pidfd);
        if (r < 0)
                return err_errno(e, r, "starting %s", qemu);
        wr = close_fd(wr);
        r = watch_console(rd, timeout_ms, e);
        (void) !spawn_kill(pidfd, SIGKILL);
        (void) !spawn_wait(pidfd, -1, NULL); /* it was killed */
        return r;
}
