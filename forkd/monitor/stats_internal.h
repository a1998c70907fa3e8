/* SPDX-License-Identifier: MIT */
/* The parts of the document. Each appends one value; none of them waits. */
#pragma once

#include "bpf/probes.h"
#include "forkd/daemon.h"
#include "forkd/monitor/monitor.h"
#include "forkd/monitor/stats.h"

/** Of one thing out of many: a list that ends when it is full. */
struct stats_list {
        struct mp_buf items;
        size_t max_bytes;
        unsigned n, left_out;
};
void stats_list_init(struct stats_list *l, size_t max_bytes);
void stats_list_clear(struct stats_list *l);
#define cleanup_stats_list attr_cleanup(stats_list_clear)
/** Takes what @item holds, and empties it. */
void stats_list_add(struct stats_list *l, struct mp_buf *item);

/** A time in seconds as a value; a share of the last window, nil where it is not known. */
void stats_kv_s(struct mp_buf *b, const char *key, uint64_t ns);
void stats_kv_share(struct mp_buf *b, const char *key, const struct monitor_shares *s, enum probes_state state);
const char *stats_state_name(enum probes_state s);

/** stats_vms.c: {vms: […], vms_left_out}, two pairs of the document. @only: this VM's name or id, NULL: all. */
#define STATS_VM_PAIRS 2u
void stats_put_vms(const struct daemon *d, const char *only, struct mp_buf *b);
/** Is there such a VM, alive or remembered? */
bool stats_has_vm(const struct daemon *d, const char *only);

/** stats_pager.c: what is known of the pager, which was asked at @asked_ns. */
void stats_put_pager(const struct daemon *d, const char *only, uint64_t asked_ns, struct mp_buf *b);
