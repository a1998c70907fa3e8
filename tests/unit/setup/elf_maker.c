/* SPDX-License-Identifier: MIT */
#include "elf_maker.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>

static Elf64_Ehdr header(uint16_t type) {
        Elf64_Ehdr eh = {
                .e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
                .e_type = type,
                .e_machine = EM_X86_64,
                .e_version = EV_CURRENT,
                .e_ehsize = sizeof(Elf64_Ehdr),
        };
        return eh;
}

char *make_module(const char *modinfo, size_t len, size_t *ret_len) {
        static const char strings[] = "\0.modinfo\0.shstrtab";
        size_t info_at = sizeof(Elf64_Ehdr), strings_at = info_at + len, headers_at = strings_at + sizeof(strings);
        size_t total = headers_at + 3 * sizeof(Elf64_Shdr);
        char *p = calloc(1, total);
        Elf64_Ehdr eh = header(ET_REL);
        Elf64_Shdr sh[3] = {
                { 0 },
                { .sh_name = 1, .sh_type = SHT_PROGBITS, .sh_offset = info_at, .sh_size = len },
                { .sh_name = 10, .sh_type = SHT_STRTAB, .sh_offset = strings_at, .sh_size = sizeof(strings) },
        };

        eh.e_shoff = headers_at;
        eh.e_shentsize = sizeof(Elf64_Shdr);
        eh.e_shnum = 3;
        eh.e_shstrndx = 2;
        memcpy(p, &eh, sizeof(eh));
        memcpy(p + info_at, modinfo, len);
        memcpy(p + strings_at, strings, sizeof(strings));
        memcpy(p + headers_at, sh, sizeof(sh));
        *ret_len = total;
        return p;
}

char *make_program(bool with_interp, size_t *ret_len) {
        size_t total = sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr);
        char *p = calloc(1, total);
        Elf64_Ehdr eh = header(ET_EXEC);
        Elf64_Phdr ph[2] = { { .p_type = PT_LOAD }, { .p_type = with_interp ? PT_INTERP : PT_NOTE } };

        eh.e_phoff = sizeof(eh);
        eh.e_phentsize = sizeof(Elf64_Phdr);
        eh.e_phnum = 2;
        memcpy(p, &eh, sizeof(eh));
        memcpy(p + sizeof(eh), ph, sizeof(ph));
        *ret_len = total;
        return p;
}
