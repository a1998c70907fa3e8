/* SPDX-License-Identifier: MIT */
/* The archive is made from memory: no file tree, no root rights, the same bytes for the same inputs.
 * It is compressed with lz4: of raw, gzip, zstd and lz4 that boots a guest without KVM as fast as any
 * (within 20 ms), and it leaves 2 MiB less of stale memory in the guest than a raw one. */
#include "setup/initramfs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "common/ids.h"
#include "common/io.h"
#include "setup/cpio.h"
#include "setup/elf_file.h"
#include "setup/guest_files.h"
#include "setup/run.h"
#include "setup/unpack.h"

/* Part of the id: to be raised when this file changes what it makes of the same inputs. */
#define BUILDER_VERSION "forkd-initramfs-1"
#define AGENT_NAME "forkd-agent"

static int read_program(const char *path, const char *what, char **ret, size_t *ret_len, struct err *e) {
        cleanup_free char *data = NULL;
        size_t len;

        int r = io_read_file(AT_FDCWD, path, INITRAMFS_MAX_PROGRAM, &data, &len);
        if (r < 0)
                return err_errno(e, r, "cannot read %s %s", what, path);
        r = elf_is_static(data, len);
        if (r < 0)
                return err_set(e, ERR_CORRUPT, r, "%s %s is no x86-64 program", what, path);
        if (r == 0)
                return err_set(e, ERR_UNSUPPORTED, -ENOEXEC, "%s %s is not statically linked, a guest cannot run it", what, path);
        *ret = TAKE_PTR(data);
        *ret_len = len;
        return 0;
}

/* <dir of our program>/forkd-agent in a build tree; ../libexec/forkd/ when installed, for it is no program
 * that a host runs. */
static int find_agent(char *buf, size_t size, struct err *e) {
        static const char *const places[] = { "", "../libexec/forkd/", "../lib/forkd/", "../bin/" };
        char exe[PATH_MAX];

        ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
        if (n < 0)
                return err_errno(e, -errno, "cannot read /proc/self/exe");
        exe[n] = '\0';
        *(strrchr(exe, '/') + 1) = '\0';
        for (size_t i = 0; i < ARRAY_LEN(places); i++)
                if ((size_t) snprintf(buf, size, "%s%s" AGENT_NAME, exe, places[i]) < size && access(buf, R_OK) == 0)
                        return 0;
        err_set(e, ERR_NOT_FOUND, -ENOENT, "the guest agent (" AGENT_NAME ") is not beside this program in %s", exe);
        return err_hint(e, "build it, or install forkd completely");
}

int initramfs_inputs_read(const char *agent_path, struct initramfs_inputs *ret, struct err *e) {
        cleanup_initramfs_inputs struct initramfs_inputs in = { 0 };

        int r = run_find("busybox", in.busybox_path, sizeof(in.busybox_path));
        if (r < 0) {
                err_set(e, ERR_UNSUPPORTED, r, "busybox is not installed; the guest's user space is made of it");
                return err_hint(e, "apt-get install busybox-static");
        }
        r = read_program(in.busybox_path, "busybox", &in.busybox, &in.busybox_len, e);
        if (r == -ENOEXEC)
                return err_hint(e, "apt-get install busybox-static");
        if (r < 0)
                return r;
        if (agent_path)
                (void) snprintf(in.agent_path, sizeof(in.agent_path), "%s", agent_path);
        else
                r = find_agent(in.agent_path, sizeof(in.agent_path), e);
        if (r < 0)
                return r;
        r = read_program(in.agent_path, "the guest agent", &in.agent, &in.agent_len, e);
        if (r < 0)
                return r;
        *ret = in;
        in = (struct initramfs_inputs){ 0 };
        return 0;
}

void initramfs_inputs_clear(struct initramfs_inputs *in) {
        free(in->busybox);
        free(in->agent);
        in->busybox = in->agent = NULL;
}

void initramfs_id(const struct initramfs_inputs *in, const struct kernel *k, char id[33]) {
        XXH64_hash_t part[4] = {
                XXH3_64bits(BUILDER_VERSION, strlen(BUILDER_VERSION)),
                XXH3_64bits(k->hash, strlen(k->hash)),
                XXH3_64bits(k->release, strlen(k->release)),
                0,
        };
        XXH128_hash_t files[3] = {
                XXH3_128bits(in->busybox, in->busybox_len),
                XXH3_128bits(in->agent, in->agent_len),
                { 0, 0 },
        };
        XXH128_canonical_t canon;
        char all[sizeof(part) + sizeof(files)];

        for (size_t i = 0; i < n_guest_files; i++) {
                const struct guest_file *f = &guest_files[i];

                part[3] = XXH3_64bits_withSeed(f->path, strlen(f->path), part[3] + f->mode);
                part[3] = XXH3_64bits_withSeed(f->data, (size_t) (f->end - f->data), part[3]);
        }
        memcpy(all, part, sizeof(part));
        memcpy(all + sizeof(part), files, sizeof(files));
        XXH128_canonicalFromHash(&canon, XXH3_128bits(all, sizeof(all)));
        hex_encode(canon.digest, sizeof(canon.digest), id);
}

static void add_tree(struct cpio *c) {
        static const char *const dirs[] = {
                ".", /* the root itself, which would be 01777 */
                "bin",
                "sbin",
                "usr",
                "usr/bin",
                "usr/sbin",
                "usr/local",
                "usr/local/bin",
                "usr/local/sbin",
                "etc",
                "etc/forkd",
                "etc/forkd/resume.d",
                "lib",
                "lib/dev",
                "lib/dev/pts",
                "lib/modules",
                "dev",
                "proc",
                "sys",
                "run",
                "mnt",
                "home",
                "opt",
                "srv",
                "var",
                "var/log",
                "var/lib",
                "var/cache",
        };

        for (size_t i = 0; i < ARRAY_LEN(dirs); i++)
                cpio_dir(c, dirs[i], 0755);
        cpio_dir(c, "root", 0700);
        cpio_dir(c, "tmp", 01777);
        cpio_dir(c, "var/tmp", 01777);
        cpio_dir(c, "lib/dev/shm", 01777);
        cpio_symlink(c, "var/run", "../run");
        cpio_symlink(c, "etc/mtab", "../proc/self/mounts");
        /* What devtmpfs does not make: copied over /dev by /init. */
        cpio_symlink(c, "lib/dev/fd", "/proc/self/fd");
        cpio_symlink(c, "lib/dev/stdin", "/proc/self/fd/0");
        cpio_symlink(c, "lib/dev/stdout", "/proc/self/fd/1");
        cpio_symlink(c, "lib/dev/stderr", "/proc/self/fd/2");
        /* The kernel opens the console for /init before anything is mounted. */
        cpio_chardev(c, "dev/console", 0600, 5, 1);
        cpio_chardev(c, "dev/null", 0666, 1, 3);
        for (size_t i = 0; i < n_guest_files; i++)
                cpio_file(c, guest_files[i].path, guest_files[i].mode, guest_files[i].data,
                          (size_t) (guest_files[i].end - guest_files[i].data));
}

/* busybox tells its applets with their paths ("usr/bin/awk"). */
static int add_busybox(struct cpio *c, const struct initramfs_inputs *in, struct err *e) {
        const struct run_params rp = {
                .argv = (const char *[]){ in->busybox_path, "--list-full", NULL },
                .timeout_ms = 10000,
        };
        cleanup_free char *list = NULL;
        char *save = NULL;

        int r = run_program(&rp, &list, e);
        if (r < 0)
                return r;
        cpio_file(c, "bin/busybox", 0755, in->busybox, in->busybox_len);
        for (char *line = strtok_r(list, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                static const char *const places[] = { "bin/", "sbin/", "usr/bin/", "usr/sbin/" };

                for (size_t i = 0; i < ARRAY_LEN(places); i++) {
                        size_t n = strlen(places[i]);
                        if (strncmp(line, places[i], n) == 0 && line[n] && !strchr(line + n, '/') &&
                            strcmp(line, "bin/busybox") != 0)
                                cpio_symlink(c, line, "/bin/busybox");
                }
        }
        return 0;
}

/* The modules, /etc/modules with their names in load order, and what busybox's modprobe needs: a modules.dep.
 * It has only each module's direct dependencies, which is enough because /init loads them in order. */
static int add_modules(struct cpio *c, const struct kernel *k, struct err *e) {
        cleanup_free char *dep = NULL, *names = NULL;
        size_t dep_len = 0, names_len = 0;
        char path[CPIO_MAX_NAME];
        FILE *depf = open_memstream(&dep, &dep_len), *namef = open_memstream(&names, &names_len);
        int r = 0;

        if (!depf || !namef)
                r = err_errno(e, -ENOMEM, "cannot build the initramfs");
        (void) snprintf(path, sizeof(path), "lib/modules/%s", k->release);
        cpio_dir(c, path, 0755);
        for (size_t i = 0; r == 0 && i < k->n_modules; i++) {
                cleanup_free char *data = NULL;
                const char *depends;
                size_t len;

                (void) snprintf(path, sizeof(path), "%s/modules/%s.ko", k->dir, k->modules[i]);
                r = io_read_file(AT_FDCWD, path, UNPACK_MAX_MODULE, &data, &len);
                if (r < 0) {
                        r = err_errno(e, r, "cannot read %s", path);
                        break;
                }
                (void) snprintf(path, sizeof(path), "lib/modules/%s/%s.ko", k->release, k->modules[i]);
                cpio_file(c, path, 0644, data, len);
                if (elf_modinfo(data, len, "depends", &depends) < 0)
                        depends = ""; /* nothing to wait for; damage was found when it was collected */
                (void) fprintf(depf, "%s.ko:", k->modules[i]);
                for (const char *d = depends; *d;) {
                        size_t n = strcspn(d, ",");
                        (void) fprintf(depf, " %.*s.ko", (int) n, d);
                        d += n + (d[n] == ',');
                }
                (void) fputc('\n', depf);
                (void) fprintf(namef, "%s%s", i > 0 ? " " : "", k->modules[i]);
        }
        if (namef)
                (void) fputc('\n', namef);
        if (depf && fclose(depf) != 0 && r == 0)
                r = err_errno(e, -ENOMEM, "cannot build the initramfs");
        if (namef && fclose(namef) != 0 && r == 0)
                r = err_errno(e, -ENOMEM, "cannot build the initramfs");
        if (r < 0)
                return r;
        (void) snprintf(path, sizeof(path), "lib/modules/%s/modules.dep", k->release);
        cpio_file(c, path, 0644, dep, dep_len);
        cpio_file(c, "etc/modules", 0644, names, names_len);
        return 0;
}

int initramfs_build(const struct initramfs_inputs *in, const struct kernel *k, char **ret, size_t *ret_len, struct err *e) {
        cleanup_cpio struct cpio c = { 0 };

        add_tree(&c);
        int r = add_busybox(&c, in, e);
        if (r < 0)
                return r;
        cpio_file(&c, "usr/bin/" AGENT_NAME, 0755, in->agent, in->agent_len);
        r = add_modules(&c, k, e);
        if (r < 0)
                return r;
        r = cpio_finish(&c);
        if (r == 0)
                r = pack_lz4(c.data, c.len, ret, ret_len);
        return r < 0 ? err_errno(e, r, "cannot build the initramfs") : 0;
}
