/* SPDX-License-Identifier: MIT */
/* forkd tells, where it can; else it is read from /proc/<pid>/smaps, which needs the right to look at the VMM and a forkd on this host:
 * the anonymous pages of the private mappings of decoded images. */
#include "forkctl/vm_memory.h"

#include <string.h>

#include "common/json.h"
#include "forkctl/client.h"

#define SMAPS_LINE_MAX 4096

/* "7f00-7f10 rw-p 00000000 00:01 5 /memfd:forkd-image (deleted)": the line that begins a mapping. */
static bool is_image_mapping(const char *line) {
        const char *perms = strchr(line, ' ');

        return perms && strlen(perms) > 5 && perms[4] == 'p' && strstr(line, "memfd:forkd-image");
}

static double smaps_private(uint64_t pid) {
        cleanup_fclose FILE *f = NULL;
        char path[64], line[SMAPS_LINE_MAX];
        unsigned long long kib, sum = 0;
        bool ours = false, any = false;

        (void) snprintf(path, sizeof(path), "/proc/%llu/smaps", (unsigned long long) pid);
        f = fopen(path, "re");
        while (f && fgets(line, sizeof(line), f)) {
                if (strspn(line, "0123456789abcdef") > 0 && line[strspn(line, "0123456789abcdef")] == '-')
                        any |= ours = is_image_mapping(line);
                else if (ours && sscanf(line, "Anonymous: %llu kB", &kib) == 1)
                        sum += kib;
        }
        return any ? (double) sum * 1024 : -1;
}

void vm_memory(struct ctl *c, const char *name, double *ret_private, double *ret_vmm) {
        cleanup_json json_t *vm = NULL;

        *ret_private = *ret_vmm = -1;
        if (ctl_call_name(c, "vm.inspect", "name", name, &vm) < 0)
                return;
        *ret_private = json_num(vm, "guest_private_bytes", -1);
        *ret_vmm = json_num(vm, "vmm_bytes", -1);
        if (*ret_private < 0 && json_u64(vm, "pid", 0))
                *ret_private = smaps_private(json_u64(vm, "pid", 0));
}
