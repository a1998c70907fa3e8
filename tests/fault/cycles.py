# SPDX-License-Identifier: MIT
"""A clone is made and removed a thousand times: what forkd and the host have at the end is what they had at the start."""

import os
import pathlib
import re

import mix
import world
from forkdlab import Lab, cgroups
from measure import Line
from mprpc import Client, open_fds

WARM_UP = 50     # cycles: pools of workers, arenas of malloc, the image's decoded pages
RSS_KIB = 1024   # and so much more may be resident: one KiB a cycle


def status_kib(pid, field):
    return int(re.search(rf"{field}:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1))


def namespaces(pids):
    """That these are in. One that nobody is in any more is held by a descriptor or a mount, and they are counted."""
    return len({os.readlink(f"/proc/{p}/ns/{n}") for p in pids for n in ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup")})


def loop_devices(directory):
    """A device that is let go of at this moment has no backing file any more."""
    n = 0
    for file in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            n += file.read_text().startswith(f"{directory}/")
        except OSError:
            pass
    return n


def count(lab, pager):
    lab.wait_shells()
    mounts = pathlib.Path("/proc/self/mounts").read_text().splitlines()
    store = os.statvfs(lab.state / "store")
    own, pids = str(lab.dir), {*lab.processes(), *(p for group in world.group_pids(lab).values() for p in group)}
    return {
        "descriptors of forkd": open_fds(lab.forkd.pid),
        "descriptors of the pager": open_fds(pager),
        "threads of the pager": status_kib(pager, "Threads"),
        "processes": len(pids),
        "namespaces": namespaces(pids),
        "cgroups": sum(len([d for d in base.rglob("*") if d.is_dir()]) for base in cgroups(lab.state)),
        "mounts": sum(own in m for m in mounts),
        "loop devices": loop_devices(lab.dir),
        "files in state and run": sum(1 for d in (lab.state / "vms", lab.run_dir, lab.state / "store") for _ in d.rglob("*")),
        "unix sockets": sum(own in line for line in pathlib.Path("/proc/net/unix").read_text().splitlines()),
        "KiB resident of forkd": status_kib(lab.forkd.pid, "RssAnon"),
        "KiB resident of the pager": status_kib(pager, "RssAnon"),
        "KiB free in the store": store.f_bavail * store.f_frsize // 1024,
    }


def cycle(client, n):
    for _ in range(n):
        client.call("vm.fork", {"source": mix.TAG, "name": "cycle"})
        client.call("vm.rm", {"names": ["cycle"]})


# A working set is learned once, in the first cycles.
CONFIG = "[pager]\nrecord_seconds = 1\n"


def allowed(name):
    if name.startswith("KiB resident"):
        return RSS_KIB
    return 64 if name.startswith("KiB free") else 0


def campaign(args, say):
    n = args.rounds or (100 if args.short else 1000)
    with Lab(store="2G", config=CONFIG) as lab:
        mix.make_origin(lab)
        with Client(lab.socket) as c:
            c.call("vm.fork", {"source": mix.TAG, "name": "stays"})  # the image stays open, the pager up
            cycle(c, WARM_UP)
            pager = lab.ctl("pager", "status")["pid"]
            before = count(lab, pager)
            for i in range(10):
                cycle(c, n // 10)
                now = count(lab, pager)
                say(f"{(i + 1) * n // 10} cycles: " + ", ".join(f"{k} {v:+}" for k in now if (v := now[k] - before[k])))
            after = count(lab, pager)
        same = lab.ctl("pager", "status")["pid"] == pager
        lab.end()
        left = lab.leftovers()
    grown = {k: (after[k] - before[k]) * (-1 if k.startswith("KiB free") else 1) for k in after}
    bad = [f"{k}: {before[k]} -> {after[k]}" for k, d in grown.items() if d > allowed(k)]
    return [
        Line(f"{n} cycles of fork and rm: kinds of things of which there are more than before", len(bad) + (not same), 0, unit="", must=True,
             parts={k: f"{before[k]} -> {after[k]}" for k in after}, note="; ".join(bad)),
        Line(f"{n} cycles of fork and rm: left behind", len(left), 0, unit="things", must=True, note="; ".join(left)),
    ]
