/* SPDX-License-Identifier: MIT */
#include "setup/elf_file.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

static bool inside(size_t len, uint64_t offset, uint64_t size) {
        return offset <= len && size <= len - offset;
}

static int header(const void *data, size_t len, Elf64_Ehdr *ret) {
        if (len < sizeof(*ret))
                return -EBADMSG;
        memcpy(ret, data, sizeof(*ret));
        if (memcmp(ret->e_ident, ELFMAG, SELFMAG) != 0 || ret->e_ident[EI_CLASS] != ELFCLASS64 ||
            ret->e_ident[EI_DATA] != ELFDATA2LSB || ret->e_machine != EM_X86_64)
                return -EBADMSG;
        return 0;
}

int elf_is_static(const void *data, size_t len) {
        const char *p = data;
        Elf64_Ehdr eh;

        int r = header(data, len, &eh);
        if (r < 0)
                return r;
        if ((eh.e_type != ET_EXEC && eh.e_type != ET_DYN) || eh.e_phentsize != sizeof(Elf64_Phdr) ||
            !inside(len, eh.e_phoff, (uint64_t) eh.e_phnum * sizeof(Elf64_Phdr)))
                return -EBADMSG;
        for (size_t i = 0; i < eh.e_phnum; i++) {
                Elf64_Phdr ph;

                memcpy(&ph, p + eh.e_phoff + i * sizeof(ph), sizeof(ph));
                if (ph.p_type == PT_INTERP)
                        return 0;
        }
        return 1;
}

static int section_at(const void *data, size_t len, const Elf64_Ehdr *eh, size_t i, Elf64_Shdr *ret) {
        if (i >= eh->e_shnum)
                return -EBADMSG;
        memcpy(ret, (const char *) data + eh->e_shoff + i * sizeof(*ret), sizeof(*ret));
        if (ret->sh_type != SHT_NOBITS && !inside(len, ret->sh_offset, ret->sh_size))
                return -EBADMSG;
        return 0;
}

int elf_section(const void *data, size_t len, const char *name, const char **ret_data, size_t *ret_len) {
        const char *p = data;
        size_t name_size = strlen(name) + 1;
        Elf64_Ehdr eh;
        Elf64_Shdr strings, sh;

        int r = header(data, len, &eh);
        if (r < 0)
                return r;
        if (eh.e_shentsize != sizeof(Elf64_Shdr) || !inside(len, eh.e_shoff, (uint64_t) eh.e_shnum * sizeof(Elf64_Shdr)))
                return -EBADMSG;
        r = section_at(data, len, &eh, eh.e_shstrndx, &strings);
        if (r < 0 || strings.sh_type != SHT_STRTAB)
                return -EBADMSG;

        for (size_t i = 0; i < eh.e_shnum; i++) {
                r = section_at(data, len, &eh, i, &sh);
                if (r < 0)
                        return r;
                if (sh.sh_type == SHT_NOBITS || !inside(strings.sh_size, sh.sh_name, name_size) ||
                    memcmp(p + strings.sh_offset + sh.sh_name, name, name_size) != 0)
                        continue;
                *ret_data = p + sh.sh_offset;
                *ret_len = sh.sh_size;
                return 0;
        }
        return -ENOENT;
}

int elf_modinfo(const void *data, size_t len, const char *key, const char **ret) {
        size_t key_len = strlen(key), n;
        const char *s;

        int r = elf_section(data, len, ".modinfo", &s, &n);
        if (r < 0)
                return r;
        if (n == 0 || s[n - 1] != '\0')
                return -EBADMSG; /* a list of strings: the last one must end inside */
        for (const char *end = s + n; s < end; s += strlen(s) + 1)
                if (strncmp(s, key, key_len) == 0 && s[key_len] == '=') {
                        *ret = s + key_len + 1;
                        return 0;
                }
        return -ENOENT;
}
