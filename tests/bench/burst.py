#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A burst: 100 clones of one snapshot at once, with several limits on how many VMMs start at a time, in turn, round by
round, on one store. Tells when the last clone was there, and when half of them were."""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parents[1] / "lib")]
from forkdlab import Lab  # noqa: E402
from measure import host, warm_memory  # noqa: E402
from mprpc import Client  # noqa: E402


def burst(lab, clones, limit):
    """Each clone is a fork of its own, asked for at the same time: seconds until each was there."""
    # A forkd that starts a hundred VMMs in one turn is late for its pager, too.
    lab.conf.write_text(f"[forkd]\nparallel_starts = {limit}\n[pager]\nheartbeat_ms = 60000\n")
    lab.terminate()
    lab.start()
    lab.ctl("fork", "base", "first")  # the image is decoded, and the version of QEMU known
    done = []
    with Client(lab.socket, timeout=300) as c:
        begin = time.monotonic()
        for i in range(clones):
            c.send("vm.fork", {"source": "base", "name": f"c{i}"})
        while len(done) < clones:
            m = c.receive()
            if m[0] == 1:
                if m[2] is not None:
                    raise RuntimeError(m[2])
                done.append(time.monotonic() - begin)
    lab.ctl("rm", "--all")
    return {"all_s": done[-1], "half_s": done[clones // 2 - 1]}


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--clones", type=int, default=100)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--limits", type=int, nargs="+", help="starts at once; the first is what the others are compared with")
    p.add_argument("--json")
    args = p.parse_args()
    cores = os.cpu_count()
    limits = args.limits or [2 * cores, cores, 4 * cores, args.clones]
    figures = {n: [] for n in limits}
    warm_memory(2048)
    with Lab(store="2G") as lab:
        lab.ctl("run", "original", "--mem", "128M")
        accel = lab.vm("original")["accel"]
        lab.ctl("standby", "original", "--tag", "base")
        lab.ctl("rm", "original")
        for turn in range(args.rounds):
            for n in limits if turn % 2 == 0 else reversed(limits):
                figures[n].append(burst(lab, args.clones, n))
                print(f"round {turn + 1}, {n} at once: all after {figures[n][-1]['all_s']:.2f} s, half after "
                      f"{figures[n][-1]['half_s']:.2f} s", flush=True)
    median = {n: {k: statistics.median(f[k] for f in figures[n]) for k in ("all_s", "half_s")} for n in limits}
    print(f"\n{args.clones} clones, {cores} cores, medians of {args.rounds}\n{'at once':>8} {'all':>8} {'half':>8} {'all, against ' + str(limits[0]):>16}")
    for n in limits:
        ratio = statistics.median(b["all_s"] / a["all_s"] for a, b in zip(figures[limits[0]], figures[n]))
        print(f"{n:>8} {median[n]['all_s']:>7.2f}s {median[n]['half_s']:>7.2f}s {ratio:>16.2f}")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"host": host(accel), "clones": args.clones, "rounds": figures}, indent=1))


if __name__ == "__main__":
    main()
