# SPDX-License-Identifier: MIT
"""What it costs to watch guests that do nothing, and whether the waits that are counted are the faults that were served."""

import contextlib
import pathlib
import time

from measure import Line

IDLE_CLONES = 8
STATS = pathlib.Path("/proc/sys/kernel/bpf_stats_enabled")


@contextlib.contextmanager
def program_times():
    """The kernel measures how long BPF programs run, for as long as this lasts."""
    before = STATS.read_text()
    STATS.write_text("1\n")
    try:
        yield
    finally:
        STATS.write_text(before)


def cpu_ns(pid):
    return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def programs_ns(pid):
    """Of all BPF programs that a process has loaded."""
    total = 0
    for f in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in f.read_text().splitlines() if ":" in line)
            total += int(fields.get("run_time_ns", 0))
    return total


def settled(lab, timeout=30):
    """Until the guests have done what they do after a fork: none of them faults any more."""
    end, last = time.monotonic() + timeout, -1
    while time.monotonic() < end:
        n = sum(lab.ctl("pager", "status")["totals"]["faults"].values())
        if n == last:
            return
        last = n
        time.sleep(1)


def idle_cost(lab, base, seconds):
    lab.ctl("fork", base, "idle", "--count", IDLE_CLONES)
    settled(lab, min(30, seconds))
    pid = lab.forkd.pid
    with program_times():
        begin, cpu, programs = time.monotonic_ns(), cpu_ns(pid), programs_ns(pid)
        time.sleep(seconds)  # nothing is waited for: nothing is what happens
        took, cpu, programs = time.monotonic_ns() - begin, cpu_ns(pid) - cpu, programs_ns(pid) - programs
    probes = lab.ctl("stats")["probes"]
    lab.ctl("rm", *[f"idle-{i + 1}" for i in range(IDLE_CLONES)])
    yield Line(f"forkd and its BPF programs beside {IDLE_CLONES} idle guests, part of a core", 100 * (cpu + programs) / took, 0.5, unit="%",
               parts={"forkd, all that it does": f"{100 * cpu / took:.3f} %", "BPF programs, of the whole host's switches": f"{100 * programs / took:.3f} %"},
               note=f"in {took / 1e9:.0f} s, by {probes['method']}")


def agreement(lab, rounds, mem, mib):
    """Clones of a guest with much in its memory read all of it; each finds nothing decoded."""
    lab.ctl("run", "full", "--mem", mem)
    lab.sh("full", f"head -c {mib << 20} /dev/urandom > /run/much", timeout=300)
    lab.ctl("standby", "full", "--tag", "full")
    lab.ctl("rm", "full")
    waits = faults = 0
    for i in range(rounds):
        lab.ctl("fork", "full", "reader")
        lab.sh("reader", "cat /run/much > /dev/null", timeout=300)
        lab.ctl("pause", "reader")
        doc = lab.ctl("stats", "reader")
        vm, = [v for v in doc["vms"] if v["name"] == "reader"]
        served, = [s for s in doc["pager"]["served"] if s["vm"] == "reader"]
        print(f"          round {i + 1}: {vm['wait']['count']} waits, {served['faults']} faults", flush=True)
        waits, faults = waits + vm["wait"]["count"], faults + served["faults"]
        lab.ctl("rm", "reader")
    yield Line("waits of guests that the probes count, against faults that the pager has served: off by", 100 * abs(waits / faults - 1), 5, unit="%",
               parts={"waits": waits, "faults": faults})
