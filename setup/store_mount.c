/* SPDX-License-Identifier: MIT */
/* Mounting the store's image: loop device, then mount(2). The loop device is configured with autoclear, so it
 * goes with the mount, or with our descriptor if the mount fails: nothing is left behind in any case.
 * It does direct I/O: an fsync of 32 MiB then takes 16 ms instead of 90-130 (ext4 below, a virtual disk), and
 * the host does not cache every page twice.
 *
 * Whether a mount on store/ is ours is asked of the kernel: the mounted device must be a loop device whose
 * backing file is store.img, by device and inode number. */
#include "setup/store_mount.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "common/io.h"
#include "setup/store_internal.h"

#define LOOP_MAJOR_NUMBER 7  /* Documentation/admin-guide/devices.txt */
#define LOOP_BLOCK_SIZE 4096 /* as mkfs.xfs -s size=4096 in store.c */
#define LOOP_MAX_ATTEMPTS 16 /* somebody else may grab the free device between our two calls */

/* Without the right to open the device: sysfs names the backing file by its path. */
static int backing_by_path(unsigned minor_nr, const char *image) {
        char path[96], *text = NULL;
        cleanup_free char *real = realpath(image, NULL);
        size_t len;

        (void) snprintf(path, sizeof(path), "/sys/dev/block/%d:%u/loop/backing_file", LOOP_MAJOR_NUMBER, minor_nr);
        int r = io_read_file(AT_FDCWD, path, 4096, &text, &len);
        if (r < 0)
                return r;
        text[strcspn(text, "\n")] = '\0';
        r = real && strcmp(text, real) == 0;
        free(text);
        return r;
}

/* Is the device a loop device over @image? */
static int backed_by(dev_t dev, const char *image) {
        struct loop_info64 info;
        struct stat st;
        char path[64];

        if (major(dev) != LOOP_MAJOR_NUMBER)
                return 0;
        if (stat(image, &st) < 0)
                return errno == ENOENT ? 0 : -errno;
        (void) snprintf(path, sizeof(path), "/dev/loop%u", minor(dev));
        cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return backing_by_path(minor(dev), image);
        if (ioctl(fd, LOOP_GET_STATUS64, &info) < 0)
                return errno == ENXIO ? 0 : -errno;
        return info.lo_inode == st.st_ino && info.lo_device == st.st_dev;
}

/* 1 when @path is a mount point (of another device than its parent), with the device. */
static int mounted_device(const char *path, dev_t *ret) {
        char parent[STORE_MAX_PATH + 4];
        struct stat st, up;

        (void) snprintf(parent, sizeof(parent), "%s/..", path);
        if (stat(path, &st) < 0 || stat(parent, &up) < 0)
                return errno == ENOENT ? 0 : -errno;
        *ret = st.st_dev;
        return st.st_dev != up.st_dev;
}

int store_is_attached(const char *state_dir) {
        char dir[STORE_MAX_PATH], image[STORE_MAX_PATH];
        dev_t dev = 0;

        int r = store_path(state_dir, STORE_DIR, dir, sizeof(dir), NULL);
        if (r == 0)
                r = store_path(state_dir, STORE_IMAGE, image, sizeof(image), NULL);
        if (r == 0)
                r = mounted_device(dir, &dev);
        return r > 0 ? backed_by(dev, image) : r;
}

/* A configured loop device over @image_fd; its path in @dev. */
static int loop_attach(int image_fd, const char *image, char *dev, size_t size, int *ret_fd, struct err *e) {
        cleanup_fd int ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
        struct loop_config config = {
                .fd = (uint32_t) image_fd,
                .block_size = LOOP_BLOCK_SIZE,
                .info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
        };

        if (ctl < 0) {
                err_errno(e, -errno, "cannot open /dev/loop-control");
                return err_hint(e, "the store is a loop-mounted file: load the module 'loop', or run as root");
        }
        /* for losetup -l, which has room for 63 bytes of it */
        (void) snprintf((char *) config.info.lo_file_name, sizeof(config.info.lo_file_name), "%.63s", image);
        for (int attempt = 0; attempt < LOOP_MAX_ATTEMPTS; attempt++) {
                int nr = ioctl(ctl, LOOP_CTL_GET_FREE);
                if (nr < 0)
                        return err_errno(e, -errno, "no free loop device");
                (void) snprintf(dev, size, "/dev/loop%d", nr);
                cleanup_fd int fd = open(dev, O_RDWR | O_CLOEXEC);
                if (fd < 0)
                        return err_errno(e, -errno, "cannot open %s", dev);
                if (ioctl(fd, LOOP_CONFIGURE, &config) == 0) {
                        *ret_fd = TAKE_FD(fd);
                        return 0;
                }
                if (errno == EINVAL && (config.info.lo_flags & LO_FLAGS_DIRECT_IO))
                        config.info.lo_flags &= ~(uint32_t) LO_FLAGS_DIRECT_IO; /* tmpfs and the like have none */
                else if (errno != EBUSY)
                        return err_errno(e, -errno, "cannot set up %s for %s", dev, image);
        }
        return err_set(e, ERR_BUSY, -EBUSY, "every free loop device was taken by others meanwhile");
}

static int attach_image(const char *image, const char *dir, struct err *e) {
        cleanup_fd int fd = open(image, O_RDWR | O_CLOEXEC | O_NOFOLLOW), loop = -1;
        char dev[32];

        if (fd < 0)
                return err_errno(e, -errno, "cannot open %s", image);
        int r = loop_attach(fd, image, dev, sizeof(dev), &loop, e);
        if (r < 0)
                return r;
        /* discard: the space of deleted snapshots goes back to the host, at no measurable cost. nouuid: a copy
         * of a state directory can be mounted beside the original. */
        if (mount(dev, dir, "xfs", MS_NODEV | MS_NOSUID | MS_NOATIME, "discard,nouuid") < 0) {
                r = err_errno(e, -errno, "cannot mount %s on %s", image, dir);
                if (r == -ENODEV)
                        err_hint(e, "this kernel has no XFS");
                else if (r == -EINVAL || r == -EUCLEAN)
                        err_hint(e, "the image may be damaged: see dmesg, and xfs_repair with forkd stopped");
                return r;
        }
        return 0;
}

int store_attach(const char *state_dir, struct err *e) {
        char dir[STORE_MAX_PATH], image[STORE_MAX_PATH];
        cleanup_fd int lock = -1;
        struct stat st;
        dev_t dev = 0;

        int r = store_path(state_dir, STORE_DIR, dir, sizeof(dir), e);
        if (r == 0)
                r = store_path(state_dir, STORE_IMAGE, image, sizeof(image), e);
        if (r == 0)
                r = store_lock(state_dir, &lock, e);
        if (r < 0)
                return r;
        if (mkdir(dir, 0700) < 0 && errno != EEXIST)
                return err_errno(e, -errno, "cannot make %s", dir);
        if (lstat(image, &st) < 0)
                return errno == ENOENT ? 0 : err_errno(e, -errno, "cannot look at %s", image);

        r = mounted_device(dir, &dev);
        if (r < 0)
                return err_errno(e, r, "cannot look at %s", dir);
        if (r > 0) {
                r = backed_by(dev, image);
                if (r < 0)
                        return err_errno(e, r, "cannot tell what is mounted on %s", dir);
                if (r > 0)
                        return 0;
                err_set(e, ERR_BUSY, -EBUSY, "something else than %s is mounted on %s", image, dir);
                return err_hint(e, "unmount it, or remove store.img if it is not in use any more");
        }
        r = store_dir_has_files(dir);
        if (r < 0)
                return err_errno(e, r, "cannot look into %s", dir);
        if (r > 0) {
                err_set(e, ERR_STATE, -ENOTEMPTY, "%s is not empty: mounting the store there would hide its files", dir);
                return err_hint(e, "move its content away, start again, and move it back into the mounted store");
        }
        return attach_image(image, dir, e);
}

int store_detach(const char *state_dir, struct err *e) {
        char dir[STORE_MAX_PATH];
        cleanup_fd int lock = -1;

        int r = store_path(state_dir, STORE_DIR, dir, sizeof(dir), e);
        if (r == 0)
                r = store_is_attached(state_dir);
        if (r == 0)
                return 0;
        if (r < 0)
                return err_errno(e, r, "cannot tell what is mounted on %s", dir);
        r = store_lock(state_dir, &lock, e);
        if (r < 0)
                return r;
        r = umount2(dir, UMOUNT_NOFOLLOW) < 0 ? -errno : 0;
        if (r == 0 || r == -EINVAL) /* EINVAL: somebody did it meanwhile */
                return 0;
        err_errno(e, r, "cannot unmount %s", dir);
        if (r == -EBUSY)
                err_hint(e, "a process still has files open there");
        return r;
}
