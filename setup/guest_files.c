/* SPDX-License-Identifier: MIT */
/* Embeds setup/guest/ with the assembler's .incbin: no generator, no hex dump, and the build depends on the
 * files themselves (see CMakeLists.txt). GUEST_DIR is the source folder; its name does not end up in the
 * object, only the bytes do. */
#include "setup/guest_files.h"

#define EMBED(sym, file)                                                                \
        __asm__(".pushsection .rodata\n"                                                \
                ".local guest_" #sym "\n"                                               \
                ".local guest_" #sym "_end\n"                                           \
                "guest_" #sym ":\n"                                                     \
                ".incbin \"" GUEST_DIR "/" file "\"\n"                                  \
                "guest_" #sym "_end:\n"                                                 \
                ".popsection\n");                                                       \
        extern const unsigned char guest_##sym[] __attribute__((visibility("hidden"))); \
        extern const unsigned char guest_##sym##_end[] __attribute__((visibility("hidden")))

EMBED(init, "init");
EMBED(inittab, "inittab");
EMBED(fstab, "fstab");
EMBED(passwd, "passwd");
EMBED(group, "group");
EMBED(shadow, "shadow");
EMBED(hosts, "hosts");
EMBED(hostname, "hostname");
EMBED(profile, "profile");
EMBED(os_release, "os-release");

#define FILE_OF(path, mode, sym) \
        { path, mode, guest_##sym, guest_##sym##_end }

const struct guest_file guest_files[] = {
        FILE_OF("init", 0755, init),           FILE_OF("etc/inittab", 0644, inittab),
        FILE_OF("etc/fstab", 0644, fstab),     FILE_OF("etc/passwd", 0644, passwd),
        FILE_OF("etc/group", 0644, group),     FILE_OF("etc/shadow", 0600, shadow),
        FILE_OF("etc/hosts", 0644, hosts),     FILE_OF("etc/hostname", 0644, hostname),
        FILE_OF("etc/profile", 0644, profile), FILE_OF("etc/os-release", 0644, os_release),
};
const size_t n_guest_files = sizeof(guest_files) / sizeof(guest_files[0]);
