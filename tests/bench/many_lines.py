# SPDX-License-Identifier: MIT
"""Depth and breadth: a fork from far down a chain, and as many guests alive at once as a host is asked to hold."""

import pathlib
import re
import time

from lines import BASE, PRIVATE_MAX, dirty
from measure import MIB, Line, Samples, available_mib

DEEP = 32


# ---- depth ----

def make_chain(lab, depth):
    """One VM that is put on standby again and again; returns the ids of its first and its last snapshot."""
    lab.ctl("fork", BASE, "digger")
    ids = []
    for i in range(depth):
        dirty(lab, "digger", f"link-{i}")
        ids.append(lab.ctl("standby", "digger", "--no-sync")["snapshot"])
        if i + 1 < depth:
            lab.ctl("restore", "digger")
    return ids[0], ids[-1]


def slope(lab, base, n, depth=DEEP):
    """Forks of the first link and of the last one, and standby of their clones, in turn."""
    ends = dict(zip(("first", "last"), make_chain(lab, depth)))
    found = {end: {k: Samples() for k in ("wall", "load", "ack", "pause", "total", "stored MiB")} for end in ends}
    for end, snapshot in ends.items():  # decoded memory of both stays
        lab.ctl("fork", snapshot, f"keeper-{end}")
    for i in range(n):
        for end in ("first", "last") if i % 2 == 0 else ("last", "first"):
            name, samples = f"{end}-{i}", found[end]
            forked = lab.ctl("fork", ends[end], name)
            samples["wall"].append(forked["wall_ms"])
            samples["load"].append(forked["clones"][0]["load_ms"])
            samples["ack"].append(forked["clones"][0]["ack_ms"])
            dirty(lab, name)
            saved = lab.ctl("standby", name, "--no-sync")
            samples["pause"].append(saved["pause_ms"])
            samples["total"].append(saved["total_ms"])
            samples["stored MiB"].append(saved["stored_bytes"] / MIB)
            lab.ctl("rm", name)
    lab.ctl("rm", "keeper-first", "keeper-last", "digger")

    def line(what, key, others=()):
        return Line(f"chain slope, depth {depth} against depth 1: {what}", found["last"][key].p50 / found["first"][key].p50, 1.1, parts={
            f"depth {d}: {k}": found[end][k] for d, end in ((1, "first"), (depth, "last")) for k in (key, *others)})

    return [line("fork (wall_ms)", "wall", ("load", "ack")), line("standby (total_ms, --no-sync)", "total", ("stored MiB",)),
            line("the guest's pause in it (pause_ms)", "pause")]


# ---- breadth ----

def vmm_memory(pid):
    """Bytes of one VMM: {"guest": anonymous of guest RAM, "rss", "pss", "private": of all else, "tables": page tables}."""
    found, guest = {"guest": 0, "rss": 0, "pss": 0, "private": 0}, False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split(None, 1)
        if not first.endswith(":"):
            guest = "memfd:forkd-image" in line
        elif guest and first == "Anonymous:":
            found["guest"] += kib(rest)
        elif not guest and first in ("Rss:", "Pss:"):
            found[first[:-1].lower()] += kib(rest)
        elif not guest and first in ("Private_Clean:", "Private_Dirty:"):
            found["private"] += kib(rest)
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return {**found, "tables": int(re.search(r"VmPTE:\s+(\d+)", status).group(1)) * 1024}


def kib(rest):
    return int(rest[0].split()[0]) * 1024


def many_alive(lab, base, count, idle_s):
    """All of them at once: first idle, as nobody has asked them anything yet, then each answers."""
    before, begin = available_mib(), time.monotonic()
    clones = lab.ctl("fork", BASE, "many", "--count", count)["clones"]
    made_s = time.monotonic() - begin
    time.sleep(idle_s)  # being idle is what is measured
    memory = [vmm_memory(lab.vm(c["name"])["pid"]) for c in clones]
    present = sum(i["present_bytes"] for i in lab.ctl("pager", "status")["images"] if i["sessions"] >= count)
    idle = before - available_mib()
    answers = {}
    for c in clones:
        begin = time.monotonic()
        machine_id, size = lab.text(c["name"], "cat /etc/machine-id; head -c 4 /run/data | wc -c").split()
        if size != "4":
            raise RuntimeError(f"{c['name']} has not what it is a clone of")
        answers[machine_id] = (time.monotonic() - begin) * 1e3
    asked = before - available_mib()
    lab.ctl("rm", *(c["name"] for c in clones))

    def of(key):
        return Samples(m[key] / MIB for m in memory)

    overhead = Samples((m["pss"] + m["tables"]) / MIB for m in memory)
    whole = present / MIB + sum(overhead) + sum(of("guest"))
    return [
        Line(f"{count} clones of a {base['ram_bytes'] // MIB} MiB guest at once: alive, and each has answered", len(answers), count, at_least=True,
             unit="clones", must=True, parts={
                 "all there after": f"{made_s:.1f} s", "forkctl exec, ms": Samples(answers.values()),
                 "all of it, idle: guests and VMMs, MiB": f"{whole:.0f}, {whole / count:.1f} each",
                 "host memory used, idle": f"{idle} MiB, {idle / count:.1f} each",
                 "host memory used, each has answered": f"{asked} MiB, {asked / count:.1f} each",
                 "decoded memory, once": f"{present / MIB:.1f} MiB"}),
        Line(f"{count} idle clones: private guest memory of the worst", max(of("guest")), PRIVATE_MAX / MIB, unit="MiB", parts={
            "guest memory of its own, MiB": of("guest"),
            "VMM: Pss without guest RAM, page tables, MiB": overhead,
            "VMM: private without guest RAM, MiB": of("private"),
            "VMM: page tables, MiB": of("tables")}, note=f"idle for {idle_s} s"),
    ]
