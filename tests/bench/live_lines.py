# SPDX-License-Identifier: MIT
"""Forks of a guest that runs: what its pause costs, and what a chain of guests that all live holds in memory."""

import threading
import time

from forkdlab import guest_ram_mappings
from lines import BASE
from measure import MIB, Line, Samples

BIG, LITTLE_MIB, MUCH_MIB = "big", 1, 200
PAUSE_MS = 10
BUSY_ROUNDS = 5
GENERATIONS = 16
SETTLED_S = 20
OVERWRITE = "dd if=/run/source of=/run/target bs=1M count={mib} conv=notrunc 2>/dev/null"


def fork_and_drop(lab, source, name):
    """A fork whose clone and snapshot go again."""
    forked = lab.ctl("fork", source, name)
    snapshot = lab.vm(name)["snapshot"]
    lab.ctl("rm", name)
    stored = lab.ctl("snapshot", "show", snapshot)
    lab.ctl("snapshot", "rm", snapshot)
    return forked, stored


def overwrite(lab, mib):
    """Milliseconds."""
    begin = time.monotonic()
    lab.sh(BIG, OVERWRITE.format(mib=mib), timeout=300)
    return (time.monotonic() - begin) * 1e3


def overwrite_forked(lab, mib, name):
    """The same while it is forked, which begins right after."""
    took = []
    writer = threading.Thread(target=lambda: took.append(overwrite(lab, mib)), daemon=True)
    writer.start()
    forked, _ = fork_and_drop(lab, BIG, name)
    writer.join(timeout=300)
    return took[0], forked["source_pause_ms"]


def live_pause(lab, base, n, mem="1G", much_mib=MUCH_MIB):
    """Little and much dirtied since the fork before, in turn."""
    lab.ctl("run", BIG, "--mem", mem)
    for file in ("source", "target"):  # random, without waiting for so many random numbers
        lab.sh(BIG, f"head -c {4 * MIB} /dev/urandom > /run/part; for i in $(seq {(much_mib + 3) // 4}); do cat /run/part; done > /run/{file}",
               timeout=300)
    fork_and_drop(lab, BIG, "first")  # all that it is made of
    little, much = {}, {}
    for side in (little, much):
        side.update({k: Samples() for k in ("pause", "wall", "dirty MiB")})
    alone, beside, busy_pause = Samples(), Samples(), Samples()
    for i in range(n):
        for side, mib in ((little, LITTLE_MIB), (much, much_mib)):
            took = overwrite(lab, mib)
            if side is much and len(beside) < BUSY_ROUNDS:
                alone.append(took)
                took, pause = overwrite_forked(lab, mib, f"busy-{i}")
                beside.append(took)
                busy_pause.append(pause)
                overwrite(lab, mib)  # what was dirtied since that fork, too
            forked, stored = fork_and_drop(lab, BIG, f"copy-{i}-{mib}")
            side["pause"].append(forked["source_pause_ms"])
            side["wall"].append(forked["wall_ms"])
            side["dirty MiB"].append(stored["dirty_bytes"] / MIB)
    lab.ctl("rm", BIG)

    def parts(side):
        return {"the source's pause (source_pause_ms)": side["pause"], "request to answer (wall_ms)": side["wall"],
                "dirtied since the fork before, MiB": side["dirty MiB"]}

    noticed = {f"the guest overwrites {much_mib} MiB, ms": alone, "the same while it is forked, ms": beside,
               "the pause of these forks, ms": busy_pause}
    both = Samples(little["pause"] + much["pause"])
    what = f"live fork of a {mem} guest: its pause"
    return [
        Line(f"{what}, {LITTLE_MIB} MiB dirty: p50", little["pause"].p50, PAUSE_MS, unit="ms", parts=parts(little)),
        Line(f"{what}, {much_mib} MiB dirty: p50", much["pause"].p50, PAUSE_MS, unit="ms", parts=parts(much),
             note=f"of all {len(both)}: p50 {both.p50:.1f} ms, p99 {both.quantile(0.99):.1f} ms"),
        Line(f"{what} with {much_mib} MiB dirty, against {LITTLE_MIB} MiB", much["pause"].p50 / little["pause"].p50, 1.5, parts=noticed),
    ]


# ---- memory of a live chain ----

def present_bytes(lab):
    return sum(image["present_bytes"] for image in lab.ctl("pager", "status")["images"])


def held_bytes(lab, names):
    """What the guests of a chain cost: decoded memory, and what each guest has for itself."""
    anonymous = sum(m["Anonymous"] for name in names for m in guest_ram_mappings(lab.vm(name)["pid"]))
    return present_bytes(lab), anonymous


def settled(lab, names):
    """What is copied is copied, and what can be given back is."""
    deadline, last = time.monotonic() + SETTLED_S, None
    while True:
        now = held_bytes(lab, names)
        if last and abs(sum(now) - sum(last)) < 0.1 * MIB or time.monotonic() > deadline:
            return now
        last = now
        time.sleep(1)


def live_chain(lab, base, generations=GENERATIONS, mib=8):
    """Each guest is forked while it runs, after it has dirtied memory; its clone goes on, and it lives."""
    names = ["g0"]
    lab.ctl("fork", BASE, "g0")
    start = settled(lab, names)
    held, dirtied, pause = [], Samples(), Samples()
    for i in range(1, generations + 1):
        lab.sh(names[-1], f"head -c {mib * MIB} /dev/urandom > /run/generation && md5sum /run/generation >> /run/sums", timeout=300)
        forked = lab.ctl("fork", names[-1], f"g{i}")
        pause.append(forked["source_pause_ms"])
        names.append(f"g{i}")
        dirtied.append(lab.ctl("snapshot", "show", lab.vm(names[-1])["snapshot"])["dirty_bytes"] / MIB)
        if i in (1, generations):  # the first command of all reads what nobody has read before
            held.append(settled(lab, names))
    check = "tail -n 1 /run/sums | md5sum -c > /dev/null && wc -l < /run/sums"
    if [int(lab.text(name, check)) for name in names] != [*range(1, generations + 1), generations]:
        raise RuntimeError("a guest of the chain is of another generation")
    lab.ctl("rm", *names)
    links = generations - 1
    grown = [b - a for a, b in zip(held[0], held[-1])]
    return [Line(f"live chain of {generations}: memory that a link adds, against what it dirtied", sum(grown) / MIB / sum(dirtied[1:]), 1.5, parts={
        "dirtied by a link, MiB": dirtied,
        "before the first link": f"{sum(start) / MIB:.1f} MiB",
        "with the first": f"{sum(held[0]) / MIB:.1f} MiB",
        "with all": f"{sum(held[-1]) / MIB:.1f} MiB",
        "a link: decoded memory": f"{grown[0] / MIB / links:.2f} MiB",
        "a link: private memory of guests": f"{grown[1] / MIB / links:.2f} MiB",
        "the source's pause, ms": pause,
    })]
