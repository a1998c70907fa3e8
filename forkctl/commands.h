/* SPDX-License-Identifier: MIT */
/* The handlers that the table of commands names. Each returns an exit code, or -errno with c->e set. */
#pragma once

#include <jansson.h>

#include "forkctl/command.h"

/* cmd_host.c */
int cmd_setup(struct ctl *c, const struct args *a);
int cmd_doctor(struct ctl *c, const struct args *a);
int cmd_orphans(struct ctl *c, const struct args *a); /* doctor --orphans */
/** Path of forkd's program: beside our own binary, or where packages put it. -ENOENT. */
int forkd_program(char *buf, size_t size) attr_warn_unused;
/** What a forkd that does not run has left in its directories: {"found","fixed","orphans":[…]}; with @fix it is removed. */
int orphans_offline(struct ctl *c, const char *state_dir, const char *run_dir, bool fix, json_t **ret) attr_warn_unused;
int cmd_version(struct ctl *c, const struct args *a);
int cmd_ping(struct ctl *c, const struct args *a);
int cmd_shutdown(struct ctl *c, const struct args *a);
int cmd_pager_status(struct ctl *c, const struct args *a);
int cmd_pager_upgrade(struct ctl *c, const struct args *a);
int cmd_pager_stop(struct ctl *c, const struct args *a);

/* cmd_stats.c, cmd_top.c, cmd_events.c */
int cmd_stats(struct ctl *c, const struct args *a);
int cmd_top(struct ctl *c, const struct args *a);
int cmd_events(struct ctl *c, const struct args *a);

/** What `run --setup` and `setup` share: makes what is missing for the forkd at the socket, or for the
 *  default directories when there is none. *ret_changed may be NULL. */
struct setup_result;
int setup_for_forkd(struct ctl *c, const char *state_dir, uint64_t store_bytes, bool check,
                    struct setup_result *ret) attr_warn_unused;

/* cmd_vm.c */
int cmd_run(struct ctl *c, const struct args *a);
int cmd_ps(struct ctl *c, const struct args *a);
int cmd_inspect(struct ctl *c, const struct args *a);
int cmd_standby(struct ctl *c, const struct args *a);
int cmd_restore(struct ctl *c, const struct args *a);
int cmd_fork(struct ctl *c, const struct args *a);
int cmd_pause(struct ctl *c, const struct args *a);
int cmd_resume(struct ctl *c, const struct args *a);
int cmd_stop(struct ctl *c, const struct args *a);
int cmd_rm(struct ctl *c, const struct args *a);

/* cmd_pool.c */
int cmd_pool_create(struct ctl *c, const struct args *a);
int cmd_pool_set(struct ctl *c, const struct args *a);
int cmd_pool_take(struct ctl *c, const struct args *a);
int cmd_pool_ls(struct ctl *c, const struct args *a);
int cmd_pool_rm(struct ctl *c, const struct args *a);

/* cmd_exec.c, cmd_cp.c, cmd_logs.c */
int cmd_exec(struct ctl *c, const struct args *a);
int cmd_cp(struct ctl *c, const struct args *a);
int cmd_logs(struct ctl *c, const struct args *a);

/* cmd_snapshot.c, tree.c */
int cmd_snapshot_ls(struct ctl *c, const struct args *a);
int cmd_snapshot_show(struct ctl *c, const struct args *a);
int cmd_snapshot_create(struct ctl *c, const struct args *a);
int cmd_snapshot_rm(struct ctl *c, const struct args *a);
int cmd_snapshot_verify(struct ctl *c, const struct args *a);
int cmd_snapshot_memory(struct ctl *c, const struct args *a);
int cmd_snapshot_tree(struct ctl *c, const struct args *a);

/** The params that `standby` and `snapshot create` share (name, tag, compression, level, sync), and what
 *  they say when done. */
struct req;
int standby_params(struct ctl *c, const struct args *a, struct req *q) attr_warn_unused;
int standby_report(struct ctl *c, const struct args *a, const char *what, const char *method,
                   const struct req *q) attr_warn_unused;

/* chain/cmd_chain.c */
int cmd_chain(struct ctl *c, const struct args *a);

/* demo/cmd_demo.c */
int cmd_demo(struct ctl *c, const struct args *a);

/* completion.c, help.c */
int cmd_completion(struct ctl *c, const struct args *a);
int cmd_help(struct ctl *c, const struct args *a);
