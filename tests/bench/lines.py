# SPDX-License-Identifier: MIT
"""The promises, one function each. Both sides of a ratio are measured in turn, round by round, in one run."""

import contextlib
import time

from floor import Floor, Rival
from forkdlab import guest_ram_mappings
from measure import MIB, Line, Samples

BASE = "base"
DIRTY = MIB
CLONES = 8
PRIVATE_MAX = 2 * MIB
LINKS = 16
IMAGE_GONE_S = 30


@contextlib.contextmanager
def clone(lab, name):
    """A clone of the base that is gone afterwards: yields (its times, the whole fork's)."""
    forked = lab.ctl("fork", BASE, name)
    try:
        yield forked["clones"][0], forked
    finally:
        lab.ctl("rm", name)


def dirty(lab, name, file="dirt"):
    lab.sh(name, f"head -c {DIRTY} /dev/urandom > /run/{file}")


def fork_against_floor(lab, base, n):
    """1. The second clone of an image and those after it."""
    ours = {k: Samples() for k in ("wall", "total", "load", "ack", "client")}
    theirs = {k: Samples() for k in ("total", "load", "ack")}
    with clone(lab, "keeper"), Floor(lab, base["id"], DIRTY) as floor:
        floor.ask("fork")
        for i in range(n):
            answer = floor.ask("fork")
            for k, samples in theirs.items():
                samples.append(answer[f"{k}_ms"])
            begin = time.monotonic()
            with clone(lab, f"fork-{i}") as (times, forked):
                ours["client"].append((time.monotonic() - begin) * 1e3)
                ours["wall"].append(forked["wall_ms"])
                for k in ("total", "load", "ack"):
                    ours[k].append(times[f"{k}_ms"])
    return [Line("fork of a 256 MiB guest, second clone on, against the floor", ours["wall"].p50 / theirs["total"].p50, 1.3, parts={
        "forkd: request to answer (wall_ms)": ours["wall"],
        "forkd: the clone (total_ms)": ours["total"],
        "forkd: spawn to state loaded (load_ms)": ours["load"],
        "forkd: loaded to acknowledged (ack_ms)": ours["ack"],
        "forkctl's whole life": ours["client"],
        "floor: spawn to acknowledged": theirs["total"],
        "floor: spawn to state loaded": theirs["load"],
        "floor: loaded to acknowledged": theirs["ack"],
    })]


def wait_no_images(lab):
    """With idle_image_seconds = 0 decoded memory goes with its last session."""
    deadline = time.monotonic() + IMAGE_GONE_S
    while lab.ctl("pager", "status").get("images"):
        if time.monotonic() > deadline:
            raise RuntimeError("the pager keeps decoded memory without a session")
        time.sleep(0.02)


def first_clone_against_rival(lab, base, n):
    """2. The first clone ever, nothing decoded yet, against QEMU's own way."""
    ours = {k: Samples() for k in ("wall", "load", "ack")}
    theirs = {k: Samples() for k in ("load", "running", "ack")}
    with contextlib.ExitStack() as stack:
        with clone(lab, "model"):
            floor = stack.enter_context(Floor(lab, base["id"], DIRTY))
            rival = stack.enter_context(Rival(lab, base["id"], floor.ram, lab.vm("model")["pid"], base["ram_bytes"]))
        size = rival.file.stat().st_size
        rival.restore(floor)
        for i in range(n):
            for k, ms in rival.restore(floor).items():
                theirs[k].append(ms)
            wait_no_images(lab)
            with clone(lab, f"first-{i}") as (times, forked):
                ours["wall"].append(forked["wall_ms"])
                for k in ("load", "ack"):
                    ours[k].append(times[f"{k}_ms"])
    what = "first clone, nothing decoded, against QEMU restoring all from a zstd file"
    return [
        Line(f"{what}: until the state is loaded", theirs["load"].p50 / ours["load"].p50, 3, at_least=True, parts={
            "forkd: spawn to state loaded (load_ms)": ours["load"], "QEMU: spawn to state loaded": theirs["load"],
            "the zstd file": f"{size / MIB:.1f} MiB", "the snapshot": f"{base['stored_bytes'] / MIB:.1f} MiB"}),
        Line(f"{what}: until the guest has acknowledged", theirs["ack"].p50 / ours["wall"].p50, 3, at_least=True, parts={
            "forkd: request to answer (wall_ms)": ours["wall"], "forkd: of it in the guest (ack_ms)": ours["ack"],
            "QEMU: spawn to vCPUs running": theirs["running"], "QEMU: spawn to acknowledged": theirs["ack"]},
            note=f"acknowledged with forkd against merely running without: {theirs['running'].p50 / ours['wall'].p50:.2f} x"),
    ]


def standby_against_save(lab, base, n):
    """3. Standby of a clone that dirtied 1 MiB, against the device state alone."""
    names = ("pause", "device", "memory", "total")
    fast, synced = {k: Samples() for k in names}, {k: Samples() for k in names}
    alone, stop = Samples(), Samples()
    with clone(lab, "keeper"), Floor(lab, base["id"], DIRTY) as floor:
        floor.ask("save")
        for i in range(n):
            answer = floor.ask("save")
            alone.append(answer["device_ms"])
            stop.append(answer["pause_ms"])
            for how, flags in ((fast, ["--no-sync"]), (synced, [])):
                with clone(lab, f"save-{i}"):
                    dirty(lab, f"save-{i}")
                    saved = lab.ctl("standby", f"save-{i}", *flags)
                    for k, samples in how.items():
                        samples.append(saved[f"{k}_ms"])
    by_hand = alone.p50 + stop.p50
    what = "standby of a clone that dirtied 1 MiB, against stopping and saving the device state alone by hand"
    return [
        Line(f"{what}: the guest's pause", fast["pause"].p50 / by_hand, 1.5, parts={
            "forkd: pause_ms": fast["pause"], "forkd: of it the device state (device_ms)": fast["device"],
            "forkd: of it, beside, reading memory (memory_ms)": fast["memory"],
            "by hand: stopping the vCPUs": stop, "by hand: the device state": alone},
            note=f"against the saving without the stopping: {fast['pause'].p50 / alone.p50:.2f} x"),
        Line(f"{what}: until the VMM is gone, --no-sync", fast["total"].p50 / by_hand, 1.5, parts={"forkd: total_ms": fast["total"]}),
        Line(f"{what}: until it is durable", synced["total"].p50 / by_hand, 1.5, parts={"forkd: total_ms": synced["total"]}),
    ]


def growth(medians):
    """Last against first, on the straight line that fits best: single medians scatter by more than is looked for."""
    n = len(medians)
    mean_x, mean_y = (n - 1) / 2, sum(medians) / n
    slope = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(medians)) / sum((x - mean_x) ** 2 for x in range(n))
    return (mean_y + slope * (n - 1 - mean_x)) / (mean_y - slope * mean_x)


def chain_links(lab, base, n):
    """3. No more for the 16th link of a chain than for the first."""
    links = [{"pause": Samples(), "total": Samples(), "stored MiB": Samples()} for _ in range(LINKS)]
    for i in range(n):
        name = f"chain-{i}"
        lab.ctl("fork", BASE, name)
        for number, link in enumerate(links):
            dirty(lab, name, f"link-{number}")
            saved = lab.ctl("standby", name, "--no-sync")
            link["pause"].append(saved["pause_ms"])
            link["total"].append(saved["total_ms"])
            link["stored MiB"].append(saved["stored_bytes"] / MIB)
            if number + 1 < LINKS:
                lab.ctl("restore", name)
        lab.ctl("rm", name)
    return [Line(f"standby: link {LINKS} of a chain against link 1, {what} ({key}_ms)", growth([link[key].p50 for link in links]), 1.1,
                 parts={f"link {number + 1}: {k}": links[number][k] for number in (0, LINKS // 2 - 1, LINKS - 1) for k in (key, "stored MiB")},
                 note=f"on the line through the medians of all {LINKS} links; a tenth is allowed for their scatter")
            for key, what in (("pause", "the guest's pause"), ("total", "all of it"))]


def idle_clones(lab, base, idle_s):
    """4. Eight idle clones: memory once, and little for each."""
    clones = lab.ctl("fork", BASE, "idle", "--count", str(CLONES))["clones"]
    time.sleep(idle_s)  # being idle is what is measured
    mappings = [guest_ram_mappings(lab.vm(c["name"])["pid"]) for c in clones]
    private = Samples(sum(m["Anonymous"] for m in ms) / MIB for ms in mappings)
    pss = sum(m["Pss"] for ms in mappings for m in ms)
    image, = (i for i in lab.ctl("pager", "status")["images"] if i["sessions"] == CLONES)
    present = image["present_bytes"]
    for c in clones:
        lab.ctl("rm", c["name"])
    assert len(private) == CLONES and all(len(ms) > 0 for ms in mappings)
    return [
        Line(f"{CLONES} idle clones: private guest memory of the worst", max(private), PRIVATE_MAX / MIB, unit="MiB",
             parts={"each clone, MiB": private}, note=f"idle for {idle_s} s"),
        Line(f"{CLONES} idle clones: guest memory of all (sum of Pss), against the decoded image and {PRIVATE_MAX // MIB} MiB each",
             pss / (present + CLONES * PRIVATE_MAX), 1, parts={
                 "sum of Pss of the guest-RAM mappings": f"{pss / MIB:.1f} MiB",
                 "the decoded image, once": f"{present / MIB:.1f} MiB",
                 f"{CLONES} separate guests' RAM": f"{CLONES * base['ram_bytes'] / MIB:.0f} MiB",
             }),
    ]
