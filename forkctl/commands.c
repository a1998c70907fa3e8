/* SPDX-License-Identifier: MIT */
/* The table. Names, flags and exit codes are a contract with users and scripts; docs/man/forkctl.1 tells
 * more about each, and a test compares the two. */
#include "forkctl/commands.h"

/* A row is easier to read as one row. */
/* clang-format off */
#define OPTIONS(...) ((const struct option_def[]){ __VA_ARGS__, { 0 } })

#define OPT_TAG { .name = "tag", .letter = 't', .arg = "TAG", .help = "a name for the snapshot" }
#define OPT_COMPRESSION                                                                                      \
        { .name = "compression", .arg = "CODEC", .suggest = "lz4|zstd|zstd:3|none",                          \
          .help = "lz4 (the default), zstd, zstd:LEVEL, or none" }
#define OPT_NO_SYNC { .name = "no-sync", .help = "do not wait for the disk: usable at once, durable a little later" }
#define OPT_ON_PAGER_LOSS { .name = "on-pager-loss", .arg = "POLICY", .choices = "kill|recover", \
          .help = "when the pager dies: kill the guest, or recover it with another pager (kill)" }
#define OPT_FORCE { .name = "force", .help = "also when the VMM's version is not the snapshot's" }
#define OPT_POOL_LIMITS \
        { .name = "min", .arg = "N", .help = "the least it has, when nobody takes from it (--size, or 0 with --idle-timeout)" }, \
        { .name = "max", .arg = "N", .help = "the most it has, when many are taken (--size)" }, \
        { .name = "idle-timeout", .arg = "SECONDS", .help = "it shrinks to --min when nobody has taken from it for so long (0: never)" }
#define OPT_QUIET { .name = "quiet", .letter = 'q', .help = "names only, one a line" }

const struct command command_table[] = {
        { "setup", "", "prepare this host: guest kernel, initramfs and the snapshot store",
          OPTIONS({ .name = "check", .help = "change nothing; tell what is missing, exit 1 if something is" },
                  { .name = "store-size", .arg = "SIZE", .help = "of the store's image, where one is needed (8G)" },
                  { .name = "state-dir", .arg = "DIR", .complete = COMPLETE_DIR,
                    .help = "forkd's state directory, when none is running (FORKD_STATE_DIR, /var/lib/forkd)" }),
          0, 0, { 0 }, .run = cmd_setup },
        { "doctor", "", "check what this host can do for forkd, by trying it",
          OPTIONS({ .name = "state-dir", .arg = "DIR", .complete = COMPLETE_DIR,
                    .help = "forkd's state directory, when none is running" },
                  { .name = "orphans", .help = "only look for what belongs to this forkd and to nobody any more; exit 1 if there is something" },
                  { .name = "fix", .help = "with --orphans: remove it" }),
          0, 0, { 0 }, .run = cmd_doctor },

        { "run", "NAME", "boot a new VM",
          OPTIONS({ .name = "mem", .letter = 'm', .arg = "SIZE", .help = "guest memory (256M)" },
                  { .name = "vcpus", .arg = "N", .help = "virtual CPUs (1)" },
                  { .name = "vmm", .arg = "VMM", .choices = "qemu|firecracker", .help = "which VMM runs it: qemu (the default), firecracker" },
                  { .name = "accel", .arg = "ACCEL", .choices = "auto|kvm|tcg", .help = "auto (the default), kvm, tcg" },
                  { .name = "disk", .letter = 'd', .arg = "FILE", .complete = COMPLETE_FILE, .repeat = true,
                    .help = "a raw disk image; repeat it for more" },
                  { .name = "publish", .letter = 'p', .arg = "[HOSTIP:]PORT:GUESTPORT[/udp]", .repeat = true,
                    .help = "make a guest's port reachable on the host; implies --net nat" },
                  { .name = "net", .arg = "NET", .choices = "nat|none", .help = "none (the default) or nat" },
                  OPT_ON_PAGER_LOSS,
                  { .name = "setup", .help = "do what 'forkctl setup' does first" }),
          1, 1, { 0 }, .run = cmd_run },
        { "ps", "", "list the VMs", OPTIONS(OPT_QUIET, { .name = "all", .letter = 'a', .help = "also the clones that wait in pools" }), 0, 0, { 0 }, .run = cmd_ps },
        { "inspect", "NAME", "all about one VM", NULL, 1, 1, { COMPLETE_VM }, .run = cmd_inspect },
        { "exec", "NAME [--] COMMAND [ARG…]", "run a command in a guest; its exit code is passed on",
          OPTIONS({ .name = "interactive", .letter = 'i', .help = "pass stdin to the command" },
                  { .name = "tty", .letter = 't', .help = "give it a terminal" },
                  { .name = "timeout", .arg = "SECONDS", .help = "kill it after that long" },
                  { .name = "env", .letter = 'e', .arg = "NAME[=VALUE]", .repeat = true,
                    .help = "set a variable; without a value, take ours" },
                  { .name = "cwd", .letter = 'w', .arg = "DIR", .help = "the directory it starts in" }),
          1, 1, { COMPLETE_VM }, .takes_command = true, .fail_status = CTL_EXIT_NOT_RUN, .run = cmd_exec },
        { "cp", "SOURCE TARGET", "copy a file into a guest or out of it; the guest's side is NAME:PATH, - is stdin or stdout",
          NULL, 2, 2, { COMPLETE_COPY, COMPLETE_COPY }, .run = cmd_cp },
        { "logs", "NAME", "print a VM's serial console",
          OPTIONS({ .name = "follow", .letter = 'f', .help = "go on as it grows" }),
          1, 1, { COMPLETE_VM }, .run = cmd_logs },

        { "standby", "NAME", "put a VM on standby: its state becomes a snapshot, the VM's process goes away",
          OPTIONS(OPT_TAG, OPT_COMPRESSION, OPT_NO_SYNC), 1, 1, { COMPLETE_VM }, .run = cmd_standby },
        { "restore", "NAME", "bring a VM back from standby", OPTIONS(OPT_FORCE), 1, 1, { COMPLETE_VM }, .run = cmd_restore },
        { "fork", "SOURCE [NAME]", "make new VMs of a VM or a snapshot: NAME, or NAME-1 … NAME-N",
          OPTIONS({ .name = "count", .letter = 'n', .arg = "N", .help = "how many (1)" },
                  { .name = "paused", .help = "leave them paused" }, OPT_FORCE, OPT_ON_PAGER_LOSS),
          1, 2, { COMPLETE_SOURCE }, .run = cmd_fork },
        { "pause", "NAME", "stop a VM's vCPUs", NULL, 1, 1, { COMPLETE_VM }, .run = cmd_pause },
        { "resume", "NAME", "let a paused VM run on", NULL, 1, 1, { COMPLETE_VM }, .run = cmd_resume },
        { "stop", "NAME", "end a VM; its record stays", NULL, 1, 1, { COMPLETE_VM }, .run = cmd_stop },
        { "rm", "NAME… | --all", "remove VMs; their snapshots stay",
          OPTIONS({ .name = "all", .letter = 'a', .help = "every VM" }), 0, -1, { COMPLETE_VM, COMPLETE_VM }, .run = cmd_rm },

        { "snapshot ls", "", "list the snapshots", OPTIONS(OPT_QUIET), 0, 0, { 0 }, .run = cmd_snapshot_ls },
        { "snapshot show", "SNAPSHOT", "all about one snapshot", NULL, 1, 1, { COMPLETE_SNAPSHOT }, .run = cmd_snapshot_show },
        { "snapshot create", "NAME", "snapshot a VM that runs on",
          OPTIONS(OPT_TAG, OPT_COMPRESSION, OPT_NO_SYNC), 1, 1, { COMPLETE_VM }, .run = cmd_snapshot_create },
        { "snapshot rm", "SNAPSHOT…", "remove snapshots; others never depend on them",
          OPTIONS({ .name = "force", .help = "also those that VMs stand by in, or that pools are made from" }),
          1, -1, { COMPLETE_SNAPSHOT, COMPLETE_SNAPSHOT }, .run = cmd_snapshot_rm },
        { "snapshot verify", "SNAPSHOT", "check every stored byte", NULL, 1, 1, { COMPLETE_SNAPSHOT }, .run = cmd_snapshot_verify },
        { "snapshot memory", "SNAPSHOT -o FILE", "write the guest's memory as a raw sparse file",
          OPTIONS({ .name = "output", .letter = 'o', .arg = "FILE", .complete = COMPLETE_FILE, .help = "a file that does not exist yet" }),
          1, 1, { COMPLETE_SNAPSHOT }, .run = cmd_snapshot_memory },
        { "snapshot tree", "", "draw which snapshot and VM came from which", NULL, 0, 0, { 0 }, .run = cmd_snapshot_tree },

        { "pool create", "NAME --from SNAPSHOT --size N", "keep clones of a snapshot warm, to be taken at once",
          OPTIONS({ .name = "from", .letter = 'f', .arg = "SNAPSHOT", .complete = COMPLETE_SNAPSHOT, .help = "what they are clones of" },
                  { .name = "size", .letter = 'n', .arg = "N", .help = "how many (1 to 1000)" }, OPT_POOL_LIMITS, OPT_ON_PAGER_LOSS,
                  { .name = "no-wait", .help = "do not wait until they are warm" }),
          1, 1, { 0 }, .run = cmd_pool_create },
        { "pool set", "NAME", "change a pool; another snapshot is changed to clone by clone",
          OPTIONS({ .name = "from", .letter = 'f', .arg = "SNAPSHOT", .complete = COMPLETE_SNAPSHOT, .help = "what its clones are to be clones of" },
                  { .name = "size", .letter = 'n', .arg = "N", .help = "how many" }, OPT_POOL_LIMITS,
                  { .name = "wait", .help = "until it is as it shall be" }),
          1, 1, { COMPLETE_POOL }, .run = cmd_pool_set },
        { "pool take", "POOL [NAME]", "take a warm clone out of a pool: it runs as NAME; from an empty pool a clone is made",
          NULL, 1, 2, { COMPLETE_POOL }, .run = cmd_pool_take },
        { "pool ls", "", "list the pools", OPTIONS(OPT_QUIET), 0, 0, { 0 }, .run = cmd_pool_ls },
        { "pool rm", "NAME", "remove a pool and the clones that wait in it; those that were taken stay", NULL, 1, 1, { COMPLETE_POOL }, .run = cmd_pool_rm },

        { "pager status", "", "sessions, images and counters of the pager", NULL, 0, 0, { 0 }, .run = cmd_pager_status },
        { "pager upgrade", "", "hand every session to a new pager; guests run on", NULL, 0, 0, { 0 }, .run = cmd_pager_upgrade },
        { "pager stop", "", "end the pager, when no VM needs it", NULL, 0, 0, { 0 }, .run = cmd_pager_stop },
        { "stats", "[NAME]", "figures of the host, the pager and all VMs; of one VM: how it waits for memory, as a drawn histogram",
          NULL, 0, 1, { COMPLETE_VM }, .run = cmd_stats },
        { "top", "", "watch all VMs: who waits for memory, and which vCPU burns a core for nothing",
          OPTIONS({ .name = "interval", .letter = 'i', .arg = "SECONDS", .help = "ask forkd so often (1)" },
                  { .name = "count", .letter = 'n', .arg = "N", .help = "end after so many pictures" },
                  { .name = "once", .help = "print one list, as without a terminal, and end" },
                  { .name = "sort", .arg = "KEY", .choices = "health|cpu|waits|longest|memory|name",
                    .help = "health (the default), cpu, waits, longest, memory or name" }),
          0, 0, { 0 }, .run = cmd_top },
        { "events", "[NAME]", "follow what happens to VMs, their vCPUs and the pager; of one VM",
          OPTIONS({ .name = "all", .letter = 'a', .help = "begin with the oldest that forkd remembers" },
                  { .name = "kind", .letter = 'k', .arg = "KIND", .suggest = "vm|vcpu|pager|pool|probes|vcpu.spinning|vcpu.stuck", .repeat = true,
                    .help = "only such: vm.state, or vcpu for all vcpu.…; repeat it for more" },
                  { .name = "follow", .letter = 'f', .help = "go on as they happen (the default)" },
                  { .name = "no-follow", .help = "end when all are told" }), 0, 1, { COMPLETE_VM }, .run = cmd_events },
        { "chain", "[B.json]", "a benchmark: a chain of snapshots or of live forks, each clone verified, each step timed",
          OPTIONS({ .name = "depth", .arg = "D", .help = "so many links, one after the other (8)" },
                  { .name = "fanout", .arg = "F", .help = "forks of each (4)" },
                  { .name = "dirty", .arg = "SIZE", .help = "what the guest writes before each standby or live fork (1M)" },
                  { .name = "mem", .letter = 'm', .arg = "SIZE", .help = "memory of the guest that is booted (256M)" },
                  { .name = "accel", .arg = "ACCEL", .choices = "auto|kvm|tcg", .help = "of the guest that is booted" },
                  { .name = "from", .arg = "SOURCE", .complete = COMPLETE_SOURCE, .help = "fork this VM or snapshot instead of booting one" },
                  { .name = "live", .help = "all guests stay alive, and are forked while they run" },
                  { .name = "no-sync", .help = "standbys do not wait for the disk" },
                  { .name = "rounds", .arg = "N", .help = "measure each link so many times (1)" },
                  { .name = "warmup", .arg = "N", .help = "so many links before, that do not count (1)" },
                  { .name = "seed", .arg = "N", .help = "of what guests write (1)" },
                  { .name = "html", .arg = "FILE", .complete = COMPLETE_FILE, .help = "also write a page with plots, which needs nothing else" },
                  { .name = "fail-over", .arg = "LIMITS", .help = "exit 1 when a figure is over its limit: 'fork_p99_ms=80,slope=1.1'" },
                  { .name = "compare", .arg = "A.json", .complete = COMPLETE_FILE, .help = "run nothing: tell how result B.json differs from A.json" },
                  { .name = "keep", .help = "do not remove the VMs and snapshots at the end" }),
          0, 1, { COMPLETE_FILE }, .run = cmd_chain },
        { "demo", "", "show it all: a private forkd, a VM that boots, goes on standby and comes back as eight clones, each checked", NULL, 0, 0, { 0 },
          .run = cmd_demo },
        { "ping", "[NAME]", "ask a guest's agent, or forkd, for a sign of life", NULL, 0, 1, { COMPLETE_VM }, .run = cmd_ping },
        { "shutdown", "", "end forkd; VMs run on and are taken back when it starts again",
          OPTIONS({ .name = "all", .letter = 'a', .help = "stop every VM first" }), 0, 0, { 0 }, .run = cmd_shutdown },
        { "version", "", "versions of forkctl and forkd", NULL, 0, 0, { 0 }, .run = cmd_version },
        { "completion", "SHELL", "print the completion script for bash or zsh", NULL, 1, 1, { COMPLETE_SHELL }, .run = cmd_completion },
        { "help", "[COMMAND]", "what the commands do", NULL, 0, 2, { COMPLETE_COMMAND }, .run = cmd_help },
};
/* clang-format on */

const size_t command_count = ARRAY_LEN(command_table);
