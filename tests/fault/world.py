# SPDX-License-Identifier: MIT
"""What a forkd says, against what the host says: nothing lives that it does not know, and everything lives that it says."""

import os
import pathlib
import re

import busy
from forkdlab import cgroups, parent_of

ID = re.compile("[0-9a-f]{16}")
STATES = ("running", "paused", "standby", "stopped", "failed")


def group_pids(lab):
    """Processes by the VM whose cgroup they are in."""
    found = {}
    for base in cgroups(lab.state):
        for d in base.iterdir():
            if d.is_dir() and ID.fullmatch(d.name):
                pids = [int(p) for p in (d / "cgroup.procs").read_text().split()]
                if pids:
                    found[d.name] = pids
    return found


def complaints(lab):
    """Sentences; forkd is idle meanwhile."""
    bad = []
    vms = {v["id"]: v for v in lab.ctl("ps")}
    bad += [f"{v['name']} is {v['state']}" for v in vms.values() if v["state"] not in STATES]
    bad += [f"{v['name']} is busy: {v['busy']}" for v in vms.values() if v["busy"]]
    living = {i: v["pid"] for i, v in vms.items() if v["pid"]}
    groups, shells = lab.vmm_groups()
    bad += [f"{vms[i]['name']} has pid {pid}, its group has {groups.get(i)}" for i, pid in living.items() if pid not in groups.get(i, [])]
    bad += [f"group {i} has no living VM, but processes {pids}" for i, pids in groups.items() if i not in living]
    bad += [f"{v['name']} is {v['state']} with pid {v['pid']}" for v in vms.values() if (v["state"] in ("running", "paused")) != bool(v["pid"])]
    known = {p for pids in [*groups.values(), *shells.values()] for p in pids} | {lab.forkd.pid, lab.ctl("pager", "status").get("pid")}
    bad += [f"process {p} is nobody's" for p in lab.processes() if p not in known and parent_of(p) not in known and parent_of(p) != os.getpid()]
    dirs = [p for parent in (lab.state / "vms", lab.run_dir / "vms", lab.state / "store" / "vms") for p in parent.iterdir()]
    shells.update(lab.vmm_groups()[1]) # they come when nothing else goes on
    bad += [f"{p} is of no VM" for p in dirs if p.name not in vms and p.name not in shells]
    bad += [f"{p} is left" for p in (lab.state / "store" / "tmp").iterdir()]
    return bad


def empty_store(lab):
    """Removes all VMs and all snapshots; sentences about what is still there."""
    busy.remove_all_but(lab)
    ids = [s["id"] for s in lab.ctl("snapshot", "ls")]
    if ids:
        lab.ctl("snapshot", "rm", *ids)
    store = lab.state / "store"
    return [f"{p} is left" for d in ("snapshots", "vms", "tmp") for p in (store / d).iterdir()]
