/* SPDX-License-Identifier: MIT */
/* forkd's settings: built-in defaults, then the INI file. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/log.h"

#define CONFIG_PROBES_AUTO (-1) /* the best method that works */
#define CONFIG_PROBES_OFF 1000

struct config {
        enum log_level log_level;
        unsigned max_vms;         /* [forkd] max_vms */
        unsigned parallel_starts; /* [forkd] parallel_starts: VMM starts at once; 0: two for each core */
        unsigned parallel_saves;  /* [forkd] parallel_saves: snapshots taken at once; 0: number of cores */
        bool has_group;           /* [forkd] group: who besides root may use the control socket */
        gid_t group;
        unsigned requests_per_second; /* [forkd] requests_per_second: of one user that is not root; 0: any number */
        unsigned idle_client_seconds; /* [forkd] idle_client_seconds: for a client that says nothing, or half of something */
        uint64_t limit_memory;        /* [limits] memory: bytes that may be promised to VMs in all; 0: no such limit */
        double memory_overcommit;     /* [limits] memory_overcommit: how many times that */
        unsigned limit_vcpus;         /* [limits] vcpus: in all; 0: forkd chooses */
        uint64_t disk_reserve;        /* [limits] disk_reserve: bytes of the store that no snapshot may take */
        unsigned boot_timeout_s;      /* [vm] boot_timeout_s: until a booting guest's agent says hello */
        unsigned wake_timeout_s;      /* [vm] wake_timeout_s: until a restored guest acknowledges */
        unsigned stop_timeout_s;      /* [vm] stop_timeout_s: an orderly stop, then the VMM is killed */
        unsigned shells;              /* [vmm] shells: VMMs kept ready for each shape of VM that was restored lately */
        unsigned shell_idle_seconds;  /* [vmm] shell_idle_seconds: … for so long */
        unsigned pager_workers;       /* [pager] workers; 0: the pager's default */
        uint64_t memory_budget;       /* [pager] memory_budget, bytes of decoded pages; 0: the pager's default */
        unsigned idle_image_seconds;  /* [pager] idle_image_seconds: decoded pages kept after the last clone */
        unsigned heartbeat_ms;        /* [pager] heartbeat_ms: a pager that is silent for longer is ended */
        unsigned recover_ms;          /* [pager] recover_ms: a guest that has no pager for longer is ended */
        bool live_forks;              /* [pager] live_forks: a VM that is forked while it runs pauses for its devices only */
        bool workingset;              /* [pager] workingset: what restores need first is learned, and fetched first */
        unsigned record_seconds;      /* [pager] record_seconds: learned so long after a restore; 0: not at all */
        int probes;                   /* [monitor] probes: an enum probes_method, or one of the next two */
        unsigned window_ms;           /* [monitor] window_ms: a vCPU is judged by what it did for so long */
        unsigned keep_ended_seconds;  /* [monitor] keep_ended_seconds: the numbers of a VM that is no more */
        unsigned pool_check_seconds;  /* [pool] check_seconds: a clone that waits is looked at so often; 0: not at all */
        uint64_t pool_memory_reserve; /* [pool] memory_reserve: available memory that pools do not use, and give back */
        bool jail;                    /* [security] jail: VMMs and the pager are users of their own and see almost nothing */
        unsigned uid_base;            /* [security] uid_base: the first of these users; 0: see forkd/host/jail.h */
        char metrics_listen[128];     /* [metrics] listen: see forkd/monitor/http_address.h */
        bool metrics_chosen;          /* … it was set, and is no mere default */
        unsigned metrics_max_vms;     /* [metrics] max_vms: VMs that have series of their own */
        char visible[512];            /* [security] visible: paths that VMMs see besides, separated by colons */
};

void config_defaults(struct config *c);

/** Reads @path over @c. With @must_exist false a missing file is fine. -EINVAL with file and line for what
 *  it does not understand: a misspelt setting must not be ignored. */
int config_load(struct config *c, const char *path, bool must_exist, struct err *e) attr_warn_unused;
