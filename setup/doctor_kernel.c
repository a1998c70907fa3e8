/* SPDX-License-Identifier: MIT */
/* Features of the running kernel, each tried with the system call that forkd will use, never derived from a
 * version number: distributions backport, and containers take away. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/magic.h>
#include <linux/netlink.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "bpf/probes.h"
#include "common/io.h"
#include "setup/doctor_internal.h"

/* Newer than Debian 12's headers (6.1): from include/uapi/linux/userfaultfd.h and fs.h of Linux 6.7. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef PAGEMAP_SCAN
struct pm_scan_arg {
        __u64 size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask, category_anyof_mask,
                return_mask;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_PRESENT (1 << 3)
struct page_region {
        __u64 start, end, categories;
};
#endif

/* What a fork cannot do without. EVENT_REMOVE tells us of pages that a guest's balloon gave back. */
#define UFFD_NEEDED (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_REMOVE)

static int uffd_open(const char **ret_how, struct err *why) {
        cleanup_fd int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

        if (dev >= 0) {
                int fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
                if (fd >= 0) {
                        *ret_how = "/dev/userfaultfd";
                        return fd;
                }
        }
        int fd = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
                return err_errno(why, -errno, "neither /dev/userfaultfd nor the system call works");
        *ret_how = "the system call";
        return fd;
}

/* The step that the whole design rests on: a page of a memfd that is present is mapped into a private mapping
 * of it that is registered for missing pages. 0, or -errno of what failed. */
static int try_continue(int uffd) {
        size_t page = (size_t) sysconf(_SC_PAGESIZE);
        cleanup_fd int fd = memfd_create("forkd-doctor", MFD_CLOEXEC);

        if (fd < 0)
                return -errno;
        int r = io_pwrite_full(fd, "p", 1, 0);
        if (r == 0 && ftruncate(fd, (off_t) page) < 0)
                r = -errno;
        if (r < 0)
                return r;
        char *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
                return -errno;
        struct uffdio_register reg = { .range = { (uintptr_t) p, page }, .mode = UFFDIO_REGISTER_MODE_MISSING };
        struct uffdio_continue cont = { .range = { (uintptr_t) p, page } };
        if (ioctl(uffd, UFFDIO_REGISTER, &reg) < 0 || ioctl(uffd, UFFDIO_CONTINUE, &cont) < 0)
                r = -errno;
        else if (*(volatile char *) p != 'p') /* the page is there: this cannot fault */
                r = -EIO;
        (void) munmap(p, page);
        return r;
}

void doctor_userfaultfd(struct doctor_report *rep) {
        static const char *const purpose = "serves the guests' page faults";
        static const char *const hint = "run as root, or give access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1; "
                                        "kernel 5.13 or newer with CONFIG_USERFAULTFD";
        struct uffdio_api api = { .api = UFFD_API };
        struct err why = { 0 };
        const char *how = "";

        cleanup_fd int fd = uffd_open(&how, &why);
        if (fd < 0) {
                doctor_add(rep, "userfaultfd", DOCTOR_FAIL, hint, "%s; %s", why.message, purpose);
                return;
        }
        if (ioctl(fd, UFFDIO_API, &api) < 0) {
                doctor_add(rep, "userfaultfd", DOCTOR_FAIL, hint, "UFFDIO_API: %s", strerror(errno));
                return;
        }
        if ((api.features & UFFD_NEEDED) != UFFD_NEEDED) {
                doctor_add(rep, "userfaultfd", DOCTOR_FAIL, "a kernel 5.13 or newer", "features %#llx lack %#llx; %s",
                           (unsigned long long) api.features, (unsigned long long) (UFFD_NEEDED & ~api.features), purpose);
                return;
        }
        int r = try_continue(fd);
        if (r < 0)
                doctor_add(rep, "userfaultfd", DOCTOR_FAIL, "a newer kernel",
                           "pages of a memfd cannot be continued into a private mapping: %s; %s", strerror(-r), purpose);
        else
                doctor_add(rep, "userfaultfd", DOCTOR_OK, "", "by %s, features %#llx%s; %s", how,
                           (unsigned long long) api.features, api.features & UFFD_FEATURE_WP_ASYNC ? " (with WP_ASYNC)" : "",
                           purpose);
}

void doctor_pagemap_scan(struct doctor_report *rep) {
        cleanup_fd int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
        size_t page = (size_t) sysconf(_SC_PAGESIZE);
        struct page_region region;
        char *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        int r = -1;

        if (fd >= 0 && p != MAP_FAILED) {
                *(volatile char *) p = 1;
                struct pm_scan_arg arg = {
                        .size = sizeof(arg),
                        .start = (uintptr_t) p,
                        .end = (uintptr_t) p + page,
                        .vec = (uintptr_t) &region,
                        .vec_len = 1,
                        .category_mask = PAGE_IS_PRESENT,
                        .return_mask = PAGE_IS_PRESENT,
                };
                r = ioctl(fd, PAGEMAP_SCAN, &arg);
        }
        int error = errno;
        if (p != MAP_FAILED)
                (void) munmap(p, page);
        if (r == 1)
                doctor_add(rep, "pagemap-scan", DOCTOR_OK, "", "works; finds a guest's dirty pages");
        else
                doctor_add(rep, "pagemap-scan", DOCTOR_WARN, "kernel 6.7 or newer",
                           "%s; /proc/<pid>/pagemap is read instead, which takes longer for large guests",
                           r < 0 ? strerror(error) : "gives a wrong answer");
}

void doctor_memfd(struct doctor_report *rep) {
        cleanup_fd int fd = memfd_create("forkd-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        char path[64];

        if (fd < 0 || ftruncate(fd, 1 << 20) < 0) {
                doctor_add(rep, "memfd", DOCTOR_FAIL, "a kernel with CONFIG_MEMFD_CREATE and CONFIG_SHMEM",
                           "%s; holds the decoded memory that clones share", strerror(errno));
                return;
        }
        (void) snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        cleanup_fd int ro = open(path, O_RDONLY | O_CLOEXEC);
        if (ro < 0)
                doctor_add(rep, "memfd", DOCTOR_FAIL, "mount /proc", "cannot be reopened read-only by /proc: %s",
                           strerror(errno));
        else if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0)
                doctor_add(rep, "memfd", DOCTOR_FAIL, "a kernel with CONFIG_SHMEM", "cannot punch holes: %s", strerror(errno));
        else
                doctor_add(rep, "memfd", DOCTOR_OK, "", "works; holds the decoded memory that clones share");
}

/* The cgroup2 mount in /proc/self/mountinfo: field 5 is the mount point, the type stands behind " - ". */
static int find_cgroup2(char *buf, size_t size) {
        cleanup_fclose FILE *f = fopen("/proc/self/mountinfo", "re");
        char line[4096], where[512];

        if (!f)
                return -errno;
        while (fgets(line, sizeof(line), f)) {
                const char *type = strstr(line, " - ");
                if (type && strncmp(type, " - cgroup2 ", 11) == 0 && sscanf(line, "%*s %*s %*s %*s %511s", where) == 1) {
                        (void) snprintf(buf, size, "%s", where);
                        return 0;
                }
        }
        return -ENOENT;
}

void doctor_cgroup(struct doctor_report *rep) {
        static const char *const hint = "mount -t cgroup2 none /sys/fs/cgroup, and run forkd where it may write there";
        char mount[512], path[600];
        id_t pid = (id_t) getpid();

        if (find_cgroup2(mount, sizeof(mount)) < 0) {
                doctor_add(rep, "cgroup2", DOCTOR_WARN, hint,
                           "not mounted; VMs are then ended process by process, and have no memory limits");
                return;
        }
        (void) snprintf(path, sizeof(path), "%s/forkd-doctor.%u", mount, (unsigned) pid);
        if (mkdir(path, 0755) < 0) {
                doctor_add(rep, "cgroup2", DOCTOR_WARN, hint,
                           "cannot make a group in %.100s: %s; groups VMs, to end them at once", mount, strerror(errno));
                return;
        }
        char kill[620];
        (void) snprintf(kill, sizeof(kill), "%s/cgroup.kill", path);
        bool has_kill = access(kill, W_OK) == 0;
        (void) rmdir(path);
        if (has_kill)
                doctor_add(rep, "cgroup2", DOCTOR_OK, "", "writable at %.100s, with cgroup.kill; groups VMs, to end them at once",
                           mount);
        else
                doctor_add(rep, "cgroup2", DOCTOR_WARN, "kernel 5.14 or newer",
                           "writable at %.100s, without cgroup.kill: VMs are ended process by process", mount);
}

void doctor_bpf(struct doctor_report *rep) {
        if (access("/sys/kernel/btf/vmlinux", R_OK) == 0)
                doctor_add(rep, "bpf", DOCTOR_OK, "",
                           "type information (BTF) is there; BPF programs find the kernel's fields by it");
        else
                doctor_add(rep, "bpf", DOCTOR_WARN, "a kernel with CONFIG_DEBUG_INFO_BTF",
                           "no /sys/kernel/btf/vmlinux; BPF programs find the kernel's fields by it");
}

void doctor_probes(struct doctor_report *rep) {
        const struct probes_options opt = { .method = -1, .max_processes = 8, .max_threads = 64 };
        struct err e = { 0 };
        struct probes_status st;
        struct probes *p;

        if (probes_open(&opt, &p, &e) < 0) {
                doctor_add(rep, "probes", DOCTOR_WARN, e.hint, "not needed, but what guests wait for is not seen: %s", e.message);
                return;
        }
        probes_get_status(p, &st);
        if (st.method == PROBES_NONE)
                doctor_add(rep, "probes", DOCTOR_WARN, "none needed: the rest of the monitoring works",
                           "BPF programs see CPU time, but no waits for guest memory: %s", st.why);
        else
                doctor_add(rep, "probes", DOCTOR_OK, "", "BPF programs see waits for guest memory by %s; KVM's tracepoints %s",
                           probes_method_name(st.method), st.kvm ? "work, too" : "are not there");
        probes_close(p);
}

/* In a child of its own, for a network namespace cannot be left again: 0, or the errno of what failed. */
static int try_netns_and_tap(void) {
        int status;

        pid_t pid = fork();
        if (pid < 0)
                return errno;
        if (pid == 0) {
                struct ifreq req = { .ifr_flags = IFF_TAP | IFF_NO_PI };
                int tun;

                if (unshare(CLONE_NEWNET) < 0)
                        _exit(errno);
                tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
                if (tun < 0 || ioctl(tun, TUNSETIFF, &req) < 0)
                        _exit(errno);
                _exit(0);
        }
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return errno;
        return WIFEXITED(status) ? WEXITSTATUS(status) : EIO;
}

void doctor_net(struct doctor_report *rep) {
        static const char *const purpose = "gives clones networks of their own (run --net nat)";

        int error = try_netns_and_tap();
        if (error == 0)
                doctor_add(rep, "netns-tap", DOCTOR_OK, "", "network namespaces and tap devices work; it %s", purpose);
        else
                doctor_add(rep, "netns-tap", DOCTOR_WARN, "run as root, load the module 'tun'", "%s; it %s", strerror(error),
                           purpose);

        cleanup_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
        if (fd >= 0)
                doctor_add(rep, "nftables", DOCTOR_OK, "", "the kernel speaks netfilter's netlink; it %s", purpose);
        else
                doctor_add(rep, "nftables", DOCTOR_WARN, "load the module 'nf_tables'", "%s; it %s", strerror(errno), purpose);
}

void doctor_vsock(struct doctor_report *rep) {
        if (access("/dev/vhost-vsock", R_OK | W_OK) == 0)
                doctor_add(rep, "vhost-vsock", DOCTOR_OK, "", "usable, but not needed: QEMU guests talk over virtio-serial");
        else
                doctor_add(rep, "vhost-vsock", DOCTOR_WARN, "none needed; `modprobe vhost_vsock` if you want it",
                           "/dev/vhost-vsock: %s; not needed, QEMU guests talk over virtio-serial", strerror(errno));
}
