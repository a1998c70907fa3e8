/* SPDX-License-Identifier: MIT */
#pragma once

#include <bpf/libbpf.h>

#include "bpf/probes.h"

#include "probes.skel.h"

struct probes {
        struct probes_bpf *skel;
        int threads_fd, processes_fd;
        struct probes_status status;
        struct probes_watch **watch; /* by the low half of the number */
        uint32_t last;               /* place that was given away last */
        uint32_t generation;         /* the high half of the next number */
        /* What a read of the maps takes. */
        struct probes_thread_entry *entries;
        uint32_t *tids;
        struct probes_process *ended[2]; /* before and after the threads */
        uint32_t *tgids[2];
};

struct probes_watch {
        struct probes *p;
        uint64_t number; /* never used again */
        pid_t pid;
        void *data;
};
